package ledger

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// Tx is a batch of appends under the lock of the head. It is valid within the function that Append calls.
type Tx struct {
	ledger  *Ledger
	sql     statements
	hashes  *memory
	head    *Checkpoint
	now     time.Time
	low     bool                 // the disk has only its reserve left
	closed  bool                 // old intents were closed
	intents map[record.ID]open   // of the batch; the ledger remembers them after the commit
	actors  map[string]record.ID // that are known, by name
	known   *freezes             // that this process saw before the transaction
	frozen  *freezes             // with the changes of the batch; nil: not read yet
	// signers sign the checkpoint of the batch.
	signers []note.Signer
	away    error // why nothing is appended: the ledger is in another store; nil: it is here
	leaves  bool  // the batch says that the ledger is in another store

	added   []leaf      // of the whole batch
	pending []statement // of the change that runs
	start   int         // its first leaf
}

// leaf is an entry as it is stored.
type leaf struct {
	leaf     []byte
	kind     string
	customer record.ID
}

// statement changes a side row.
type statement struct {
	query string
	args  []any
}

// clock sets the time of the batch: that of the database if it has a clock. It never falls. A clock that is far behind the
// newest entry is an error, and so are two clocks that disagree.
func (tx *Tx) clock(ctx context.Context) error {
	var err error
	if tx.now, err = tx.ledger.clock(ctx, tx.sql); err != nil {
		return err
	}
	if apart := tx.ledger.now().Sub(tx.now); apart.Abs() > maxClockSkew {
		return fmt.Errorf("the clocks of this host and of the database are %v apart; set them", apart.Abs().Round(time.Second))
	}
	newest := tx.ledger.newest
	if written := tx.ledger.written; written == nil || written.Size != tx.head.Size || written.Root != tx.head.Root {
		e, err := tx.entry(ctx, tx.head.Size-1)
		if err != nil {
			return err
		}
		newest = e.Time
	}
	if behind := newest.Sub(tx.now); behind > maxClockSkew {
		return fmt.Errorf("the clock is %v behind the newest entry; set it", behind.Round(time.Second))
	} else if behind > 0 {
		tx.now = newest
	}
	return nil
}

func (tx *Tx) begin() { tx.start, tx.pending = len(tx.added), nil }

func (tx *Tx) forget() { tx.added, tx.pending = tx.added[:tx.start], nil }

// apply writes the side rows of a change, so that the next one in the batch sees them.
func (tx *Tx) apply(ctx context.Context) error {
	for _, s := range tx.pending {
		if _, err := tx.sql.ExecContext(ctx, s.query, s.args...); err != nil {
			return err
		}
	}
	return nil
}

// flush writes the entries so far. It is for a transaction of many entries without other callers.
func (tx *Tx) flush(ctx context.Context) error {
	if err := tx.apply(ctx); err != nil {
		return err
	}
	head, err := tx.finish(ctx)
	if err == nil {
		tx.head, tx.added = head, nil
		tx.begin()
	}
	return err
}

// next returns the index of the next entry.
func (tx *Tx) next() int64 { return tx.head.Size + int64(len(tx.added)) }

// whenLow are the kinds of entries that are recorded when the disk has only its reserve left.
var whenLow = []string{record.KindRefused, record.KindProfileRefused, record.KindFrozen, record.KindMoved}

// Append adds an entry, whose time it sets, with the openings of its commitments, and returns its index.
func (tx *Tx) Append(e *record.Entry, openings ...record.Opening) (int64, error) {
	if tx.low && !slices.Contains(whenLow, e.Kind) {
		return 0, fault.Errorf("%w: %s: less than %d MiB are free on its disk, so only refusals and freezes are recorded", ErrStore, tx.ledger.store.Name, reserve>>20).
			Fix("nothing was released; free space on the disk and try again")
	}
	index := tx.next()
	e.Time = tx.now
	var rows []any
	for _, o := range openings {
		e.Commitments = append(e.Commitments, o.Commitment())
		rows = append(rows, index, o.Name, o.Salt[:], o.Data)
	}
	if rows != nil {
		tx.exec("INSERT INTO openings (entry, name, salt, data) VALUES (?, ?, ?, ?)"+strings.Repeat(", (?, ?, ?, ?)", len(openings)-1), rows...)
	}
	data, err := e.Marshal()
	if err != nil {
		return 0, err
	}
	tx.added = append(tx.added, leaf{data, e.Kind, e.Customer})
	return index, nil
}

// exec changes a side row when the change has succeeded.
func (tx *Tx) exec(query string, args ...any) {
	tx.pending = append(tx.pending, statement{query, args})
}

// finish writes the entries, their hashes and the new checkpoint.
func (tx *Tx) finish(ctx context.Context) (*Checkpoint, error) {
	if len(tx.added) == 0 {
		return tx.head, nil
	}
	var entries, hashes []any
	size := tx.head.Size
	for _, added := range tx.added {
		list, err := tlog.StoredHashes(size, added.leaf, tx.hashes)
		if err != nil {
			return nil, err
		}
		first := tlog.StoredHashIndex(0, size)
		for i, hash := range list {
			tx.hashes.known[first+int64(i)] = hash
			hashes = append(hashes, first+int64(i), hash[:])
		}
		entries = append(entries, size, added.leaf, added.kind, added.customer[:])
		size++
	}
	root, err := treeHash(size, tx.hashes)
	if err != nil {
		return nil, err
	}
	if err := tx.sql.insert(ctx, insertEntries, 4, entries); err != nil {
		return nil, err
	}
	if err := tx.sql.insert(ctx, insertHashes, 2, hashes); err != nil {
		return nil, err
	}
	head, err := Checkpoint{Origin: tx.head.Origin, Size: size, Root: root}.sign(tx.signers...)
	if err != nil {
		return nil, err
	}
	_, err = tx.sql.ExecContext(ctx, "UPDATE head SET size = ?, checkpoint = ? WHERE id = 1", size, head.Signed)
	return head, err
}

const (
	insertEntries = "INSERT INTO entries (idx, leaf, kind, customer) VALUES "
	insertHashes  = "INSERT INTO hashes (idx, hash) VALUES "
)

// insert adds rows of a number of columns, many with one statement; there are few statements, since each is prepared.
func (s statements) insert(ctx context.Context, query string, columns int, values []any) error {
	row := ",(?" + strings.Repeat(",?", columns-1) + ")"
	for _, rows := range []int{64, 8, 1} {
		for n := rows * columns; len(values) >= n; values = values[n:] {
			if _, err := s.ExecContext(ctx, query+strings.Repeat(row, rows)[1:], values[:n]...); err != nil {
				return err
			}
		}
	}
	return nil
}
