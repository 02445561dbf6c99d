package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"hsmsign/fault"
	"hsmsign/ledger/record"
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

// CustomerRecord is a customer in the ledger.
type CustomerRecord struct {
	Customer
	ID      record.ID
	Entry   int64     // that says it
	Changed time.Time // UTC
}

// Customers returns the customers in the order of their names; with a name, only that one. The error is of kind not found
// if there is no such customer.
func (l *Ledger) Customers(ctx context.Context, name string) ([]CustomerRecord, error) {
	if name == "" {
		return l.customers(ctx, "", "")
	}
	found, err := l.customers(ctx, " WHERE name = ?", "", name)
	if err == nil && len(found) == 0 {
		err = noCustomer(name)
	}
	return found, err
}

// CustomerPage returns at most limit customers in the order of their names, those after a name. names are those that the reader may
// know of; nil: all.
func (l *Ledger) CustomerPage(ctx context.Context, names []string, after string, limit int) ([]CustomerRecord, error) {
	where, args := " WHERE name > ?", []any{after}
	if names != nil {
		where += " AND name IN (?" + strings.Repeat(", ?", len(names)) + ")"
		args = append(args, "") // no customer has it
		for _, name := range names {
			args = append(args, name)
		}
	}
	return l.customers(ctx, where, fmt.Sprintf(" LIMIT %d", limit), args...)
}

