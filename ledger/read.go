package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// entry returns one entry after proving that it is under the checkpoint.
func (l *Ledger) entry(ctx context.Context, q querier, head *Checkpoint, index int64) (*Entry, error) {
	var leaf []byte
	err := q.QueryRowContext(ctx, l.store.bind("SELECT leaf FROM entries WHERE idx = ?"), index).Scan(&leaf)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("%w: entry %d is missing", ErrTampered, index)
	}
	if err != nil {
		return nil, err
	}
	proof, err := tlog.ProveRecord(head.Size, index, l.store.hashReader(ctx, q))
	if err != nil {
		return nil, err
	}
	if tlog.CheckRecord(proof, head.Size, head.Root, index, tlog.RecordHash(leaf)) != nil {
		return nil, fmt.Errorf("%w: entry %d was changed", ErrTampered, index)
	}
	e, err := ParseEntry(leaf)
	if err != nil {
		return nil, fmt.Errorf("%w: entry %d: %w", ErrTampered, index, err)
	}
	return e, nil
}

// entry returns one entry, which may be one of this batch.
func (tx *Tx) entry(ctx context.Context, index int64) (*Entry, error) {
	if added := index - tx.head.Size; added >= 0 && added < int64(len(tx.leaves)) {
		return ParseEntry(tx.leaves[added])
	}
	return tx.ledger.entry(ctx, tx.sql, tx.head, index)
}

// opening returns the data of an opening of an entry after checking it against the entry's commitment.
func (l *Ledger) opening(ctx context.Context, q querier, index int64, e *Entry, name string) ([]byte, error) {
	o := Opening{Name: name}
	var salt []byte
	err := q.QueryRowContext(ctx, l.store.bind("SELECT salt, data FROM openings WHERE entry = ? AND name = ?"), index, name).Scan(&salt, &o.Data)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, err
	}
	if err == nil && len(salt) == len(o.Salt) {
		o.Salt = Hash(salt)
		if slices.Contains(e.Commitments, o.Commitment()) {
			return o.Data, nil
		}
	}
	return nil, fmt.Errorf("%w: the stored %s of entry %d is missing or is not the one that was recorded", ErrTampered, name, index)
}

// Entries calls do for each entry from an index on, in their order, without proving them: Verify does that. An error of do
// ends it and is returned.
func (l *Ledger) Entries(ctx context.Context, from int64, do func(index int64, e *Entry) error) error {
	rows, err := l.store.DB.QueryContext(ctx, l.store.bind("SELECT idx, leaf FROM entries WHERE idx >= ? ORDER BY idx"), from)
	if err != nil {
		return l.store.fail("read the entries", err)
	}
	defer rows.Close()
	for rows.Next() {
		var index int64
		var leaf []byte
		if err := rows.Scan(&index, &leaf); err != nil {
			return l.store.fail("read the entries", err)
		}
		e, err := ParseEntry(leaf)
		if err != nil {
			return fmt.Errorf("%w: entry %d: %w", ErrTampered, index, err)
		}
		if err := do(index, e); err != nil {
			return err
		}
	}
	return l.store.fail("read the entries", rows.Err())
}
