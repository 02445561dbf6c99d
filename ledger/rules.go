package ledger

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync/atomic"
	"time"

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
	openAttempts = "attempts" // JSON: the failed requests to the key store

	openEntitlement = "entitlement" // JSON: the answer of the program that the actor's role asked
)

// use is a Use with its ids and hashes.
type use struct {
	record.Use
	actor, customer         record.ID
	credential              record.ID
	csr, spki, vendor, root record.Hash
	openings                []record.Opening // of the actor, the CSR and the entitlement, for one entry
	newKey                  bool             // a known customer used a key that nobody used before
	firstKey                bool             // the customer was added when others had to approve this use
}

// maxEntitlement is the maximum length of the answer of a program in bytes.
const maxEntitlement = 64 << 10

// checkUse returns an error of kind usage if a use cannot be recorded.
func checkUse(u record.Use) error {
	if u.Entitlement != nil && (len(u.Entitlement) > maxEntitlement || !json.Valid(u.Entitlement)) {
		return fault.Usage.Errorf("the entitlement is not JSON of at most %d bytes", maxEntitlement).Fix("correct the program that the role names")
	}
	return nil
}

// newUse hashes what is asked for. It runs before the transaction, which is the one of all callers.
func (l *Ledger) newUse(u record.Use) *use {
	openings := []record.Opening{record.NewOpening(openActor, []byte(u.Actor)), record.NewOpening(openCSR, u.CSR)}
	if u.Entitlement != nil {
		openings = append(openings, record.NewOpening(openEntitlement, u.Entitlement))
	}
	return &use{
		Use: u, csr: openings[1].Hash, spki: sha256.Sum256(u.SPKI), vendor: l.vendorHash.of(u.Vendor), root: l.chainHash.of(u.Chain), openings: openings,
		credential: record.CredentialID(u.Credential),
	}
}

// hashed remembers the hash of the newest data: that of the vendor's certificates, which rarely change. Safe for concurrent
// use.
type hashed struct {
	newest atomic.Pointer[struct {
		data []byte
		hash record.Hash
	}]
}

func (h *hashed) of(data []byte) record.Hash {
	if newest := h.newest.Load(); newest != nil && bytes.Equal(newest.data, data) {
		return newest.hash
	}
	newest := struct {
		data []byte
		hash record.Hash
	}{bytes.Clone(data), record.SHA256(data)}
	h.newest.Store(&newest)
	return newest.hash
}

// entry returns an entry about the use.
func (u *use) entry(kind string, request record.ID) *record.Entry {
	return &record.Entry{
		Kind: kind, Request: request, Customer: u.customer, Actor: u.actor, Credential: u.credential, Channel: u.Channel,
		CSR: u.csr, SPKI: u.spki, Vendor: u.vendor, Chain: u.root, Digest: u.Digest, Policy: u.Policy,
	}
}

