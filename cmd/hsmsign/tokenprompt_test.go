//go:build linux

package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"hsmsign/internal/testkit"
)

// TestTokenAtPrompt: a token that is typed is sent, not shown, and not asked for again when the service refuses it.
func TestTokenAtPrompt(t *testing.T) {
	var sent atomic.Value
	var requests atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		sent.Store(r.Header.Get("Authorization"))
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(server.Close)
	dir := t.TempDir()
	testkit.OK(t, os.WriteFile(filepath.Join(dir, "customer.csr"), goldenFile(t, "golden/customer.csr"), 0o600))
	term := startOnTerminal(t, dir, "sign", "--agent", server.URL, "customer.csr")
	term.waitFor("token of the service", 1)
	term.waitForEcho(false)
	term.write("hsmsign_typed\n")
	if code := term.exit(); code != 5 || requests.Load() != 1 || sent.Load() != "Bearer hsmsign_typed" {
		t.Errorf("exit code %d, %d requests, %v", code, requests.Load(), sent.Load())
	}
	term.waitFor("the service answers with status 401", 1)
	for text, want := range map[string]int{"token of the service": 1, "hsmsign_typed": 0} {
		if n := strings.Count(term.shown(), text); n != want {
			t.Errorf("%q is shown %d times: %s", text, n, term.shown())
		}
	}
}
