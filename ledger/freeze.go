package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// ruleFrozen refuses what a freeze stops.
const ruleFrozen = "ledger.frozen"

// The scopes of a freeze.
const (
	FreezeAll      = "all"
	FreezeCaller   = "caller"
	FreezeCustomer = "customer"
	FreezeVendor   = "vendor" // a vendor identity
)

// The names of openings of the entries about freezes.
const (
	openFreeze  = "freeze"  // JSON of a record.Freeze: what was frozen or unfrozen. It is erased with its customer.
	openFreezes = "freezes" // JSON of a list of inForce: all that is frozen from this entry on
)

// maxFreezes is how many freezes can be in force.
const maxFreezes = 256

// Freeze is what stops signing: nothing is authorized, issued or released that it covers.
type Freeze struct {
	Scope  string // FreezeAll, FreezeCaller, FreezeCustomer or FreezeVendor
	Name   string // of the caller, the customer or the vendor identity; "" for FreezeAll
	Reason string
	// Ask is who else must approve that it ends; nil: nobody. For Unfreeze only.
	Ask *record.Ask
	// Of a freeze in force: since when, who froze, and the number of the entry.
	Since time.Time // UTC
	Actor string
	Entry int64
}

// Customer returns the name of the customer whose freeze it is; "" for another scope.
func (f Freeze) Customer() string {
	if f.Scope == FreezeCustomer {
		return f.Name
	}
	return ""
}

// check returns an error of kind usage unless the freeze can be recorded.
func (f Freeze) check() error {
	refused := func(text string, limit int) bool {
		return utf8.RuneCountInString(text) > limit || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) })
	}
	scopes := []string{FreezeAll, FreezeCaller, FreezeCustomer, FreezeVendor}
	switch {
	case !slices.Contains(scopes, f.Scope):
		return fault.Usage.Errorf("%q is not a scope of a freeze", fault.Clip(f.Scope, 64)).Fix("it is one of " + strings.Join(scopes, ", "))
	case (f.Name == "") != (f.Scope == FreezeAll):
		return fault.Usage.Errorf("a freeze of scope %s with the name %q", f.Scope, fault.Clip(f.Name, 64)).Fix("name the caller, customer or vendor identity; all has no name")
	case refused(f.Name, 128):
		return fault.Usage.Errorf("the name %q", fault.Clip(f.Name, 64)).Fix("write at most 128 printable characters")
	case strings.TrimSpace(f.Reason) == "" || refused(f.Reason, maxText):
		return fault.Usage.Errorf("the reason %q", fault.Clip(f.Reason, 64)).Fix(fmt.Sprintf("say why, in at most %d printable characters", maxText))
	}
	return nil
}

// inForce is one freeze in the list of all. A customer has its id only: it may get another name, and be erased later.
type inForce struct {
	Entry    int64  `json:"entry"`
	Scope    string `json:"scope"`
	Name     string `json:"name,omitempty"`     // of a caller or a vendor identity
	Customer string `json:"customer,omitempty"` // id
}

// same returns whether two are about the same.
func (f inForce) same(g inForce) bool {
	g.Entry = f.Entry
	return f == g
}

// refusal is the error of what the freeze stops.
func (f inForce) refusal() error {
	text := map[string]string{
		FreezeCustomer: "signing for this customer is frozen", FreezeCaller: fmt.Sprintf("signing for the caller %q is frozen", f.Name),
		FreezeVendor: fmt.Sprintf("signing with the vendor identity %q is frozen", f.Name),
	}[f.Scope]
	if text == "" {
		text = "signing is frozen"
	}
	return fault.Forbidden.Errorf("%s", text).Rule(ruleFrozen).Fix("hsmsign ledger status shows what is frozen and why; hsmsign unfreeze ends it")
}

// freezes is what is frozen from an entry on. It does not change.
type freezes struct {
	at   int64 // the entry; -1: there is none
	list []inForce
}

// stops returns the freeze that stops a use; nil: none does. A scope of a later version stops everything.
func (f *freezes) stops(customer record.ID, actor, identity string) *inForce {
	for i := range f.list {
		one := &f.list[i]
		switch one.Scope {
		case FreezeCaller:
			if one.Name != actor {
				continue
			}
		case FreezeVendor:
			if one.Name != identity {
				continue
			}
		case FreezeCustomer:
			if one.Customer != customer.String() {
				continue
			}
		}
		return one
	}
	return nil
}

// newestFreeze returns the number of the newest entry about a freeze, from an index of such entries only.
const newestFreeze = "SELECT coalesce(max(idx), -1) FROM entries WHERE kind = 'frozen' OR kind = 'unfrozen'"

