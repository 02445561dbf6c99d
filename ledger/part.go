package ledger

import (
	"context"
	"database/sql"

	"golang.org/x/mod/sumdb/tlog"

	"hsmsign/ledger/record"
)

// part is a range of entries as they are stored.
type part struct {
	end      int64 // the first entry after it
	rows     []entryRow
	openings []storedOpening
	hashes   []tlog.Hash // that are stored with the entries; a missing one is zero
	first    int64       // index of the first of them
	err      error
}

// entryRow is a row of the table of entries.
type entryRow struct {
	index          int64
	leaf, customer []byte
	kind           string
}

// storedOpening is an opening and the entry that it belongs to.
type storedOpening struct {
	record.Opening
	entry int64
}

// readPart reads the entries from start to end, which is not included.
func (l *Ledger) readPart(ctx context.Context, tx *sql.Tx, start, end int64) *part {
	p := &part{end: end, first: tlog.StoredHashIndex(0, start)}
	last := tlog.StoredHashIndex(0, end)
	p.hashes = make([]tlog.Hash, last-p.first)
	p.err = l.store.each(ctx, tx, "SELECT idx, leaf, kind, customer FROM entries WHERE idx >= ? AND idx < ? ORDER BY idx", []any{start, end}, func(scan func(...any) error) error {
		var row entryRow
		err := scan(&row.index, &row.leaf, &row.kind, &row.customer)
		p.rows = append(p.rows, row)
		return err
	})
	if p.err != nil {
		return p
	}
	p.err = l.store.each(ctx, tx, "SELECT idx, hash FROM hashes WHERE idx >= ? AND idx < ?", []any{p.first, last}, func(scan func(...any) error) error {
		var index int64
		var raw []byte
		if err := scan(&index, &raw); err != nil {
			return err
		}
		copy(p.hashes[index-p.first][:], raw)
		return nil
	})
	if p.err != nil {
		return p
	}
	p.err = l.store.each(ctx, tx, "SELECT entry, name, salt, data FROM openings WHERE entry >= ? AND entry < ?", []any{start, end}, func(scan func(...any) error) error {
		var o storedOpening
		var salt []byte
		err := scan(&o.entry, &o.Name, &salt, &o.Data)
		copy(o.Salt[:], salt)
		p.openings = append(p.openings, o)
		return err
	})
	return p
}
