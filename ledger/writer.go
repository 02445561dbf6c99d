package ledger

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"maps"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// open is an intent without an outcome.
type open struct {
	*record.Entry
	at time.Time // when it was appended
}

// change is what one caller adds to the ledger.
type change struct {
	ctx  context.Context
	do   func(ctx context.Context, tx *Tx) error
	done chan error // has room for one
}

// Append runs do in a transaction under the lock of the head, with the batch of other callers, and returns when everything
// is on the disk. An error of do is returned as it is, and nothing that it appended remains. If the outcome of the commit is
// unknown, the error wraps ErrStore: nothing may be released; the next attempt finds what was committed. After an error do may
// still be running.
func (l *Ledger) Append(ctx context.Context, do func(ctx context.Context, tx *Tx) error) error {
	if l.cfg.Key == "" {
		return fault.Usage.Errorf("the ledger is open for reading").Fix("name its checkpoint key")
	}
	if err := l.publisher.refuse(); err != nil {
		return err
	}
	c := &change{ctx: ctx, do: do, done: make(chan error, 1)}
	select {
	case l.changes <- c:
	case <-ctx.Done():
		return l.store.fail("append", ctx.Err())
	case <-l.closing:
		return l.store.fail("append", errors.New("the ledger was closed"))
	}
	select {
	case err := <-c.done:
		return err
	case <-ctx.Done(): // the outcome is unknown, so nothing may be released
		return l.store.fail("append", ctx.Err())
	}
}

// write is the only goroutine of the process that appends.
func (l *Ledger) write() {
	defer close(l.closed)
	var kept time.Time
	for {
		var batch []*change
		select {
		case c := <-l.changes:
			batch = l.gather(c)
		case <-l.closing:
			return
		}
		l.commit(batch)
		if time.Since(kept) > keepEvery {
			kept = time.Now()
			go func() { _ = l.keep() }() // beside the appends; Close tries again and reports the error
		}
	}
}

// gather returns a batch: a change, those that wait, and while many requests are being signed those that come soon. A
// commit costs as much for one change as for many.
func (l *Ledger) gather(first *change) []*change {
	batch := []*change{first}
	var soon <-chan time.Time
	if len(l.intents) >= manyIntents {
		soon = time.After(min(l.signing/lingerPart, maxLinger))
	}
	for len(batch) < maxBatch {
		select {
		case c := <-l.changes:
			batch = append(batch, c)
			continue
		default:
		}
		if soon == nil {
			break
		}
		select {
		case c := <-l.changes:
			batch = append(batch, c)
		case <-soon:
			return batch
		case <-l.closing:
			return batch
		}
	}
	return batch
}

// commit appends a batch in one transaction and tells each caller the outcome.
func (l *Ledger) commit(batch []*change) {
	ctx, cancel := context.WithTimeout(l.ctx, batchWait)
	defer cancel()
	results := make([]error, len(batch))
	var head *Checkpoint
	var now time.Time
	var frozen *freezes
	leaves := false // the batch says that the ledger is in another store
	intents := map[record.ID]open{}
	err := l.store.transact(ctx, func(sqlTx *sql.Tx) error {
		q := statements{l.store, sqlTx, false}
		tx := &Tx{ledger: l, sql: q, hashes: remember(l.store.hashReader(ctx, q)), actors: map[string]record.ID{}, intents: intents, known: l.knownFreezes()}
		var err error
		if tx.head, err = l.check(ctx, q, tx.hashes, l.store.LockHead); err != nil {
			return err
		}
		if tx.signers, err = l.signersOf(tx.head); err != nil {
			return err
		}
		if tx.away, err = l.movedAway(ctx, q, tx.entry, l.written != nil && l.written.Size == tx.head.Size); err != nil {
			return err
		}
		if err := tx.clock(ctx); err != nil {
			return err
		}
		if tx.low, err = l.store.low(); err != nil {
			return err
		}
		for i, c := range batch {
			if results[i] = cmp.Or(c.ctx.Err(), tx.away); results[i] != nil {
				continue
			}
			tx.begin()
			if results[i] = c.do(ctx, tx); results[i] != nil {
				tx.forget()
				continue
			}
			if err := tx.apply(ctx); err != nil {
				return err
			}
		}
		now, frozen, leaves = tx.now, tx.frozen, tx.leaves
		head, err = tx.finish(ctx)
		return err
	})
	if err = l.store.fail("append", err); err == nil {
		l.saw(head)
		l.leave(leaves)
		l.sawFreezes(frozen)
		l.publisher.notify()
		l.written, l.newest = head, now
		maps.Copy(l.intents, intents)
	}
	for i, c := range batch {
		if results[i] == nil || err != nil {
			results[i] = errors.Join(err, results[i])
		}
		c.done <- results[i]
	}
}
