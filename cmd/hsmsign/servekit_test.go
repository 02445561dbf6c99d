//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"hsmsign/internal/servicekit"
	"hsmsign/internal/testkit"
)

// site is what the services of a test share: a folder with the golden vendor, a ledger, and callers with client certificates.
// Its fields do not change after the first start.
type site struct {
	dir     string
	program string
	key     string   // reference of the vendor's key
	ledger  string   // reference of the store
	env     []string // added to those of the test
	// Limits of each caller.
	perSecond, perDay int
	notify            map[string]any // of the configuration; nil: none

	ca      *testkit.CA
	callers []tls.Certificate // of caller-0, caller-1, ...
}

// newSite makes a folder with a number of callers and an empty ledger. The ledger is a SQLite file and the key vendor.key, both in
// the folder, unless references are given.
func newSite(t testing.TB, callers int, ledger, key string) *site {
	t.Helper()
	s := &site{dir: t.TempDir(), ledger: ledger, key: key, perSecond: 100_000, perDay: 1_000_000_000, ca: testkit.NewCA(t, "service")}
	testkit.OK(t, copyDir(filepath.Join("..", "..", "testdata", "golden"), s.dir))
	s.program = programFile(t)
	if s.key == "" {
		s.key = "file:" + filepath.Join(s.dir, "vendor.key")
	}
	if s.ledger == "" {
		s.ledger = "sqlite:" + filepath.Join(s.dir, "ledger.db")
	}
	for i := range callers {
		s.callers = append(s.callers, s.ca.Issue(t, "caller-"+strconv.Itoa(i), nil))
	}
	cert, tlsKey := testkit.PEM(t, s.ca.Issue(t, "server", nil))
	s.write(t, "server.pem", cert)
	s.write(t, "server.key", tlsKey)
	s.run(t, "ledger", "init", "--origin", "example.com/service")
	return s
}

// programFile returns a file of the test binary that is called hsmsign: testscript.Main goes by the name. It is no symbolic link,
// which the program would follow when it starts its worker process.
func programFile(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hsmsign")
	if os.Link(os.Args[0], path) != nil { // another file system
		testkit.OK(t, os.WriteFile(path, testkit.Value(os.ReadFile(os.Args[0]))(t), 0o700)) // #nosec G306 -- it is run
	}
	return path
}

func (s *site) write(t testing.TB, name string, data []byte) {
	t.Helper()
	testkit.OK(t, os.WriteFile(filepath.Join(s.dir, name), data, 0o600))
}

// command is the program with the settings of the site.
func (s *site) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, s.program, args...) // #nosec G204 -- a test's own arguments
	cmd.Dir = s.dir
	cmd.Env = append(append(os.Environ(), "HOME="+s.dir, "XDG_CONFIG_HOME="+s.dir, "HSMSIGN_LEDGER="+s.ledger, "HSMSIGN_CHECKPOINT_KEY=checkpoint.key",
		"HSMSIGN_KEY="+s.key, "HSMSIGN_CERT=chain.pem", "HSMSIGN_TRUST_ROOT=root.pem"), s.env...)
	return cmd
}

// run runs a command that must succeed, and returns its standard output.
func (s *site) run(t testing.TB, args ...string) string {
	t.Helper()
	cmd := s.command(t.Context(), args...)
	cmd.Env = append(cmd.Env, "HSMSIGN_LAST_CHECKPOINT=last")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v: %s%s", args, err, out, stderr.Bytes())
	}
	return string(out)
}

