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

// ruleShown refuses a decision about something else than what was asked.
const ruleShown = "approval.shown"

// Decide records that somebody approves or rejects what was asked. A rejection ends it. The last approval of a question about a
// freeze ends the freeze; a use of the key is then authorized by Authorize. Errors: kind not found if nothing was asked under
// the id; kind conflict if it is decided, expired, frozen, or not what the approver was shown; the error of Decision.Allowed;
// kind usage if the reason cannot be recorded, or is missing in a rejection.
func (l *Ledger) Decide(ctx context.Context, d record.Decision) error {
	d.Reason = strings.TrimSpace(d.Reason)
	if utf8.RuneCountInString(d.Reason) > maxText || strings.ContainsFunc(d.Reason, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fault.Usage.Errorf("the reason %q", fault.Clip(d.Reason, 64)).Fix(fmt.Sprintf("write at most %d printable characters", maxText))
	}
	if d.Reason == "" && !d.Approve {
		return fault.Usage.Errorf("no reason given").Fix("say why it is rejected; the entry records it")
	}
	return l.Append(ctx, func(ctx context.Context, tx *Tx) error { return tx.decision(ctx, d) })
}

// noQuestion is the error of an id under which nothing was asked.
func noQuestion(id record.ID) error {
	return fault.NotFound.Errorf("nothing waits for approval as %s", id).Fix("hsmsign pending lists what waits")
}

// decision records a decision.
func (tx *Tx) decision(ctx context.Context, d record.Decision) error {
	if err := tx.closeIntents(ctx); err != nil {
		return err
	}
	r := tx.reader()
	list, err := tx.requests(ctx, "SELECT id, entry, state FROM requests WHERE id = ?", d.Request[:])
	if err != nil {
		return err
	}
	a, err := r.asking(ctx, d.Request)
	if err != nil {
		return err
	}
	if len(list) == 0 || a == nil {
		return noQuestion(d.Request)
	}
	now := list[0]
	if err := tx.decidable(now.state, a); err != nil {
		return err
	}
	about, err := r.freezeAsked(ctx, a)
	if err != nil {
		return err
	}
	if shown := (record.Shown{Customer: a.customer, CSR: a.entry.CSR, Vendor: a.Vendor, Scope: about.Scope, Name: about.Name}); shown != d.Shown {
		return fault.Conflict.Errorf("the approver was shown something else than what was asked").Rule(ruleShown).Fix("show it again, and compare the CSR's SHA-256, the customer and the vendor identity")
	}
	if err := d.Allowed(a.Asked, a.customer); err != nil {
		return err
	}
	if err := tx.decidedBy(ctx, d, a); err != nil {
		return err
	}
	return tx.appendDecision(ctx, d, a, now, about)
}

// decidable returns why nobody can decide what was asked; nil: somebody can.
func (tx *Tx) decidable(state string, a *asking) error {
	switch {
	case !a.closed && !a.Until.After(tx.now):
		return fault.Conflict.Errorf("%s expired at %s", a.id, a.Until.Format(time.RFC3339)).Fix("let it be asked for again")
	case a.closed || state != record.KindPending && state != record.KindApproved:
		return fault.Conflict.Errorf("%s is %s already", a.id, state).Fix("hsmsign pending lists what waits")
	}
	return nil
}

// decidedBy returns why the approver cannot decide: it is frozen, or has approved already.
func (tx *Tx) decidedBy(ctx context.Context, d record.Decision, a *asking) error {
	f, err := tx.freezes(ctx)
	if err != nil {
		return err
	}
	for _, one := range f.list {
		if one.Scope == FreezeCaller && one.Name == d.Actor {
			return one.refusal()
		}
	}
	for _, given := range a.given {
		if given.Person == d.Person && d.Approve {
			return fault.Conflict.Errorf("%s has approved it already", d.Person).Fix("another person must approve it")
		}
	}
	return nil
}

// appendDecision appends the entry of a decision, and ends a freeze that enough people have approved to end.
func (tx *Tx) appendDecision(ctx context.Context, d record.Decision, a *asking, now request, about record.Freeze) error {
	actor, err := tx.actor(ctx, d.Actor)
	if err != nil {
		return err
	}
	data, err := json.Marshal(record.Decided{Person: d.Person, Credential: d.Credential, Reason: d.Reason})
	if err != nil {
		return err
	}
	e := *now.Entry
	e.Actor, e.Credential, e.Channel, e.Policy = actor, record.CredentialID(d.Credential), d.Channel, d.Policy
	kind := record.KindRejected
	if d.Approve {
		kind = record.KindApproved
	}
	if err := tx.decided(request{Entry: &e}, kind, record.NewOpening(openActor, []byte(d.Actor)), record.NewOpening(openDecided, data)); err != nil || !d.Approve || about.Scope == "" {
		return err
	}
	given, err := tx.unfrozen(ctx, append(a.given, record.Approval{Time: tx.now, Caller: d.Actor, Credential: d.Credential, Person: d.Person}))
	if err != nil {
		return err
	}
	if _, enough := d.Approvers.Count(a.Asked, a.customer, given, a.Need); !enough {
		return nil
	}
	return tx.endFreeze(ctx, a, about)
}
