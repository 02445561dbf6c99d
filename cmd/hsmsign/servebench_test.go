//go:build linux && cgo

package main

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/keystore"
	"hsmsign/signer"
	"hsmsign/signer/awskms/awskmstest"
	"hsmsign/signer/gcpkms/gcpkmstest"
)

// benchCallers is how many callers ask at the same time, each on a connection of its own.
const benchCallers = 64

// roundSize is how many requests are measured at a time.
const roundSize = 2000

// loadRound sends each order once, from all callers, and returns how long that took.
func loadRound(b *testing.B, sv *served, clients []*http.Client, orders []order) time.Duration {
	b.Helper()
	return parallel(b, len(orders), len(clients), func(worker, i int) error {
		a, err := sv.post(b.Context(), clients[worker], orders[i])
		if err == nil && a.status != http.StatusOK {
			err = fmt.Errorf("%d: %s", a.status, a.body)
		}
		return err
	})
}

func (c *csrs) orders(n int) []order {
	all := make([]order, n)
	var next atomic.Int64
	var group sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		group.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				all[i] = c.next()
			}
		})
	}
	group.Wait()
	return all
}

// ownTime returns the processor time of this process.
func ownTime(b testing.TB) time.Duration {
	var usage syscall.Rusage
	testkit.OK(b, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// bareRound makes signatures with a key, past everything of the service, and returns the processor time and the time.
func bareRound(b *testing.B, key signer.Signer, callers int) (cpu, took time.Duration) {
	b.Helper()
	runtime.GC()
	before := ownTime(b)
	workers := children(os.Getpid())
	for _, w := range workers {
		before += cpuTime(b, w)
	}
	digest := sha256.Sum256([]byte("bench"))
	took = parallel(b, roundSize, callers, func(int, int) error {
		_, err := key.SignContext(b.Context(), digest[:], crypto.SHA256)
		return err
	})
	cpu = ownTime(b) - before
	for _, w := range workers {
		cpu += cpuTime(b, w)
	}
	return cpu, took
}

// verifyRound makes the two verifications that each request needs, of the CSR and of the new signature, and returns the processor time.
func verifyRound(b *testing.B, orders []order) time.Duration {
	b.Helper()
	parsed := make([]*x509.CertificateRequest, len(orders))
	for i, o := range orders {
		parsed[i] = testkit.Value(x509.ParseCertificateRequest(o.der))(b)
	}
	digest := sha256.Sum256([]byte("bench"))
	signature := testkit.Value(rsa.SignPKCS1v15(nil, testkit.GoldenKey(b), crypto.SHA256, digest[:]))(b)
	before := ownTime(b)
	parallel(b, len(orders), runtime.GOMAXPROCS(0), func(_, i int) error {
		if err := parsed[i].CheckSignature(); err != nil {
			return err
		}
		return rsa.VerifyPKCS1v15(goldenPublic(), crypto.SHA256, digest[:], signature)
	})
	return ownTime(b) - before
}

// openBare opens a key as the service does.
func openBare(b *testing.B, s *site) signer.Signer {
	b.Helper()
	store := keystore.New(keystore.Options{Worker: []string{s.program, workerCommand}, Isolate: true})
	key := testkit.Value(testkit.Value(store.Parse(s.key))(b).Open(context.Background(), signer.OpenOptions{}))(b)
	b.Cleanup(func() { _ = key.Close() })
	return key
}

func clientsOf(b testing.TB, sv *served, n int) []*http.Client {
	all := make([]*http.Client, n)
	for i := range all {
		all[i] = sv.client(b, i%len(sv.callers))
	}
	return all
}

// serveRatio reports the processor time of a bare signature divided by that of a request (cpu-ratio), the same with the two
// verifications that a request needs (floor-ratio), and the ratio of the rates. Rounds of both alternate.
func serveRatio(b *testing.B, key string) {
	b.Helper()
	s := newSite(b, benchCallers, "", key)
	s.program = buildProgram(b)
	sv := s.service(b)
	bare := openBare(b, s)
	clients, made := clientsOf(b, sv, benchCallers), newCSRs(4)
	loadRound(b, sv, clients, made.orders(2*benchCallers)) // connections and customers are new
	bareRound(b, bare, benchCallers)
	var cpu, floor, rate, each []float64
	for b.Loop() {
		bareCPU, bareTook := bareRound(b, bare, benchCallers)
		orders := made.orders(roundSize)
		verifyCPU := verifyRound(b, orders)
		runtime.GC()
		before := cpuTime(b, sv.cmd.Process.Pid)
		took := loadRound(b, sv, clients, orders)
		used := cpuTime(b, sv.cmd.Process.Pid) - before
		cpu = append(cpu, bareCPU.Seconds()/used.Seconds())
		floor = append(floor, (bareCPU+verifyCPU).Seconds()/used.Seconds())
		rate = append(rate, bareTook.Seconds()/took.Seconds())
		each = append(each, used.Seconds()*1e6/roundSize)
		b.Logf("bare %v CPU, %v; service %v CPU, %v", bareCPU/roundSize, bareTook/roundSize, used/roundSize, took/roundSize)
	}
	report := func(values []float64, unit string) {
		slices.Sort(values)
		b.ReportMetric(values[len(values)/2], unit)
	}
	if !strings.Contains(key, "kms:") {
		report(cpu, "cpu-ratio")
		report(floor, "floor-ratio")
	}
	report(rate, "rate-ratio")
	report(each, "cpu-us/request")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkServeFile compares requests of 64 callers over mTLS, with a SQLite ledger, with bare signatures of a file key.
func BenchmarkServeFile(b *testing.B) { serveRatio(b, "") }

// BenchmarkServeSoftHSM is BenchmarkServeFile on SoftHSM2, whose module runs in a worker process on both sides.
func BenchmarkServeSoftHSM(b *testing.B) {
	token := benchToken(b)
	serveRatio(b, token.Ref("vendor"))
}

// BenchmarkServeAWSKMS compares the rates on a double of AWS KMS that delays every answer by 10 ms. The double and the callers are in
// the process of the benchmark, so its processor time says nothing.
func BenchmarkServeAWSKMS(b *testing.B) {
	double := testkit.Value(awskmstest.NewServer(awskmstest.Config{Delay: kmsDelay}))(b)
	b.Cleanup(func() { _ = double.Close() })
	testkit.Value(double.AddKey("alias/vendor", testkit.GoldenKey(b)))(b)
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": awskmstest.AccessKeyID, "AWS_SECRET_ACCESS_KEY": awskmstest.SecretAccessKey, "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull,
	} {
		b.Setenv(name, value) // for both sides
	}
	serveRatio(b, "awskms:///alias/vendor?region=eu-west-1&endpoint="+double.Endpoint())
}

// BenchmarkServeGCPKMS is BenchmarkServeAWSKMS for Google's double.
func BenchmarkServeGCPKMS(b *testing.B) {
	const name = "projects/p/locations/europe-west1/keyRings/mdm/cryptoKeys/vendor/cryptoKeyVersions/1"
	double := testkit.Value(gcpkmstest.NewServer(gcpkmstest.Config{Delay: kmsDelay}))(b)
	b.Cleanup(func() { _ = double.Close() })
	testkit.Value(double.AddKey(name, testkit.GoldenKey(b)))(b)
	serveRatio(b, "gcpkms://"+name+"?endpoint="+double.Endpoint())
}

const kmsDelay = 10 * time.Millisecond

// BenchmarkServeStartFile measures the time from the start of the process to the first request.
func BenchmarkServeStartFile(b *testing.B) { serveStart(b, "") }

// BenchmarkServeStartSoftHSM is BenchmarkServeStartFile on SoftHSM2.
func BenchmarkServeStartSoftHSM(b *testing.B) {
	token := benchToken(b)
	serveStart(b, token.Ref("vendor"))
}

func serveStart(b *testing.B, key string) {
	b.Helper()
	s := newSite(b, 1, "", key)
	s.program = buildProgram(b)
	sv, made := s.service(b), newCSRs(1)
	var times []time.Duration
	for b.Loop() {
		sv.kill()
		o, client := made.next(), sv.client(b, 0)
		client.Transport.(*http.Transport).DisableKeepAlives = true
		began := time.Now()
		sv.exec(b)
		for {
			a, err := sv.post(b.Context(), client, o)
			if err == nil && a.status == http.StatusOK {
				break
			}
			if time.Since(began) > 30*time.Second {
				b.Fatalf("no answer: %v %s: %s", err, a.body, sv.tail())
			}
			time.Sleep(time.Millisecond)
		}
		times = append(times, time.Since(began))
	}
	b.ReportMetric(float64(median(times).Microseconds())/1000, "first-answer-ms")
	b.ReportMetric(float64(slices.Max(times).Microseconds())/1000, "slowest-ms")
	b.ReportMetric(0, "ns/op")
}
