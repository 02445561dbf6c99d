package ledgertest

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hsmsign/ledger/record"
)

// testOnce: a hash is new once, whatever process is asked, until its time is over by the clock of the database.
func testOnce(t *testing.T, f *fixture) {
	ctx, l, other := t.Context(), f.open(t), f.another(t)
	hash := func(text string) record.Hash { return record.SHA256([]byte(text)) }
	check := func(what string, fresh, want bool, err error) {
		t.Helper()
		if err != nil || fresh != want {
			t.Errorf("%s: %v, %v", what, fresh, err)
		}
	}
	end := f.cfg.Now().Add(15 * time.Minute)
	fresh, err := l.Once(ctx, hash("a"), end)
	check("the first time", fresh, true, err)
	fresh, err = l.Once(ctx, hash("a"), end)
	check("the second time", fresh, false, err)
	fresh, err = other.Once(ctx, hash("a"), end.Add(time.Hour))
	check("another process", fresh, false, err)
	fresh, err = other.Once(ctx, hash("b"), end)
	check("another hash", fresh, true, err)
	fresh, err = l.Once(ctx, hash("c"), f.cfg.Now())
	check("a time that is over", fresh, false, err)
	f.pass(15*time.Minute - time.Millisecond)
	fresh, err = other.Once(ctx, hash("a"), end)
	check("in the last moment", fresh, false, err)
	f.pass(time.Millisecond)
	fresh, err = l.Once(ctx, hash("a"), end)
	check("after its time", fresh, false, err)
	f.pass(time.Minute)
	fresh, err = l.Once(ctx, hash("d"), f.cfg.Now().Add(time.Minute))
	check("a later one", fresh, true, err)
	var rows int
	must(t, f.cfg.Store.DB.QueryRowContext(ctx, "SELECT count(*) FROM once").Scan(&rows))
	if rows != 1 {
		t.Errorf("%d hashes are stored", rows)
	}
	fresh, err = l.Once(ctx, hash("a"), f.cfg.Now().Add(time.Minute))
	check("a forgotten one", fresh, true, err)
	var all sync.WaitGroup
	var accepted atomic.Int64
	for i := range 40 {
		all.Go(func() {
			process := l
			if i%2 == 1 {
				process = other
			}
			fresh, err := process.Once(ctx, hash(fmt.Sprint("same ", i/20)), f.cfg.Now().Add(time.Minute))
			if err != nil {
				t.Error(err)
			}
			if fresh {
				accepted.Add(1)
			}
		})
	}
	all.Wait()
	if accepted.Load() != 2 {
		t.Errorf("%d of 40 were accepted, want one for each of two hashes", accepted.Load())
	}
	verified(t, l)
}
