package main

import (
	"context"
	"os"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"hsmsign/ledger"
	"hsmsign/ledger/open"
	"hsmsign/ledger/record"
)

// cmdReplica: replica NAME POLICY records in sqlite:ledger.db that a service started, and one request of it with the answer of a
// role's program.
func cmdReplica(ts *testscript.TestScript, _ bool, args []string) {
	ctx := context.Background()
	store, err := open.Store(ctx, "sqlite:"+ts.MkAbs("ledger.db"), false)
	ts.Check(err)
	defer func() { _ = store.DB.Close() }() // every transaction has ended
	key, err := os.ReadFile(ts.MkAbs("ledger.db.key"))
	ts.Check(err)
	cfg := ledger.Config{Store: store, Key: strings.TrimSpace(string(key)), LastCheckpoint: ts.MkAbs("ledger.db.last")}
	cfg.Verifier, err = ledger.VerifierKey(cfg.Key)
	ts.Check(err)
	l, err := ledger.Open(ctx, cfg)
	ts.Check(err)
	policy := record.SHA256([]byte(args[1]))
	ts.Check(l.StartPolicy(ctx, "uid 0", "local", args[0], policy))
	ts.Check(l.Refuse(ctx, record.Use{
		Customer: "acme", Actor: "portal", Credential: "token abcd2345", Channel: "tls", CSR: []byte(args[0]), Policy: policy, Entitlement: []byte(`{"contract": 7}`),
	}, "policy.entitlement"))
	ts.Check(l.Close())
}