// Authorize implements record.Recorder.
func (l *Ledger) Authorize(ctx context.Context, asked record.Use) (permit record.Permit, err error) {
	if err := (Customer{Name: asked.Customer}).Check(); err != nil {
		return permit, err
	}
	if err := checkUse(asked); err != nil {
		return permit, err
	}
	u := l.newUse(asked)
	var given record.Permit
	var refusal error
	if err := l.Append(ctx, func(ctx context.Context, tx *Tx) (err error) {
		given, refusal, err = tx.authorize(ctx, u)
		return err
	}); err != nil { // the change may still be running: nothing of it may be read
		return record.Permit{}, err
	}
	if u.newKey {
		l.newKeys.Add(1)
	}
	given.Customer, given.Actor, given.Identity = u.customer, u.Actor, u.Identity
	return given, refusal
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
	if frozen, err := tx.stopped(ctx, u.customer, u.Actor, u.Identity); err != nil {
		return permit, nil, err
	} else if frozen != nil {
		return permit, frozen.refusal(), tx.refuse(ctx, u, ruleFrozen)
	}
	var owner record.ID
	used, err := tx.find(ctx, &owner, "SELECT customer FROM keys WHERE spki = ?", u.spki[:])
	if err != nil {
		return permit, nil, err
	}
	if used && owner != u.customer {
		return permit, foreignKey(u.Customer), tx.refuse(ctx, u, ruleForeignKey)
	}
	if !known && u.MustExist {
		refusal = fault.Forbidden.Errorf("caller %s may not ask for requests of a customer that is not known: %q", u.Actor, u.Customer).Rule(ruleMustExist).
			Fix("add the customer with hsmsign ledger customer add")
		return permit, refusal, tx.refuse(ctx, u, ruleMustExist)
	}
	if used {
		if permit, err = tx.stored(ctx, u.entry(record.KindIntent, record.ID{})); err != nil || permit.Stored != nil {
			return permit, nil, err
		}
	}
	asked, waiting, err := tx.approved(ctx, u, known, used)
	if err != nil || waiting != nil {
		return permit, waiting, err
	}
	if asked == (record.ID{}) { // otherwise it was counted when it was asked
		if refused, err := tx.countDay(ctx, u); refused {
			return permit, err, tx.refuse(ctx, u, rulePerDay)
		} else if err != nil {
			return permit, nil, err
		}
	}
	switch {
	case used, u.firstKey:
	case known:
		u.newKey = true
		_, err = tx.Append(u.entry(record.KindNewKey, record.ID{}), record.NewOpening(openActor, []byte(u.Actor)))
	default:
		u.customer, err = tx.addCustomer(u.actor, u.Actor, u.Channel, Customer{Name: u.Customer})
	}
	if err != nil {
		return permit, nil, err
	}
	permit, err = tx.intend(ctx, u, asked, !used)
	return permit, nil, err
}

func foreignKey(customer string) error {
	return fault.Conflict.Errorf("the key of this CSR belongs to another customer than %q", customer).Rule(ruleForeignKey).
		Fix("use a new key for each customer; if a customer has a new name, change it with hsmsign ledger customer edit --rename")
}

// intend records that a signature is about to be made. id is that of the request that was approved; the zero ID: it is new. newKey
// says that nobody used the key before.
func (tx *Tx) intend(ctx context.Context, u *use, id record.ID, newKey bool) (record.Permit, error) {
	if err := tx.keepChain(ctx, u); err != nil {
		return record.Permit{}, err
	}
	approved := id != record.ID{}
	if !approved {
		id = record.NewID()
	}
	intent := u.entry(record.KindIntent, id)
	index, err := tx.Append(intent, u.openings...)
	if err != nil {
		return record.Permit{}, err
	}
	if newKey {
		tx.exec("INSERT INTO keys (spki, customer, entry) VALUES (?, ?, ?)", u.spki[:], u.customer[:], index)
	}
	if approved {
		tx.exec("UPDATE requests SET state = ?, entry = ?, begun = ?, intent = ? WHERE id = ?", record.KindIntent, index, tx.now.UnixMilli(), index, id[:])
	} else {
		tx.exec("INSERT INTO requests (id, customer, state, entry, issued, begun, csr, spki, intent) VALUES (?, ?, ?, ?, -1, ?, ?, ?, ?)",
			id[:], u.customer[:], record.KindIntent, index, tx.now.UnixMilli(), u.csr[:], u.spki[:], index)
	}
	tx.intents[id] = open{intent, time.Now()}
	return record.Permit{Request: id.String()}, nil
}

// row is a query of one row in the transaction.
func (tx *Tx) row(ctx context.Context, query string, args ...any) *sql.Row {
	return tx.sql.QueryRowContext(ctx, query, args...)
}

// closeIntents records that intents which a crash left open are unknown, and that questions were not answered in time.
func (tx *Tx) closeIntents(ctx context.Context) error {
	if tx.low || tx.closed { // later, or by a change before this one
		return nil
	}
	tx.closed = true
	maps.DeleteFunc(tx.ledger.intents, func(_ record.ID, o open) bool { return time.Since(o.at) > openIntent }) // nobody waits for them
	list, err := tx.requests(ctx, "SELECT id, entry, state FROM requests WHERE state = 'intent' AND begun < ? ORDER BY begun LIMIT 100", tx.now.Add(-openIntent).UnixMilli())
	for _, r := range list {
		if err == nil {
			err = tx.move(r, &record.Entry{Kind: record.KindUnknown})
		}
	}
	if err != nil {
		return err
	}
	return tx.closeAsked(ctx)
}

