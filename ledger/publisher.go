package ledger

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"hsmsign/fault"
	"hsmsign/ledger/witness"
)

const (
	// roundWait is how long the next checkpoint waits for the witnesses that have not answered about the one before, so that
	// one checkpoint gets the cosignatures of all.
	roundWait = time.Second
	// retryFirst and retryMost are the waits after the first and after many failures of a witness or a copy.
	retryFirst = time.Second / 2
	retryMost  = 15 * time.Second
	// publishWait bounds the last attempt when the ledger is closed.
	publishWait = 3 * time.Second
	// storeWait bounds reading and writing what is known of the witnesses.
	storeWait = 10 * time.Second
)

// publisher sends the newest checkpoint to the witnesses and the copies. Its fields belong to its goroutine, except those below
// mu.
type publisher struct {
	ledger  *Ledger
	targets []*target
	wake    chan struct{} // has room for one: there is a new checkpoint
	hurry   chan struct{} // has room for one: somebody waits, so that witnesses that failed are asked again now
	results chan result   // has room for all targets
	closing chan struct{} // closed by close
	once    sync.Once
	done    chan struct{} // closed when the goroutine has ended
	ctx     context.Context
	cancel  context.CancelFunc

	round    int       // counts the checkpoints that were sent
	roundEnd time.Time // when the next one is no longer delayed
	last     bool      // the ledger is being closed

	mu        sync.Mutex
	confirmed int64             // size of the newest checkpoint that enough operators have cosigned
	alarm     error             // wraps ErrTampered: nothing is appended any more
	reported  bool              // alarm was returned to a caller
	changed   chan struct{}     // closed and replaced when confirmed or alarm changes
	failures  map[string]string // the newest of each, by name of the witness or path of the copy
	failed    map[string]int    // how often a witness has failed, by name
}

// target is a witness, or a copy: a file.
type target struct {
	*cosigner        // nil: a copy
	path      string // of the copy

	published int64 // size of the newest checkpoint that it has from this process, or that a copy has
	size      int64 // that the witness is believed to have cosigned last
	round     int   // in which it was asked last
	busy      bool
	tried     bool // since the ledger is being closed
	failures  int  // one after the other
	next      time.Time
}

// result is the outcome of one attempt.
type result struct {
	target *target
	cp     *Checkpoint
	line   string // of the cosignature
	err    error
}

// startPublisher starts the goroutine if there is somebody to publish to. If an earlier process had an alarm of a witness, that
// one is asked first: until it cosigns, the ledger is not opened for appending.
func (l *Ledger) startPublisher(ctx context.Context, head *Checkpoint, copied map[string]*Checkpoint) error {
	p := &publisher{
		ledger: l, wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1), closing: make(chan struct{}), done: make(chan struct{}),
		changed: make(chan struct{}), failures: map[string]string{}, failed: map[string]int{},
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	if err := p.prepare(ctx, head, copied); err != nil || len(p.targets) == 0 {
		p.cancel()
		return err
	}
	p.results = make(chan result, len(p.targets))
	l.publisher = p
	p.notify()
	go p.run()
	return nil
}

// prepare makes the targets, and asks the witnesses again whose alarm is stored.
func (p *publisher) prepare(ctx context.Context, head *Checkpoint, copied map[string]*Checkpoint) error {
	l := p.ledger
	rows, err := l.witnessRows(ctx)
	if err != nil {
		return l.store.fail("read the witnesses", err)
	}
	for _, c := range l.witnesses {
		if c.client == nil {
			continue
		}
		t := &target{cosigner: c, size: rows[c.id].size}
		p.targets = append(p.targets, t)
		if rows[c.id].alarm {
			if err := p.askAgain(ctx, t, head, rows[c.id]); err != nil {
				return err
			}
		}
	}
	for _, path := range l.cfg.Copies {
		t := &target{path: path}
		if newest := copied[path]; newest != nil {
			t.published = newest.Size
		}
		p.targets = append(p.targets, t)
	}
	return nil
}

