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
	Vendor   record.Hash // of the vendor certificate, or the profile certificate
	Index    int64       // of the outcome; of the intent if there is none
	Kind     string      // of that entry: intent, issued, failed, refused (the signature was not released) or unknown; or probe, which is no request
	Intent   time.Time   // UTC
	End      time.Time   // until when the key may have been used, UTC
	Rule     string      // why there is no request
	// Operation is the key store's id of the signature; Attempts are the requests to it that failed. Those of a probe are all
	// of its requests if there was more than one.
	Operation string
	Attempts  []record.Attempt
	// Erased says that there were attempts, whose data was erased with the customer's.
	Erased bool

	entry *record.Entry // with the commitment to what is read later; nil: there is none
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

// signings keeps the uses in the time.
func (l *Ledger) signings(ctx context.Context, tx *sql.Tx, from, to time.Time) (all []Signing, err error) {
	found := map[record.ID]*Signing{}
	var repeated, probes, tried []Signing
	var first time.Time
	err = l.proved(ctx, tx, func(index int64, e *record.Entry) {
		switch {
		case index == 0:
			first = e.Time
		case e.Kind == record.KindProbe:
			if !e.Time.Before(from) && !e.Time.Add(-maxProbe).After(to) {
				probes = append(probes, probeSigning(e, index))
			}
		case !repeats(e):
			if before := found[e.Request]; before != nil && e.Kind == record.KindIntent { // one that was approved is tried again
				tried = append(tried, *before)
			}
			follow(found, e, index)
			if s := found[e.Request]; s != nil && (s.End.Before(from) || s.Intent.After(to)) {
				delete(found, e.Request)
			}
		case e.Request != (record.ID{}):
			repeated = append(repeated, Signing{Request: e.Request, Customer: e.Customer, Vendor: e.Vendor, Index: index, Kind: e.Kind, Operation: e.Operation, entry: e})
		}
	})
	if err == nil && from.Before(first) {
		all, err = l.repeated(ctx, tx, repeated, from, to)
	}
	if err == nil {
		probes, err = l.signingProbes(ctx, tx, probes, from, to)
		all = append(all, probes...)
	}
	for _, s := range found {
		all = append(all, *s)
	}
	all = append(all, tried...)
	slices.SortFunc(all, func(a, b Signing) int {
		return cmp.Or(a.Intent.Compare(b.Intent), cmp.Compare(a.Index, b.Index))
	})
	return all, err
}

// proved calls do for every entry, the oldest first. What do is told counts only if the error is nil: then the entries have
// the root hash of the signed checkpoint.
func (l *Ledger) proved(ctx context.Context, tx *sql.Tx, do func(index int64, e *record.Entry)) error {
	head, err := l.check(ctx, tx, l.store.hashReader(ctx, tx), "")
	if err != nil {
		return err
	}
	rows, err := tx.QueryContext(ctx, l.store.bind("SELECT idx, leaf FROM entries WHERE idx < ? ORDER BY idx"), head.Size)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }() // Err has the error
	var tree frontier
	for rows.Next() {
		var index int64
		var leaf []byte
		if err := rows.Scan(&index, &leaf); err != nil {
			return err
		}
		e, err := record.ParseEntry(leaf)
		if err == nil && index != tree.size {
			err = fmt.Errorf("the entry %d is missing", tree.size)
		}
		if err != nil {
			return fmt.Errorf("%w: entry %d: %w", ErrTampered, index, err)
		}
		tree.add(tlog.RecordHash(leaf), nil)
		do(index, e)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if tree.root() != head.Root {
		return fmt.Errorf("%w: the entries do not have the root hash of the signed checkpoint of %d entries", ErrTampered, head.Size)
	}
	return nil
}

// repeated returns those uses of the key of a previous ledger that may fall into a time. An entry that repeats one has the time
// of the original in an opening, which an erased customer has no more.
func (l *Ledger) repeated(ctx context.Context, tx *sql.Tx, candidates []Signing, from, to time.Time) (all []Signing, err error) {
	for _, s := range candidates {
		stored, err := l.stores(ctx, tx, s.Index, openOriginal)
		if err != nil {
			return nil, err
		}
		if !stored {
			continue
		}
		o, err := l.original(ctx, tx, s.Index, s.entry)
		if err != nil {
			return nil, err
		}
		s.Intent, s.End, s.entry = o.Time.Add(-openIntent), o.Time, nil
		if !s.End.Before(from) && !s.Intent.After(to) {
			all = append(all, s)
		}
	}
	return all, nil
}

// stores returns whether an opening of an entry is stored.
func (l *Ledger) stores(ctx context.Context, q querier, index int64, name string) (bool, error) {
	var n int
	err := q.QueryRowContext(ctx, l.store.bind("SELECT count(*) FROM openings WHERE entry = ? AND name = ?"), index, name).Scan(&n)
	return n > 0, err
}

// ofProfile are the kinds of entries about a request that correspond to those about a profile.
var ofProfile = map[string]string{
	record.KindProfile: record.KindIntent, record.KindProfileSigned: record.KindIssued, record.KindProfileFailed: record.KindFailed, record.KindProfileRefused: record.KindRefused,
}

// follow adds what an entry says about a use of the key. An intent may be in use for openIntent, whatever is recorded later.
func follow(found map[record.ID]*Signing, e *record.Entry, index int64) {
	s, kind := found[e.Request], e.Kind
	if plain := ofProfile[kind]; plain != "" {
		kind = plain
	}
	switch {
	case kind == record.KindIntent:
		found[e.Request] = &Signing{
			Request: e.Request, Customer: e.Customer, Vendor: e.Vendor, Index: index, Kind: kind, Intent: e.Time, End: e.Time.Add(openIntent),
		}
	case s == nil:
	case kind == record.KindUnknown:
		s.Index, s.Kind = index, kind
	case kind == record.KindIssued || kind == record.KindFailed || kind == record.KindRefused:
		s.Index, s.Kind, s.End, s.Operation, s.Rule = index, kind, e.Time, e.Operation, e.Rule
		if commits(e, openAttempts) {
			s.entry = e
		}
	}
}

// signingAttempts reads the attempts that the outcomes are committed to. Those of a customer that was erased are gone.
func (l *Ledger) signingAttempts(ctx context.Context, tx *sql.Tx, all []Signing) error {
	for i := range all {
		s := &all[i]
		if s.entry == nil {
			continue
		}
		stored, err := l.stores(ctx, tx, s.Index, openAttempts)
		if s.Erased = !stored; err == nil && stored {
			s.Attempts, err = l.attempts(ctx, tx, s.Index, s.entry)
		}
		if err != nil {
			return err
		}
		s.entry = nil
	}
	return nil
}
