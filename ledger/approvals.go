package ledger

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"hsmsign/ledger/record"
)

// The names of openings of the entries about approvals.
const (
	openAsked   = "asked"   // JSON of a record.Asked
	openDecided = "decided" // JSON of a record.Decided
)

// asking is what was asked and has to be approved: its entries.
type asking struct {
	id    record.ID
	index int64         // of the question
	entry *record.Entry // of the question
	record.Asked
	customer string // present name
	given    []record.Approval
	rejected *record.Approval
	closed   bool // it was rejected, or has expired
}

// reader reads entries and side rows of one state of the ledger.
type reader struct {
	*Ledger
	querier
	prove func(ctx context.Context, index int64) (*record.Entry, error)
}

func (tx *Tx) reader() reader { return reader{tx.ledger, tx.sql, tx.entry} }

// readerAt returns a reader of the state of a checkpoint, which remembers what it has proved.
func (l *Ledger) readerAt(tx *sql.Tx, head *Checkpoint) reader {
	return newPage(l, tx, head).reader()
}

// asking reads what was asked under the id of a request, and who approved it. Every entry is proved, so a row that somebody added
// is no approval. nil: nobody was asked.
func (at reader) asking(ctx context.Context, id record.ID) (*asking, error) {
	var indexes []int64
	err := at.store.each(ctx, at.querier, "SELECT entry FROM approvals WHERE request = ? ORDER BY entry", []any{id[:]}, func(scan func(...any) error) error {
		indexes = append(indexes, 0)
		return scan(&indexes[len(indexes)-1])
	})
	if err != nil || len(indexes) == 0 {
		return nil, err
	}
	a := &asking{id: id, index: indexes[0]}
	for i, index := range indexes {
		e, err := at.prove(ctx, index)
		if err != nil {
			return nil, err
		}
		if e.Request != id || (e.Kind == record.KindPending) != (i == 0) {
			return nil, fmt.Errorf("%w: the list of approvals has the entry %d, which is not about the request %s", ErrTampered, index, id)
		}
		switch e.Kind {
		case record.KindPending:
			a.entry = e
			err = at.parse(ctx, index, e, openAsked, &a.Asked)
		case record.KindApproved:
			var one record.Approval
			one, err = at.approval(ctx, index, e)
			a.given = append(a.given, one)
		case record.KindRejected:
			var one record.Approval
			one, err = at.approval(ctx, index, e)
			a.closed, a.rejected = true, &one
		case record.KindExpired:
			a.closed = true
		default:
			err = fmt.Errorf("%w: the entry %d is not about an approval", ErrTampered, index)
		}
		if err != nil {
			return nil, err
		}
	}
	a.customer, err = at.customerName(ctx, a.entry.Customer)
	return a, err
}

// parse reads the JSON of an opening.
func (at reader) parse(ctx context.Context, index int64, e *record.Entry, name string, into any) error {
	data, err := at.opening(ctx, at.querier, index, e, name)
	if err == nil && json.Unmarshal(data, into) != nil {
		err = fmt.Errorf("%w: the %s of entry %d is not readable", ErrTampered, name, index)
	}
	return err
}

// approval reads an approval, or a rejection.
func (at reader) approval(ctx context.Context, index int64, e *record.Entry) (record.Approval, error) {
	var said record.Decided
	if err := at.parse(ctx, index, e, openDecided, &said); err != nil {
		return record.Approval{}, err
	}
	caller, err := at.opening(ctx, at.querier, index, e, openActor)
	return record.Approval{
		Entry: index, Time: e.Time, Caller: string(caller), Credential: said.Credential, Person: said.Person, Reason: said.Reason,
	}, err
}

// customerName returns the present name of a customer, as its entry says it; "" for the zero ID.
func (at reader) customerName(ctx context.Context, id record.ID) (string, error) {
	if id == (record.ID{}) {
		return "", nil
	}
	var index int64
	if err := at.QueryRowContext(ctx, at.store.bind("SELECT entry FROM customers WHERE id = ?"), id[:]).Scan(&index); err != nil {
		return "", err
	}
	e, err := at.prove(ctx, index)
	if err != nil {
		return "", err
	}
	c, err := at.customerOf(ctx, at.querier, index, e)
	if err == nil && e.Customer != id {
		err = fmt.Errorf("%w: the list of customers does not say what entry %d says", ErrTampered, index)
	}
	return c.Name, err
}

