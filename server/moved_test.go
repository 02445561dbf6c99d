package server

import (
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"hsmsign/internal/testkit"
	"hsmsign/ledger"
	"hsmsign/ledger/sqlite"
)

// A service whose ledger was moved to another store is not ready and signs nothing. /readyz tells nobody where the ledger is.
func TestMovedLedger(t *testing.T) {
	f := newAPIFixture(t)
	f.probe(t.Context())
	header := map[string]string{uidHeader: strconv.Itoa(backend), "Content-Type": rawType}
	csr := newCSR("acme")
	ask := func() int { return send(t, f.socket, "POST", "/v1/requests?customer=acme", header, csr).status }
	if ready, signed := send(t, f.socket, "GET", "/readyz", nil, "").status, ask(); ready != 200 || signed != 200 {
		t.Fatalf("before the move: /readyz %d, a request %d", ready, signed)
	}
	to := testkit.Value(sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "new.db"), true))(t)
	t.Cleanup(func() { _ = to.DB.Close() })
	_, err := f.ledger.Move(t.Context(), ledger.Move{Open: func(bool) (*ledger.Store, error) { return to, nil }, Actor: "uid 0", Channel: "local"})
	testkit.OK(t, err)
	calls := f.key.Calls.Load()
	if signed := ask(); signed != 503 {
		t.Errorf("a request after the move: %d", signed)
	}
	f.probe(t.Context())
	if ready := send(t, f.socket, "GET", "/readyz", nil, ""); ready.status != 503 || strings.Contains(string(ready.body), "new.db") {
		t.Errorf("/readyz after the move: %d %s", ready.status, ready.body)
	}
	if f.key.Calls.Load() != calls {
		t.Error("the key was used after the move")
	}
}
