package ledger

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// The rules that refuse a use of the key.
const (
	ruleForeignKey = "ledger.foreign-key" // the customer's key belongs to another customer
	ruleConcurrent = "ledger.concurrent"  // another process issued the same request first
)

// openIntent is the age at which an intent was left open by a crash: opening a key and signing end within 12 minutes.
const openIntent = 15 * time.Minute

// The names of openings.
const (
	openCSR      = "csr"      // DER
	openRequest  = "request"  // the request file
	openActor    = "actor"    // name of the actor, UTF-8
	openCustomer = "customer" // JSON of a Customer
)

// Customer is who requests are issued to. Everything in it is personal data, which Erase deletes.
type Customer struct {
	Name    string `json:"name"`              // unique; at most 128 characters
	Contact string `json:"contact,omitempty"` // how to reach the customer: an email address
	Account string `json:"account,omitempty"` // the Apple Account that must renew the push certificate
	Notes   string `json:"notes,omitempty"`
}

// maxText is the maximum length of a text about a customer, in characters.
const maxText = 1024

// Check returns an error of kind usage unless the texts are printable and short enough.
func (c Customer) Check() error {
	for _, f := range []struct {
		name, value string
		limit       int
	}{{"name", c.Name, 128}, {"contact", c.Contact, maxText}, {"account", c.Account, maxText}, {"notes", c.Notes, maxText}} {
		if utf8.RuneCountInString(f.value) > f.limit || strings.ContainsFunc(f.value, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return fault.Usage.Errorf("the customer's %s %q", f.name, fault.Clip(f.value, 64)).
				Fix(fmt.Sprintf("write at most %d printable characters", f.limit))
		}
	}
	if strings.TrimSpace(c.Name) != c.Name || c.Name == "" {
		return fault.Usage.Errorf("the customer's name %q", c.Name).Fix("name the customer with --customer, without spaces at the ends")
	}
	return nil
}

// use is a Use with its ids and hashes.
type use struct {
	record.Use
	actor, customer         record.ID
	csr, spki, vendor, root record.Hash
}

func newUse(u record.Use) *use {
	return &use{Use: u, csr: sha256.Sum256(u.CSR), spki: sha256.Sum256(u.SPKI), vendor: sha256.Sum256(u.Vendor), root: sha256.Sum256(u.Chain)}
}

// entry returns an entry about the use.
func (u *use) entry(kind string, request record.ID) *record.Entry {
	return &record.Entry{
		Kind: kind, Request: request, Customer: u.customer, Actor: u.actor, Channel: u.Channel,
		CSR: u.csr, SPKI: u.spki, Vendor: u.vendor, Chain: u.root, Digest: u.Digest,
	}
}

// Authorize implements record.Recorder.
func (l *Ledger) Authorize(ctx context.Context, asked record.Use) (permit record.Permit, err error) {
	if err := (Customer{Name: asked.Customer}).Check(); err != nil {
		return permit, err
	}
	var refusal error
	err = l.Append(ctx, func(ctx context.Context, tx *Tx) (err error) {
		permit, refusal, err = tx.authorize(ctx, newUse(asked))
		return err
	})
	if err == nil && permit.Stored != nil {
		if id, idErr := record.ParseID(permit.Request); idErr == nil {
			err = l.awaitIssued(ctx, id)
		}
	}
	return permit, errors.Join(err, refusal)
}

// authorize applies the rules. A refusal is recorded, so it is not an error of the change.
func (tx *Tx) authorize(ctx context.Context, u *use) (permit record.Permit, refusal, err error) {
	if err := tx.closeIntents(ctx); err != nil {
		return permit, nil, err
	}
	if u.actor, err = tx.actor(ctx, u.Actor); err != nil {
		return permit, nil, err
	}
	known, err := tx.find(ctx, &u.customer, "SELECT id FROM customers WHERE name = ?", u.Customer)
	if err != nil {
		return permit, nil, err
	}
	var owner record.ID
	foreign, err := tx.find(ctx, &owner, "SELECT customer FROM requests WHERE spki = ? AND customer <> ? AND state <> 'failed'", u.spki[:], u.customer[:])
	if err != nil {
		return permit, nil, err
	}
	if foreign {
		refusal = fault.Conflict.Errorf("the key of this CSR belongs to another customer than %q [%s]", u.Customer, ruleForeignKey).
			Fix("use a new key for each customer; if a customer has a new name, change it with hsmsign ledger customer")
		return permit, refusal, tx.refuse(ctx, u, ruleForeignKey)
	}
	if known {
		permit, err = tx.stored(ctx, u)
	} else {
		u.customer, err = tx.addCustomer(u.actor, u.Actor, u.Channel, Customer{Name: u.Customer})
	}
	if err != nil || permit.Stored != nil {
		return permit, nil, err
	}
	id := record.NewID()
	index, err := tx.Append(u.entry(record.KindIntent, id), record.NewOpening(openActor, []byte(u.Actor)), record.NewOpening(openCSR, u.CSR))
	if err != nil {
		return permit, nil, err
	}
	tx.exec("INSERT INTO requests (id, customer, state, entry, issued, begun, csr, spki, vendor, chain, digest) VALUES (?, ?, ?, ?, -1, ?, ?, ?, ?, ?, ?)",
		id[:], u.customer[:], record.KindIntent, index, tx.now.UnixMilli(), u.csr[:], u.spki[:], u.vendor[:], u.root[:], u.Digest)
	return record.Permit{Request: id.String()}, nil, nil
}

