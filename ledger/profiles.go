package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// openProfile is the name of the opening that says which profile it is: JSON of a record.Profile.
const openProfile = "profile"

var _ record.ProfileRecorder = (*Ledger)(nil)

// profileKinds are the kinds of entries about profiles. Their request id joins them; the list of requests has none of them.
var profileKinds = []string{record.KindProfile, record.KindProfileSigned, record.KindProfileFailed, record.KindProfileRefused}

func aboutProfile(kind string) bool { return slices.Contains(profileKinds, kind) }

// profileUse is a ProfileUse with its ids and hashes.
type profileUse struct {
	use                  // of the actor and the policy, for the rules that all uses have
	content, certificate record.Hash
	openings             []record.Opening
}

func newProfileUse(p record.ProfileUse) (*profileUse, error) {
	about, err := json.Marshal(p.Profile)
	if err != nil {
		return nil, err
	}
	u := &profileUse{content: record.SHA256(p.Content), certificate: record.SHA256(p.Certificate)}
	u.Use = record.Use{Customer: p.Customer, Actor: p.Actor, Channel: p.Channel, Identity: p.Identity, Policy: p.Policy, PerDay: p.PerDay}
	u.credential = record.CredentialID(p.Credential)
	u.openings = []record.Opening{record.NewOpening(openActor, []byte(p.Actor)), record.NewOpening(openProfile, about)}
	return u, nil
}

// entry returns an entry about the use.
func (u *profileUse) entry(kind string, request record.ID) *record.Entry {
	return &record.Entry{
		Kind: kind, Request: request, Customer: u.customer, Actor: u.actor, Credential: u.credential, Channel: u.Channel,
		CSR: u.content, Vendor: u.certificate, Digest: "SHA-256", Policy: u.Policy,
	}
}

// AuthorizeProfile implements record.ProfileRecorder.
func (l *Ledger) AuthorizeProfile(ctx context.Context, asked record.ProfileUse) (record.Permit, error) {
	u, err := newProfileUse(asked)
	if err != nil {
		return record.Permit{}, err
	}
	var permit record.Permit
	var refusal error
	if err := l.Append(ctx, func(ctx context.Context, tx *Tx) (err error) {
		permit, refusal, err = tx.authorizeProfile(ctx, u)
		return err
	}); err != nil { // the change may still be running: nothing of it may be read
		return record.Permit{}, err
	}
	return permit, refusal
}

// authorizeProfile applies the rules. A refusal is recorded, so it is not an error of the change.
func (tx *Tx) authorizeProfile(ctx context.Context, u *profileUse) (permit record.Permit, refusal, err error) {
	known, err := tx.identifyProfile(ctx, u)
	if err != nil {
		return permit, nil, err
	}
	if frozen, err := tx.stopped(ctx, u.customer, u.Actor, u.Identity); err != nil {
		return permit, nil, err
	} else if frozen != nil {
		return permit, frozen.refusal(), tx.refuseProfile(ctx, u, ruleFrozen)
	}
	if !known {
		refusal = fault.NotFound.Errorf("there is no customer %q", fault.Clip(u.Customer, 64)).Rule(ruleMustExist).
			Fix("add the customer with hsmsign ledger customer add, or name none")
		return permit, refusal, tx.refuseProfile(ctx, u, ruleMustExist)
	}
	if refused, err := tx.countDay(ctx, &u.use); refused {
		return permit, err, tx.refuseProfile(ctx, u, rulePerDay)
	} else if err != nil {
		return permit, nil, err
	}
	id := record.NewID()
	index, err := tx.Append(u.entry(record.KindProfile, id), u.openings...)
	return record.Permit{Request: id.String(), Customer: u.customer, Actor: u.Actor, Identity: u.Identity, Entry: index}, nil, err
}

// identifyProfile sets the ids of actor and customer. known is false if the use names a customer that there is not.
func (tx *Tx) identifyProfile(ctx context.Context, u *profileUse) (known bool, err error) {
	if u.actor, err = tx.actor(ctx, u.Actor); err != nil || u.Customer == "" {
		return err == nil, err
	}
	return tx.find(ctx, &u.customer, "SELECT id FROM customers WHERE name = ?", u.Customer)
}

