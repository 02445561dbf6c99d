package ledger

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// Approval is what other people must approve.
type Approval struct {
	record.Asked
	// Given are the approvals that were recorded; which count, the policy says.
	Given []record.Approval
	// Rejected is the rejection; nil: nobody has rejected it.
	Rejected *record.Approval
	// Freeze is the freeze that would end; its Scope is "" if a signature was asked for.
	Freeze  record.Freeze
	Channel string // how it was asked
	Expired bool   // the time for the approvals is over, by the clock of the database
}

// Pending returns what waits for approval, the newest first, each proved by its entries, without files. Only those that keep
// returns true for are returned; before is the Entry number of the question of the last one of the page before, 0 for the first
// page. next is that of the next page; 0 if this is the last one.
func (l *Ledger) Pending(ctx context.Context, before int64, limit int, keep func(r *RequestRecord) bool) (found []RequestRecord, next int64, err error) {
	now, err := l.clock(ctx, l.store.DB)
	if err != nil {
		return nil, 0, l.store.fail("list what waits", err)
	}
	err = l.snapshot(ctx, "list what waits", func(tx *sql.Tx, head *Checkpoint) error {
		at := newPage(l, tx, head)
		for {
			page, err := l.waiting(ctx, tx, now.UnixMilli(), before, limit)
			if err != nil {
				return err
			}
			var indexes []int64
			for _, r := range page {
				indexes = append(indexes, r.Entry, r.intent)
			}
			if err := at.load(ctx, indexes); err != nil {
				return err
			}
			for _, r := range page {
				before = r.intent
				if err := at.reader().proveRequest(ctx, r); err != nil {
					return err
				}
				if err := at.reader().proveApproval(ctx, r); err != nil {
					return err
				}
				if r.Approval == nil || !keep(r) {
					continue
				}
				if found = append(found, *r); len(found) == limit {
					next = before
					return nil
				}
			}
			if len(page) < limit {
				return nil
			}
		}
	})
	return found, next, err
}

// waiting reads a page of rows of what waits.
func (l *Ledger) waiting(ctx context.Context, tx *sql.Tx, now, before int64, limit int) (page []*RequestRecord, err error) {
	where, args := "", []any{now}
	if before > 0 {
		where, args = " AND intent < ?", append(args, before)
	}
	query := "SELECT id, entry, issued, intent FROM requests WHERE until > 0 AND until > ? AND state IN ('pending', 'approved')" + where + fmt.Sprintf(" ORDER BY intent DESC LIMIT %d", limit)
	err = l.store.each(ctx, tx, query, args, func(scan func(...any) error) error {
		var id []byte
		r := &RequestRecord{}
		if err := scan(&id, &r.Entry, &r.issued, &r.intent); err != nil {
			return err
		}
		r.ID = idOf(id)
		page = append(page, r)
		return nil
	})
	return page, err
}

// proveApproval reads what other people must approve, if anything. One that was not approved in time is expired, whether or not
// an entry says it yet.
func (at reader) proveApproval(ctx context.Context, r *RequestRecord) error {
	a, err := at.asking(ctx, r.ID)
	if err != nil || a == nil {
		return err
	}
	about, err := at.freezeAsked(ctx, a)
	if err != nil {
		return err
	}
	r.Approval = &Approval{Asked: a.Asked, Given: a.given, Rejected: a.rejected, Freeze: about, Channel: a.entry.Channel}
	r.Customer, r.Actor = a.customer, a.Caller
	now, err := at.clock(ctx, at.querier)
	r.Approval.Expired = !a.Until.After(now)
	if err == nil && r.Approval.Expired && (r.State == record.KindPending || r.State == record.KindApproved) {
		r.State = record.KindExpired
	}
	return err
}

// freezeAsked returns the freeze that would end, with the present name of its customer; Scope "": something else was asked.
func (at reader) freezeAsked(ctx context.Context, a *asking) (about record.Freeze, err error) {
	if !commits(a.entry, openFreeze) {
		return about, nil
	}
	if err := at.parse(ctx, a.index, a.entry, openFreeze, &about); err != nil {
		return about, err
	}
	if about.Scope == FreezeCustomer {
		about.Name = a.customer
	}
	return about, nil
}