// config writes a configuration for one service and returns its path.
func (s *site) config(t testing.TB, port int, socket string) string {
	t.Helper()
	role := map[string]any{"may": []string{"sign", "read", "freeze"}, "customers": []string{"*"}, "per-second": s.perSecond, "per-day": s.perDay, "approvals": "none"}
	callers := map[string]any{"ops": map[string]any{"role": "signer", "owners": []string{"ada"}, "uid": []int{os.Getuid()}}}
	for i, c := range s.callers {
		callers["caller-"+strconv.Itoa(i)] = map[string]any{
			"role": "signer", "owners": []string{"ada"}, "client-cert": map[string]any{"spki-sha256": []string{servicekit.Pin(c)}},
		}
	}
	config := map[string]any{
		"serve": map[string]any{
			"listen": []string{fmt.Sprint("tls://127.0.0.1:", port), "unix://" + socket}, "tls": map[string]any{"cert": "server.pem", "key": "server.key"},
		},
		"callers": callers, "roles": map[string]any{"signer": role}, "ledger": map[string]any{"store": s.ledger, "checkpoint-key": "checkpoint.key", "last-checkpoint": fmt.Sprint("last-", port)},
	}
	if s.notify != nil {
		config["notify"] = s.notify
	}
	name := fmt.Sprintf("service-%d.yaml", port)
	s.write(t, name, testkit.Value(json.Marshal(config))(t)) // JSON is YAML
	return filepath.Join(s.dir, name)
}

// served is one service of a site: a process that can be killed and started again.
type served struct {
	*site
	url, socket, log string
	port             int
	path             string // of the configuration
	cmd              *exec.Cmd
	ended            chan error
}

// service makes a service of the site and starts it.
func (s *site) service(t testing.TB) *served {
	t.Helper()
	l := testkit.Value(net.Listen("tcp", "127.0.0.1:0"))(t)
	port := l.Addr().(*net.TCPAddr).Port
	testkit.OK(t, l.Close())
	sv := &served{site: s, port: port, url: fmt.Sprint("https://127.0.0.1:", port), log: filepath.Join(s.dir, fmt.Sprint("log-", port))}
	sv.socket = filepath.Join(testkit.Value(os.MkdirTemp("", "hs"))(t), "s") // a path of a socket is short
	t.Cleanup(func() { _ = os.RemoveAll(filepath.Dir(sv.socket)) })
	sv.path = s.config(t, port, sv.socket)
	t.Cleanup(func() { sv.kill() })
	sv.start(t)
	return sv
}

// start starts the process, whose log is appended to a file, and waits until it answers.
func (sv *served) start(t testing.TB) {
	t.Helper()
	sv.exec(t)
	client := sv.client(t, 0)
	testkit.Eventually(t, "the service answers", func() bool {
		select {
		case err := <-sv.ended:
			t.Fatalf("the service ended: %v: %s", err, sv.tail())
		default:
		}
		r, err := client.Get(sv.url + "/livez")
		if err != nil {
			return false
		}
		_ = r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
	client.CloseIdleConnections()
}

// exec starts the process.
func (sv *served) exec(t testing.TB) {
	t.Helper()
	log := testkit.Value(os.OpenFile(sv.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600))(t)
	defer log.Close()
	cmd := sv.command(context.Background(), "serve", "--config", sv.path)
	cmd.Stderr = log
	testkit.OK(t, cmd.Start())
	ended := make(chan error, 1)
	sv.cmd, sv.ended = cmd, ended
	go func() { ended <- cmd.Wait(); close(ended) }()
}

// kill kills the process and waits for its end.
func (sv *served) kill() {
	_ = sv.cmd.Process.Kill() // it may have ended
	<-sv.ended
}

// stop ends the process with SIGTERM; it must end well.
func (sv *served) stop(t testing.TB) {
	t.Helper()
	testkit.OK(t, sv.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case err := <-sv.ended:
		if err != nil {
			t.Errorf("the service ended with %v: %s", err, sv.tail())
		}
	case <-time.After(time.Minute):
		t.Fatalf("the service does not end: %s", sv.tail())
	}
}

// tail returns the end of the log.
func (sv *served) tail() string {
	data, _ := os.ReadFile(sv.log)
	return string(data[max(0, len(data)-3000):])
}

// client returns a client with the certificate of a caller and connections of its own.
func (sv *served) client(t testing.TB, caller int) *http.Client {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(sv.ca.Cert)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{sv.callers[caller]}}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 2 * time.Minute}
}

// overSocket sends a request of the caller ops.
func (sv *served) overSocket(t testing.TB, method, path, body string) (status int, answer string) {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", sv.socket)
	}}
	defer transport.CloseIdleConnections()
	r := testkit.Value(http.NewRequestWithContext(t.Context(), method, "http://localhost"+path, strings.NewReader(body)))(t)
	r.Header.Set("Content-Type", "application/json")
	response := testkit.Value((&http.Client{Transport: transport, Timeout: time.Minute}).Do(r))(t)
	defer func() { _ = response.Body.Close() }() // it was read
	return response.StatusCode, string(testkit.Value(io.ReadAll(response.Body))(t))
}

