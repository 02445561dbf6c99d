package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// cosignWait is how long a request waits for the required cosignatures.
const cosignWait = 20 * time.Second

// hopeless is after how many failures in that time a request no longer waits for a witness.
const hopeless = 3

// confirm reads which checkpoint enough operators have cosigned, also with the cosignatures that other processes stored.
func (p *publisher) confirm() {
	ctx, cancel := context.WithTimeout(p.ctx, storeWait)
	defer cancel()
	enough := max(p.ledger.cfg.Required, 1)
	found, err := p.ledger.Cosigned(ctx, enough)
	if err != nil || found.Operators() < enough {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if found.Size > p.confirmed {
		p.confirmed = found.Size
		close(p.changed)
		p.changed = make(chan struct{})
	}
}

// Release implements record.Recorder. It waits until the required witnesses have cosigned a checkpoint that includes the entry
// with which the request was issued; then nothing may be frozen that the permit is about, and the
// ledger must not have been moved. The error wraps ErrStore, ErrMoved or ErrTampered, is that of ctx, or is of kind forbidden.
func (l *Ledger) Release(ctx context.Context, permit record.Permit) error {
	if err := l.awaitRequired(ctx, permit); err != nil {
		return err
	}
	return l.mayRelease(ctx, permit)
}

// mayRelease returns why nothing may be released with the permit: a freeze, or that the ledger was moved.
func (l *Ledger) mayRelease(ctx context.Context, permit record.Permit) error {
	now, away, err := l.nowFrozen(ctx)
	if err = cmp.Or(err, away); err != nil { // a freeze would be in the other store
		return err
	}
	if frozen := now.stops(permit.Customer, permit.Actor, permit.Identity); frozen != nil {
		return frozen.refusal()
	}
	return nil
}

// awaitRequired waits for the required cosignatures.
func (l *Ledger) awaitRequired(ctx context.Context, permit record.Permit) error {
	if l.cfg.Required == 0 {
		return nil
	}
	id, err := record.ParseID(permit.Request)
	if err != nil {
		return err
	}
	head, err := l.Head(ctx)
	if err != nil {
		return err
	}
	index, _, err := l.issued(ctx, head, id)
	if err != nil {
		return err
	}
	return l.publisher.await(ctx, index)
}

// await waits until enough operators have cosigned a checkpoint that includes an entry.
func (p *publisher) await(ctx context.Context, index int64) error {
	waiting, cancel := context.WithTimeout(ctx, cosignWait)
	defer cancel()
	p.mu.Lock()
	before := maps.Clone(p.failed)
	waits := p.confirmed <= index
	p.mu.Unlock()
	if waits {
		select {
		case p.hurry <- struct{}{}:
		default:
		}
	}
	for {
		p.mu.Lock()
		confirmed, alarm, changed := p.confirmed, p.alarm, p.changed
		enough := p.hopeful(before) >= p.ledger.cfg.Required
		p.mu.Unlock()
		switch {
		case alarm != nil:
			return p.refuse()
		case confirmed > index:
			return nil
		case !enough:
			return p.tooFew(index)
		}
		select {
		case <-changed:
		case <-waiting.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return fmt.Errorf("waiting for cosignatures: %w", ctx.Err())
			}
			return p.tooFew(index)
		case <-p.done:
			return p.tooFew(index)
		}
	}
}

// hopeful returns how many operators have a witness that has not failed too often since the counts before. The caller has p.mu.
func (p *publisher) hopeful(before map[string]int) int {
	var all []*cosigner
	for _, t := range p.targets {
		if t.cosigner != nil && p.failed[t.Name]-before[t.Name] < hopeless {
			all = append(all, t.cosigner)
		}
	}
	return allOperators(all)
}

// tooFew is the error of an entry that fewer witnesses than required have cosigned.
func (p *publisher) tooFew(index int64) error {
	l := p.ledger
	ctx, cancel := context.WithTimeout(context.Background(), storeWait)
	defer cancel()
	head, err := l.Head(ctx)
	if err != nil {
		return err
	}
	found, err := l.cosignedBy(ctx, head, l.witnesses, index, l.cfg.Required)
	if err != nil {
		return l.store.fail("read the cosignatures", err)
	}
	if found.Operators() >= l.cfg.Required { // another process has got them
		return nil
	}
	why := []string{fmt.Sprintf("%d of %d required witnesses have cosigned the entry %d", found.Operators(), l.cfg.Required, index)}
	p.mu.Lock()
	for _, t := range p.targets {
		if t.cosigner != nil && p.failures[t.Name] != "" {
			why = append(why, fmt.Sprintf("%s: %s", t.Name, fault.Clip(p.failures[t.Name], maxFailure)))
		}
	}
	p.mu.Unlock()
	return fault.Errorf("%w: %s: %s", ErrStore, l.store.Name, strings.Join(why, "; ")).
		Fix("nothing was released: sign the CSR again when the witnesses answer; the same request is found, and no second signature is made")
}
