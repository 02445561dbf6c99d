package ledger

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/mod/sumdb/tlog"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// The names of openings of a ledger that continues another one.
const (
	openOriginal = "original" // JSON of a record.Original
	openPrevious = "previous" // JSON of a record.Previous
)

// state returns the kind that counts for the rules: an intent of the previous ledger has no outcome any more.
func state(o record.Original) string {
	if o.Kind == record.KindIntent {
		return record.KindUnknown
	}
	return o.Kind
}

// repeats returns whether an entry repeats one of the previous ledger.
func repeats(e *record.Entry) bool { return commits(e, openOriginal) }

// commits returns whether an entry has a commitment of a name.
func commits(e *record.Entry, name string) bool {
	return slices.ContainsFunc(e.Commitments, func(c record.Commitment) bool { return c.Name == name })
}

// original returns what an entry repeats; for another entry itself.
func (l *Ledger) original(ctx context.Context, q querier, index int64, e *record.Entry) (record.Original, error) {
	o := record.Original{Entry: index, Time: e.Time, Kind: e.Kind}
	if !repeats(e) {
		return o, nil
	}
	data, err := l.opening(ctx, q, index, e, openOriginal)
	if err == nil && json.Unmarshal(data, &o) != nil {
		err = fmt.Errorf("%w: the original of entry %d is not readable", ErrTampered, index)
	}
	return o, err
}

// history is what the first entries of a ledger say, to be repeated in another one.
type history struct {
	ledger *Ledger
	tx     *sql.Tx // one snapshot
	head   *Checkpoint

	customers map[record.ID]int64 // the newest entry that says it
	pushes    map[record.ID]int64 // likewise
	requests  map[record.ID]*past
	moved     []int64            // entries about keys that were reassigned
	watches   []int64            // entries about what is watched, or is no longer
	frozen    int64              // the newest entry about what is frozen; -1: none
	freezes   map[int64]inForce  // that are in force, by their entries
	erased    map[record.ID]bool // customers
}

// past is a request: its entries.
type past struct {
	begun, issued, newest int64 // issued is -1 if there is none
	asked                 bool  // nothing was signed: it waited for approval
}

