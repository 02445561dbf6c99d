package ledger

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"hsmsign/ledger/record"
)

// page proves entries of one state of the ledger and remembers them: lists need the same hashes, and some of the same entries, again
// and again. It is for one goroutine and one transaction.
type page struct {
	ledger  *Ledger
	tx      *sql.Tx
	head    *Checkpoint
	hashes  map[int64]tlog.Hash
	leaves  map[int64][]byte
	entries map[int64]*record.Entry // proved
}

func newPage(l *Ledger, tx *sql.Tx, head *Checkpoint) *page {
	return &page{l, tx, head, map[int64]tlog.Hash{}, map[int64][]byte{}, map[int64]*record.Entry{}}
}

func (p *page) reader() reader { return reader{p.ledger, p.tx, p.entry} }

// entry returns one entry, proved.
func (p *page) entry(ctx context.Context, index int64) (*record.Entry, error) {
	if e := p.entries[index]; e != nil {
		return e, nil
	}
	if err := p.load(ctx, []int64{index}); err != nil {
		return nil, err
	}
	leaf := p.leaves[index]
	if leaf == nil {
		return nil, fmt.Errorf("%w: entry %d is missing", ErrTampered, index)
	}
	e, err := provedEntry(p.head, index, leaf, p.reads(ctx))
	if err == nil {
		p.entries[index] = e
	}
	return e, err
}

// load reads the leaves of entries, and the hashes that prove them, at once.
func (p *page) load(ctx context.Context, indexes []int64) error {
	var missing []any
	var needed []int64
	collect := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		for _, index := range indexes {
			if _, ok := p.hashes[index]; !ok {
				p.hashes[index] = tlog.Hash{} // read below
				needed = append(needed, index)
			}
		}
		return make([]tlog.Hash, len(indexes)), nil
	})
	for _, index := range indexes {
		if _, ok := p.leaves[index]; ok || index < 0 || index >= p.head.Size {
			continue
		}
		missing = append(missing, index)
		p.leaves[index] = nil
		if _, err := tlog.ProveRecord(p.head.Size, index, collect); err != nil {
			return err
		}
	}
	if len(missing) == 0 {
		return nil
	}
	found, err := p.ledger.store.hashReader(ctx, p.tx).ReadHashes(needed)
	if err != nil {
		return err
	}
	for i, index := range needed {
		p.hashes[index] = found[i]
	}
	query := "SELECT idx, leaf FROM entries WHERE idx IN (?" + strings.Repeat(",?", len(missing)-1) + ")"
	return p.ledger.store.each(ctx, p.tx, query, missing, func(scan func(...any) error) error {
		var index int64
		var leaf []byte
		err := scan(&index, &leaf)
		p.leaves[index] = leaf
		return err
	})
}

// reads returns a reader of the hashes that were loaded.
func (p *page) reads(ctx context.Context) tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, index := range indexes {
			hash, ok := p.hashes[index]
			if !ok {
				return p.ledger.store.hashReader(ctx, p.tx).ReadHashes(indexes)
			}
			out[i] = hash
		}
		return out, nil
	})
}
