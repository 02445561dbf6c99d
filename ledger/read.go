package ledger

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger/record"

	"golang.org/x/mod/sumdb/tlog"
)

// entry returns one entry after proving that it is under the checkpoint.
func (l *Ledger) entry(ctx context.Context, q querier, head *Checkpoint, index int64) (*record.Entry, error) {
	return l.store.entry(ctx, q, l.store.hashReader(ctx, q), head, index)
}

func (s *Store) entry(ctx context.Context, q querier, hashes tlog.HashReader, head *Checkpoint, index int64) (*record.Entry, error) {
	var leaf []byte
	err := q.QueryRowContext(ctx, s.bind("SELECT leaf FROM entries WHERE idx = ?"), index).Scan(&leaf)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("%w: entry %d is missing", ErrTampered, index)
	}
	if err != nil {
		return nil, err
	}
	return provedEntry(head, index, leaf, hashes)
}

// provedEntry returns the entry of a leaf after proving that it is under the checkpoint.
func provedEntry(head *Checkpoint, index int64, leaf []byte, hashes tlog.HashReader) (*record.Entry, error) {
	proof, err := tlog.ProveRecord(head.Size, index, hashes)
	if err != nil {
		return nil, err
	}
	if tlog.CheckRecord(proof, head.Size, head.Root, index, tlog.RecordHash(leaf)) != nil {
		return nil, fmt.Errorf("%w: entry %d was changed", ErrTampered, index)
	}
	e, err := record.ParseEntry(leaf)
	if err != nil {
		return nil, fmt.Errorf("%w: entry %d: %w", ErrTampered, index, err)
	}
	return e, nil
}

// entry returns one entry, which may be one of this batch.
func (tx *Tx) entry(ctx context.Context, index int64) (*record.Entry, error) {
	if added := index - tx.head.Size; added >= 0 && added < int64(len(tx.added)) {
		return record.ParseEntry(tx.added[added].leaf)
	}
	return tx.ledger.store.entry(ctx, tx.sql, tx.hashes, tx.head, index)
}

// opening returns the data of an opening of an entry after checking it against the entry's commitment.
func (l *Ledger) opening(ctx context.Context, q querier, index int64, e *record.Entry, name string) ([]byte, error) {
	o := record.Opening{Name: name}
	var salt []byte
	err := q.QueryRowContext(ctx, l.store.bind("SELECT salt, data FROM openings WHERE entry = ? AND name = ?"), index, name).Scan(&salt, &o.Data)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, err
	}
	if err == nil && len(salt) == len(o.Salt) {
		o.Salt = record.Hash(salt)
		if slices.Contains(e.Commitments, o.Commitment()) {
			return o.Data, nil
		}
	}
	return nil, fmt.Errorf("%w: the stored %s of entry %d is missing or is not the one that was recorded", ErrTampered, name, index)
}

// Query selects entries.
type Query struct {
	Customer string // name; empty: all
	// Customers are the names of those that the reader may know of: only entries about them are found, and an entry does not name
	// another one. nil: all, and entries about no customer.
	Customers []string
	Kind      string // empty: all
	Before    int64  // only entries with a smaller index; 0: from the newest
	Limit     int    // at most so many

	// What only Search reads.
	Request record.ID   // only entries about it; zero: all
	Actor   string      // name; empty: all
	SHA256  record.Hash // of a CSR, a key, a request file, a vendor certificate or a chain, only entries that have it; zero: all
	Until   time.Time   // only entries that are not newer; zero: all
}

// List returns entries, the newest first. It proves none of them: Verify does that.
func (l *Ledger) List(ctx context.Context, q Query) ([]record.Record, error) {
	where, args, err := l.where(ctx, q)
	if err != nil {
		return nil, err
	}
	records, err := l.records(ctx, "SELECT idx, leaf FROM entries WHERE 1 = 1"+where+fmt.Sprintf(" ORDER BY idx DESC LIMIT %d", q.Limit), args)
	if err != nil {
		return nil, l.store.fail("list the entries", err)
	}
	for i := range records {
		if q.Customers != nil && !slices.Contains(q.Customers, records[i].From) {
			records[i].From = ""
		}
	}
	return records, nil
}

