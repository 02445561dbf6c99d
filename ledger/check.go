package ledger

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"hsmsign/ledger/record"
)

// Check applies the rules of Authorize to a use and records nothing. The error is that which Authorize would return; stored
// says that the same request was issued before.
func (l *Ledger) Check(ctx context.Context, asked record.Use) (stored bool, err error) {
	if err := (Customer{Name: asked.Customer}).Check(); err != nil {
		return false, err
	}
	if err := checkUse(asked); err != nil {
		return false, err
	}
	if err := l.publisher.refuse(); err != nil {
		return false, err
	}
	if err := l.Here(ctx); err != nil {
		return false, err
	}
	u, known := l.newUse(asked), l.knownFreezes()
	err = l.snapshot(ctx, "check the rules", func(sqlTx *sql.Tx, head *Checkpoint) error {
		q := statements{l.store, sqlTx, true}
		// What the rules would append remains in tx, whose transaction cannot write. Old intents are not closed.
		tx := &Tx{
			ledger: l, sql: q, hashes: remember(l.store.hashReader(ctx, q)), head: head, closed: true,
			actors: map[string]record.ID{}, intents: map[record.ID]open{}, known: known,
		}
		var err error
		if tx.now, err = l.clock(ctx, q); err != nil {
			return err
		}
		if tx.low, err = l.store.low(); err != nil {
			return err
		}
		permit, refusal, err := tx.authorize(ctx, u)
		stored = permit.Stored != nil
		return errors.Join(err, refusal)
	})
	return stored && err == nil, err
}

// snapshot calls do in a transaction that reads one state of the store and cannot write, with the checked head of that state.
func (l *Ledger) snapshot(ctx context.Context, what string, do func(tx *sql.Tx, head *Checkpoint) error) error {
	tx, err := l.store.DB.BeginTx(ctx, &sql.TxOptions{ReadOnly: true, Isolation: l.store.Snapshot})
	if err != nil {
		return l.store.fail(what, err)
	}
	defer func() { _ = tx.Rollback() }() // nothing was written
	head, err := l.check(ctx, tx, l.store.hashReader(ctx, tx), "")
	if err == nil {
		err = do(tx, head)
	}
	return l.store.fail(what, err)
}

// clock returns the time: that of the database if it has a clock.
func (l *Ledger) clock(ctx context.Context, q querier) (now time.Time, err error) {
	if l.store.Clock == "" {
		return l.now(), nil
	}
	err = q.QueryRowContext(ctx, l.store.Clock).Scan(&now)
	return now.UTC().Truncate(time.Millisecond), err
}
