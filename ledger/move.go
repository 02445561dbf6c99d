package ledger

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// The steps of Move.
const (
	StepPrepare  = "prepare"  // the destination gets its schema and its id
	StepVerify   = "verify"   // the source is verified
	StepEntries  = "entries"  // the next entries are copied
	StepClose    = "close"    // the last entry of the source is appended: from then on the source is only read
	StepTables   = "tables"   // the other tables and the head are copied
	StepCompare  = "compare"  // the destination is verified
	StepComplete = "complete" // the destination may be used
)

// movePage is how many entries one transaction copies. It bounds the memory, with the sizes of CSRs and requests.
const movePage = 256

// Move says where a ledger is moved to.
type Move struct {
	// Open opens the destination: an empty store, or one with an unfinished copy of the ledger. create says that it may be made. The
	// caller closes Store.DB.
	Open func(create bool) (*Store, error)
	// Actor is who moves the ledger, and Channel how the order came: "local".
	Actor, Channel string
	// Step is called before each step, with the number of entries that were copied and of those that there are. An error ends Move
	// there, and the same Move continues later. Nil: it is not called.
	Step func(step string, copied, entries int64) error
}

// MoveResult is the result of Move.
type MoveResult struct {
	Head    *Checkpoint // of the source and, when it was compared, of the destination
	Store   record.ID   // of the destination
	Name    string      // of the destination: its reference without secrets
	Entries int64       // that this run copied
	Again   bool        // the ledger had been moved to this store before
}

// Move moves the ledger to another, empty store: the same origin, keys and entries, so that receipts, checkpoints and cosignatures
// stay valid. Most entries are copied while the ledger is in use. Then an entry of kind moved is appended, the last of the source: it
// names the destination by a random id that only that store has. Every process refuses to append to a store after such an entry
// about another one (ErrMoved), and to open a destination before everything was copied and verified. So at most one store can be
// appended to at any moment, also if a run ends between two steps; the next one continues. Sessions of the console are not
// copied.
//
// Errors: kind usage if the destination has another ledger or the ledger is open for reading; one that wraps ErrMoved if the ledger
// was moved to another store; kind conflict if another run copies to the destination; ErrTampered if the source or the copy does not
// verify.
func (l *Ledger) Move(ctx context.Context, m Move) (*MoveResult, error) {
	if l.cfg.Key == "" {
		return nil, fault.Usage.Errorf("the ledger is open for reading").Fix("name its checkpoint key")
	}
	r := &moving{source: l, Move: m, result: &MoveResult{}}
	if r.Step == nil {
		r.Step = func(string, int64, int64) error { return nil }
	}
	var err error
	if r.to, _, err = l.MovedTo(ctx); err != nil {
		return nil, err
	}
	if r.store, err = m.Open(r.to == nil); err != nil {
		return nil, err
	}
	for _, step := range []func(ctx context.Context) error{r.prepare, r.verify, r.entries, r.close, r.entries, r.tables, r.compare, r.complete} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return r.result, nil
}

// moving is one run of Move.
type moving struct {
	Move
	source *Ledger
	store  *Store        // the destination
	to     *record.Moved // that the source names, if it is closed
	result *MoveResult

	next, size int64 // entries in the destination, and in the source when it was read last
	filled     bool  // the destination has its head
	completed  bool  // the destination may be used
}

func (r *moving) step(name string) error { return r.Step(name, r.next, r.size) }

// whole returns an error that wraps ErrTampered if the ledger has a defect.
func whole(ctx context.Context, l *Ledger) error {
	report, err := l.Verify(ctx, nil)
	if err != nil || len(report.Defects) == 0 {
		return err
	}
	return fault.Errorf("%w: %s: entry %d: %s", ErrTampered, l.store.Name, report.Defects[0].Entry, report.Defects[0].Text).
		Fix("hsmsign ledger verify lists every defect; see docs/ledger.md")
}

// prepare gives the destination its schema and its id, or finds those of an unfinished copy.
func (r *moving) prepare(ctx context.Context) error {
	if err := r.step(StepPrepare); err != nil {
		return err
	}
	err := r.store.transact(ctx, func(tx *sql.Tx) error { return r.store.migrate(ctx, tx) })
	if err == nil {
		err = r.store.transact(ctx, func(tx *sql.Tx) error { return r.claim(ctx, tx) })
	}
	if err != nil {
		return r.store.fail("prepare the store", err)
	}
	r.result.Name = r.store.Name
	return nil
}

