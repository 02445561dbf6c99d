package ledger

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// Conclude implements record.Recorder.
func (l *Ledger) Conclude(ctx context.Context, permit *record.Permit, outcome record.Outcome) error {
	id, err := record.ParseID(permit.Request)
	if err != nil {
		return err
	}
	issued := id
	var refusal error
	err = l.Append(ctx, func(ctx context.Context, tx *Tx) (err error) {
		issued, refusal, err = tx.conclude(ctx, id, outcome)
		return err
	})
	if err = errors.Join(err, refusal); err == nil {
		permit.Request = issued.String()
	}
	return err
}

// concluded is what a table says about a request whose outcome is recorded.
type concluded struct {
	state, digest               string
	customer, csr, vendor, root []byte
	owner                       []byte // of the key now
}

// conclude records the outcome, and returns the id under which the request was issued. A refusal is recorded too.
func (tx *Tx) conclude(ctx context.Context, id record.ID, outcome record.Outcome) (issuedAs record.ID, refusal, err error) {
	var r concluded
	err = tx.row(ctx, `SELECT r.state, r.digest, r.customer, r.csr, r.vendor, r.chain, k.customer FROM requests r
		LEFT JOIN keys k ON k.spki = r.spki WHERE r.id = ?`, id[:]).Scan(&r.state, &r.digest, &r.customer, &r.csr, &r.vendor, &r.root, &r.owner)
	if err != nil {
		return id, nil, err
	}
	if r.state != record.KindIntent {
		return id, nil, fault.Conflict.Errorf("the request %s is %s already", id, r.state).Fix("sign the CSR again")
	}
	openings, err := attemptsOpening(outcome.Attempts)
	if err != nil {
		return id, nil, err
	}
	failed := func(rule string) error {
		return tx.move(ctx, id, &record.Entry{Kind: record.KindFailed, Operation: outcome.Operation, Rule: rule}, openings...)
	}
	if outcome.Err != nil {
		return id, nil, failed(fault.KindOf(outcome.Err).String())
	}
	if !bytes.Equal(r.owner, r.customer) { // reassigned since the intent
		refusal = fault.Conflict.Errorf("the key of this CSR was moved to another customer meanwhile [%s]", ruleForeignKey).Fix("sign the CSR for that customer")
		return id, refusal, failed(ruleForeignKey)
	}
	var other record.ID
	issued, err := tx.find(ctx, &other, sameIssue, r.csr, r.customer, r.vendor, r.root, r.digest)
	if err != nil {
		return id, nil, err
	}
	if issued { // with the same bytes: PKCS#1 v1.5 is deterministic
		return other, nil, failed(ruleConcurrent)
	}
	if err := tx.supersede(ctx, r.customer, r.csr); err != nil {
		return id, nil, err
	}
	e := &record.Entry{Kind: record.KindIssued, File: sha256.Sum256(outcome.File), Operation: outcome.Operation}
	return id, nil, tx.move(ctx, id, e, append(openings, record.NewOpening(openRequest, outcome.File))...)
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