// readFreezes returns what is frozen. known is what this process knew before the state that q reads: an entry that it has seen
// must be found again. The entry is proved.
func (l *Ledger) readFreezes(ctx context.Context, q querier, known *freezes, entry func(ctx context.Context, index int64) (*record.Entry, error)) (*freezes, error) {
	found := &freezes{}
	if err := q.QueryRowContext(ctx, newestFreeze).Scan(&found.at); err != nil {
		return nil, err
	}
	switch {
	case known != nil && found.at == known.at:
		return known, nil
	case known != nil && found.at < known.at:
		return nil, fmt.Errorf("%w: entry %d, which says what is frozen, is hidden in the list of entries", ErrTampered, known.at)
	case found.at < 0:
		return found, nil
	}
	e, err := entry(ctx, found.at)
	if err != nil {
		return nil, err
	}
	data, err := l.opening(ctx, q, found.at, e, openFreezes)
	if err == nil && json.Unmarshal(data, &found.list) != nil {
		err = fmt.Errorf("%w: entry %d does not say what is frozen", ErrTampered, found.at)
	}
	return found, err
}

// knownFreezes returns what this process knows to be frozen; nil: it has not read it yet.
func (l *Ledger) knownFreezes() *freezes {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.frozen
}

// sawFreezes remembers what is frozen.
func (l *Ledger) sawFreezes(f *freezes) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f != nil && (l.frozen == nil || f.at > l.frozen.at) {
		l.frozen = f
	}
}

// freezes returns what is frozen, with the changes of the batch.
func (tx *Tx) freezes(ctx context.Context) (_ *freezes, err error) {
	if tx.frozen == nil {
		tx.frozen, err = tx.ledger.readFreezes(ctx, tx.sql, tx.known, tx.entry)
	}
	return tx.frozen, err
}

// stopped returns the freeze that stops a use; nil: none does.
func (tx *Tx) stopped(ctx context.Context, customer record.ID, actor, identity string) (*inForce, error) {
	f, err := tx.freezes(ctx)
	if err != nil {
		return nil, err
	}
	return f.stops(customer, actor, identity), nil
}

// Freeze stops signing for a caller, a customer, a vendor identity, or at all, in every process that uses the ledger. A freeze
// of a customer remains if the customer is renamed. Errors: kind usage if there is no reason, kind not found if there is no
// such customer, kind conflict if it is frozen already or if too much is.
func (l *Ledger) Freeze(ctx context.Context, actor, channel string, f Freeze) error {
	return l.changeFreezes(ctx, actor, channel, record.KindFrozen, f, func(list []inForce, at int, one inForce) ([]inForce, error) {
		switch {
		case at >= 0:
			return nil, fault.Conflict.Errorf("it is frozen already, by entry %d", list[at].Entry).Fix("hsmsign ledger status shows what is frozen")
		case len(list) >= maxFreezes:
			return nil, fault.Conflict.Errorf("%d freezes are in force, and no more can be", len(list)).Fix("freeze everything, or end some with hsmsign unfreeze")
		}
		return append(slices.Clone(list), one), nil
	})
}

// Unfreeze ends a freeze of the same scope and name. Errors: kind usage if there is no reason, kind not found if it is not
// frozen, a *record.Waiting if other people must approve it first, which is recorded.
func (l *Ledger) Unfreeze(ctx context.Context, actor, channel string, f Freeze) error {
	if f.Ask != nil && f.Ask.Need[record.EventUnfreeze] > 0 {
		return l.askUnfreeze(ctx, actor, channel, f)
	}
	return l.changeFreezes(ctx, actor, channel, record.KindUnfrozen, f, func(list []inForce, at int, _ inForce) ([]inForce, error) {
		if at < 0 {
			return nil, notFrozen()
		}
		return slices.Delete(slices.Clone(list), at, at+1), nil
	})
}

// changeFreezes appends an entry that changes what is frozen. change gets the list, where in it the freeze is (-1: it is not),
// and the freeze as the list has it.
func (l *Ledger) changeFreezes(ctx context.Context, actor, channel, kind string, f Freeze, change func(list []inForce, at int, one inForce) ([]inForce, error)) error {
	if err := f.check(); err != nil {
		return err
	}
	return l.Append(ctx, func(ctx context.Context, tx *Tx) error {
		before, err := tx.freezes(ctx)
		if err != nil {
			return err
		}
		one, customer, err := tx.inForce(ctx, f)
		if err != nil {
			return err
		}
		list, err := change(before.list, slices.IndexFunc(before.list, one.same), one)
		if err != nil {
			return err
		}
		id, err := tx.actor(ctx, actor)
		if err != nil {
			return err
		}
		e := &record.Entry{Kind: kind, Customer: customer, Actor: id, Channel: channel}
		return tx.setFreezes(e, actor, record.Freeze{Scope: f.Scope, Name: f.Name, Reason: f.Reason}, list)
	})
}

