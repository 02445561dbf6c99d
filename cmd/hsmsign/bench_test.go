//go:build cgo

package main

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"hsmsign/internal/console"
	"hsmsign/internal/input"
	"hsmsign/internal/testkit"
	"hsmsign/ledger"
	"hsmsign/ledger/sqlite"
	softhsmtest "hsmsign/softhsm-test"
)

const golden = "../../testdata/golden"

// batchSize is the batch whose rate is compared.
const batchSize = 1000

// makeCSRs writes n CSR files, each with a name of its own.
func makeCSRs(b *testing.B, dir string, n int) []*x509.CertificateRequest {
	b.Helper()
	customer, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		b.Fatal(err)
	}
	parsed := make([]*x509.CertificateRequest, n)
	parallel(b, n, runtime.GOMAXPROCS(0), func(_, i int) error {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
			Subject: pkix.Name{CommonName: fmt.Sprintf("customer %d", i), Organization: []string{"Acme"}, Country: []string{"US"}},
		}, customer)
		if err != nil {
			return err
		}
		if parsed[i], err = x509.ParseCertificateRequest(der); err != nil {
			return err
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
		return os.WriteFile(filepath.Join(dir, fmt.Sprintf("customer-%05d.csr", i)), text, 0o600)
	})
	return parsed
}

// parallel lets workers do n pieces of work between them, and gives the time that took.
func parallel(b *testing.B, n, workers int, do func(worker, i int) error) time.Duration {
	b.Helper()
	began := time.Now()
	next := make(chan int, n)
	for i := range n {
		next <- i
	}
	close(next)
	var group sync.WaitGroup
	for worker := range workers {
		group.Go(func() {
			for i := range next {
				if err := do(worker, i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	return time.Since(began)
}

// rawSigner makes one bare signature over a digest; worker tells sessions apart.
type rawSigner func(worker int, digest []byte) ([]byte, error)

// floor is the cryptography that cannot be left out of n requests: one check of the CSR's own signature, one
// signature, one verification of it, on all cores, with nothing read or written.
func floor(b *testing.B, csrs []*x509.CertificateRequest, pub *rsa.PublicKey, sign rawSigner) time.Duration {
	b.Helper()
	return parallel(b, len(csrs), runtime.GOMAXPROCS(0), bare(csrs, pub, sign))
}

func bare(csrs []*x509.CertificateRequest, pub *rsa.PublicKey, sign rawSigner) func(worker, i int) error {
	return func(worker, i int) error {
		if err := csrs[i].CheckSignature(); err != nil {
			return err
		}
		digest := sha256.Sum256(csrs[i].Raw)
		sig, err := sign(worker, digest[:])
		if err != nil {
			return err
		}
		return rsa.VerifyPKCS1v15(pub, crypto.SHA256, digest[:], sig)
	}
}

// memoryFolder is a folder without a disk behind it, where the system has one, so that what is measured is the
// program and not the disk: on some virtual disks making an empty file costs a quarter of a signature.
func memoryFolder(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "hsmsign-bench-")
	if err != nil {
		return b.TempDir()
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// runBatch runs the command in this process and returns the time it took.
func runBatch(b *testing.B, in, out, key string, more ...string) time.Duration {
	b.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	defer debug.SetGCPercent(debug.SetGCPercent(gcPercent)) // as main does
	p := &program{con: console.New("hsmsign", null, null, ""), in: input.Reader{Stdin: null}, getenv: func(string) string { return "" }}
	began := time.Now()
	args := append([]string{
		"hsmsign", "sign", "--key", key, "--cert", filepath.Join(golden, "chain.pem"),
		"--trust-root", filepath.Join(golden, "root.pem"), "--out-dir", out,
	}, more...)
	if err = p.app("").RunContext(b.Context(), append(args, in)); err != nil {
		b.Fatal(console.ErrorLine(err))
	}
	return time.Since(began)
}

// batchRatio compares batches in a folder with the floor, turn about, and reports the median ratio of their rates.
func batchRatio(b *testing.B, dir, key string, floor func(csrs []*x509.CertificateRequest) time.Duration) {
	b.Helper()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	if err := os.Mkdir(in, 0o700); err != nil {
		b.Fatal(err)
	}
	csrs := makeCSRs(b, in, batchSize)
	var ratios []float64
	var total time.Duration
	for b.Loop() {
		b.StopTimer()
		before := floor(csrs)
		took := runBatch(b, in, out, key)
		after := floor(csrs)
		if err := os.RemoveAll(out); err != nil {
			b.Fatal(err)
		}
		ratios = append(ratios, (before+after).Seconds()/2/took.Seconds())
		total += took
		b.StartTimer()
	}
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], "x-floor")
	b.ReportMetric(float64(len(ratios)*batchSize)/total.Seconds(), "requests/s")
	b.ReportMetric(0, "ns/op") // the timer stands still: what counts is measured here
}

func writeKey(b *testing.B) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), "vendor.key")
	if err := os.WriteFile(path, testkit.File(b, "golden/vendor.key"), 0o600); err != nil {
		b.Fatal(err)
	}
	return path
}

func BenchmarkBatchFile(b *testing.B) {
	key := testkit.GoldenKey(b)
	batchRatio(b, memoryFolder(b), "file:"+writeKey(b), func(csrs []*x509.CertificateRequest) time.Duration {
		return floor(b, csrs, &key.PublicKey, fileSigner(key))
	})
}

func fileSigner(key *rsa.PrivateKey) rawSigner {
	return func(_ int, digest []byte) ([]byte, error) { return rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest) }
}

