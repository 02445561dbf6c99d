package ledger

import (
	"context"
	"maps"
	"time"
)

// Figures are what monitoring shows of a ledger.
type Figures struct {
	Entries   int64
	Witnessed bool  // the ledger has witnesses
	Cosigned  int64 // entries below the newest checkpoint that enough operators have cosigned; 0: there is none
	Witnesses []WitnessStatus
	Copies    []CopyStatus
	Pending   Asked
}

// Asked is how much waits for approval. It is read from the list of requests and not proved: what waits is proved when it is listed
// and approved.
type Asked struct {
	Requests int
	Oldest   time.Duration // since the oldest was asked for; 0: nothing waits
}

// Questions returns how much waits for approval.
func (l *Ledger) Questions(ctx context.Context) (b Asked, err error) {
	now, err := l.clock(ctx, l.store.DB)
	var oldest int64
	if err == nil {
		err = l.store.DB.QueryRowContext(ctx, l.store.bind("SELECT count(*), coalesce(min(begun), 0) FROM requests WHERE until > 0 AND until > ? AND state IN ('pending', 'approved')"),
			now.UnixMilli()).Scan(&b.Requests, &oldest)
	}
	if b.Requests > 0 {
		b.Oldest = max(0, now.Sub(time.UnixMilli(oldest)))
	}
	return b, l.store.fail("count what waits for approval", err)
}

// Figures returns the figures of the store. Sizes are those of verified checkpoints and cosignatures.
func (l *Ledger) Figures(ctx context.Context) (f Figures, err error) {
	head, err := l.Head(ctx)
	if err != nil {
		return f, err
	}
	f = Figures{Entries: head.Size, Witnessed: len(l.witnesses) > 0, Copies: l.CopyStatuses()}
	enough := max(l.cfg.Required, 1)
	cosigned, err := l.cosignedBy(ctx, head, l.witnesses, 0, enough)
	if err != nil {
		return f, l.store.fail("read the cosignatures", err)
	}
	if cosigned.Operators() >= enough {
		f.Cosigned = cosigned.Size
	}
	if f.Pending, err = l.Questions(ctx); err != nil {
		return f, err
	}
	f.Witnesses, err = l.WitnessStatuses(ctx)
	return f, err
}

// Counts are what this process has counted since it opened the ledger.
type Counts struct {
	NewKeys  uint64         // known customers that used a key that nobody used before
	Failures map[string]int // how often a witness did not cosign, by its name
}

// Counts returns the counts. It reads no store.
func (l *Ledger) Counts() Counts {
	c := Counts{NewKeys: l.newKeys.Load()}
	if p := l.publisher; p != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		c.Failures = maps.Clone(p.failed)
	}
	return c
}