// event returns the event of a use. It is proved by entries: a row that somebody added does not make a customer or a key known.
func (at reader) event(ctx context.Context, u *use, known, used bool) (string, error) {
	if !known {
		return record.EventNewCustomer, nil
	}
	name, err := at.customerName(ctx, u.customer)
	if err == nil && name != u.Customer {
		err = fmt.Errorf("%w: the list of customers does not say what the entry says", ErrTampered)
	}
	if err != nil {
		return "", err
	}
	event, where, arg := record.EventNewKey, "customer", u.customer[:]
	if used {
		event, where, arg = record.EventSameKey, "spki", u.spki[:]
	}
	var spki []byte
	var index int64
	err = at.QueryRowContext(ctx, at.store.bind("SELECT spki, entry FROM keys WHERE "+where+" = ? LIMIT 1"), arg).Scan(&spki, &index) // #nosec G202 -- a constant
	if errors.Is(err, sql.ErrNoRows) {
		return record.EventNewCustomer, nil
	}
	if err != nil {
		return "", err
	}
	e, err := at.prove(ctx, index)
	if err != nil {
		return "", err
	}
	owns := e.Kind == record.KindIntent || e.Kind == record.KindReassigned || repeats(e)
	if !owns || e.Customer != u.customer || string(e.SPKI[:]) != string(spki) {
		return "", fmt.Errorf("%w: the list of keys does not say what entry %d says", ErrTampered, index)
	}
	return event, nil
}

// approved returns the id of the request that other people have approved; the zero ID if nobody must. refusal is the *Waiting of
// a use that waits: if it is new, the question is recorded.
func (tx *Tx) approved(ctx context.Context, u *use, known, used bool) (id record.ID, refusal, err error) {
	if u.Ask == nil {
		return id, nil, nil
	}
	r := tx.reader()
	a, state, err := tx.sameAsked(ctx, r, u)
	if err != nil {
		return id, nil, err
	}
	if a == nil {
		refusal, err = tx.askFirst(ctx, r, u, known, used)
		return id, refusal, err
	}
	given, err := tx.unfrozen(ctx, a.given)
	if err != nil {
		return id, nil, err
	}
	need := u.Ask.Need[a.Event]
	have, enough := u.Ask.Approvers.Count(a.Asked, a.customer, given, need)
	if !enough || state == record.KindIntent { // another process is signing it
		return id, &record.Waiting{ID: a.id, Need: need, Have: have, Until: a.Until}, nil
	}
	u.firstKey = a.Event == record.EventNewCustomer
	return a.id, nil, nil
}

// askFirst asks if the policy says that others must approve the use. refusal is the *Waiting then.
func (tx *Tx) askFirst(ctx context.Context, r reader, u *use, known, used bool) (refusal, err error) {
	event, err := r.event(ctx, u, known, used)
	if err != nil {
		return nil, err
	}
	need := u.Ask.Need[event]
	if need == 0 {
		return nil, nil
	}
	if refused, err := tx.countDay(ctx, u); refused {
		return err, tx.refuse(ctx, u, rulePerDay)
	} else if err != nil {
		return nil, err
	}
	return tx.ask(ctx, u, event, need, known)
}

// sameAsked returns the same use of the same caller that others may still approve, or have approved; nil: there is none.
func (tx *Tx) sameAsked(ctx context.Context, r reader, u *use) (*asking, string, error) {
	if u.customer == (record.ID{}) {
		return nil, "", nil
	}
	e := u.entry("", record.ID{})
	list, err := tx.requests(ctx, "SELECT id, entry, state FROM requests WHERE csr = ? AND customer = ? AND until > 0", e.CSR[:], e.Customer[:])
	if err != nil {
		return nil, "", err
	}
	for _, found := range list {
		a, err := r.asking(ctx, found.id)
		if err != nil {
			return nil, "", err
		}
		if a != nil && !a.closed && a.Until.After(tx.now) && a.entry.CSR == e.CSR && a.entry.Customer == e.Customer && a.entry.Actor == e.Actor &&
			a.entry.Vendor == e.Vendor && a.entry.Chain == e.Chain && a.entry.Digest == e.Digest && a.Vendor == u.Identity {
			return a, found.state, nil
		}
	}
	return nil, "", nil
}

