package ledger

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// continueBatch is after how many entries Continue writes them.
const continueBatch = 1000

// Continuation says what of a ledger is continued under a new origin.
type Continuation struct {
	Last   *Checkpoint // the newest one of the previous ledger that is known; nil: that of the copy
	Until  *Checkpoint // entries after it are not trusted and not continued; nil: all are
	Erased []record.ID // customers that were erased since, and are not continued
	Actor  string
	// Channel is how the order came: "local".
	Channel string
}

// Continued is the result of Continue.
type Continued struct {
	Head      *Checkpoint
	Copied    int64 // entries of the previous ledger that were read
	Missing   int64 // entries of the previous ledger that the copy lacks
	Customers int
	Requests  int
	Pushes    int
}

// Continue makes a ledger with a new origin in an empty store, in one transaction. Its first entry has the last checkpoint of
// the previous one. The entries after it repeat the customers, their keys, the push certificates, the requests, what is
// watched, and what is frozen, so that the rules still apply; each has an opening with number, time and kind of the original. Nothing of the
// previous ledger is used that is not proven under its checkpoint. The error is of kind usage if the store has a ledger already.
func Continue(ctx context.Context, cfg Config, previous *Ledger, c Continuation) (*Continued, error) {
	l, err := prepare(cfg)
	if err != nil {
		return nil, err
	}
	if len(l.signers) != 1 {
		return nil, fault.Usage.Errorf("%d checkpoint keys given, and a new ledger has one", len(l.signers))
	}
	if l.Origin() == previous.Origin() {
		return nil, fault.Usage.Errorf("the new origin is the one of the previous ledger").Fix("name another one: two ledgers of one name cannot be told apart")
	}
	tx, err := previous.store.DB.BeginTx(ctx, &sql.TxOptions{ReadOnly: true, Isolation: previous.store.Snapshot})
	if err != nil {
		return nil, previous.store.fail("read the ledger", err)
	}
	defer func() { _ = tx.Rollback() }() // nothing was written
	h, err := newHistory(ctx, previous, tx, c.Until)
	if err == nil {
		err = h.readWatches(ctx)
	}
	if err == nil {
		err = h.readFreezes(ctx)
	}
	if err != nil {
		return nil, previous.store.fail("read the ledger", err)
	}
	for _, id := range c.Erased {
		h.erased[id] = true
	}
	run := &continuing{history: h, result: &Continued{Copied: h.head.Size}, names: map[string]record.ID{}, keys: map[record.Hash]bool{}, chains: map[record.Hash]bool{}}
	last := h.head
	if c.Last != nil && c.Last.Size >= last.Size {
		last = c.Last
	}
	if c.Until != nil {
		last, run.result.Copied = c.Until, c.Until.Size
	}
	run.result.Missing = max(0, last.Size-run.result.Copied)
	run.result.Head, err = l.create(ctx, func(ctx context.Context, tx *Tx) error { return run.write(ctx, tx, last, c) })
	return run.result, err
}

// continuing is one run of Continue.
type continuing struct {
	*history
	result *Continued
	names  map[string]record.ID // of actors
	keys   map[record.Hash]bool // whose owner is said
	chains map[record.Hash]bool // that are stored
	frozen []inForce            // so far
}