// BenchmarkBatchFileOnDisk adds to the floor what the disk asks for: each request made, written, and flushed.
func BenchmarkBatchFileOnDisk(b *testing.B) {
	key := testkit.GoldenKey(b)
	size := len(testkit.File(b, "golden/customer.req"))
	batchRatio(b, b.TempDir(), "file:"+writeKey(b), func(csrs []*x509.CertificateRequest) time.Duration {
		dir := b.TempDir()
		crypt := bare(csrs, &key.PublicKey, fileSigner(key))
		return parallel(b, len(csrs), 4*runtime.GOMAXPROCS(0), func(worker, i int) error {
			if err := crypt(worker, i); err != nil {
				return err
			}
			f, err := os.Create(filepath.Join(dir, strconv.Itoa(i)))
			if err != nil {
				return err
			}
			if _, err = f.Write(make([]byte, size)); err == nil {
				err = f.Sync()
			}
			return errors.Join(err, f.Close())
		})
	})
}

// BenchmarkBatchLedger compares batches that are recorded in a new ledger, on a disk, with batches that are not.
func BenchmarkBatchLedger(b *testing.B) {
	dir := memoryFolder(b)
	in, out, key := filepath.Join(dir, "in"), filepath.Join(dir, "out"), "file:"+writeKey(b)
	if err := os.Mkdir(in, 0o700); err != nil {
		b.Fatal(err)
	}
	makeCSRs(b, in, batchSize)
	var ratios []float64
	for b.Loop() {
		without := runBatch(b, in, out, key)
		if err := os.RemoveAll(out); err != nil {
			b.Fatal(err)
		}
		store := filepath.Join(b.TempDir(), strconv.Itoa(len(ratios)))
		signerKey, verifierKey, err := ledger.GenerateKey("example.com/bench")
		if err == nil {
			err = os.WriteFile(store+".key", []byte(signerKey), 0o600)
		}
		if err != nil {
			b.Fatal(err)
		}
		opened, err := sqlite.Open(b.Context(), store, true)
		if err == nil {
			_, err = ledger.Init(b.Context(), ledger.Config{Store: opened, Key: signerKey, Verifier: verifierKey})
		}
		if err == nil {
			err = opened.DB.Close()
		}
		if err != nil {
			b.Fatal(err)
		}
		with := runBatch(b, in, out, key, "--ledger", "sqlite:"+store, "--customer", "acme")
		if err := os.RemoveAll(out); err != nil {
			b.Fatal(err)
		}
		ratios = append(ratios, without.Seconds()/with.Seconds())
	}
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], "x-without")
	b.ReportMetric(0, "ns/op")
}

