package ledger

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// Conclude implements record.Recorder.
func (l *Ledger) Conclude(ctx context.Context, permit *record.Permit, outcome record.Outcome) error {
	id, err := record.ParseID(permit.Request)
	if err != nil {
		return err
	}
	// It is hashed before the transaction, which is the one of all callers.
	made := record.NewOpening(openRequest, outcome.File)
	issued, asked := id, *permit
	var refusal error
	err = l.Append(ctx, func(ctx context.Context, tx *Tx) (err error) {
		issued, refusal, err = tx.conclude(ctx, id, asked, outcome, made)
		return err
	})
	if err != nil { // the change may still be running: nothing of it may be read
		return err
	}
	if refusal == nil {
		permit.Request = issued.String()
	}
	return refusal
}

// conclude records the outcome, and returns the id under which the request was issued. A refusal is recorded too.
func (tx *Tx) conclude(ctx context.Context, id record.ID, permit record.Permit, outcome record.Outcome, made record.Opening) (issuedAs record.ID, refusal, err error) {
	r, owner, issuedBefore, err := tx.intent(ctx, id)
	if err != nil {
		return id, nil, err
	}
	openings, err := attemptsOpening(outcome.Attempts)
	if err != nil {
		return id, nil, err
	}
	failed := func(rule string) error {
		return tx.move(r, &record.Entry{Kind: record.KindFailed, Operation: outcome.Operation, Rule: rule}, openings...)
	}
	if outcome.Err != nil {
		return id, nil, failed(fault.KindOf(outcome.Err).String())
	}
	if frozen, err := tx.stopped(ctx, r.Customer, permit.Actor, permit.Identity); err != nil {
		return id, nil, err
	} else if frozen != nil { // the signature was made, and is not released
		return id, frozen.refusal(), tx.move(r, &record.Entry{Kind: record.KindRefused, Operation: outcome.Operation, Rule: ruleFrozen}, openings...)
	}
	if owner != r.Customer { // reassigned since the intent
		refusal = fault.Conflict.Errorf("the key of this CSR was moved to another customer meanwhile").Rule(ruleForeignKey).Fix("sign the CSR for that customer")
		return id, refusal, failed(ruleForeignKey)
	}
	var issued []request
	var same *request
	if issuedBefore {
		if issued, same, err = tx.issued(ctx, r.Entry); err != nil {
			return id, nil, err
		}
	}
	if same != nil { // with the same bytes: PKCS#1 v1.5 is deterministic
		return same.id, nil, failed(ruleConcurrent)
	}
	for _, older := range issued {
		if err := tx.move(older, &record.Entry{Kind: record.KindSuperseded}); err != nil {
			return id, nil, err
		}
	}
	if r.until > 0 { // others had to approve it
		tx.answered(r.id)
	}
	e := &record.Entry{Kind: record.KindIssued, File: made.Hash, Operation: outcome.Operation}
	return id, nil, tx.move(r, e, append(openings, made)...)
}

// byIntent reads a request that is about to be signed, whose key it is, and whether its CSR was issued before.
const byIntent = `SELECT r.entry, r.state, r.until, k.customer,
	EXISTS (SELECT 1 FROM requests i WHERE i.csr = r.csr AND i.customer = r.customer AND i.state = 'issued')
	FROM requests r LEFT JOIN keys k ON k.spki = r.spki WHERE r.id = ?`

// intent returns a request that is about to be signed, the customer that its key belongs to, and whether its CSR was issued
// before.
func (tx *Tx) intent(ctx context.Context, id record.ID) (r request, owner record.ID, before bool, err error) {
	opened := tx.ledger.intents[id]
	r = request{id: id, Entry: opened.Entry}
	if delete(tx.ledger.intents, id); r.Entry != nil {
		tx.ledger.signing += (time.Since(opened.at) - tx.ledger.signing) / 16
	}
	var customer []byte
	err = tx.row(ctx, byIntent, id[:]).Scan(&r.at, &r.state, &r.until, &customer, &before)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return r, owner, before, fault.NotFound.Errorf("no request %s was authorized", id)
	case err != nil:
		return r, owner, before, err
	case r.state != record.KindIntent:
		return r, owner, before, fault.Conflict.Errorf("the request %s is %s already", id, r.state).Fix("sign the CSR again")
	}
	if r.Entry == nil { // another process appended it; what this one appended, the ledger has grown from
		r, err = tx.prove(ctx, r)
	}
	return r, idOf(customer), before, err
}

// attemptsOpening returns the opening with the attempts that failed, if there are any.
func attemptsOpening(attempts []record.Attempt) ([]record.Opening, error) {
	if len(attempts) == 0 {
		return nil, nil
	}
	data, err := json.Marshal(attempts)
	return []record.Opening{record.NewOpening(openAttempts, data)}, err
}

// attempts returns the failed requests to the key store that an entry says; none if it has no such commitment.
func (l *Ledger) attempts(ctx context.Context, q querier, index int64, e *record.Entry) (attempts []record.Attempt, err error) {
	if !slices.ContainsFunc(e.Commitments, func(c record.Commitment) bool { return c.Name == openAttempts }) {
		return nil, nil
	}
	data, err := l.opening(ctx, q, index, e, openAttempts)
	if err == nil && json.Unmarshal(data, &attempts) != nil {
		err = fmt.Errorf("%w: the attempts of entry %d are not readable", ErrTampered, index)
	}
	return attempts, err
}