// write appends the first entry and those that repeat the previous ledger.
func (r *continuing) write(ctx context.Context, tx *Tx, last *Checkpoint, c Continuation) error {
	data, err := json.Marshal(record.Previous{Checkpoint: string(last.Signed), VerifierKey: r.ledger.cfg.Verifier, Copied: r.result.Copied})
	if err != nil {
		return err
	}
	items := r.items()
	first := &record.Entry{Kind: record.KindGenesis, Actor: r.actor(tx, record.NewID(), c.Actor), Channel: c.Channel}
	if _, err := tx.Append(first, record.NewOpening(openActor, []byte(c.Actor)), record.NewOpening(openPrevious, data)); err != nil {
		return err
	}
	for i, item := range items {
		if err := r.repeat(ctx, tx, item); err != nil {
			return err
		}
		if i%continueBatch == continueBatch-1 {
			if err := tx.flush(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// actor adds an actor to the list of actors, unless its name is there, and returns the id that the name has.
func (r *continuing) actor(tx *Tx, id record.ID, name string) record.ID {
	if known, ok := r.names[name]; ok {
		return known
	}
	r.names[name] = id
	tx.exec("INSERT INTO actors (id, name) VALUES (?, ?)", id[:], name)
	return id
}

// repeat appends an entry that repeats one of the previous ledger, with its side rows.
func (r *continuing) repeat(ctx context.Context, tx *Tx, it item) error {
	e, original, err := r.entry(ctx, it.index)
	if err != nil || r.erased[e.Customer] {
		return err
	}
	openings, err := r.sides(ctx, it, e)
	if err != nil {
		return err
	}
	data, err := json.Marshal(original)
	if err != nil {
		return err
	}
	openings = append(openings, record.NewOpening(openOriginal, data))
	if e.Kind == record.KindFrozen {
		one := r.freezes[it.index]
		one.Entry = tx.next()
		r.frozen = append(r.frozen, one)
		all, err := freezesOpening(r.frozen)
		if err != nil {
			return err
		}
		openings = append(openings, all)
	}
	slices.SortFunc(openings, func(a, b record.Opening) int { return strings.Compare(a.Name, b.Name) })
	repeated := *e
	repeated.Kind, repeated.Commitments = state(original), nil
	if file := find(openings, openRequest); file != nil {
		repeated.File = record.SHA256(file)
	}
	repeated.Actor = r.actor(tx, e.Actor, string(find(openings, openActor)))
	index, err := tx.Append(&repeated, openings...)
	if err != nil {
		return err
	}
	if err := r.keepChain(ctx, tx, e.Chain); err != nil {
		return err
	}
	return r.cache(tx, &repeated, index, original, openings)
}

// sides returns the side rows of what is repeated.
func (r *continuing) sides(ctx context.Context, it item, e *record.Entry) ([]record.Opening, error) {
	if it.request == nil {
		names := []string{openActor}
		for _, name := range []string{openCustomer, openPush, openTarget, openFreeze} {
			if commits(e, name) {
				names = append(names, name)
			}
		}
		return r.openings(ctx, it.index, names...)
	}
	all, err := r.openings(ctx, it.request.begun, openActor, openCSR)
	if err == nil && it.request.issued >= 0 {
		var file []record.Opening
		file, err = r.openings(ctx, it.request.issued, openRequest)
		all = append(all, file...)
	}
	return all, err
}

// cache adds the rows for finding what an entry repeats.
func (r *continuing) cache(tx *Tx, e *record.Entry, index int64, original record.Original, openings []record.Opening) error {
	switch {
	case e.Request != (record.ID{}):
		issued := int64(-1)
		if find(openings, openRequest) != nil {
			issued = index
		}
		r.result.Requests++
		r.own(tx, e, index)
		tx.exec("INSERT INTO requests (id, customer, state, entry, issued, begun, csr, spki, intent) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
			e.Request[:], e.Customer[:], e.Kind, index, issued, original.Time.UnixMilli(), e.CSR[:], e.SPKI[:], index)
	case find(openings, openCustomer) != nil:
		var c Customer
		if json.Unmarshal(find(openings, openCustomer), &c) != nil {
			return fmt.Errorf("%w: the customer of entry %d is not readable", ErrTampered, original.Entry)
		}
		r.result.Customers++
		tx.exec("INSERT INTO customers (id, name, entry) VALUES (?, ?, ?)", e.Customer[:], c.Name, index)
	case e.Kind == record.KindReassigned:
		r.own(tx, e, index)
	case e.Kind == record.KindFrozen: // the entry is all
	case find(openings, openTarget) != nil:
		tx.exec("INSERT INTO watches (target, entry) VALUES (?, ?)", string(find(openings, openTarget)), index)
	default:
		var p Push
		if json.Unmarshal(find(openings, openPush), &p) != nil {
			return fmt.Errorf("%w: the push certificate of entry %d is not readable", ErrTampered, original.Entry)
		}
		r.result.Pushes++
		tx.exec("INSERT INTO pushes (customer, topic, expires, spki, entry) VALUES (?, ?, ?, ?, ?)", e.Customer[:], p.Topic, p.NotAfter.UnixMilli(), p.SPKI, index)
	}
	return nil
}

// own records whose key it is: that of the first request with it, or of the customer that it was moved to.
func (r *continuing) own(tx *Tx, e *record.Entry, index int64) {
	switch {
	case !r.keys[e.SPKI]:
		tx.exec("INSERT INTO keys (spki, customer, entry) VALUES (?, ?, ?)", e.SPKI[:], e.Customer[:], index)
	case e.Kind == record.KindReassigned:
		tx.exec("UPDATE keys SET customer = ?, entry = ? WHERE spki = ?", e.Customer[:], index, e.SPKI[:])
	}
	r.keys[e.SPKI] = true
}

// keepChain copies the vendor's chain of an entry.
func (r *continuing) keepChain(ctx context.Context, tx *Tx, hash record.Hash) error {
	if r.chains[hash] || hash == (record.Hash{}) {
		return nil
	}
	r.chains[hash] = true
	data, err := r.ledger.chain(ctx, r.tx, hash)
	tx.exec("INSERT INTO chains (hash, data) VALUES (?, ?)", hash[:], data)
	return err
}

// find returns the data of an opening; nil if there is none.
func find(openings []record.Opening, name string) []byte {
	for _, o := range openings {
		if o.Name == name {
			return o.Data
		}
	}
	return nil
}
