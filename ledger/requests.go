package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// RequestRecord is a request: what its newest entry says, and how it began.
type RequestRecord struct {
	ID         record.ID
	Customer   string // present name
	CustomerID record.ID
	// State is the kind of the newest entry: intent, issued, failed, refused, unknown, superseded; pending, approved, rejected or
	// expired of one that other people must approve.
	State     string
	Actor     string
	Entry     int64     // the newest one
	Begun     time.Time // UTC: when the signature was authorized, or asked for
	Changed   time.Time // UTC: of the newest entry
	CSR, SPKI record.Hash
	Vendor    record.Hash // of the vendor certificate
	Digest    string      // of the signature: "SHA-256"
	UseBefore time.Time   // of an issued request: when the first certificate of the vendor's chain expires, UTC

	// File is the request file, if it was issued, and CSRDER the CSR. Only Request reads them. Release must allow the File
	// before it leaves the program: what it is about may be frozen.
	File, CSRDER []byte

	// Approval is what other people must approve, or have; nil: nobody must. Only Request and Pending read it.
	Approval *Approval

	actor          record.ID
	intent, issued int64 // entries; issued is -1 if there is none
	newest         int64 // the entry that led to the request in a list
}

// Request returns one request. Entries, file and CSR are proved. The error is of kind not found if there is no such request.
func (l *Ledger) Request(ctx context.Context, id record.ID) (*RequestRecord, error) {
	r := &RequestRecord{ID: id}
	err := l.snapshot(ctx, "read the request", func(tx *sql.Tx, head *Checkpoint) error {
		err := tx.QueryRowContext(ctx, l.store.bind("SELECT entry, issued, intent FROM requests WHERE id = ?"), id[:]).Scan(&r.Entry, &r.issued, &r.intent)
		if errors.Is(err, sql.ErrNoRows) {
			return fault.NotFound.Errorf("there is no request %s", id)
		}
		if err == nil {
			at := l.readerAt(tx, head)
			if err = at.proveRequest(ctx, r); err == nil {
				err = at.proveApproval(ctx, r)
			}
		}
		if err == nil && r.CSR != (record.Hash{}) {
			err = l.requestFiles(ctx, tx, head, r)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return r, l.nameRequests(ctx, []*RequestRecord{r})
}

// proveRequest reads the entries of a request, and compares them with the list of requests.
func (at reader) proveRequest(ctx context.Context, r *RequestRecord) error {
	e, err := at.prove(ctx, r.Entry)
	if err != nil {
		return err
	}
	first, err := at.prove(ctx, r.intent)
	if err != nil {
		return err
	}
	made := e.Kind == record.KindIssued || e.Kind == record.KindSuperseded
	if made != (r.issued >= 0) || e.Request != r.ID || first.Request != r.ID || first.Kind != record.KindIntent && first.Kind != record.KindPending && !repeats(first) {
		return fmt.Errorf("%w: the list of requests does not say of %s what the entries say", ErrTampered, r.ID)
	}
	r.State, r.CustomerID, r.actor, r.Changed = e.Kind, e.Customer, e.Actor, e.Time
	r.CSR, r.SPKI, r.Vendor, r.Digest = e.CSR, e.SPKI, e.Vendor, e.Digest
	if aboutApproval(e.Kind) {
		r.actor = first.Actor
	}
	original, err := at.original(ctx, at.querier, r.intent, first)
	if err != nil {
		return err
	}
	r.Begun = original.Time
	if r.State == record.KindIssued {
		r.UseBefore, err = at.useBefore(ctx, at.querier, e.Chain)
	}
	return err
}

// requestFiles reads the CSR and the request file.
func (l *Ledger) requestFiles(ctx context.Context, q querier, head *Checkpoint, r *RequestRecord) error {
	first, err := l.entry(ctx, q, head, r.intent)
	if err != nil {
		return err
	}
	if r.CSRDER, err = l.opening(ctx, q, r.intent, first, openCSR); err != nil || r.issued < 0 {
		return err
	}
	e, err := l.entry(ctx, q, head, r.issued)
	if err != nil {
		return err
	}
	if e.Request != r.ID {
		return fmt.Errorf("%w: entry %d is not about the request %s", ErrTampered, r.issued, r.ID)
	}
	r.File, err = l.opening(ctx, q, r.issued, e, openRequest)
	return err
}

// nameRequests adds the names of customers and actors. It runs after the transaction, which has its own connection.
func (l *Ledger) nameRequests(ctx context.Context, all []*RequestRecord) (err error) {
	names := map[record.ID]string{}
	for _, r := range all {
		if r.Customer, err = l.name(ctx, names, "customers", r.CustomerID); err == nil {
			r.Actor, err = l.name(ctx, names, "actors", r.actor)
		}
		if err != nil {
			return l.store.fail("read the requests", err)
		}
	}
	return nil
}

// requestKinds are the kinds of entries about a request.
const requestKinds = "kind IN ('intent', 'issued', 'failed', 'refused', 'unknown', 'superseded', 'pending', 'approved', 'rejected', 'expired')"

// Requests returns requests, the one that changed last first, each proved by its entries. Kind is their state, and Before the
// Entry of the last one of the page before.
func (l *Ledger) Requests(ctx context.Context, q Query) ([]RequestRecord, error) {
	var found []*RequestRecord
	where, args, err := l.where(ctx, q)
	if err != nil {
		return nil, err
	}
	err = l.snapshot(ctx, "list the requests", func(tx *sql.Tx, head *Checkpoint) error {
		before := int64(math.MaxInt64)
		at := l.readerAt(tx, head)
		page := min(max(2*q.Limit, 16), 1000) // an issued request has two entries
		for len(found) < q.Limit {
			part, err := l.requestPage(ctx, tx, "SELECT idx, leaf FROM entries WHERE "+requestKinds+where+
				fmt.Sprintf(" AND idx < %d ORDER BY idx DESC LIMIT %d", before, page), args)
			if err != nil {
				return err
			}
			if err := l.requestRows(ctx, tx, part); err != nil {
				return err
			}
			for _, r := range part {
				before = r.newest
				if r.Entry != r.newest || len(found) == q.Limit { // the request has a newer entry, or was erased
					continue
				}
				if err := at.proveRequest(ctx, r); err != nil {
					return err
				}
				if r.CSR == (record.Hash{}) { // the end of a freeze was asked for
					continue
				}
				found = append(found, r)
			}
			if len(part) < page {
				return nil
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := l.nameRequests(ctx, found); err != nil {
		return nil, err
	}
	all := make([]RequestRecord, len(found))
	for i, r := range found {
		all[i] = *r
	}
	return all, nil
}

// requestPage reads entries about requests: each has the number of its entry in newest.
func (l *Ledger) requestPage(ctx context.Context, q querier, query string, args []any) (part []*RequestRecord, err error) {
	err = l.store.each(ctx, q, query, args, func(scan func(...any) error) error {
		r := &RequestRecord{Entry: -1}
		var leaf []byte
		if err := scan(&r.newest, &leaf); err != nil {
			return err
		}
		e, err := record.ParseEntry(leaf)
		if err != nil {
			return fmt.Errorf("%w: entry %d: %w", ErrTampered, r.newest, err)
		}
		r.ID = e.Request
		part = append(part, r)
		return nil
	})
	return part, err
}

// requestRows reads the rows of the requests that entries are about. One that has no row keeps Entry -1.
func (l *Ledger) requestRows(ctx context.Context, q querier, part []*RequestRecord) error {
	if len(part) == 0 {
		return nil
	}
	byID, ids := map[record.ID][]*RequestRecord{}, []any{}
	for _, r := range part {
		if r.ID == (record.ID{}) { // a refusal before an intent
			continue
		}
		if byID[r.ID] == nil {
			ids = append(ids, r.ID[:])
		}
		byID[r.ID] = append(byID[r.ID], r)
	}
	if len(ids) == 0 {
		return nil
	}
	query := "SELECT id, entry, issued, intent FROM requests WHERE id IN (?" + strings.Repeat(",?", len(ids)-1) + ")"
	return l.store.each(ctx, q, query, ids, func(scan func(...any) error) error {
		var id []byte
		var entry, issued, intent int64
		if err := scan(&id, &entry, &issued, &intent); err != nil {
			return err
		}
		for _, r := range byID[idOf(id)] {
			r.Entry, r.issued, r.intent = entry, issued, intent
		}
		return nil
	})
}

// Today returns how many requests under a policy were authorized for an actor today (UTC), of as many as the policy allows. The
// number is a cache of the entries, as the rule uses it.
func (l *Ledger) Today(ctx context.Context, actor string) (int, error) {
	now, err := l.clock(ctx, l.store.DB)
	var used int
	if err == nil {
		err = l.store.DB.QueryRowContext(ctx, l.store.bind("SELECT coalesce(max(d.requests), 0) FROM daily d JOIN actors a ON a.id = d.actor WHERE a.name = ? AND d.day = ?"),
			actor, dayOf(&record.Entry{Time: now}).number).Scan(&used)
	}
	return used, l.store.fail("read the requests of today", err)
}