// claim finds what the destination has, and marks an empty one.
func (r *moving) claim(ctx context.Context, tx *sql.Tx) error {
	if _, err := tx.ExecContext(ctx, r.store.LockSchema); err != nil {
		return err
	}
	var heads int
	if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM head").Scan(&heads); err != nil {
		return err
	}
	d, err := r.store.destination(ctx, tx)
	if err != nil {
		return err
	}
	origin := r.source.Origin()
	switch {
	case d != nil && r.to != nil && r.to.Store == d.id.String():
	case d == nil && heads > 0, d != nil && d.complete:
		return occupied(r.store)
	case r.to != nil:
		return r.source.Here(ctx)
	case d == nil:
		d = &destination{id: record.NewID(), origin: origin}
		_, err := tx.ExecContext(ctx, r.store.bind("INSERT INTO destination (id, store, origin, complete) VALUES (1, ?, ?, 0)"), d.id[:], origin)
		if err != nil {
			return err
		}
	case d.origin != origin:
		return fault.Usage.Errorf("%s contains an unfinished copy of the ledger %q", r.store.Name, d.origin).Fix("name another store")
	}
	r.result.Store, r.filled, r.completed, r.result.Again = d.id, heads > 0, d.complete, d.complete
	return nil
}

// verify verifies the source before it is closed: a copy of a damaged ledger could not be used.
func (r *moving) verify(ctx context.Context) error {
	if r.to != nil {
		return nil
	}
	if err := r.step(StepVerify); err != nil {
		return err
	}
	return whole(ctx, r.source)
}

// entries copies the entries that the destination lacks, with their hashes and side rows, while the source may be in use.
func (r *moving) entries(ctx context.Context) error {
	if r.filled {
		return nil
	}
	if err := r.continues(ctx); err != nil {
		return err
	}
	for {
		head, err := r.source.Head(ctx)
		if err != nil {
			return err
		}
		r.size = head.Size
		if r.next >= r.size || r.to == nil && r.result.Entries > 0 && r.size-r.next < movePage { // the rest follows when the source is closed
			return nil
		}
		for r.next < r.size {
			if err := r.step(StepEntries); err != nil {
				return err
			}
			if err := r.page(ctx, min(r.next+movePage, r.size)); err != nil {
				return err
			}
		}
	}
}

// continues finds how many entries the destination has, which must be the first ones of the source.
func (r *moving) continues(ctx context.Context) error {
	head, err := r.source.Head(ctx)
	if err != nil {
		return err
	}
	if r.next, err = r.copied(ctx, r.store.DB); err != nil {
		return r.store.fail("read the copy", err)
	}
	if r.next > head.Size {
		return r.foreign()
	}
	want, err := treeHash(r.next, r.source.store.hashReader(ctx, r.source.store.DB))
	if err != nil {
		return r.source.store.fail("read the hashes", err)
	}
	if got, err := treeHash(r.next, r.store.hashReader(ctx, r.store.DB)); err != nil || got != want {
		if err != nil && ctx.Err() != nil {
			return r.store.fail("read the copy", err)
		}
		return r.foreign()
	}
	return nil
}

func (r *moving) foreign() error {
	return fault.Usage.Errorf("%s contains entries that are not those of the ledger", r.store.Name).Fix("name another store")
}

// copied returns how many entries the destination has.
func (r *moving) copied(ctx context.Context, q querier) (n int64, err error) {
	err = q.QueryRowContext(ctx, "SELECT coalesce(max(idx), -1) + 1 FROM entries").Scan(&n)
	return n, err
}

// page copies the entries up to end.
func (r *moving) page(ctx context.Context, end int64) error {
	var p *part
	err := r.source.snapshot(ctx, "read the entries", func(tx *sql.Tx, _ *Checkpoint) error {
		p = r.source.readPart(ctx, tx, r.next, end)
		if p.err == nil && int64(len(p.rows)) != end-r.next {
			p.err = fmt.Errorf("%w: entries from %d on are missing", ErrTampered, r.next)
		}
		return p.err
	})
	if err != nil {
		return err
	}
	err = r.write(ctx, func(ctx context.Context, q statements) error {
		var entries, hashes, openings []any
		for _, row := range p.rows {
			entries = append(entries, row.index, row.leaf, row.kind, row.customer)
		}
		for i, hash := range p.hashes {
			hashes = append(hashes, p.first+int64(i), hash[:])
		}
		for _, o := range p.openings {
			openings = append(openings, o.entry, o.Name, o.Salt[:], o.Data)
		}
		if err := q.insert(ctx, insertEntries, 4, entries); err != nil {
			return err
		}
		if err := q.insert(ctx, insertHashes, 2, hashes); err != nil {
			return err
		}
		return q.insert(ctx, "INSERT INTO openings (entry, name, salt, data) VALUES ", 4, openings)
	})
	if err == nil {
		r.result.Entries += end - r.next
		r.next = end
	}
	return err
}