// benchToken is a SoftHSM2 token with the vendor's key.
func benchToken(b *testing.B) *softhsmtest.Token {
	token := softhsmtest.New(b)
	token.Import(b, testkit.File(b, "golden/vendor.key"), "vendor", []byte{1})
	return token
}

func BenchmarkBatchSoftHSM(b *testing.B) {
	token := benchToken(b)
	// A module is initialized once a process; the program takes one that is initialized as it is.
	lib, sessions, object := bareSessions(b, token)
	info := []byte("\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20")
	mechanism := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS, nil)}
	pub := &testkit.GoldenKey(b).PublicKey
	batchRatio(b, memoryFolder(b), token.Ref("vendor"), func(csrs []*x509.CertificateRequest) time.Duration {
		return floor(b, csrs, pub, func(worker int, digest []byte) ([]byte, error) {
			if err := lib.SignInit(sessions[worker], mechanism, object); err != nil {
				return nil, err
			}
			return lib.Sign(sessions[worker], slices.Concat(info, digest))
		})
	})
}

// bareSessions logs in and opens a session for each core, past the program.
func bareSessions(b *testing.B, token *softhsmtest.Token) (*pkcs11.Ctx, []pkcs11.SessionHandle, pkcs11.ObjectHandle) {
	b.Helper()
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	lib := pkcs11.New(token.Module)
	must(lib.Initialize())
	b.Cleanup(func() { _ = lib.Finalize() })
	slots, err := lib.GetSlotList(true)
	must(err)
	var sessions []pkcs11.SessionHandle
	for range runtime.GOMAXPROCS(0) {
		sh, err := lib.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION)
		must(err)
		sessions = append(sessions, sh)
	}
	must(lib.Login(sessions[0], pkcs11.CKU_USER, token.PIN))
	must(lib.FindObjectsInit(sessions[0], []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY)}))
	objects, _, err := lib.FindObjects(sessions[0], 1)
	must(err)
	must(lib.FindObjectsFinal(sessions[0]))
	return lib, sessions, objects[0]
}

// buildProgram builds the real program, with more tags than those of "make build".
func buildProgram(b testing.TB, tags ...string) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), "hsmsign")
	tags = append(tags, "grpcnotrace", "urfave_cli_no_docs")
	if out, err := exec.Command("go", "build", "-tags", strings.Join(tags, ","), "-o", path, ".").CombinedOutput(); err != nil { // #nosec G204 -- a test's own arguments
		b.Fatalf("%v: %s", err, out)
	}
	return path
}

// timed runs a process and gives its time.
func timed(b *testing.B, name string, args ...string) time.Duration {
	b.Helper()
	began := time.Now()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		b.Fatalf("%s: %v: %s", name, err, out)
	}
	return time.Since(began)
}

func median(times []time.Duration) time.Duration {
	slices.Sort(times)
	return times[len(times)/2]
}

// BenchmarkProcess is one sign as a whole process, compared with openssl's bare signature over the same CSR, and the
// start of the program alone.
func BenchmarkProcess(b *testing.B) {
	hsmsign, key := buildProgram(b), writeKey(b)
	der := filepath.Join(b.TempDir(), "customer.der")
	timed(b, "openssl", "req", "-in", filepath.Join(golden, "customer.csr"), "-outform", "DER", "-out", der)
	out := filepath.Join(b.TempDir(), "out")
	var sign, openssl, version []time.Duration
	for b.Loop() {
		took := timed(b, "openssl", "dgst", "-sha256", "-sign", key, "-out", out, der)
		openssl = append(openssl, took)
		took = timed(b, hsmsign, "sign", "--key", "file:"+key, "--cert", filepath.Join(golden, "chain.pem"),
			"--trust-root", filepath.Join(golden, "root.pem"), "--force", "-o", out, filepath.Join(golden, "customer.csr"))
		sign = append(sign, took)
		took = timed(b, hsmsign, "version")
		version = append(version, took)
	}
	b.ReportMetric(median(sign).Seconds()/median(openssl).Seconds(), "x-openssl")
	b.ReportMetric(float64(median(sign).Microseconds())/1000, "sign-ms")
	b.ReportMetric(float64(median(version).Microseconds())/1000, "version-ms")
}

