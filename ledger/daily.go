package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// The rules of a caller's policy that only the ledger can apply. The others are those of package policy.
const (
	ruleMustExist = "policy.must-exist" // the customer is not known, and the caller may not add one
	rulePerDay    = "policy.per-day"    // the caller has had as many requests authorized today as it may
)

// Refuse implements record.Recorder.
func (l *Ledger) Refuse(ctx context.Context, asked record.Use, rule string) error {
	if err := checkUse(asked); err != nil {
		return err
	}
	u := l.newUse(asked)
	return l.Append(ctx, func(ctx context.Context, tx *Tx) (err error) {
		if u.actor, err = tx.actor(ctx, u.Actor); err != nil {
			return err
		}
		if _, err := tx.find(ctx, &u.customer, "SELECT id FROM customers WHERE name = ?", u.Customer); err != nil {
			return err
		}
		return tx.refuse(ctx, u, rule)
	})
}

// day is a day of an actor.
type day struct {
	number int64 // since 1970, UTC
	actor  record.ID
}

func dayOf(e *record.Entry) day { return day{e.Time.Unix() / (24 * 60 * 60), e.Actor} }

// countDay counts an intent under a policy. The error is of kind limited, and refused is true, if the actor has had as many as
// it may on this day.
func (tx *Tx) countDay(ctx context.Context, u *use) (refused bool, err error) {
	if u.Policy == (record.Hash{}) {
		return false, nil
	}
	d := dayOf(&record.Entry{Time: tx.now, Actor: u.actor})
	var used int64
	err = tx.row(ctx, "SELECT requests FROM daily WHERE day = ? AND actor = ?", d.number, d.actor[:]).Scan(&used)
	switch {
	case err != nil && !errors.Is(err, sql.ErrNoRows):
		return false, err
	case used >= int64(u.PerDay):
		return true, fault.Limited.Errorf("caller %s has had %d requests today, as many as it may", u.Actor, used).Rule(rulePerDay).
			Fix("try again tomorrow (UTC), or ask whoever writes the configuration")
	}
	tx.exec("INSERT INTO daily (day, actor, requests) VALUES (?, ?, 1) ON CONFLICT (day, actor) DO UPDATE SET requests = daily.requests + 1", d.number, d.actor[:])
	return false, nil
}

// cachedDays compares the numbers of intents under a policy with the entries.
func (v *verification) cachedDays(ctx context.Context, tx *sql.Tx) error {
	err := v.ledger.store.each(ctx, tx, "SELECT day, actor, requests FROM daily", nil, func(scan func(...any) error) error {
		var d day
		var actor []byte
		var requests int64
		if err := scan(&d.number, &actor, &requests); err != nil {
			return err
		}
		if d.actor = idOf(actor); v.days[d] != requests {
			v.add(-1, fmt.Sprintf("the list of days says %d requests of the actor %s on one day, and the entries say %d", requests, d.actor, v.days[d]))
		}
		delete(v.days, d)
		return nil
	})
	for d, n := range v.days {
		v.add(-1, fmt.Sprintf("the entries say %d requests of the actor %s on one day, which the list of days lacks", n, d.actor))
	}
	return err
}