// newHistory reads the first entries of a ledger, and proves that they are those of a checkpoint.
func newHistory(ctx context.Context, l *Ledger, tx *sql.Tx, until *Checkpoint) (*history, error) {
	head, err := l.check(ctx, tx, l.store.hashReader(ctx, tx), "")
	if err != nil {
		return nil, err
	}
	if until == nil {
		until = head
	}
	h := &history{
		ledger: l, tx: tx, head: head, customers: map[record.ID]int64{}, pushes: map[record.ID]int64{}, requests: map[record.ID]*past{}, erased: map[record.ID]bool{}, frozen: -1, freezes: map[int64]inForce{},
	}
	rows, err := tx.QueryContext(ctx, l.store.bind("SELECT idx, leaf FROM entries WHERE idx < ? ORDER BY idx"), until.Size)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // Err has the error
	var tree frontier
	for rows.Next() {
		var index int64
		var leaf []byte
		if err := rows.Scan(&index, &leaf); err != nil {
			return nil, err
		}
		e, err := record.ParseEntry(leaf)
		if err != nil || index != tree.size {
			return nil, fmt.Errorf("%w: entry %d was changed, or one before it is missing", ErrTampered, index)
		}
		tree.add(tlog.RecordHash(leaf), nil)
		h.add(index, e)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	if tree.size != until.Size || tree.root() != until.Root {
		return nil, fmt.Errorf("%w: the first %d entries are not those of the checkpoint", ErrTampered, until.Size)
	}
	return h, rows.Close()
}

// readWatches finds what is watched, from the entries: the list of it may have been changed.
func (h *history) readWatches(ctx context.Context) error {
	found := map[string]int64{}
	for _, index := range h.watches {
		e, err := h.read(ctx, index)
		if err != nil {
			return err
		}
		target, err := h.ledger.opening(ctx, h.tx, index, e, openTarget)
		if err != nil {
			return fault.WithHint(err, "use another copy")
		}
		if delete(found, string(target)); e.Kind == record.KindWatched {
			found[string(target)] = index
		}
	}
	h.watches = slices.Collect(maps.Values(found))
	return nil
}

// readFreezes finds what is frozen, which the newest entry about it says.
func (h *history) readFreezes(ctx context.Context) error {
	if h.frozen < 0 {
		return nil
	}
	e, err := h.read(ctx, h.frozen)
	if err != nil {
		return err
	}
	data, err := h.ledger.opening(ctx, h.tx, h.frozen, e, openFreezes)
	if err != nil {
		return fault.WithHint(err, "use another copy")
	}
	var list []inForce
	if json.Unmarshal(data, &list) != nil {
		return fmt.Errorf("%w: entry %d does not say what is frozen", ErrTampered, h.frozen)
	}
	for _, one := range list {
		h.freezes[one.Entry] = one
	}
	return nil
}

// add follows what an entry says.
func (h *history) add(index int64, e *record.Entry) {
	switch {
	case e.Kind == record.KindErased:
		h.erased[e.Customer] = true
	case e.Kind == record.KindFrozen || e.Kind == record.KindUnfrozen: // also one that somebody approved under an id
		h.frozen = index
	case aboutProfile(e.Kind): // no rule needs it
	case e.Request != (record.ID{}):
		p := h.requests[e.Request]
		if p == nil {
			p = &past{begun: index, issued: -1}
			h.requests[e.Request] = p
		}
		if p.newest, p.asked = index, aboutApproval(e.Kind); commits(e, openRequest) {
			p.issued = index
		}
	case commits(e, openCustomer):
		h.customers[e.Customer] = index
	case commits(e, openPush):
		h.pushes[e.Customer] = index
	case e.Kind == record.KindWatched || e.Kind == record.KindUnwatched:
		h.watches = append(h.watches, index)
	case e.Kind == record.KindReassigned:
		h.moved = append(h.moved, index)
	}
}

// item is an entry that is repeated.
type item struct {
	index   int64
	request *past // nil: it is not about a request
}

// items returns what is to be repeated: customers, then the rest in the order of the entries, because a push certificate redeems
// the requests before it, and a key belongs to the customer that it was moved to last.
func (h *history) items() []item {
	var first, all []item
	for _, index := range slices.Sorted(maps.Values(h.customers)) {
		first = append(first, item{index: index})
	}
	for _, index := range slices.Concat(slices.Collect(maps.Values(h.pushes)), h.moved, h.watches, slices.Collect(maps.Keys(h.freezes))) {
		all = append(all, item{index: index})
	}
	for _, p := range h.requests {
		if p.asked { // it must be asked for again
			continue
		}
		all = append(all, item{index: p.newest, request: p})
	}
	slices.SortFunc(all, func(a, b item) int { return cmp.Compare(a.index, b.index) })
	return append(first, all...)
}

// read reads an entry again. It needs no proof: newHistory proved all of them in this snapshot.
func (h *history) read(ctx context.Context, index int64) (*record.Entry, error) {
	var leaf []byte
	if err := h.tx.QueryRowContext(ctx, h.ledger.store.bind("SELECT leaf FROM entries WHERE idx = ?"), index).Scan(&leaf); err != nil {
		return nil, err
	}
	return record.ParseEntry(leaf)
}

// entry returns an entry, and what is the original of its repetition.
func (h *history) entry(ctx context.Context, index int64) (*record.Entry, record.Original, error) {
	e, err := h.read(ctx, index)
	if err != nil {
		return nil, record.Original{}, err
	}
	if h.erased[e.Customer] {
		return e, record.Original{}, nil
	}
	o, err := h.ledger.original(ctx, h.tx, index, e)
	o.Entry = index
	return e, o, err
}

// openings returns new openings with the data of those of an entry.
func (h *history) openings(ctx context.Context, index int64, names ...string) ([]record.Opening, error) {
	e, err := h.read(ctx, index)
	if err != nil {
		return nil, err
	}
	var all []record.Opening
	for _, name := range names {
		data, err := h.ledger.opening(ctx, h.tx, index, e, name)
		if err != nil {
			return nil, fault.WithHint(err, "use another copy")
		}
		all = append(all, record.NewOpening(name, data))
	}
	return all, nil
}