// askUnfreeze records that others must approve that a freeze ends, unless that was asked already.
func (l *Ledger) askUnfreeze(ctx context.Context, actor, channel string, f Freeze) error {
	if err := f.check(); err != nil {
		return err
	}
	var waiting error
	err := l.Append(ctx, func(ctx context.Context, tx *Tx) (err error) {
		waiting, err = tx.askUnfreeze(ctx, actor, channel, f)
		return err
	})
	if err != nil { // the change may still be running: nothing of it may be read
		return err
	}
	return waiting
}

func (tx *Tx) askUnfreeze(ctx context.Context, actor, channel string, f Freeze) (waiting, err error) {
	if err := tx.closeIntents(ctx); err != nil {
		return nil, err
	}
	now, err := tx.freezes(ctx)
	if err != nil {
		return nil, err
	}
	one, customer, err := tx.inForce(ctx, f)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(now.list, one.same) {
		return nil, notFrozen()
	}
	id, err := tx.actor(ctx, actor)
	if err != nil {
		return nil, err
	}
	list, err := tx.requests(ctx, "SELECT id, entry, state FROM requests WHERE until > ? AND csr = ?", tx.now.UnixMilli(), make([]byte, len(record.Hash{})))
	if err != nil {
		return nil, err
	}
	r := tx.reader()
	for _, found := range list {
		a, err := r.asking(ctx, found.id)
		if err != nil {
			return nil, err
		}
		if a == nil {
			return nil, fmt.Errorf("%w: the list of approvals has nothing about the request %s", ErrTampered, found.id)
		}
		about, err := r.freezeAsked(ctx, a)
		if err != nil {
			return nil, err
		}
		if a.entry.Actor == id && about.Scope == f.Scope && about.Name == f.Name && !a.closed {
			return &record.Waiting{ID: a.id, Need: a.Need, Have: len(a.given), Until: a.Until}, nil
		}
	}
	data, err := json.Marshal(record.Freeze{Scope: f.Scope, Name: f.Name, Reason: f.Reason})
	if err != nil {
		return nil, err
	}
	e := &record.Entry{Kind: record.KindPending, Request: record.NewID(), Customer: customer, Actor: id, Channel: channel, Credential: record.CredentialID(f.Ask.Requester.Credential)}
	return tx.askFor(e, f.Ask, record.Asked{Event: record.EventUnfreeze, Need: f.Ask.Need[record.EventUnfreeze]},
		record.NewOpening(openActor, []byte(actor)), record.NewOpening(openFreeze, data))
}

// endFreeze ends a freeze that enough people have approved to end.
func (tx *Tx) endFreeze(ctx context.Context, a *asking, about record.Freeze) error {
	before, err := tx.freezes(ctx)
	if err != nil {
		return err
	}
	one := inForce{Scope: about.Scope, Name: about.Name}
	if about.Scope == FreezeCustomer {
		one.Name, one.Customer = "", a.entry.Customer.String()
	}
	at := slices.IndexFunc(before.list, one.same)
	if at < 0 {
		return notFrozen()
	}
	index := tx.next()
	e := &record.Entry{Kind: record.KindUnfrozen, Request: a.id, Customer: a.entry.Customer, Actor: a.entry.Actor, Channel: a.entry.Channel}
	if err := tx.setFreezes(e, a.Caller, about, slices.Delete(slices.Clone(before.list), at, at+1)); err != nil {
		return err
	}
	tx.exec("UPDATE requests SET state = ?, entry = ?, until = 0 WHERE id = ?", e.Kind, index, a.id[:])
	tx.answered(a.id)
	return nil
}

func notFrozen() error {
	return fault.NotFound.Errorf("it is not frozen").Fix("hsmsign ledger status shows what is frozen")
}
