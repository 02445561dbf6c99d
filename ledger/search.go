package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sort"
	"time"

	"hsmsign/ledger/record"
)

const (
	// maxSearched is how many entries one search reads at most.
	maxSearched = 10_000
	searchPage  = 1000
)

// Search returns entries, the newest first. It proves none of them: Verify does that. next is the Before of the next page; 0: this
// is the last one. One call reads at most 10,000 entries, so a page may have fewer than Limit, or none, and yet have a next one.
func (l *Ledger) Search(ctx context.Context, q Query) (found []record.Record, next int64, err error) {
	where, args, err := l.where(ctx, Query{Customer: q.Customer, Customers: q.Customers, Kind: q.Kind})
	if err != nil {
		return nil, 0, err
	}
	m, err := l.matcher(ctx, q)
	if err != nil {
		return nil, 0, l.store.fail("search the entries", err)
	}
	page := q.Limit + 1 // to know whether there are more
	if m.filters() {
		page = searchPage
	}
	for read := 0; m.low < m.high; {
		part, err := l.leaves(ctx, fmt.Sprintf("SELECT idx, leaf FROM entries WHERE idx >= %d AND idx < %d%s ORDER BY idx DESC LIMIT %d", m.low, m.high, where, page), args)
		if err != nil {
			return nil, 0, l.store.fail("search the entries", err)
		}
		for _, r := range part {
			if !m.matches(r.Entry) {
				continue
			}
			if len(found) == q.Limit { // there are more
				next = found[q.Limit-1].Index
				found, err = l.shown(ctx, q, found)
				return found, next, err
			}
			found = append(found, r)
		}
		read += len(part)
		if len(part) < page {
			break
		}
		if m.high = part[len(part)-1].Index; read >= maxSearched && m.high > m.low {
			next = m.high
			break
		}
	}
	found, err = l.shown(ctx, q, found)
	return found, next, err
}

// shown adds the names that the reader may know of.
func (l *Ledger) shown(ctx context.Context, q Query, found []record.Record) ([]record.Record, error) {
	found, err := l.named(ctx, found)
	if err != nil {
		return nil, l.store.fail("search the entries", err)
	}
	for i := range found {
		if q.Customers != nil && !slices.Contains(q.Customers, found[i].From) {
			found[i].From = ""
		}
	}
	return found, nil
}

// matcher is the part of a query that the columns of the table do not answer.
type matcher struct {
	low, high int64 // indexes: from low to before high
	request   record.ID
	actor     record.ID
	hash      record.Hash
}

// matcher prepares a query. A range without entries means that nothing can match.
func (l *Ledger) matcher(ctx context.Context, q Query) (m matcher, err error) {
	head, err := l.Head(ctx)
	if err != nil {
		return m, err
	}
	m = matcher{high: head.Size, request: q.Request, hash: q.SHA256}
	if q.Before > 0 {
		m.high = min(m.high, q.Before)
	}
	if !q.Until.IsZero() {
		if err := l.until(ctx, &m, q.Until); err != nil {
			return m, err
		}
	}
	if q.Request != (record.ID{}) {
		var first, newest int64
		switch err := l.store.DB.QueryRowContext(ctx, l.store.bind("SELECT intent, entry FROM requests WHERE id = ?"), q.Request[:]).Scan(&first, &newest); {
		case err == nil:
			m.low, m.high = max(m.low, first), min(m.high, newest+1)
		case !errors.Is(err, sql.ErrNoRows): // without a row it was erased: its entries are there
			return m, err
		}
	}
	if q.Actor != "" {
		var id []byte
		err := l.store.DB.QueryRowContext(ctx, l.store.bind("SELECT id FROM actors WHERE name = ?"), q.Actor).Scan(&id)
		if errors.Is(err, sql.ErrNoRows) {
			m.high = m.low
		} else if err != nil {
			return m, err
		}
		m.actor = idOf(id)
	}
	return m, nil
}

// until lowers the range to the entries that are not newer than a time. The time of entries never falls.
func (l *Ledger) until(ctx context.Context, m *matcher, at time.Time) error {
	var failed error
	n := sort.Search(int(m.high-m.low), func(n int) bool {
		if failed != nil {
			return true
		}
		part, err := l.leaves(ctx, "SELECT idx, leaf FROM entries WHERE idx = ?", []any{m.low + int64(n)})
		failed = err
		return failed != nil || len(part) == 0 || part[0].Entry.Time.After(at)
	})
	m.high = m.low + int64(n)
	return failed
}

// filters returns whether entries must be read to know whether they match.
func (m *matcher) filters() bool {
	return m.request != record.ID{} || m.actor != record.ID{} || m.hash != record.Hash{}
}

func (m *matcher) matches(e *record.Entry) bool {
	none := record.Hash{}
	return (m.request == record.ID{} || e.Request == m.request) && (m.actor == record.ID{} || e.Actor == m.actor) &&
		(m.hash == none || slices.Contains([]record.Hash{e.CSR, e.SPKI, e.File, e.Vendor, e.Chain}, m.hash))
}

// Previous returns the request of the same customer that was issued last before another one was asked for, with its CSR and without
// its file; nil if there is none. Entries and CSR are proved; that no newer one was hidden, only Verify tells.
func (l *Ledger) Previous(ctx context.Context, r *RequestRecord) (*RequestRecord, error) {
	part, err := l.leaves(ctx, "SELECT idx, leaf FROM entries WHERE customer = ?"+ofCustomers+fmt.Sprintf(" AND idx < %d ORDER BY idx DESC LIMIT 1", r.intent),
		[]any{r.CustomerID[:], record.KindIssued})
	if err != nil || len(part) == 0 || r.CustomerID == (record.ID{}) {
		return nil, l.store.fail("find the previous request", err)
	}
	before, err := l.Request(ctx, part[0].Entry.Request)
	if err != nil {
		return nil, err
	}
	before.File = nil
	return before, nil
}

// ofCustomers is the condition of a kind besides one of customers. The expression keeps SQLite from the index of kinds: a customer has
// few of all entries, and a kind has many.
const ofCustomers = " AND kind || '' = ?"
