package ledger

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"hsmsign/ledger/record"
)

// What a Due is about.
const (
	DuePush    = "push certificate"
	DueRequest = "request"
)

// Due is something that has to be done.
type Due struct {
	What       string
	Customer   Customer
	CustomerID record.ID
	At         time.Time // UTC: when the certificate expires, or when the request was issued
	Request    string    // id of a request that was not redeemed
	// UseBefore is when the first certificate of the vendor's chain in the request expires, UTC. Zero: not known, or not a
	// request.
	UseBefore time.Time
}

// Deadline returns when it is too late: when the certificate expires, or the last day of the request.
func (d Due) Deadline() time.Time {
	if !d.UseBefore.IsZero() {
		return d.UseBefore
	}
	return d.At
}

// Due returns the push certificate of each customer, and the requests that were issued and not redeemed: no push certificate
// of the customer was attached since. Each is proved by its entry.
func (l *Ledger) Due(ctx context.Context) ([]Due, error) {
	head, err := l.Head(ctx)
	if err != nil {
		return nil, err
	}
	customers, err := l.Customers(ctx, "")
	if err != nil {
		return nil, err
	}
	byID := map[record.ID]Customer{}
	for _, c := range customers {
		byID[c.ID] = c.Customer
	}
	var rows []dueRow
	const pushes = "SELECT customer, entry, 0 FROM pushes"
	const open = `SELECT r.customer, r.issued, 1 FROM requests r WHERE r.state = 'issued' AND NOT EXISTS
		(SELECT 1 FROM pushes p WHERE p.customer = r.customer AND p.entry > r.issued)`
	err = l.rows(ctx, pushes+" UNION ALL "+open, nil, func(found *sql.Rows) error {
		var customer []byte
		var row dueRow
		err := found.Scan(&customer, &row.entry, &row.request)
		row.customer = idOf(customer)
		rows = append(rows, row)
		return err
	})
	if err != nil {
		return nil, err
	}
	all, expiry := make([]Due, 0, len(rows)), &dates{l, map[record.Hash]time.Time{}}
	for _, row := range rows {
		d, err := l.due(ctx, head, row, expiry)
		if err != nil {
			return nil, l.store.fail("read what is due", err)
		}
		d.Customer, d.CustomerID = byID[row.customer], row.customer
		all = append(all, d)
	}
	return all, nil
}

// dueRow is what a table says is due.
type dueRow struct {
	customer record.ID
	entry    int64
	request  bool
}

// due returns what the entry of a row says.
func (l *Ledger) due(ctx context.Context, head *Checkpoint, row dueRow, expiry *dates) (d Due, err error) {
	e, err := l.entry(ctx, l.store.DB, head, row.entry)
	if err != nil {
		return d, err
	}
	kind := map[bool]string{false: record.KindAttached, true: record.KindIssued}[row.request]
	if e.Customer != row.customer || e.Kind != kind {
		return d, fmt.Errorf("%w: entry %d is not what the list of push certificates or requests says", ErrTampered, row.entry)
	}
	if row.request {
		useBefore, err := expiry.useBefore(ctx, l.store.DB, e.Chain)
		if err != nil {
			return d, err
		}
		o, err := l.original(ctx, l.store.DB, row.entry, e)
		return Due{What: DueRequest, At: o.Time, Request: e.Request.String(), UseBefore: useBefore}, err
	}
	p, err := l.pushOf(ctx, l.store.DB, row.entry, e, row.customer)
	if err != nil {
		return d, err
	}
	return Due{What: DuePush, At: p.NotAfter.UTC()}, nil
}
