package main

import (
	"context"
	"errors"
	"time"

	"hsmsign/api"
	"hsmsign/client"
	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// isWaiting returns whether an error says that other people must approve something first.
func isWaiting(err error) bool { return fault.KindOf(err) == fault.Pending }

// waitingFor returns the id of what other people must approve first, and what is known about it.
func waitingFor(err error) (id string, approval *api.Approval) {
	if w, ok := errors.AsType[*client.Waiting](err); ok {
		return w.ID, &w.Approval
	}
	if w, ok := errors.AsType[*record.Waiting](err); ok {
		return w.ID.String(), &api.Approval{Need: w.Need, Have: w.Have, Until: api.Time(w.Until), Given: []api.Approver{}}
	}
	return "", nil
}

// rest waits for the pause before the next look at what others must approve, and returns false if the time for that is over, or
// ctx has ended.
func (job *signJob) rest(ctx context.Context, pause time.Duration) bool {
	left := time.Until(job.wait)
	if left <= 0 {
		return false
	}
	timer := time.NewTimer(min(pause, left))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// untilApproved waits until others have approved a request, and signs it. waiting is the error of the first try, and is returned
// if the time is over.
func (job *signJob) untilApproved(ctx context.Context, result *api.SignResult, waiting error) error {
	for pause := time.Duration(0); ; {
		pause = client.NextPause(pause, waiting)
		if !job.rest(ctx, pause) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return waiting
		}
		err := job.lookAgain(ctx, waiting)
		if err == nil {
			err = job.stillAsked(ctx, waiting, job.signTo(ctx, result))
		}
		if !isWaiting(err) {
			return err
		}
		waiting = err
	}
}

// lookAgain returns nil if a request may be issued now, waiting or a newer such error if it still waits or the service or ledger
// does not answer, and another error if it never will be issued.
func (job *signJob) lookAgain(ctx context.Context, waiting error) error {
	id, _ := waitingFor(waiting)
	err := job.issuer.look(ctx, id)
	if kind := fault.KindOf(err); ctx.Err() == nil && (kind == fault.Unavailable || kind == fault.Limited) {
		return waiting
	}
	return err
}

// stillAsked returns the error of another try. A request that was rejected between the look and the try was asked for again by the
// try: then the rejection is returned.
func (job *signJob) stillAsked(ctx context.Context, before, err error) error {
	was, _ := waitingFor(before)
	if is, _ := waitingFor(err); is == "" || is == was {
		return err
	}
	if ended := job.issuer.look(ctx, was); ended != nil && !isWaiting(ended) {
		return ended
	}
	return err
}