// askAgain asks a witness whose alarm is stored.
func (p *publisher) askAgain(ctx context.Context, t *target, head *Checkpoint, row witnessRow) error {
	r := p.ask(ctx, t, head)
	p.finish(r)
	if err := p.alarmed(); err != nil {
		return err
	}
	if _, ahead := errors.AsType[*witness.AheadError](r.err); r.err != nil && !ahead {
		return alarm(t, fmt.Errorf("%s (since %s; now: %w)", row.failure, row.failed.Format(time.RFC3339), r.err))
	}
	return nil
}

// notify says that there is a new checkpoint. It does not wait.
func (p *publisher) notify() {
	if p == nil {
		return
	}
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// close publishes the newest checkpoint once more and ends the goroutine. It returns an alarm that no caller has got, and why a copy
// is not written.
func (p *publisher) close() error {
	if p == nil {
		return nil
	}
	p.once.Do(func() { close(p.closing) })
	late := time.AfterFunc(publishWait, p.cancel)
	<-p.done
	late.Stop()
	p.cancel()
	p.mu.Lock()
	defer p.mu.Unlock()
	var err error
	if !p.reported {
		err = p.alarm
	}
	for _, t := range p.targets {
		if why := p.failures[t.path]; t.cosigner == nil && why != "" {
			err = errors.Join(err, fmt.Errorf("%w: copy %q: %s", ErrStore, t.path, why))
		}
	}
	return err
}

// run is the goroutine: it starts attempts and records their outcomes.
func (p *publisher) run() {
	defer close(p.done)
	p.confirm()
	timer := time.NewTimer(0)
	defer timer.Stop()
	closing := p.closing
	for {
		timer.Reset(p.step(time.Now()))
		if p.last && !p.busy() {
			return
		}
		select {
		case <-p.wake:
		case <-p.hurry:
			for _, t := range p.targets {
				if t.failures > 0 {
					t.failures, t.next = 0, time.Time{}
				}
			}
		case r := <-p.results:
			p.finish(r)
		case <-timer.C:
		case <-closing:
			p.last, closing = true, nil
		case <-p.ctx.Done(): // what has not ended, such as a write to a disk that is gone, is left
			return
		}
	}
}

// busy returns whether an attempt has not ended.
func (p *publisher) busy() bool {
	for _, t := range p.targets {
		if t.busy {
			return true
		}
	}
	return false
}

// step starts what can be started, and returns after which time to look again.
func (p *publisher) step(now time.Time) time.Duration {
	const idle = time.Hour
	p.ledger.mu.Lock()
	head := p.ledger.last
	p.ledger.mu.Unlock()
	if head == nil || p.alarmed() != nil || p.ctx.Err() != nil {
		return idle
	}
	asked := false // a witness of the round has not answered
	for _, t := range p.targets {
		asked = asked || t.busy && t.cosigner != nil && t.round == p.round && p.roundEnd.After(now)
	}
	if asked && !p.last {
		return p.roundEnd.Sub(now)
	}
	wait, started := idle, false
	for _, t := range p.targets {
		switch {
		case t.busy || t.published >= head.Size || p.last && t.tried:
		case t.cosigner == nil && started && !p.last: // a copy gets the cosignatures of the round
		case t.next.After(now) && !p.last:
			wait = min(wait, t.next.Sub(now))
		default:
			if t.cosigner != nil && !started {
				started = true
				p.round++
				p.roundEnd = now.Add(roundWait)
			}
			t.busy, t.tried, t.round = true, p.last, p.round
			go func() { p.results <- p.ask(p.ctx, t, head) }()
		}
	}
	if started {
		wait = min(wait, roundWait)
	}
	return wait
}

// ask sends a checkpoint to a witness, or appends it to a copy.
func (p *publisher) ask(ctx context.Context, t *target, head *Checkpoint) result {
	r := result{target: t, cp: head}
	l := p.ledger
	if t.cosigner == nil {
		r.err = l.copyTo(ctx, t.path, head)
		return r
	}
	cosignature, err := t.client.Cosign(ctx, t.size, witness.Checkpoint{
		Size: head.Size, Signed: head.Signed, Prove: func(ctx context.Context, old int64) (tlog.TreeProof, error) {
			ctx, cancel := context.WithTimeout(ctx, storeWait)
			defer cancel()
			return tlog.ProveTree(head.Size, old, l.store.hashReader(ctx, l.store.DB))
		},
	})
	r.line, r.err = cosignature.Line, err
	return r
}

// finish records the outcome of an attempt.
func (p *publisher) finish(r result) {
	t := r.target
	t.busy = false
	ahead, isAhead := errors.AsType[*witness.AheadError](r.err)
	switch {
	case isAhead:
		p.compare(t, ahead.Size)
		return
	case errors.Is(r.err, witness.ErrForked):
		p.raise(t, r.err)
		return
	case r.err == nil && t.cosigner != nil:
		ctx, cancel := context.WithTimeout(p.ctx, storeWait)
		defer cancel()
		t.size = r.cp.Size
		p.mu.Lock()
		confirmed := p.confirmed
		p.mu.Unlock()
		r.err = p.ledger.keepCosignature(ctx, r.cp, t.cosigner, r.line, confirmed)
	}
	if r.err != nil {
		p.postpone(t, r.err)
		return
	}
	t.failures, t.published, t.next = 0, r.cp.Size, time.Time{}
	p.fails(t, "")
	if t.cosigner == nil {
		t.next = time.Now().Add(keepEvery)
		return
	}
	p.confirm()
}

// postpone records a failure; the target is asked again after a time that grows.
func (p *publisher) postpone(t *target, err error) {
	if p.ctx.Err() != nil {
		return // the ledger is being closed
	}
	t.next = time.Now().Add(min(retryFirst<<min(t.failures, 10), retryMost))
	t.failures++
	p.fails(t, err.Error())
	if t.cosigner != nil {
		p.keep(t, err, false)
	}
}

// keep stores a failure of a witness. An error is ignored: the store is written again at the next one.
func (p *publisher) keep(t *target, err error, alarm bool) {
	ctx, cancel := context.WithTimeout(p.ctx, storeWait)
	defer cancel()
	_ = p.ledger.keepFailure(ctx, t.cosigner, witnessRow{size: t.size, failure: err.Error(), failed: p.ledger.now(), alarm: alarm})
}

// compare compares the size that a witness has cosigned with the store, read again: another process may have appended. If the
// store has fewer entries, it is an older copy, or somebody signed a fork.
func (p *publisher) compare(t *target, size int64) {
	ctx, cancel := context.WithTimeout(p.ctx, storeWait)
	defer cancel()
	head, err := p.ledger.Head(ctx)
	switch {
	case errors.Is(err, ErrTampered):
		p.raise(t, err)
	case err != nil:
		p.postpone(t, err)
	case size > head.Size:
		p.raise(t, fmt.Errorf("it has cosigned %d entries, and the store has %d: the store is an older copy, or somebody signed a fork", size, head.Size))
	default:
		t.size, t.next, t.tried = size, time.Time{}, false
	}
}

// alarm returns the error that stops the ledger.
func alarm(t *target, err error) error {
	return fault.Errorf("%w: alarm of the witness %q: %w", ErrTampered, t.Name, err).
		Fix("nothing is appended until this is explained: compare the ledger with its copies (hsmsign ledger verify --against) and see docs/ledger.md")
}

// raise stops the ledger, for this process and, in the store, for the others.
func (p *publisher) raise(t *target, err error) {
	p.mu.Lock()
	p.alarm = alarm(t, err)
	p.mu.Unlock()
	p.fails(t, err.Error())
	p.keep(t, err, true)
}

// alarmed returns the alarm of a witness; nil if there was none.
func (p *publisher) alarmed() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.alarm
}

// refuse returns the alarm to a caller.
func (p *publisher) refuse() error {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reported = p.alarm != nil
	return p.alarm
}

// fails remembers why a target failed; "": it did not. Those who wait look again.
func (p *publisher) fails(t *target, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t.cosigner != nil {
		p.failures[t.Name] = why
		if why != "" {
			p.failed[t.Name]++
		}
	} else {
		p.failures[t.path] = why
	}
	close(p.changed)
	p.changed = make(chan struct{})
}