// customers returns the customers that a condition selects.
func (l *Ledger) customers(ctx context.Context, where, limit string, args ...any) ([]CustomerRecord, error) {
	head, err := l.Head(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := l.store.DB.QueryContext(ctx, l.store.bind("SELECT id, entry FROM customers"+where+" ORDER BY name"+limit), args...)
	if err != nil {
		return nil, l.store.fail("list the customers", err)
	}
	defer func() { _ = rows.Close() }() // Err has the error
	var found []CustomerRecord
	for rows.Next() {
		var c CustomerRecord
		var id []byte
		if err := rows.Scan(&id, &c.Entry); err != nil {
			return nil, l.store.fail("list the customers", err)
		}
		c.ID = idOf(id)
		found = append(found, c)
	}
	if err := rows.Err(); err != nil {
		return nil, l.store.fail("list the customers", err)
	}
	for i := range found {
		c := &found[i]
		e, err := l.entry(ctx, l.store.DB, head, c.Entry)
		if err == nil {
			c.Changed = e.Time
			c.Customer, err = l.customerOf(ctx, l.store.DB, c.Entry, e)
		}
		if err != nil {
			return nil, l.store.fail("read the customer", err)
		}
	}
	return found, nil
}

// Customer returns the customer of an id. The error is of kind not found if there is no such customer.
func (l *Ledger) Customer(ctx context.Context, id record.ID) (*CustomerRecord, error) {
	found, err := l.customers(ctx, " WHERE id = ?", "", id[:])
	if err == nil && len(found) == 0 {
		return nil, fault.NotFound.Errorf("there is no customer %s", id)
	}
	if err != nil {
		return nil, err
	}
	return &found[0], nil
}

func noCustomer(name string) error {
	return fault.NotFound.Errorf("there is no customer %q", name).Fix("hsmsign ledger customer list shows the names")
}

// customerOf returns what an entry says about a customer.
func (l *Ledger) customerOf(ctx context.Context, q querier, index int64, e *record.Entry) (c Customer, err error) {
	data, err := l.opening(ctx, q, index, e, openCustomer)
	if err == nil && json.Unmarshal(data, &c) != nil {
		err = fmt.Errorf("%w: the customer of entry %d is not readable", ErrTampered, index)
	}
	return c, err
}

// AddCustomer adds a customer. The error is of kind conflict if the name exists.
func (l *Ledger) AddCustomer(ctx context.Context, actor, channel string, c Customer) error {
	if err := c.Check(); err != nil {
		return err
	}
	return l.Append(ctx, func(ctx context.Context, tx *Tx) error {
		if err := tx.freeName(ctx, c.Name); err != nil {
			return err
		}
		id, err := tx.actor(ctx, actor)
		if err != nil {
			return err
		}
		_, err = tx.addCustomer(id, actor, channel, c)
		return err
	})
}

// EditCustomer changes a customer of a name. change gets what is recorded and returns what is to be recorded.
func (l *Ledger) EditCustomer(ctx context.Context, actor, channel, name string, change func(Customer) Customer) error {
	return l.Append(ctx, func(ctx context.Context, tx *Tx) error {
		var id record.ID
		known, err := tx.find(ctx, &id, "SELECT id FROM customers WHERE name = ?", name)
		if err != nil {
			return err
		}
		if !known {
			return noCustomer(name)
		}
		var at int64
		if err := tx.row(ctx, "SELECT entry FROM customers WHERE id = ?", id[:]).Scan(&at); err != nil {
			return err
		}
		e, err := tx.entry(ctx, at)
		if err != nil {
			return err
		}
		before, err := tx.ledger.customerOf(ctx, tx.sql, at, e)
		if err != nil {
			return err
		}
		after := change(before)
		if err := after.Check(); err != nil {
			return err
		}
		if after.Name != before.Name {
			if err := tx.freeName(ctx, after.Name); err != nil {
				return err
			}
		}
		actorID, err := tx.actor(ctx, actor)
		if err != nil {
			return err
		}
		index, err := tx.customerEntry(id, actorID, actor, channel, after)
		tx.exec("UPDATE customers SET name = ?, entry = ? WHERE id = ?", after.Name, index, id[:])
		return err
	})
}

// freeName returns an error of kind conflict if a customer has the name.
func (tx *Tx) freeName(ctx context.Context, name string) error {
	var other record.ID
	taken, err := tx.find(ctx, &other, "SELECT id FROM customers WHERE name = ?", name)
	if err == nil && taken {
		err = fault.Conflict.Errorf("there is a customer %q already", name).Fix("choose another name, or change that customer with hsmsign ledger customer edit")
	}
	return err
}

// addCustomer adds a customer with a new id.
func (tx *Tx) addCustomer(actor record.ID, actorName, channel string, c Customer) (record.ID, error) {
	id := record.NewID()
	index, err := tx.customerEntry(id, actor, actorName, channel, c)
	tx.exec("INSERT INTO customers (id, name, entry) VALUES (?, ?, ?)", id[:], c.Name, index)
	return id, err
}

// customerEntry appends the entry that says what is known of a customer.
func (tx *Tx) customerEntry(id, actor record.ID, actorName, channel string, c Customer) (int64, error) {
	data, err := json.Marshal(c)
	if err != nil {
		return 0, err
	}
	return tx.Append(&record.Entry{Kind: record.KindCustomer, Customer: id, Actor: actor, Channel: channel},
		record.NewOpening(openActor, []byte(actorName)), record.NewOpening(openCustomer, data))
}

// EraseCustomer deletes what is known of a customer: name, contact, CSRs, requests, push certificates, and who asked for
// them. The entries remain, with random ids and hashes, and a new one says that the data was erased. The id is also appended
// to ErasuresFile, so that a restored copy is erased again.
func (l *Ledger) EraseCustomer(ctx context.Context, actor, channel, name string) error {
	err := l.Append(ctx, func(ctx context.Context, tx *Tx) error {
		var id record.ID
		known, err := tx.find(ctx, &id, "SELECT id FROM customers WHERE name = ?", name)
		if err != nil {
			return err
		}
		if !known {
			return noCustomer(name)
		}
		actorID, err := tx.actor(ctx, actor)
		if err != nil {
			return err
		}
		frozen, err := tx.freezes(ctx)
		if err != nil {
			return err
		}
		if frozen.ofCustomer(id) >= 0 { // the name could come back as a customer that is not frozen
			return fault.Conflict.Errorf("the customer %q is frozen", name).Rule(ruleFrozen).Fix("end the freeze first: hsmsign unfreeze --customer")
		}
		// Before the commit, whose outcome may be unknown: the erasure was asked for.
		if err := noteErasure(tx.ledger.cfg.LastCheckpoint, id); err != nil {
			return err
		}
		return tx.erase(id, actorID, channel)
	})
	if err != nil {
		return l.store.fail("erase the customer", err)
	}
	return l.forget(ctx)
}
