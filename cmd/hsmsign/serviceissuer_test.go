package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"hsmsign/agent"
	"hsmsign/api"
	"hsmsign/client"
	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/request"
)

// fakeService answers every order with one request file, and the other questions about a caller whose role allows perSecond.
func fakeService(t *testing.T, file string, perSecond int) (issuer *serviceIssuer, orders *atomic.Int64) {
	t.Helper()
	orders = &atomic.Int64{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		var answer any = api.Me{PerSecond: perSecond}
		if r.URL.Path == "/v1/requests" {
			orders.Add(1)
			answer = api.SignResult{Status: api.StatusStored, Request: file, UseBefore: "2036-01-02T03:04:05Z"}
		}
		_ = json.NewEncoder(w).Encode(answer)
	}))
	t.Cleanup(server.Close)
	c := testkit.Value(client.New(client.Config{URL: server.URL}))(t)
	t.Cleanup(c.Close)
	return &serviceIssuer{client: c, timeout: time.Minute}, orders
}

// goldenFile returns a file of testdata.
func goldenFile(t *testing.T, name string) []byte {
	t.Helper()
	return testkit.Value(os.ReadFile(filepath.Join("..", "..", "testdata", name)))(t)
}

// TestForeignAnswers: an answer that is not a signed request for the CSR is not released.
func TestForeignAnswers(t *testing.T) {
	good := string(goldenFile(t, "golden/customer.req"))
	damaged := goldenFile(t, "golden/customer.plist")
	at := bytes.LastIndex(damaged, []byte("<string>")) + len("<string>") + 20 // a letter of the signature
	damaged[at] = map[bool]byte{true: 'B', false: 'A'}[damaged[at] == 'A']
	if _, err := request.Parse(damaged); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		file, csr string
		good      bool
	}{
		"its own":            {good, "golden/customer.csr", true},
		"another CSR":        {good, "csr/other.pem", false},
		"a wrong signature":  {string(damaged), "golden/customer.csr", false},
		"not a request file": {"file", "golden/customer.csr", false},
	} {
		issuer, _ := fakeService(t, tt.file, 1)
		prepared := testkit.Value(issuer.prepare(t.Context(), agent.Order{CSR: goldenFile(t, tt.csr)}))(t)
		issued, err := prepared.issue(t.Context())
		if tt.good != (err == nil) || !tt.good && fault.KindOf(err) != fault.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
		if tt.good && (string(issued.file) != tt.file || issued.useBefore.Year() != 2036) {
			t.Errorf("%s: %+v", name, issued)
		}
		if _, is, err := prepared.matches(t.Context(), []byte(tt.file)); is != tt.good || (err == nil) != tt.good {
			t.Errorf("%s: %v, %v", name, is, err)
		}
	}
}

// TestServiceWorkers: what the role does not allow is not in flight.
func TestServiceWorkers(t *testing.T) {
	for perSecond, want := range map[int]int{0: 1, 1: 4, 5: 20, 1000: 64} {
		issuer, orders := fakeService(t, "", perSecond)
		if got, err := issuer.workers(t.Context()); got != want || err != nil || orders.Load() != 0 {
			t.Errorf("%d a second: %d, %v", perSecond, got, err)
		}
	}
}

// TestPrepareForService: what the service would refuse, and what was interrupted, is not sent.
func TestPrepareForService(t *testing.T) {
	issuer, orders := fakeService(t, "", 1)
	if _, err := issuer.prepare(t.Context(), agent.Order{CSR: goldenFile(t, "csr/key-1024.pem")}); testkit.FindingID(err) != "csr.key-size" || orders.Load() != 0 {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := issuer.prepare(ctx, agent.Order{}); fault.KindOf(err) != fault.Interrupted {
		t.Errorf("%v", err)
	}
}
