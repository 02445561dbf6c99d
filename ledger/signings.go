package ledger

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"hsmsign/ledger/record"
)

// Signing is what the entries say about one use of the key.
type Signing struct {
	Request  record.ID
	Customer record.ID
	Vendor   record.Hash // of the vendor certificate
	Index    int64       // of the outcome; of the intent if there is none
	Kind     string      // of that entry: intent, issued, failed or unknown
	Intent   time.Time   // UTC
	End      time.Time   // until when the key may have been used, UTC
	Rule     string      // why there is no request
	// Operation is the key store's id of the signature; Attempts are the requests to it that failed.
	Operation string
	Attempts  []record.Attempt
	// Erased says that there were attempts, whose data was erased with the customer's.
	Erased bool

	commitments *record.Entry // with the commitment to the attempts; nil: there is none
}

// Signed returns whether a signature was made, or may have been made: it was recorded, the outcome is not known, or a rule of
// the ledger refused the request after it.
func (s Signing) Signed() bool {
	return s.Kind != record.KindFailed || strings.HasPrefix(s.Rule, "ledger.")
}

// Signings returns the uses of the key that may fall into a time, in the order of their intents. The entries are proved: all
// of them have the root hash of the signed checkpoint.
func (l *Ledger) Signings(ctx context.Context, from, to time.Time) ([]Signing, error) {
	tx, err := l.store.DB.BeginTx(ctx, &sql.TxOptions{ReadOnly: true, Isolation: l.store.Snapshot})
	if err != nil {
		return nil, l.store.fail("read the entries", err)
	}
	defer func() { _ = tx.Rollback() }() // nothing was written
	all, err := l.signings(ctx, tx, from, to)
	if err == nil {
		err = l.signingAttempts(ctx, tx, all)
	}
	if err != nil {
		return nil, l.store.fail("read the entries", err)
	}
	return all, nil
}

// signings reads every entry and keeps the uses in the time.
func (l *Ledger) signings(ctx context.Context, tx *sql.Tx, from, to time.Time) ([]Signing, error) {
	head, err := l.check(ctx, tx, "")
	if err != nil {
		return nil, err
	}
	rows, err := tx.QueryContext(ctx, l.store.bind("SELECT idx, leaf FROM entries WHERE idx < ? ORDER BY idx"), head.Size)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // Err has the error
	found := map[record.ID]*Signing{}
	var subtrees []subtree
	for next := int64(0); rows.Next(); next++ {
		var index int64
		var leaf []byte
		if err := rows.Scan(&index, &leaf); err != nil {
			return nil, err
		}
		e, err := record.ParseEntry(leaf)
		if err == nil && index != next {
			err = fmt.Errorf("the entry %d is missing", next)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: entry %d: %w", ErrTampered, index, err)
		}
		subtrees = grow(subtrees, tlog.RecordHash(leaf), nil)
		follow(found, e, index)
		if s := found[e.Request]; s != nil && (s.End.Before(from) || s.Intent.After(to)) {
			delete(found, e.Request)
		}
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	if rootOf(subtrees) != head.Root {
		return nil, fmt.Errorf("%w: the entries do not have the root hash of the signed checkpoint of %d entries", ErrTampered, head.Size)
	}
	all := make([]Signing, 0, len(found))
	for _, s := range found {
		all = append(all, *s)
	}
	slices.SortFunc(all, func(a, b Signing) int {
		return cmp.Or(a.Intent.Compare(b.Intent), cmp.Compare(a.Index, b.Index))
	})
	return all, nil
}

// follow adds what an entry says about a use of the key. An intent may be in use for openIntent, whatever is recorded later.
func follow(found map[record.ID]*Signing, e *record.Entry, index int64) {
	s := found[e.Request]
	switch {
	case e.Kind == record.KindIntent:
		found[e.Request] = &Signing{
			Request: e.Request, Customer: e.Customer, Vendor: e.Vendor, Index: index, Kind: e.Kind, Intent: e.Time, End: e.Time.Add(openIntent),
		}
	case s == nil:
	case e.Kind == record.KindUnknown:
		s.Index, s.Kind = index, e.Kind
	case e.Kind == record.KindIssued || e.Kind == record.KindFailed:
		s.Index, s.Kind, s.End, s.Operation, s.Rule = index, e.Kind, e.Time, e.Operation, e.Rule
		if slices.ContainsFunc(e.Commitments, func(c record.Commitment) bool { return c.Name == openAttempts }) {
			s.commitments = e
		}
	}
}

// signingAttempts reads the attempts that the outcomes are committed to. Those of a customer that was erased are gone.
func (l *Ledger) signingAttempts(ctx context.Context, tx *sql.Tx, all []Signing) error {
	for i := range all {
		s := &all[i]
		if s.commitments == nil {
			continue
		}
		var n int
		err := tx.QueryRowContext(ctx, l.store.bind("SELECT count(*) FROM openings WHERE entry = ? AND name = ?"), s.Index, openAttempts).Scan(&n)
		if s.Erased = n == 0; err == nil && !s.Erased {
			s.Attempts, err = l.attempts(ctx, tx, s.Index, s.commitments)
		}
		if err != nil {
			return err
		}
		s.commitments = nil
	}
	return nil
}
