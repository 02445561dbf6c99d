package ledger_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"hsmsign/ledger"
	"hsmsign/ledger/open"
	"hsmsign/ledger/record"
)

// A ledger in a SQLite file records one use of a key. agent.Config.Recorder accepts the ledger.
func Example() {
	ctx := context.Background()
	dir := must(os.MkdirTemp("", "ledger-"))
	defer func() { _ = os.RemoveAll(dir) }()
	store := must(open.Store(ctx, "sqlite:"+filepath.Join(dir, "ledger.db"), true))
	defer func() { _ = store.DB.Close() }()
	signerKey, verifierKey, err := ledger.GenerateKey("example.com/mdm") // keep both outside the store
	if err != nil {
		panic(err)
	}
	cfg := ledger.Config{Store: store, Key: signerKey, Verifier: verifierKey}
	must(ledger.Init(ctx, cfg))
	l := must(ledger.Open(ctx, cfg))
	defer func() { _ = l.Close() }()

	permit := must(l.Authorize(ctx, record.Use{Customer: "acme", Actor: "uid 1000", Channel: "local", CSR: []byte("DER of the CSR")}))
	// sign, then:
	if err := l.Conclude(ctx, &permit, record.Outcome{File: []byte("request file")}); err != nil {
		panic(err)
	}
	proof := must(l.Prove(ctx, must(record.ParseID(permit.Request))))
	proven := must(ledger.CheckProof(proof, verifierKey))
	report := must(l.Verify(ctx, nil))
	fmt.Println(proven.Entry.Kind, proven.Index, len(report.Defects))
	// Output: issued 3 0
}

// must returns v, and ends the program on an error.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