// BenchmarkSoftHSMProcess is one sign on SoftHSM2 as a whole process, compared with pkcs11-tool's bare signature over the
// same CSR with the same key.
func BenchmarkSoftHSMProcess(b *testing.B) {
	b.Run("nocloud", func(b *testing.B) { softHSMProcess(b, buildProgram(b, "nocloud")) })
	b.Run("whole", func(b *testing.B) { softHSMProcess(b, buildProgram(b)) })
}

func softHSMProcess(b *testing.B, hsmsign string) {
	token := benchToken(b)
	dir := b.TempDir()
	out, der := filepath.Join(dir, "out"), filepath.Join(dir, "customer.der")
	timed(b, "openssl", "req", "-in", filepath.Join(golden, "customer.csr"), "-outform", "DER", "-out", der)
	b.Setenv("BENCH_PIN", token.PIN)
	var sign, tool []time.Duration
	for b.Loop() {
		tool = append(tool, timed(b, "pkcs11-tool", "--module", token.Module, "--token-label", token.Label, "--login", "--pin", "env:BENCH_PIN",
			"--sign", "--mechanism", "SHA256-RSA-PKCS", "--label", "vendor", "-i", der, "-o", out))
		sign = append(sign, timed(b, hsmsign, "sign", "--key", token.Ref("vendor"), "--cert", filepath.Join(golden, "chain.pem"),
			"--trust-root", filepath.Join(golden, "root.pem"), "--force", "-o", out, filepath.Join(golden, "customer.csr")))
	}
	b.ReportMetric(median(sign).Seconds()/median(tool).Seconds(), "x-pkcs11-tool")
	b.ReportMetric(float64(median(sign).Microseconds())/1000, "sign-ms")
}

// BenchmarkBatchMemory is by how much the peak memory of a batch of 20,000 exceeds that of 200.
func BenchmarkBatchMemory(b *testing.B) {
	hsmsign, key := buildProgram(b), writeKey(b)
	peak := func(n int) float64 {
		dir := memoryFolder(b)
		in := filepath.Join(dir, "in")
		if err := os.Mkdir(in, 0o700); err != nil {
			b.Fatal(err)
		}
		makeCSRs(b, in, n)
		return peakMemory(b, exec.Command(hsmsign, "sign", "--key", "file:"+key, "--cert", filepath.Join(golden, "chain.pem"),
			"--trust-root", filepath.Join(golden, "root.pem"), "--out-dir", filepath.Join(dir, "out"), in))
	}
	for b.Loop() {
		small, large := peak(200), peak(20000)
		b.ReportMetric(small, "MB-at-200")
		b.ReportMetric(large-small, "MB-more-at-20000")
	}
}

// peakMemory runs a process and gives the most memory that it held at a time, in MB, as Linux tells it (VmHWM). The
// figure of wait4(2) will not do: it starts from that of the process which forked.
func peakMemory(b *testing.B, cmd *exec.Cmd) float64 {
	b.Helper()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	var peak float64
	for {
		select {
		case err := <-done:
			if err != nil {
				b.Fatal(err)
			}
			return peak / 1024
		case <-time.After(10 * time.Millisecond):
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
		if err != nil {
			continue
		}
		if _, rest, ok := strings.Cut(string(status), "VmHWM:"); ok {
			var kB float64
			if _, err := fmt.Sscan(rest, &kB); err == nil {
				peak = max(peak, kB)
			}
		}
	}
}
