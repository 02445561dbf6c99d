package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
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
	Push    *Push     // the newest push certificate; nil: none was attached. A list of all customers does not read it

	push    int64 // entry of the push certificate; -1: there is none
	expires int64 // what the store says, for the order only
}

// Customers returns the customers in the order of their names; with a name, only that one. The error is of kind not found
// if there is no such customer.
func (l *Ledger) Customers(ctx context.Context, name string) ([]CustomerRecord, error) {
	if name == "" {
		return l.customers(ctx, false, "ORDER BY c.name")
	}
	found, err := l.customers(ctx, true, "WHERE c.name = ?", name)
	if err == nil && len(found) == 0 {
		err = noCustomer(name)
	}
	return found, err
}

// CustomerQuery selects customers.
type CustomerQuery struct {
	Names    []string // those that the reader may know of; nil: all
	Match    string   // only customers whose name contains it, ASCII letters in any case; empty: all
	ByExpiry bool     // the one whose push certificate expires first comes first, those without one last; else in the order of the names
	After    string   // what CustomerPage returned as next; empty: from the first
	Limit    int      // at most so many
}

// noExpiry is the date of a customer without a push certificate.
const noExpiry = math.MaxInt64

// CustomerPage returns customers with their push certificates, each proved by its entries. next is the After of the next page; empty:
// this is the last one. The error is of kind usage if After is not one.
func (l *Ledger) CustomerPage(ctx context.Context, q CustomerQuery) (found []CustomerRecord, next string, err error) {
	where, args, order := "WHERE 1 = 1", []any{}, "c.name"
	if q.Names != nil {
		where += " AND c.name IN (?" + strings.Repeat(", ?", len(q.Names)) + ")"
		args = append(args, "") // no customer has it
		for _, name := range q.Names {
			args = append(args, name)
		}
	}
	if q.Match != "" {
		where += " AND (lower(c.name) LIKE ? ESCAPE '!' OR lower(c.name) LIKE ? ESCAPE '!')" // databases differ about letters that are not ASCII
		text := "%" + strings.NewReplacer("!", "!!", "%", "!%", "_", "!_").Replace(q.Match) + "%"
		args = append(args, strings.ToLower(text), lowerASCII(text))
	}
	expires := fmt.Sprintf("coalesce(p.expires, %d)", int64(noExpiry))
	if q.ByExpiry {
		order = expires + ", c.name"
	}
	switch {
	case q.After == "":
	case q.ByExpiry:
		date, name, _ := strings.Cut(q.After, " ")
		at, err := strconv.ParseInt(date, 10, 64)
		if err != nil {
			return nil, "", fault.Usage.Errorf("after is %q", fault.Clip(q.After, 64)).Fix("use the value of the page before")
		}
		where += " AND (" + expires + " > ? OR " + expires + " = ? AND c.name > ?)"
		args = append(args, at, at, name)
	default:
		where += " AND c.name > ?"
		args = append(args, q.After)
	}
	found, err = l.customers(ctx, true, where+" ORDER BY "+order+fmt.Sprintf(" LIMIT %d", q.Limit+1), args...)
	if err != nil || len(found) <= q.Limit {
		return found, "", err
	}
	found = found[:q.Limit]
	last := found[q.Limit-1]
	if next = last.Name; q.ByExpiry {
		next = fmt.Sprint(last.expires, " ", last.Name)
	}
	return found, next, nil
}

// lowerASCII returns a text with small ASCII letters.
func lowerASCII(text string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, text)
}

// customers returns the customers that a condition selects; with their push certificates, if these are asked for.
func (l *Ledger) customers(ctx context.Context, pushes bool, where string, args ...any) ([]CustomerRecord, error) {
	head, err := l.Head(ctx)
	if err != nil {
		return nil, err
	}
	var found []CustomerRecord
	query := fmt.Sprintf("SELECT c.id, c.entry, coalesce(p.entry, -1), coalesce(p.expires, %d) FROM customers c LEFT JOIN pushes p ON p.customer = c.id ", int64(noExpiry)) + where
	err = l.store.each(ctx, l.store.DB, query, args, func(scan func(...any) error) error {
		var c CustomerRecord
		var id []byte
		err := scan(&id, &c.Entry, &c.push, &c.expires)
		c.ID = idOf(id)
		found = append(found, c)
		return err
	})
	if err != nil {
		return nil, l.store.fail("list the customers", err)
	}
	for i := range found {
		if err := l.proveCustomer(ctx, head, &found[i], pushes); err != nil {
			return nil, l.store.fail("read the customer", err)
		}
	}
	return found, nil
}

// proveCustomer reads what the entries say of a customer.
func (l *Ledger) proveCustomer(ctx context.Context, head *Checkpoint, c *CustomerRecord, pushes bool) error {
	e, err := l.entry(ctx, l.store.DB, head, c.Entry)
	if err != nil {
		return err
	}
	c.Changed = e.Time
	if c.Customer, err = l.customerOf(ctx, l.store.DB, c.Entry, e); err != nil || !pushes || c.push < 0 {
		return err
	}
	if e, err = l.entry(ctx, l.store.DB, head, c.push); err != nil {
		return err
	}
	c.Push, err = l.pushOf(ctx, l.store.DB, c.push, e, c.ID)
	return err
}

// Customer returns the customer of an id, with its push certificate. The error is of kind not found if there is no such customer.
func (l *Ledger) Customer(ctx context.Context, id record.ID) (*CustomerRecord, error) {
	found, err := l.customers(ctx, true, "WHERE c.id = ?", id[:])
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
