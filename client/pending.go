package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"time"

	"hsmsign/api"
	"hsmsign/fault"
)

// Waiting is the error, of kind pending, of what other people must approve first. Nothing was signed, or is unfrozen.
type Waiting struct {
	ID       string // of the request, which it keeps when it is issued
	Have     int    // people who have approved it
	Need     int
	Until    time.Time // UTC; it must be approved before
	Location string    // path of the request at the service
	// Approval is what the service says about it.
	Approval api.Approval
	// Problem is why it was not issued now, although enough people have approved it; nil: they have not.
	Problem error
	// After is the time until the service can be asked again, as it says; 0: it does not say.
	After time.Duration
}

func (w *Waiting) Error() string {
	text := fmt.Sprintf("waiting for approval %s: %d of %d, until %s", w.ID, w.Have, w.Need, w.Until.UTC().Format(time.RFC3339))
	if w.Problem != nil {
		text = fmt.Sprintf("%s is approved and could not be issued: %v", w.ID, w.Problem)
	}
	return text
}

// Kind returns fault.Pending.
func (*Waiting) Kind() fault.Kind { return fault.Pending }

// Hint returns what to do.
func (w *Waiting) Hint() string {
	if w.Problem != nil {
		return "it is tried again when somebody looks at it: hsmsign pending " + w.ID
	}
	if w.Have >= w.Need {
		return "look again with hsmsign pending " + w.ID + "; if only administrators have approved it, somebody else must too"
	}
	return "another person approves it with hsmsign approve " + w.ID
}

// newWaiting returns the error of an answer about a request that waits.
func newWaiting(id string, a *api.Approval, seen *seen) error {
	if a == nil || id == "" || url.PathEscape(id) != id {
		return unreadable("says that it waits, and not for what")
	}
	until, err := time.Parse(time.RFC3339, a.Until)
	if err != nil {
		return unreadable("does not say until when it waits")
	}
	return &Waiting{ID: id, Have: a.Have, Need: a.Need, Until: until, Location: requestPath(id), Approval: *a, After: seen.after}
}

func unreadable(what string) error {
	return fault.Unavailable.Errorf("the answer of the service %s", what).Fix("check that the address is that of hsmsign serve")
}

func requestPath(id string) string { return "/v1/requests/" + url.PathEscape(id) }

// Pending returns what waits for approval, the newest first: what the caller may approve, has asked for or may read about. An
// error is the last element.
func (c *Client) Pending(ctx context.Context) iter.Seq2[api.Request, error] {
	return pages[api.Request](ctx, c, "/v1/pending", nil)
}

// Approve approves what somebody else asked for. The decision repeats what the approver was shown. The last approval issues the
// request, or ends the freeze; the error is a *Waiting, with the request, if more people must approve it or it could not be issued
// now. An approval whose answer was lost is sent again: it is recorded once.
func (c *Client) Approve(ctx context.Context, id string, d api.Decision) (*api.Request, error) {
	return c.decide(ctx, id, "approve", d)
}

// Reject rejects what somebody else asked for. The decision repeats what the approver was shown, and has a reason.
func (c *Client) Reject(ctx context.Context, id string, d api.Decision) (*api.Request, error) {
	return c.decide(ctx, id, "reject", d)
}

func (c *Client) decide(ctx context.Context, id, how string, d api.Decision) (*api.Request, error) {
	x, err := change(http.MethodPost, requestPath(id)+"/"+how, d)
	if err != nil {
		return nil, err
	}
	x.again, x.states, x.seen = true, []int{http.StatusAccepted}, &seen{}
	var r api.Request
	err = c.json(ctx, x, &r)
	if fault.KindOf(err) == fault.Conflict && x.seen.again {
		return c.decidedBefore(ctx, id, how, err)
	}
	if err != nil {
		return nil, err
	}
	return &r, outcome(&r, x.seen)
}

// decidedBefore returns the request if a decision that was refused as a second one is this caller's own, whose answer was lost.
// refusal is returned otherwise.
func (c *Client) decidedBefore(ctx context.Context, id, how string, refusal error) (*api.Request, error) {
	me, err := c.Me(ctx)
	if err != nil {
		return nil, err
	}
	r, err := c.Look(ctx, id)
	if r == nil {
		return nil, err
	}
	mine := func(a api.Approver) bool { return a.Caller == me.Caller }
	switch {
	case r.Approval == nil:
	case how == "reject" && r.Approval.Rejected != nil && mine(*r.Approval.Rejected):
		return r, nil
	case how == "approve" && slices.ContainsFunc(r.Approval.Given, mine):
		return r, err
	}
	return nil, refusal
}