// row is a query of one row in the transaction.
func (tx *Tx) row(ctx context.Context, query string, args ...any) *sql.Row {
	statement, err := tx.ledger.store.prepared(ctx, tx.sql, query)
	if err != nil {
		return tx.sql.QueryRowContext(ctx, tx.ledger.store.bind(query), args...) // its Scan returns the error
	}
	return statement.QueryRowContext(ctx, args...)
}

// closeIntents records that intents which a crash left open are unknown.
func (tx *Tx) closeIntents(ctx context.Context) error {
	ids, err := tx.ids(ctx, "SELECT id FROM requests WHERE state = 'intent' AND begun < ? ORDER BY begun LIMIT 100", tx.now.Add(-openIntent).UnixMilli())
	for _, id := range ids {
		if err == nil {
			err = tx.move(ctx, id, &record.Entry{Kind: record.KindUnknown})
		}
	}
	return err
}

// move appends an entry about a request, which gets its state.
func (tx *Tx) move(ctx context.Context, id record.ID, e *record.Entry, openings ...record.Opening) error {
	var at int64
	if err := tx.row(ctx, "SELECT entry FROM requests WHERE id = ?", id[:]).Scan(&at); err != nil {
		return err
	}
	before, err := tx.entry(ctx, at)
	if err != nil {
		return err
	}
	moved := *before
	moved.Kind, moved.File, moved.Operation, moved.Rule, moved.Commitments = e.Kind, e.File, e.Operation, e.Rule, nil
	index, err := tx.Append(&moved, openings...)
	if err != nil {
		return err
	}
	tx.exec("UPDATE requests SET state = ?, entry = ? WHERE id = ?", moved.Kind, index, id[:])
	if moved.Kind == record.KindIssued {
		tx.exec("UPDATE requests SET issued = ? WHERE id = ?", index, id[:])
	}
	return nil
}

// find reads one id, and returns whether there is one.
func (tx *Tx) find(ctx context.Context, id *record.ID, query string, args ...any) (bool, error) {
	var raw []byte
	err := tx.row(ctx, query, args...).Scan(&raw)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	if err == nil && len(raw) != len(id) {
		err = fmt.Errorf("%w: an id of %d bytes", ErrTampered, len(raw))
	}
	if err == nil {
		*id = record.ID(raw)
	}
	return err == nil, err
}