// children returns the process ids of a process's children: the workers of PKCS#11.
func children(pid int) (all []int) {
	found, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, path := range found {
		data, _ := os.ReadFile(path) // the thread may have ended
		for _, field := range strings.Fields(string(data)) {
			if child, err := strconv.Atoi(field); err == nil {
				all = append(all, child)
			}
		}
	}
	return all
}

// cpuTime returns the processor time of a process and of its children, those that have ended included.
func cpuTime(t testing.TB, pid int) time.Duration {
	t.Helper()
	var ticks int64
	for i, p := range append([]int{pid}, children(pid)...) {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p))
		if err != nil && i > 0 {
			continue
		}
		testkit.OK(t, err)
		fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
		for _, n := range []int{11, 12, 13, 14} { // utime, stime, cutime, cstime; see proc_pid_stat(5)
			ticks += testkit.Value(strconv.ParseInt(fields[n], 10, 64))(t)
		}
	}
	return time.Duration(ticks) * (time.Second / 100) // USER_HZ is 100 on every Linux that Go runs on
}

// memory returns the resident memory of a process in bytes.
func memory(t testing.TB, pid int) int64 {
	t.Helper()
	status := string(testkit.Value(os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)))(t))
	_, rest, _ := strings.Cut(status, "VmRSS:")
	var kB int64
	_, err := fmt.Sscan(rest, &kB)
	testkit.OK(t, err)
	return kB << 10
}

// csrs makes CSRs that differ, of a few customers.
type csrs struct {
	keys []*rsa.PrivateKey
	made atomic.Int64
}

func newCSRs(customers int) *csrs {
	c := &csrs{}
	for i := range customers {
		c.keys = append(c.keys, testkit.Key(fmt.Sprint("customer ", i)))
	}
	return c
}

// order is one CSR and whose it is.
type order struct {
	customer string
	pem      string
	der      []byte
}

// next returns a new CSR. Its key is that of one customer.
func (c *csrs) next() order {
	n := c.made.Add(1)
	customer := int(n) % len(c.keys)
	der := testkit.Must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: fmt.Sprint("request ", n), Organization: []string{"Acme"}, Country: []string{"US"}},
	}, c.keys[customer]))
	return order{fmt.Sprint("customer-", customer), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), der}
}

// post asks for a request. The error is that of the connection; then nothing is known.
func (sv *served) post(ctx context.Context, client *http.Client, o order) (answered, error) {
	begun := time.Now()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, sv.url+"/v1/requests?customer="+o.customer, strings.NewReader(o.pem))
	if err != nil {
		return answered{}, err
	}
	response, err := client.Do(r)
	if err != nil {
		return answered{}, err
	}
	defer func() { _ = response.Body.Close() }() // it was read
	data, err := io.ReadAll(response.Body)
	return answered{
		order: o, begun: begun, took: time.Since(begun), status: response.StatusCode, body: data, location: response.Header.Get("Location"), retry: response.Header.Get("Retry-After"),
	}, err
}

// answered is one answer of POST /v1/requests.
type answered struct {
	order
	begun    time.Time
	took     time.Duration
	status   int
	body     []byte
	location string
	retry    string
}

// goldenPublic returns the public key of vendor.key.
var goldenPublic = sync.OnceValue(func() *rsa.PublicKey {
	block, _ := pem.Decode(testkit.Must(os.ReadFile(filepath.Join("..", "..", "testdata", "golden", "vendor.key"))))
	return &testkit.Must(x509.ParsePKCS8PrivateKey(block.Bytes)).(*rsa.PrivateKey).PublicKey
})

// goldenVerifies checks a signature of vendor.key over a message.
func goldenVerifies(message, signature []byte) error {
	digest := sha256.Sum256(message)
	return rsa.VerifyPKCS1v15(goldenPublic(), crypto.SHA256, digest[:], signature)
}

// soaking returns whether the long versions of tests run.
func soaking() bool { return os.Getenv("HSMSIGN_SOAK") != "" }