// request is a request and the newest entry about it.
type request struct {
	id    record.ID
	at    int64 // the number of the entry
	state string
	until int64 // when its approval expires, in milliseconds; 0: nobody has to approve it. Only Tx.intent reads it
	*record.Entry
}

// move appends an entry about a request, which gets its state.
func (tx *Tx) move(r request, e *record.Entry, openings ...record.Opening) error {
	moved := *r.Entry
	moved.Kind, moved.File, moved.Operation, moved.Rule, moved.Commitments = e.Kind, e.File, e.Operation, e.Rule, nil
	index, err := tx.Append(&moved, openings...)
	if err != nil {
		return err
	}
	if moved.Kind == record.KindIssued {
		tx.exec("UPDATE requests SET state = ?, entry = ?, issued = ?, until = 0 WHERE id = ?", moved.Kind, index, index, r.id[:])
	} else {
		tx.exec("UPDATE requests SET state = ?, entry = ? WHERE id = ?", moved.Kind, index, r.id[:])
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

// requests reads requests, each with its entry, which is proved. The query returns ids and numbers of entries.
func (tx *Tx) requests(ctx context.Context, query string, args ...any) (list []request, err error) {
	rows, err := tx.sql.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // Err has the error
	for rows.Next() {
		var raw []byte
		var r request
		if err := rows.Scan(&raw, &r.at, &r.state); err != nil {
			return nil, err
		}
		if len(raw) != len(record.ID{}) {
			return nil, fmt.Errorf("%w: an id of %d bytes", ErrTampered, len(raw))
		}
		r.id = record.ID(raw)
		list = append(list, r)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	for i, r := range list { // after the rows: a PostgreSQL connection has one query at a time
		if list[i], err = tx.prove(ctx, r); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// prove reads the entry of a request, proves it, and compares it with the list of requests.
func (tx *Tx) prove(ctx context.Context, r request) (request, error) {
	var err error
	if r.Entry, err = tx.entry(ctx, r.at); err != nil {
		return r, err
	}
	if r.Request != r.id || r.Kind != r.state {
		return r, fmt.Errorf("%w: the list of requests does not say what entry %d says", ErrTampered, r.at)
	}
	return r, nil
}

// actor returns the id of an actor, which is new at its first use.
func (tx *Tx) actor(ctx context.Context, name string) (id record.ID, err error) {
	if id, ok := tx.actors[name]; ok {
		return id, nil
	}
	known, err := tx.find(ctx, &id, "SELECT id FROM actors WHERE name = ?", name)
	switch {
	case err != nil:
	case known:
		tx.actors[name] = id
	default: // the change may fail, so it is not remembered
		id = record.NewID()
		tx.exec("INSERT INTO actors (id, name) VALUES (?, ?)", id[:], name)
	}
	return id, err
}

// issued returns the requests for a CSR that a customer has, and of them the one of the same vendor certificate, chain and
// digest.
func (tx *Tx) issued(ctx context.Context, e *record.Entry) (list []request, same *request, err error) {
	list, err = tx.requests(ctx, "SELECT id, entry, state FROM requests WHERE csr = ? AND customer = ? AND state = 'issued'", e.CSR[:], e.Customer[:])
	for i, r := range list {
		if r.CSR == e.CSR && r.Customer == e.Customer && r.Vendor == e.Vendor && r.Chain == e.Chain && r.Digest == e.Digest {
			same = &list[i]
		}
	}
	return list, same, err
}

// stored returns the permit of the same use, if it was issued before.
func (tx *Tx) stored(ctx context.Context, e *record.Entry) (permit record.Permit, err error) {
	_, same, err := tx.issued(ctx, e)
	if err != nil || same == nil {
		return permit, err
	}
	file, err := tx.ledger.opening(ctx, tx.sql, same.at, same.Entry, openRequest)
	return record.Permit{Request: same.id.String(), Stored: file}, err
}
