package ledger

import (
	"context"
	"maps"
)

// Figures are what monitoring shows of a ledger.
type Figures struct {
	Entries   int64
	Witnessed bool  // the ledger has witnesses
	Cosigned  int64 // entries below the newest checkpoint that enough operators have cosigned; 0: there is none
	Witnesses []WitnessStatus
	Copies    []CopyStatus
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
