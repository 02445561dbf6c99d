package main

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"hsmsign/internal/scripttest"
	"hsmsign/internal/testkit"
)

// cmdServicePKI returns the command servicepki: it makes ca.pem, server.pem and server.key for 127.0.0.1, localhost and
// sign.invalid, client.pem and client.key, whose pin is $PIN, stranger.pem and stranger.key, and other-ca.pem.
func cmdServicePKI(t *testing.T) scripttest.Command {
	return func(ts *testscript.TestScript, _ bool, _ []string) {
		write := func(name string, data []byte) { ts.Check(os.WriteFile(ts.MkAbs(name), data, 0o600)) }
		ca := testkit.NewCA(t, "service CA")
		for file, c := range map[string]*testkit.CA{"ca.pem": ca, "other-ca.pem": testkit.NewCA(t, "other CA")} {
			write(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Cert.Raw}))
		}
		issue := func(name string, change func(c *x509.Certificate)) tls.Certificate {
			issued := ca.Issue(t, name, change)
			cert, key := testkit.PEM(t, issued)
			write(name+".pem", cert)
			write(name+".key", key)
			return issued
		}
		issue("server", func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "sign.invalid") })
		issue("stranger", nil)
		pin := sha256.Sum256(issue("client", nil).Leaf.RawSubjectPublicKeyInfo)
		ts.Setenv("PIN", hex.EncodeToString(pin[:]))
	}
}

// cmdFreePort: freeport NAME... sets each variable to a port of the loopback interface that nobody listens on.
func cmdFreePort(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		_, port, err := net.SplitHostPort(listener.Addr().String())
		ts.Check(err)
		defer func() { _ = listener.Close() }() // all ports are different
		ts.Setenv(name, port)
	}
}

// cmdReady: ready URL waits until GET URL/readyz answers 200.
func cmdReady(ts *testscript.TestScript, _ bool, args []string) {
	client := http.Client{Timeout: 5 * time.Second}
	last := "no answer"
	for range 300 {
		answer, err := client.Get(args[0] + "/readyz")
		if err == nil {
			_ = answer.Body.Close() // only the status counts
			if last = answer.Status; answer.StatusCode == http.StatusOK {
				return
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	ts.Fatalf("the service is not ready: %s", last)
}

// runningProxies are those of all scripts, by URL.
var runningProxies sync.Map

// cmdProxy: proxy start ADDRESS starts an HTTP proxy that only knows CONNECT and connects every name with the address; $PROXY is
// its URL. proxy asked NAME wants that it was asked for NAME (HOST:PORT), proxy idle that it was asked for nothing since.
func cmdProxy(ts *testscript.TestScript, _ bool, args []string) {
	if args[0] == "start" {
		names := make(chan string, 1000)
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			names <- r.Method + " " + r.Host
			if r.Method == http.MethodConnect {
				tunnel(w, args[1])
			}
		}))
		ts.Defer(server.Close)
		ts.Setenv("PROXY", server.URL)
		runningProxies.Store(server.URL, names)
		return
	}
	found, _ := runningProxies.Load(ts.Getenv("PROXY"))
	names := found.(chan string)
	var asked []string
	for len(names) > 0 {
		asked = append(asked, <-names)
	}
	all := strings.Join(asked, ", ")
	switch {
	case args[0] == "idle" && all != "":
		ts.Fatalf("the proxy was asked for %s", all)
	case args[0] == "asked" && !strings.Contains(all+",", "CONNECT "+args[1]+","):
		ts.Fatalf("the proxy was not asked for %s, but for %q", args[1], all)
	}
}

// tunnel connects a client with an address.
func tunnel(w http.ResponseWriter, to string) {
	there, err := net.Dial("tcp", to)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer func() { _ = there.Close() }() // one side has ended
	here, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer func() { _ = here.Close() }() // one side has ended
	_, _ = io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n")
	go func() { _, _ = io.Copy(there, here); _ = there.Close() }()
	_, _ = io.Copy(here, there) // until one side ends
}
