package ledger

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// openPush is the name of the opening with a push certificate.
const openPush = "push"

// Push is a customer's push certificate.
type Push struct {
	Topic    string    `json:"topic"`
	NotAfter time.Time `json:"not_after"` // UTC
	SHA256   string    `json:"sha256"`    // of the DER, in hex
	SPKI     string    `json:"spki"`      // SHA-256 of its SubjectPublicKeyInfo, in hex
}

// Attach records the push certificate that Apple issued for a customer. Errors: kind not found if there is no such customer;
// kind conflict if the customer had another topic, which would cut off every device, or a certificate that is valid longer.
func (l *Ledger) Attach(ctx context.Context, actor, channel, customer string, p Push) error {
	return l.Append(ctx, func(ctx context.Context, tx *Tx) error {
		var id record.ID
		known, err := tx.find(ctx, &id, "SELECT id FROM customers WHERE name = ?", customer)
		if err != nil {
			return err
		}
		if !known {
			return noCustomer(customer)
		}
		var topic string
		var expires int64
		err = tx.row(ctx, "SELECT topic, expires FROM pushes WHERE customer = ?", id[:]).Scan(&topic, &expires)
		first := errors.Is(err, sql.ErrNoRows)
		switch {
		case err != nil && !first:
			return err
		case !first && topic != p.Topic:
			return fault.Conflict.Errorf("the topic of %q is %s, and this certificate has %s: every device would have to enroll again", customer, topic, p.Topic).Rule("ledger.topic").
				Fix("renew at https://identity.apple.com/pushcert with \"Renew\", not \"Create\", and the Apple Account of the old certificate")
		case !first && p.NotAfter.UnixMilli() < expires:
			return fault.Conflict.Errorf("the recorded certificate of %q is valid longer, until %s", customer, time.UnixMilli(expires).UTC().Format(time.DateOnly)).
				Fix("attach the newest certificate")
		}
		actorID, err := tx.actor(ctx, actor)
		if err != nil {
			return err
		}
		data, err := json.Marshal(p)
		if err != nil {
			return err
		}
		index, err := tx.Append(&record.Entry{Kind: record.KindAttached, Customer: id, Actor: actorID, Channel: channel},
			record.NewOpening(openActor, []byte(actor)), record.NewOpening(openPush, data))
		if first {
			tx.exec("INSERT INTO pushes (customer, topic, expires, spki, entry) VALUES (?, ?, ?, ?, ?)", id[:], p.Topic, p.NotAfter.UnixMilli(), p.SPKI, index)
		} else {
			tx.exec("UPDATE pushes SET expires = ?, spki = ?, entry = ? WHERE customer = ?", p.NotAfter.UnixMilli(), p.SPKI, index, id[:])
		}
		return err
	})
}

// pushOf returns the push certificate that an entry attached to a customer.
func (l *Ledger) pushOf(ctx context.Context, q querier, index int64, e *record.Entry, customer record.ID) (*Push, error) {
	if e.Customer != customer || e.Kind != record.KindAttached {
		return nil, fmt.Errorf("%w: entry %d is not what the list of push certificates says", ErrTampered, index)
	}
	p := &Push{}
	data, err := l.opening(ctx, q, index, e, openPush)
	if err == nil && json.Unmarshal(data, p) != nil {
		err = fmt.Errorf("%w: the push certificate of entry %d is not readable", ErrTampered, index)
	}
	return p, err
}

// rows calls do for each row of a query.
func (l *Ledger) rows(ctx context.Context, query string, args []any, do func(rows *sql.Rows) error) error {
	rows, err := l.store.DB.QueryContext(ctx, l.store.bind(query), args...)
	if err != nil {
		return l.store.fail("read", err)
	}
	defer func() { _ = rows.Close() }() // Err has the error
	for rows.Next() {
		if err := do(rows); err != nil {
			return l.store.fail("read", err)
		}
	}
	return l.store.fail("read", rows.Err())
}
