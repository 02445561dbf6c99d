package ledger

import (
	"context"
	"database/sql"
	"time"

	"hsmsign/ledger/record"
)

// cleanEvery is how often a process deletes what Once no longer needs.
const cleanEvery = time.Minute

// Once remembers hash until a time, in every process that uses the ledger, and returns whether it was new. One of several that
// ask at the same time is told that it is. The clock is that of the database: a hash whose time is over there is not new, so a
// process whose clock is slow cannot accept what the others have forgotten. No entry says it. The error wraps ErrStore, and
// ErrMoved if the ledger was moved: another process may accept the hash in the other store.
func (l *Ledger) Once(ctx context.Context, hash record.Hash, until time.Time) (fresh bool, err error) {
	var now time.Time
	if err := l.Here(ctx); err != nil {
		return false, err
	}
	until = until.Truncate(time.Millisecond) // as it is stored
	err = l.store.transact(ctx, func(tx *sql.Tx) error {
		if now, err = l.clock(ctx, tx); err != nil || !now.Before(until) {
			return err
		}
		done, err := tx.ExecContext(ctx, l.store.bind("INSERT INTO once (hash, until) VALUES (?, ?) ON CONFLICT (hash) DO NOTHING"), hash[:], until.UnixMilli())
		if err != nil {
			return err
		}
		rows, err := done.RowsAffected()
		fresh = rows == 1
		return err
	})
	if err != nil {
		return false, l.store.fail("remember what is accepted once", err)
	}
	l.cleanOnce(ctx, now)
	return fresh, nil
}

// cleanOnce deletes the hashes whose time is over, once a minute and in a transaction of its own. What cannot be deleted now is
// deleted later.
func (l *Ledger) cleanOnce(ctx context.Context, now time.Time) {
	last := l.cleaned.Load()
	if now.UnixMilli()-last < cleanEvery.Milliseconds() || !l.cleaned.CompareAndSwap(last, now.UnixMilli()) {
		return
	}
	_, _ = l.store.DB.ExecContext(ctx, l.store.bind("DELETE FROM once WHERE until <= ?"), now.UnixMilli())
}