// unfrozen returns the approvals of callers that are not frozen.
func (tx *Tx) unfrozen(ctx context.Context, given []record.Approval) (left []record.Approval, err error) {
	for _, one := range given {
		frozen, err := tx.stopped(ctx, record.ID{}, one.Caller, "")
		if err != nil {
			return nil, err
		}
		if frozen == nil || frozen.Scope != FreezeCaller {
			left = append(left, one)
		}
	}
	return left, nil
}

// ask records that others must approve a use. A customer that is not known is added: its first signature waits.
func (tx *Tx) ask(ctx context.Context, u *use, event string, need int, known bool) (waiting, err error) {
	if err := tx.keepChain(ctx, u); err != nil {
		return nil, err
	}
	if !known {
		if u.customer, err = tx.addCustomer(u.actor, u.Actor, u.Channel, Customer{Name: u.Customer}); err != nil {
			return nil, err
		}
	}
	return tx.askFor(u.entry(record.KindPending, record.NewID()), u.Ask, record.Asked{Event: event, Need: need, Vendor: u.Identity}, u.openings...)
}

// askFor appends the question, and posts the notice about it. waiting is a *record.Waiting.
func (tx *Tx) askFor(e *record.Entry, ask *record.Ask, asked record.Asked, openings ...record.Opening) (waiting, err error) {
	asked.Requester, asked.Until = ask.Requester, tx.now.Add(ask.Expiry).Truncate(time.Millisecond)
	data, err := json.Marshal(asked)
	if err != nil {
		return nil, err
	}
	openings = append(slices.Clone(openings), record.NewOpening(openAsked, data))
	slices.SortFunc(openings, func(a, b record.Opening) int { return strings.Compare(a.Name, b.Name) })
	index, err := tx.Append(e, openings...)
	if err != nil {
		return nil, err
	}
	tx.exec("INSERT INTO requests (id, customer, state, entry, issued, begun, csr, spki, intent, until) VALUES (?, ?, ?, ?, -1, ?, ?, ?, ?, ?)",
		e.Request[:], e.Customer[:], e.Kind, index, tx.now.UnixMilli(), e.CSR[:], e.SPKI[:], index, asked.Until.UnixMilli())
	tx.exec("INSERT INTO approvals (request, entry) VALUES (?, ?)", e.Request[:], index)
	tx.post(Message{Kind: MessagePending, About: e.Request, Customer: e.Customer})
	return &record.Waiting{ID: e.Request, Need: asked.Need, Until: asked.Until}, nil
}

// closeAsked records that questions were not answered in time.
func (tx *Tx) closeAsked(ctx context.Context) error {
	list, err := tx.requests(ctx, "SELECT id, entry, state FROM requests WHERE until > 0 AND until <= ? ORDER BY until LIMIT 100", tx.now.UnixMilli())
	for _, r := range list {
		switch {
		case err != nil:
		case r.state == record.KindPending || r.state == record.KindApproved:
			err = tx.decided(r, record.KindExpired)
		case r.state != record.KindIntent: // it was signed, or not; nobody may try again
			tx.exec("UPDATE requests SET until = 0 WHERE id = ?", r.id[:])
		}
	}
	return err
}

// decided appends a decision about what was asked.
func (tx *Tx) decided(r request, kind string, openings ...record.Opening) error {
	e := *r.Entry
	e.Kind, e.Commitments = kind, nil
	if kind == record.KindExpired { // nobody did it
		e.Actor, e.Credential, e.Policy, e.Channel = record.ID{}, record.ID{}, record.Hash{}, ""
	}
	return tx.decide(&e, openings...)
}

// decide appends the entry of a decision.
func (tx *Tx) decide(e *record.Entry, openings ...record.Opening) error {
	index, err := tx.Append(e, openings...)
	if err != nil {
		return err
	}
	set := ""
	if e.Kind != record.KindApproved {
		set = ", until = 0"
		tx.answered(e.Request)
	}
	tx.exec("UPDATE requests SET state = ?, entry = ?"+set+" WHERE id = ?", e.Kind, index, e.Request[:])
	tx.exec("INSERT INTO approvals (request, entry) VALUES (?, ?)", e.Request[:], index)
	return nil
}