// write runs do in a transaction of the destination, if it is still what this run has found and no other run writes to it.
func (r *moving) write(ctx context.Context, do func(ctx context.Context, q statements) error) error {
	err := r.store.transact(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, r.store.LockSchema); err != nil {
			return err
		}
		d, err := r.store.destination(ctx, tx)
		if err != nil {
			return err
		}
		n, err := r.copied(ctx, tx)
		if err != nil {
			return err
		}
		var heads int
		if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM head").Scan(&heads); err != nil {
			return err
		}
		if d == nil || d.id != r.result.Store || heads > 0 || n != r.next {
			return fault.Conflict.Errorf("another run copies the ledger to %s", r.store.Name).Fix("wait for it, then run the command again")
		}
		return do(ctx, statements{r.store, tx, false})
	})
	return r.store.fail("write the copy", err)
}

// close appends the last entry of the source.
func (r *moving) close(ctx context.Context) error {
	if r.to != nil {
		return nil
	}
	if err := r.step(StepClose); err != nil {
		return err
	}
	to := record.Moved{Store: r.result.Store.String(), Name: r.store.Name}
	data, err := json.Marshal(to)
	if err != nil {
		return err
	}
	err = r.source.Append(ctx, func(ctx context.Context, tx *Tx) error {
		actor, err := tx.actor(ctx, r.Actor)
		if err != nil {
			return err
		}
		p := &place{at: tx.next(), to: to}
		_, err = tx.Append(&record.Entry{Kind: record.KindMoved, Actor: actor, Channel: r.Channel},
			record.NewOpening(openActor, []byte(r.Actor)), record.NewOpening(openMoved, data))
		tx.away, tx.leaves = p.away(r.source.store), true
		return err
	})
	r.to = &to
	return err
}

// tables copies the head and what the entries do not have, in one transaction.
func (r *moving) tables(ctx context.Context) error {
	head, err := r.source.Head(ctx)
	if err != nil {
		return err
	}
	if r.result.Head = head; r.filled {
		return nil
	}
	if err := r.step(StepTables); err != nil {
		return err
	}
	return r.write(ctx, func(ctx context.Context, q statements) error {
		return r.source.snapshot(ctx, "read the tables", func(from *sql.Tx, _ *Checkpoint) error {
			for _, table := range movedTables {
				if err := r.table(ctx, from, q, table); err != nil {
					return fmt.Errorf("table %s: %w", table, err)
				}
			}
			if err := r.erase(ctx, from, q); err != nil {
				return err
			}
			hashes := r.store.hashReader(ctx, q)
			root, err := treeHash(head.Size, hashes)
			if err == nil && root != head.Root {
				err = fmt.Errorf("%w: the copied hashes do not have the root of the checkpoint", ErrTampered)
			}
			if err != nil {
				return err
			}
			_, err = q.ExecContext(ctx, "INSERT INTO head (id, size, checkpoint) VALUES (1, ?, ?)", head.Size, head.Signed)
			return err
		})
	})
}

// compare verifies the destination, and that it has the entries of the source.
func (r *moving) compare(ctx context.Context) error {
	if err := r.step(StepCompare); err != nil {
		return err
	}
	cfg := r.source.cfg
	cfg.Store, cfg.Key, cfg.LastCheckpoint, cfg.Copies, cfg.Witnesses, cfg.Required = r.store, "", "", nil, nil, 0
	copied, err := prepare(cfg)
	if err != nil {
		return err
	}
	head, err := copied.Head(ctx)
	if err != nil {
		return err
	}
	if err := checkGrowth(r.result.Head, head, r.store.hashReader(ctx, r.store.DB)); err != nil {
		return r.store.fail("compare the copy", err)
	}
	return whole(ctx, copied)
}

// complete lets the destination be used.
func (r *moving) complete(ctx context.Context) error {
	if r.completed {
		return nil
	}
	if err := r.step(StepComplete); err != nil {
		return err
	}
	err := r.store.transact(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, r.store.bind("UPDATE destination SET complete = 1 WHERE store = ?"), r.result.Store[:])
		return err
	})
	if err == nil && r.store.Forget != "" { // side rows of customers that were erased while they were copied
		_, err = r.store.DB.ExecContext(ctx, r.store.Forget)
	}
	return r.store.fail("complete the copy", err)
}
