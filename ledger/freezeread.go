package ledger

import (
	"context"
	"sync"

	"hsmsign/ledger/record"
)

// freezeReads shares the reads of what is frozen. Every request needs one before it is released, and a commit lets many requests
// go at once: those that wait while a read is running share the next one, which begins after all of them have asked.
type freezeReads struct {
	mu      sync.Mutex
	running bool
	next    *freezeRead // has not begun; nil: nobody waits for one
}

// freezeRead is one read.
type freezeRead struct {
	done chan struct{} // closed at the end
	now  *freezes      // readable after done
	away error         // as now: the ledger was moved to another store
	err  error         // as now
}

// nowFrozen returns what is frozen now, as the store says it after the call, and whether the ledger was moved to another store: away.
func (l *Ledger) nowFrozen(ctx context.Context) (now *freezes, away, err error) {
	reads := &l.freezeReads
	reads.mu.Lock()
	read := reads.next
	if read == nil {
		read = &freezeRead{done: make(chan struct{})}
		reads.next = read
		if !reads.running {
			reads.running = true
			go l.runFreezeReads()
		}
	}
	reads.mu.Unlock()
	select {
	case <-read.done:
		return read.now, read.away, l.store.fail("read what is frozen", read.err)
	case <-ctx.Done():
		return nil, nil, l.store.fail("read what is frozen", ctx.Err())
	}
}

// runFreezeReads reads until nobody waits.
func (l *Ledger) runFreezeReads() {
	reads := &l.freezeReads
	for {
		reads.mu.Lock()
		read := reads.next
		reads.next, reads.running = nil, read != nil
		reads.mu.Unlock()
		if read == nil {
			return
		}
		ctx, cancel := context.WithTimeout(l.ctx, storeWait)
		if read.now, read.err = l.readNowFrozen(ctx); read.err == nil {
			read.away, read.err = l.movedAway(ctx, preparing{l.store}, l.provedNow, false)
		}
		cancel()
		close(read.done)
	}
}

// readNowFrozen reads what is frozen.
func (l *Ledger) readNowFrozen(ctx context.Context) (*freezes, error) {
	f, err := l.readFreezes(ctx, preparing{l.store}, l.knownFreezes(), l.provedNow)
	if err == nil {
		l.sawFreezes(f)
	}
	return f, err
}

// provedNow returns an entry that was read in the list of entries before, after proving it.
func (l *Ledger) provedNow(ctx context.Context, index int64) (*record.Entry, error) {
	head, err := l.Head(ctx) // after the list of entries, so it includes the entry
	if err != nil {
		return nil, err
	}
	return l.entry(ctx, l.store.DB, head, index)
}