// where returns the conditions of a query, each after AND, and their values. The error is of kind not found if there is no such
// customer, or the reader may not know of it.
func (l *Ledger) where(ctx context.Context, q Query) (where string, args []any, err error) {
	names := q.Customers
	if q.Customer != "" {
		if q.Customers != nil && !slices.Contains(q.Customers, q.Customer) {
			return "", nil, noCustomer(q.Customer)
		}
		names = []string{q.Customer}
	}
	if names != nil {
		ids, err := l.customerIDs(ctx, names)
		if err != nil {
			return "", nil, l.store.fail("find the customers", err)
		}
		if len(ids) == 0 && q.Customer != "" {
			return "", nil, noCustomer(q.Customer)
		}
		where, args = " AND 1 = 0", nil
		if len(ids) > 0 {
			where, args = " AND customer IN (?"+strings.Repeat(",?", len(ids)-1)+")", ids
		}
	}
	switch {
	case q.Kind != "" && where != "":
		where, args = where+ofCustomers, append(args, q.Kind)
	case q.Kind != "":
		where, args = " AND kind = ?", []any{q.Kind}
	}
	if q.Before > 0 {
		where, args = where+" AND idx < ?", append(args, q.Before)
	}
	return where, args, nil
}

// customerIDs returns the ids of those customers that there are.
func (l *Ledger) customerIDs(ctx context.Context, names []string) (ids []any, err error) {
	for part := range slices.Chunk(names, 500) {
		var values []any
		for _, name := range part {
			values = append(values, name)
		}
		err := l.store.each(ctx, l.store.DB, "SELECT id FROM customers WHERE name IN (?"+strings.Repeat(",?", len(values)-1)+")", values, func(scan func(...any) error) error {
			var id []byte
			err := scan(&id)
			ids = append(ids, id)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return ids, nil
}

func (l *Ledger) records(ctx context.Context, query string, args []any) ([]record.Record, error) {
	records, err := l.leaves(ctx, query, args)
	if err != nil {
		return nil, err
	}
	return l.named(ctx, records)
}

// leaves reads entries, without names.
func (l *Ledger) leaves(ctx context.Context, query string, args []any) ([]record.Record, error) {
	rows, err := l.store.DB.QueryContext(ctx, l.store.bind(query), args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // Err has the error
	var records []record.Record
	for rows.Next() {
		var r record.Record
		var leaf []byte
		if err := rows.Scan(&r.Index, &leaf); err != nil {
			return nil, err
		}
		if r.Entry, err = record.ParseEntry(leaf); err != nil {
			return nil, fmt.Errorf("%w: entry %d: %w", ErrTampered, r.Index, err)
		}
		records = append(records, r)
	}
	return records, rows.Err()
}

// named adds the names of customers and actors.
func (l *Ledger) named(ctx context.Context, records []record.Record) (_ []record.Record, err error) {
	names, expiry := map[record.ID]string{}, dates{l, map[record.Hash]time.Time{}}
	for i := range records {
		r := &records[i]
		if r.Customer, err = l.name(ctx, names, "customers", r.Entry.Customer); err != nil {
			return nil, err
		}
		if r.From, err = l.name(ctx, names, "customers", r.Entry.From); err != nil {
			return nil, err
		}
		if r.Actor, err = l.name(ctx, names, "actors", r.Entry.Actor); err != nil {
			return nil, err
		}
		if r.Entry.Kind != record.KindIssued {
			continue
		}
		// A list shows a damaged ledger too; Record and Verify report the damage.
		if r.UseBefore, err = expiry.useBefore(ctx, l.store.DB, r.Entry.Chain); err != nil && !errors.Is(err, ErrTampered) {
			return nil, err
		}
	}
	return records, nil
}

// name returns the name of a customer or actor; "" if it was erased.
func (l *Ledger) name(ctx context.Context, names map[record.ID]string, table string, id record.ID) (string, error) {
	if name, ok := names[id]; ok || id == (record.ID{}) {
		return name, nil
	}
	var name string
	err := l.store.DB.QueryRowContext(ctx, l.store.bind("SELECT name FROM "+table+" WHERE id = ?"), id[:]).Scan(&name) // #nosec G202 -- a constant
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", err
	}
	names[id] = name
	return name, nil
}

// Record returns one entry after proving it. The error is of kind not found if there is no such entry.
func (l *Ledger) Record(ctx context.Context, index int64) (*record.Record, error) {
	head, err := l.Head(ctx)
	if err != nil {
		return nil, err
	}
	if index < 0 || index >= head.Size {
		return nil, fault.NotFound.Errorf("there is no entry %d; the ledger has %d", index, head.Size)
	}
	e, err := l.entry(ctx, l.store.DB, head, index)
	if err == nil && e.Kind == record.KindIssued {
		_, err = l.useBefore(ctx, l.store.DB, e.Chain)
	}
	if err != nil {
		return nil, l.store.fail("read the entry", err)
	}
	records, err := l.named(ctx, []record.Record{{Index: index, Entry: e}})
	if err == nil {
		err = l.details(ctx, &records[0])
	}
	if err == nil && e.Kind == record.KindProbe {
		records[0].Probed, err = l.probed(ctx, l.store.DB, index, e)
	}
	if err != nil {
		return nil, l.store.fail("read the entry", err)
	}
	r := &records[0]
	if r.Customer != "" { // those of an erased customer are gone
		if r.Attempts, err = l.attempts(ctx, l.store.DB, index, e); err != nil {
			return nil, l.store.fail("read the entry", err)
		}
	}
	return r, nil
}

// details adds the data of openings that tell what an entry is about. One that was erased is left out.
func (l *Ledger) details(ctx context.Context, r *record.Record) error {
	for _, c := range r.Entry.Commitments {
		var into any
		switch c.Name {
		case openOriginal:
			into = &r.Original
		case openPrevious:
			into = &r.Previous
		case openFreeze:
			into = &r.Freeze
		case openEntitlement:
			into = &r.Entitlement
		case openProfile:
			into = &r.Profile
		case openAsked:
			into = &r.Asked
		case openDecided:
			into = &r.Decided
		case openMoved:
			into = &r.Moved
		case openKeys, openReplica:
		default:
			continue
		}
		data, err := l.opening(ctx, l.store.DB, r.Index, r.Entry, c.Name)
		if errors.Is(err, ErrTampered) { // Verify says whether it was erased
			continue
		}
		if err != nil {
			return err
		}
		switch {
		case c.Name == openKeys:
			r.Keys = strings.Fields(string(data))
		case c.Name == openReplica:
			r.Replica = string(data)
		case json.Unmarshal(data, into) != nil:
			return fmt.Errorf("%w: the %s of entry %d is not readable", ErrTampered, c.Name, r.Index)
		}
	}
	return nil
}

// Records calls do for each entry, the oldest first, without proving them: Verify does that. An error of do ends it and is
// returned.
func (l *Ledger) Records(ctx context.Context, do func(r record.Record) error) error {
	const page = 1000
	for next := int64(0); ; {
		records, err := l.records(ctx, fmt.Sprintf("SELECT idx, leaf FROM entries WHERE idx >= ? ORDER BY idx LIMIT %d", page), []any{next})
		if err != nil {
			return l.store.fail("read the entries", err)
		}
		for _, r := range records {
			if err := do(r); err != nil {
				return err
			}
			next = r.Index + 1
		}
		if len(records) < page {
			return nil
		}
	}
}

// Backup writes a copy of the store to a new file. The error is of kind usage if the store has other tools for that, and wraps
// fs.ErrExist if the file exists.
func (l *Ledger) Backup(ctx context.Context, path string) error {
	if l.store.Backup == nil {
		return fault.Usage.Errorf("%s is not backed up by hsmsign", l.store.Name).Fix("use the tools of the database")
	}
	return l.store.fail("back up", l.store.Backup(ctx, path))
}
