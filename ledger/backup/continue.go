package backup

import (
	"bytes"
	"context"

	"hsmsign/ledger"
	"hsmsign/ledger/sqlite"
)

// New is a ledger that continues another one under a new origin.
type New struct {
	Config ledger.Config      // with an empty store, a new key and its verifier key
	Near   string             // an encrypted or copied backup is unpacked next to this file
	Until  *ledger.Checkpoint // entries of the copy after it are not trusted; nil: all are
}

// Continue makes a new ledger from a copy that is older than the ledger of, or a fork of it. With to.Until, only the entries up to
// that checkpoint are read and checked; otherwise the whole copy must verify. What was erased since the copy is not continued.
func Continue(ctx context.Context, from Source, of Ledger, to New) (*ledger.Continued, error) {
	known, err := of.checkpoints()
	if err != nil {
		return nil, err
	}
	store := from.Store
	if store == nil {
		u, err := unpack(ctx, from.Backup, to.Near, from.Identities)
		if err != nil {
			return nil, err
		}
		defer u.remove()
		if store, err = sqlite.Open(ctx, u.path, false); err != nil {
			return nil, err
		}
		defer func() { _ = store.DB.Close() }() // before the folder is removed; nothing was written
	}
	cfg := of.Config
	cfg.Store, cfg.Key, cfg.LastCheckpoint, cfg.Copies = store, "", "", nil
	l, err := ledger.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() { _ = l.Close() }() // it keeps nothing
	c := ledger.Continuation{Last: newest(known), Actor: of.Actor, Channel: channel}
	if c.Erased, err = ledger.Erasures(of.Config.LastCheckpoint); err != nil {
		return nil, err
	}
	head, err := l.Head(ctx)
	switch {
	case err != nil:
	case to.Until != nil && to.Until.Size <= head.Size:
		c.Until = to.Until
		_, err = l.CheckAgainst(ctx, bytes.NewReader(to.Until.Signed))
	default:
		_, err = Verify(ctx, l)
	}
	if err != nil {
		return nil, err
	}
	if to.Until != nil { // trust ends there, also if the copy ends before it
		c.Last = to.Until
	}
	return ledger.Continue(ctx, to.Config, l, c)
}
