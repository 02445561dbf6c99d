package ledgertest

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

// testFrozenLoad: two processes sign for many callers while one freezes. After the freeze nothing is issued or released.
func testFrozenLoad(t *testing.T, f *fixture) {
	ctx, both := t.Context(), []*ledger.Ledger{f.open(t), f.another(t)}
	var committed atomic.Bool
	var signed atomic.Int64
	var all sync.WaitGroup
	for caller := range 8 {
		all.Go(func() {
			l := both[caller%2]
			for n := 0; ; n++ {
				permit, err := l.Authorize(ctx, frozenUse("acme", fmt.Sprint("csr ", caller, "/", n)))
				if err == nil {
					err = l.Conclude(ctx, &permit, record.Outcome{File: []byte("request")})
				}
				late := committed.Load()
				if err == nil {
					err = l.Release(ctx, permit)
				}
				switch {
				case err == nil && late:
					t.Errorf("caller %d: released after the freeze", caller)
					return
				case err == nil:
					signed.Add(1)
				case fault.KindOf(err) == fault.Forbidden:
					return
				default:
					t.Errorf("caller %d: %v", caller, err)
					return
				}
			}
		})
	}
	eventually(t, "signing", func() bool { return signed.Load() > 40 })
	must(t, both[1].Freeze(ctx, "uid 0", "local", scopes[0]))
	committed.Store(true)
	all.Wait()
	before, after, _ := strings.Cut(kinds(t, both[0]), " frozen")
	if !strings.Contains(before, "issued") || strings.Contains(after, "issued") || strings.Contains(after, "intent") {
		t.Errorf("after the freeze: %s", after)
	}
	verified(t, both[0])
}