// inForce returns a freeze as the list has it, and the customer that it is about.
func (tx *Tx) inForce(ctx context.Context, f Freeze) (one inForce, customer record.ID, err error) {
	one = inForce{Entry: tx.next(), Scope: f.Scope, Name: f.Name}
	if f.Scope != FreezeCustomer {
		return one, customer, nil
	}
	known, err := tx.find(ctx, &customer, "SELECT id FROM customers WHERE name = ?", f.Name)
	if err == nil && !known {
		err = noCustomer(f.Name)
	}
	one.Name, one.Customer = "", customer.String()
	return one, customer, err
}

// setFreezes appends an entry that says what is frozen from now on.
func (tx *Tx) setFreezes(e *record.Entry, actor string, f record.Freeze, list []inForce) error {
	about, err := json.Marshal(f)
	if err != nil {
		return err
	}
	all, err := freezesOpening(list)
	if err != nil {
		return err
	}
	index, err := tx.Append(e, record.NewOpening(openActor, []byte(actor)), record.NewOpening(openFreeze, about), all)
	if err == nil {
		tx.frozen = &freezes{index, list}
	}
	return err
}

// freezesOpening returns the opening with all that is frozen.
func freezesOpening(list []inForce) (record.Opening, error) {
	if list == nil {
		list = []inForce{}
	}
	data, err := json.Marshal(list)
	return record.NewOpening(openFreezes, data), err
}

// ofCustomer returns where in the list the freeze of a customer is; -1: the customer is not frozen.
func (f *freezes) ofCustomer(id record.ID) int {
	return slices.IndexFunc(f.list, inForce{Scope: FreezeCustomer, Customer: id.String()}.same)
}

// thaw ends the freeze of a customer that is erased again in an older copy: it was not frozen any more when it was erased.
func (tx *Tx) thaw(ctx context.Context, customer, actorID record.ID, actor, channel string) error {
	f, err := tx.freezes(ctx)
	if err != nil {
		return err
	}
	at := f.ofCustomer(customer)
	if at < 0 {
		return nil
	}
	return tx.setFreezes(&record.Entry{Kind: record.KindUnfrozen, Customer: customer, Actor: actorID, Channel: channel}, actor,
		record.Freeze{Scope: FreezeCustomer, Reason: "the customer is erased again"}, slices.Delete(slices.Clone(f.list), at, at+1))
}

// Freezes returns what is frozen, the oldest first, each proved by its entry. A customer has its present name.
func (l *Ledger) Freezes(ctx context.Context) ([]Freeze, error) {
	now, _, err := l.nowFrozen(ctx)
	if err != nil {
		return nil, err
	}
	head, err := l.Head(ctx)
	if err != nil {
		return nil, err
	}
	all, names := make([]Freeze, 0, len(now.list)), map[record.ID]string{}
	for _, one := range now.list {
		f, err := l.freeze(ctx, head, one, names)
		if err != nil {
			return nil, l.store.fail("read what is frozen", err)
		}
		all = append(all, f)
	}
	return all, nil
}

// freeze returns what the entry of a freeze says.
func (l *Ledger) freeze(ctx context.Context, head *Checkpoint, one inForce, names map[record.ID]string) (f Freeze, err error) {
	e, err := l.entry(ctx, l.store.DB, head, one.Entry)
	if err != nil {
		return f, err
	}
	data, err := l.opening(ctx, l.store.DB, one.Entry, e, openFreeze)
	if err != nil {
		return f, err
	}
	var said record.Freeze
	if json.Unmarshal(data, &said) != nil || e.Kind != record.KindFrozen || said.Scope != one.Scope || e.Customer.String() != one.Customer {
		return f, fmt.Errorf("%w: entry %d is not the freeze that was recorded", ErrTampered, one.Entry)
	}
	original, err := l.original(ctx, l.store.DB, one.Entry, e)
	if err != nil {
		return f, err
	}
	actor, err := l.opening(ctx, l.store.DB, one.Entry, e, openActor)
	if err != nil {
		return f, err
	}
	name, err := l.name(ctx, names, "customers", e.Customer)
	if name == "" {
		name = said.Name
	}
	return Freeze{Scope: said.Scope, Name: name, Reason: said.Reason, Since: original.Time, Actor: string(actor), Entry: one.Entry}, err
}