// States of a request.
const (
	stateIssued   = "issued"
	stateUnfrozen = "unfrozen"
	stateRejected = "rejected"
	stateExpired  = "expired"
)

// Outcome returns the *Waiting of a request that is not issued yet, and an error of kind refused for one that was rejected or has
// expired; nil: it was issued, or the freeze has ended.
func Outcome(r *api.Request) error { return outcome(r, &seen{}) }

func outcome(r *api.Request, seen *seen) error {
	switch r.State {
	case stateIssued, stateUnfrozen:
		return nil
	case stateRejected:
		text := "the request " + r.ID + " was rejected"
		if a := r.Approval; a != nil && a.Rejected != nil {
			text += " by " + a.Rejected.Person + ": " + a.Rejected.Reason
		}
		return fault.Refused.Errorf("%s", fault.Clip(text, maxDetail)).Fix("ask for it again when the reason is gone")
	case stateExpired:
		return fault.Refused.Errorf("the request %s was not approved in time", fault.Clip(r.ID, 64)).Fix("ask for it again")
	}
	err := newWaiting(r.ID, r.Approval, seen)
	if waiting, ok := err.(*Waiting); ok && r.Problem != nil { //nolint:errorlint // it was just made
		data, _ := json.Marshal(r.Problem) // it was just read
		waiting.Problem = problem(r.Problem.Status, data)
	}
	return err
}

// Look returns a request that other people must approve. If enough have, the service tries to issue it when the requester or an
// approver looks. The error is that of Outcome. The request is nil if it could not be read.
func (c *Client) Look(ctx context.Context, id string) (*api.Request, error) {
	x := get(requestPath(id), nil)
	x.seen = &seen{}
	var r api.Request
	if err := c.json(ctx, x, &r); err != nil {
		return nil, err
	}
	if r.ID != id {
		return nil, unreadable("is not about the request " + fault.Clip(id, 64))
	}
	if r.Approval == nil {
		return &r, nil
	}
	return &r, outcome(&r, x.seen)
}

// The pauses between two looks at a request that waits.
const (
	FirstPause = 2 * time.Second
	LastPause  = 15 * time.Second
	maxAfter   = 5 * time.Minute // that a service can ask for
)

// NextPause returns the pause before the next look at a request: pause is the one before, 0 before the first, and err the error of
// the last look, which may have been told by the service when to come again.
func NextPause(pause time.Duration, err error) time.Duration {
	next := min(max(FirstPause, pause*3/2), LastPause)
	if w, ok := err.(*Waiting); ok { //nolint:errorlint // Look returns it itself
		next = max(next, min(w.After, maxAfter))
	}
	return next
}

// Wait looks at a request, every 2 to 15 seconds or as rarely as the service says, until it is issued, and returns it. It ends when
// the request is rejected or expires, and with ctx: with the *Waiting of the last look if its time is over. While the service does
// not answer or is busy, it goes on.
func (c *Client) Wait(ctx context.Context, id string) (r *api.Request, err error) {
	var last error = fault.Pending.Errorf("waiting for approval %s", fault.Clip(id, 64))
	for pause := time.Duration(0); ; {
		r, err = c.Look(ctx, id)
		switch kind := fault.KindOf(err); {
		case kind == fault.Pending:
			last = err
		case ctx.Err() == nil && kind != fault.Unavailable && kind != fault.Limited:
			return r, err
		}
		pause = NextPause(pause, err)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return r, last
			}
			return r, ctx.Err()
		}
	}
}

// changeFreeze asks for a freeze or its end. The error is a *Waiting if other people must approve it.
func (c *Client) changeFreeze(ctx context.Context, path string, order api.FreezeOrder) ([]api.Freeze, error) {
	x, err := change(http.MethodPost, path, order)
	if err != nil {
		return nil, err
	}
	x.states, x.seen = []int{http.StatusAccepted}, &seen{}
	var data json.RawMessage
	if err := c.json(ctx, x, &data); err != nil {
		return nil, err
	}
	if x.seen.status != http.StatusAccepted {
		var list api.List[api.Freeze]
		err := json.Unmarshal(data, &list)
		if err != nil {
			err = unreadable("cannot be read")
		}
		return list.Items, err
	}
	var r api.Request
	if json.Unmarshal(data, &r) != nil {
		return nil, unreadable("cannot be read")
	}
	return nil, newWaiting(r.ID, r.Approval, x.seen)
}