// ids reads a list of ids.
func (tx *Tx) ids(ctx context.Context, query string, args ...any) (ids []record.ID, err error) {
	statement, err := tx.ledger.store.prepared(ctx, tx.sql, query)
	if err != nil {
		return nil, err
	}
	rows, err := statement.QueryContext(ctx, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // Err has the error
	for rows.Next() {
		var raw []byte
		if err := rows.Scan(&raw); err != nil {
			return nil, err
		}
		if len(raw) != len(record.ID{}) {
			return nil, fmt.Errorf("%w: an id of %d bytes", ErrTampered, len(raw))
		}
		ids = append(ids, record.ID(raw))
	}
	return ids, rows.Err()
}

// actor returns the id of an actor, which is new at its first use.
func (tx *Tx) actor(ctx context.Context, name string) (id record.ID, err error) {
	known, err := tx.find(ctx, &id, "SELECT id FROM actors WHERE name = ?", name)
	if err == nil && !known {
		id = record.NewID()
		tx.exec("INSERT INTO actors (id, name) VALUES (?, ?)", id[:], name)
	}
	return id, err
}

// refuse records a refusal: once a day for one actor, rule and CSR, and then only as a count.
func (tx *Tx) refuse(ctx context.Context, u *use, rule string) error {
	day := tx.now.Unix() / (24 * 60 * 60)
	var repeated int64
	err := tx.row(ctx, "SELECT repeated FROM refusals WHERE day = ? AND actor = ? AND rule = ? AND csr = ?", day, u.actor[:], rule, u.csr[:]).Scan(&repeated)
	if err == nil {
		tx.exec("UPDATE refusals SET repeated = repeated + 1 WHERE day = ? AND actor = ? AND rule = ? AND csr = ?", day, u.actor[:], rule, u.csr[:])
		return nil
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	e := u.entry(record.KindRefused, record.ID{})
	e.Rule = rule
	if _, err := tx.Append(e, record.NewOpening(openActor, []byte(u.Actor)), record.NewOpening(openCSR, u.CSR)); err != nil {
		return err
	}
	tx.exec("INSERT INTO refusals (day, actor, rule, csr, repeated) VALUES (?, ?, ?, ?, 0)", day, u.actor[:], rule, u.csr[:])
	return nil
}

// sameIssue finds a request by CSR, customer, vendor certificate, chain and digest.
const sameIssue = "SELECT id FROM requests WHERE csr = ? AND customer = ? AND vendor = ? AND chain = ? AND digest = ? AND state = 'issued'"

// stored returns the permit of the same use, if it was issued before.
func (tx *Tx) stored(ctx context.Context, u *use) (permit record.Permit, err error) {
	var id record.ID
	issued, err := tx.find(ctx, &id, sameIssue, u.csr[:], u.customer[:], u.vendor[:], u.root[:], u.Digest)
	if err != nil || !issued {
		return permit, err
	}
	var at int64
	if err := tx.row(ctx, "SELECT entry FROM requests WHERE id = ?", id[:]).Scan(&at); err != nil {
		return permit, err
	}
	e, err := tx.entry(ctx, at)
	if err != nil {
		return permit, err
	}
	file, err := tx.ledger.opening(ctx, tx.sql, at, e, openRequest)
	return record.Permit{Request: id.String(), Stored: file}, err
}

// Conclude implements record.Recorder.
func (l *Ledger) Conclude(ctx context.Context, permit *record.Permit, outcome record.Outcome) error {
	id, err := record.ParseID(permit.Request)
	if err != nil {
		return err
	}
	issued := id
	err = l.Append(ctx, func(ctx context.Context, tx *Tx) (err error) {
		issued, err = tx.conclude(ctx, id, outcome)
		return err
	})
	if err == nil {
		permit.Request = issued.String()
	}
	if err == nil && outcome.Err == nil {
		err = l.awaitIssued(ctx, issued)
	}
	return err
}

// conclude records the outcome, and returns the id under which the request was issued.
func (tx *Tx) conclude(ctx context.Context, id record.ID, outcome record.Outcome) (record.ID, error) {
	var state string
	var customer, csr, vendor, root []byte
	var digest string
	err := tx.row(ctx, "SELECT state, customer, csr, vendor, chain, digest FROM requests WHERE id = ?", id[:]).Scan(&state, &customer, &csr, &vendor, &root, &digest)
	if err != nil {
		return id, err
	}
	if state != record.KindIntent {
		return id, fault.Conflict.Errorf("the request %s is %s already", id, state).Fix("sign the CSR again")
	}
	if outcome.Err != nil {
		return id, tx.move(ctx, id, &record.Entry{Kind: record.KindFailed, Rule: fault.KindOf(outcome.Err).String()})
	}
	var other record.ID
	issued, err := tx.find(ctx, &other, sameIssue, csr, customer, vendor, root, digest)
	if err != nil {
		return id, err
	}
	if issued { // with the same bytes: PKCS#1 v1.5 is deterministic
		return other, tx.move(ctx, id, &record.Entry{Kind: record.KindFailed, Rule: ruleConcurrent})
	}
	if err := tx.supersede(ctx, customer, csr); err != nil {
		return id, err
	}
	return id, tx.move(ctx, id, &record.Entry{Kind: record.KindIssued, File: sha256.Sum256(outcome.File), Operation: outcome.Operation}, record.NewOpening(openRequest, outcome.File))
}

// supersede marks the requests of a CSR that were issued under another vendor certificate, chain or digest.
func (tx *Tx) supersede(ctx context.Context, customer, csr []byte) error {
	ids, err := tx.ids(ctx, "SELECT id FROM requests WHERE csr = ? AND customer = ? AND state = 'issued'", csr, customer)
	for _, id := range ids {
		if err == nil {
			err = tx.move(ctx, id, &record.Entry{Kind: record.KindSuperseded})
		}
	}
	return err
}