// RefuseProfile implements record.ProfileRecorder.
func (l *Ledger) RefuseProfile(ctx context.Context, asked record.ProfileUse, rule string) error {
	u, err := newProfileUse(asked)
	if err != nil {
		return err
	}
	return l.Append(ctx, func(ctx context.Context, tx *Tx) error {
		if _, err := tx.identifyProfile(ctx, u); err != nil {
			return err
		}
		return tx.refuseProfile(ctx, u, rule)
	})
}

func (tx *Tx) refuseProfile(ctx context.Context, u *profileUse, rule string) error {
	return tx.refuseOnce(ctx, u.actor, u.content, rule, func() error {
		e := u.entry(record.KindProfileRefused, record.ID{})
		e.Rule = rule
		_, err := tx.Append(e, u.openings...)
		return err
	})
}

// ConcludeProfile implements record.ProfileRecorder.
func (l *Ledger) ConcludeProfile(ctx context.Context, permit record.Permit, outcome record.Outcome) error {
	id, err := record.ParseID(permit.Request)
	if err != nil {
		return err
	}
	var index int64
	var refusal error
	if err := l.Append(ctx, func(ctx context.Context, tx *Tx) (err error) {
		index, refusal, err = tx.concludeProfile(ctx, id, permit, outcome)
		return err
	}); err != nil {
		return err
	}
	if refusal != nil || outcome.Err != nil {
		return refusal
	}
	if l.cfg.Required > 0 {
		if err := l.publisher.await(ctx, index); err != nil {
			return err
		}
	}
	return l.mayRelease(ctx, permit)
}

// concludeProfile appends the outcome, and returns its index.
func (tx *Tx) concludeProfile(ctx context.Context, id record.ID, permit record.Permit, outcome record.Outcome) (index int64, refusal, err error) {
	intent, err := tx.entry(ctx, permit.Entry)
	if err != nil {
		return 0, nil, err
	}
	if intent.Kind != record.KindProfile || intent.Request != id {
		return 0, nil, fault.NotFound.Errorf("no signature %s of a profile was authorized", id)
	}
	openings, err := attemptsOpening(outcome.Attempts)
	if err != nil {
		return 0, nil, err
	}
	e := *intent
	e.Kind, e.Operation, e.Commitments = record.KindProfileSigned, outcome.Operation, nil
	switch frozen, err := tx.stopped(ctx, e.Customer, permit.Actor, permit.Identity); {
	case err != nil:
		return 0, nil, err
	case outcome.Err != nil:
		e.Kind, e.Rule = record.KindProfileFailed, fault.KindOf(outcome.Err).String()
	case frozen != nil: // the signature was made, and is not released
		e.Kind, e.Rule, refusal = record.KindProfileRefused, ruleFrozen, frozen.refusal()
	default:
		e.File = record.SHA256(outcome.File)
	}
	index, err = tx.Append(&e, openings...)
	return index, refusal, err
}

// profile follows an entry about a profile: an outcome must be that of an intent before it, and its only one.
func (v *verification) profile(e *record.Entry, index int64) {
	switch intent, known := v.profiles[e.Request]; {
	case e.Kind == record.KindProfileRefused && e.Request == record.ID{}:
	case e.Kind == record.KindProfile:
		if known {
			v.add(index, "the id of the entry is that of another profile")
		}
		v.profiles[e.Request] = e
		if e.Policy != (record.Hash{}) {
			v.days[dayOf(e)]++
		}
	case intent == nil:
		v.add(index, fmt.Sprintf("the entry is the outcome of a signature that %s", map[bool]string{true: "has one already", false: "was not authorized"}[known]))
	default:
		if intent.CSR != e.CSR || intent.Customer != e.Customer || intent.Actor != e.Actor || intent.Vendor != e.Vendor {
			v.add(index, "the outcome is not about the profile that was authorized")
		}
		v.profiles[e.Request] = nil
	}
}
