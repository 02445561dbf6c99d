package ledger

import (
	"context"
	"database/sql"
	"encoding/json"
	"maps"
	"slices"

	"hsmsign/ledger/record"
)

// aboutApproval returns whether entries of a kind are about what other people must approve.
func aboutApproval(kind string) bool {
	return kind == record.KindPending || kind == record.KindApproved || kind == record.KindRejected || kind == record.KindExpired
}

// question is what the entries say about something that had to be approved.
type question struct {
	entries   []int64
	until     int64 // milliseconds since 1970; 0: it is not readable, or was erased
	requester record.ID
	customer  record.ID
	approved  int
	closed    bool // it was rejected, or has expired
}

// approval follows an entry about an approval, and reports one that the rules do not allow.
func (v *verification) approval(e *record.Entry, index int64, openings []opened) {
	q := v.asked[e.Request]
	switch {
	case e.Kind == record.KindPending && (q != nil || v.requests[e.Request] != nil):
		v.add(index, "the same was asked twice under one id")
	case e.Kind == record.KindPending:
		q = &question{requester: e.Actor, customer: e.Customer}
		var asked record.Asked
		if text := data(openings, openAsked); text != "" && json.Unmarshal([]byte(text), &asked) != nil {
			v.add(index, "what was asked is not readable")
		} else if text != "" {
			q.until = asked.Until.UnixMilli()
		}
		v.asked[e.Request] = q
	case aboutApproval(e.Kind) && q == nil:
		v.add(index, "the entry decides about something that nobody asked")
		return
	case aboutApproval(e.Kind) && q.closed:
		v.add(index, "the entry decides about something that was decided")
	case e.Kind == record.KindApproved && e.Actor == q.requester:
		v.add(index, "somebody approved what they had asked for")
	case (e.Kind == record.KindIntent || e.Kind == record.KindUnfrozen) && q != nil && (q.approved == 0 || q.closed):
		v.add(index, "the entry is about something that was not approved")
	}
	if q == nil || !aboutApproval(e.Kind) {
		return
	}
	q.entries = append(q.entries, index)
	switch e.Kind {
	case record.KindApproved:
		q.approved++
	case record.KindRejected, record.KindExpired:
		q.closed = true
	}
}

// waitsUntil returns whether the list of requests may say that a request can be approved until a time; 0: no longer.
func (v *verification) waitsUntil(id record.ID, state string, until int64) bool {
	q := v.asked[id]
	if q == nil || q.until == 0 {
		return until == 0
	}
	if state == record.KindPending || state == record.KindApproved {
		return until == q.until
	}
	return until == 0 || until == q.until && state != record.KindRejected && state != record.KindExpired && state != record.KindIssued
}

// cachedApprovals compares the list of approvals with the entries.
func (v *verification) cachedApprovals(ctx context.Context, tx *sql.Tx) error {
	left := map[int64]record.ID{}
	for id, q := range v.asked {
		for _, index := range q.entries {
			if !v.erased[q.customer] {
				left[index] = id
			}
		}
	}
	err := v.ledger.store.each(ctx, tx, "SELECT request, entry FROM approvals", nil, func(scan func(...any) error) error {
		var id []byte
		var index int64
		if err := scan(&id, &index); err != nil {
			return err
		}
		if found, ok := left[index]; !ok || found != idOf(id) {
			v.add(index, "the list of approvals has an entry that is not about one")
		}
		delete(left, index)
		return nil
	})
	for _, index := range slices.Sorted(maps.Keys(left)) {
		v.add(index, "the entry is missing in the list of approvals")
	}
	return err
}
