package ledger

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// ErrMoved means that a ledger was moved to another store: nothing is appended, signed or released with this one.
var ErrMoved = fault.Unavailable.New("the ledger was moved")

// openMoved is the name of the opening with the store that the ledger was moved to: JSON of a record.Moved.
const openMoved = "moved"

// destination is the row of a store that a ledger was moved to, or is being moved to.
type destination struct {
	id       record.ID // by which the entry of kind moved names the store
	origin   string    // of the ledger
	complete bool      // everything was copied and verified
}

// destination reads the row; nil: no ledger was moved to this store.
func (s *Store) destination(ctx context.Context, q querier) (*destination, error) {
	var d destination
	var raw []byte
	var complete int64
	err := q.QueryRowContext(ctx, "SELECT store, origin, complete FROM destination WHERE id = 1").Scan(&raw, &d.origin, &complete)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	d.id, d.complete = idOf(raw), complete == 1
	return &d, nil
}

// place is where the ledger is, as the newest entry of kind moved says. It does not change.
type place struct {
	at   int64 // the entry; -1: there is none
	to   record.Moved
	here bool // this store is the one that the entry names, or there is none
}

// away is the error of a change when the ledger is in another store; nil: it is here.
func (p *place) away(s *Store) error {
	if p.here {
		return nil
	}
	return fault.Errorf("%w: %s: %w to %s by entry %d", ErrStore, s.Name, ErrMoved, p.to.Name, p.at).
		Fix("name that store as the ledger in the configuration, and restart the programs that use this one; this one can still be read")
}

// newestMoved returns the number of the newest entry of kind moved, from an index.
const newestMoved = "SELECT coalesce(max(idx), -1) FROM entries WHERE kind = 'moved'"

// movedAway returns why nothing may be appended to the store: the newest entry of kind moved names another one. unchanged says
// that no other process has appended since this process read it last. The entry is proved; one that this process has seen must be
// found again.
func (l *Ledger) movedAway(ctx context.Context, q querier, entry func(ctx context.Context, index int64) (*record.Entry, error), unchanged bool) (away, err error) {
	p, err := l.readPlace(ctx, q, entry, unchanged)
	if err != nil {
		return nil, err
	}
	return p.away(l.store), nil
}

func (l *Ledger) readPlace(ctx context.Context, q querier, entry func(ctx context.Context, index int64) (*record.Entry, error), unchanged bool) (*place, error) {
	l.mu.Lock()
	known := l.place
	l.mu.Unlock()
	if known != nil && unchanged {
		return known, nil
	}
	found := &place{here: true}
	if err := q.QueryRowContext(ctx, newestMoved).Scan(&found.at); err != nil {
		return nil, err
	}
	switch {
	case known != nil && found.at == known.at:
		return known, nil
	case known != nil && found.at < known.at:
		return nil, fmt.Errorf("%w: entry %d, which says that the ledger was moved, is hidden in the list of entries", ErrTampered, known.at)
	case found.at >= 0:
		if err := l.readMoved(ctx, q, entry, found); err != nil {
			return nil, err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.place == nil || found.at > l.place.at {
		l.place = found
	}
	return found, nil
}

// readMoved reads which store an entry names, and whether it is this one.
func (l *Ledger) readMoved(ctx context.Context, q querier, entry func(ctx context.Context, index int64) (*record.Entry, error), p *place) error {
	e, err := entry(ctx, p.at)
	if err != nil {
		return err
	}
	data, err := l.opening(ctx, q, p.at, e, openMoved)
	if err != nil {
		return err
	}
	var id record.ID
	if p.to, id, err = parseMoved(data); err != nil || e.Kind != record.KindMoved {
		return fmt.Errorf("%w: entry %d does not say where the ledger is", ErrTampered, p.at)
	}
	d, err := l.store.destination(ctx, q)
	p.here = d != nil && d.id == id
	return err
}

// parseMoved reads the opening of an entry of kind moved.
func parseMoved(data []byte) (to record.Moved, id record.ID, err error) {
	if err := json.Unmarshal(data, &to); err != nil {
		return to, id, err
	}
	id, err = record.ParseID(to.Store)
	return to, id, err
}

// leave forgets where the ledger is after a batch that says that it is in another store: the entry is read again.
func (l *Ledger) leave(leaves bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if leaves {
		l.place = nil
	}
}

// Here returns nil if the ledger is in this store. The error wraps ErrMoved if it was moved to another one, and names that;
// otherwise ErrStore or ErrTampered.
func (l *Ledger) Here(ctx context.Context) error {
	p, err := l.readPlace(ctx, preparing{l.store}, l.provedNow, false)
	if err == nil {
		err = p.away(l.store)
	}
	return l.store.fail("read where the ledger is", err)
}

// orMoved returns the error of a store that lacks entries which were seen before, or that it was moved: its successor has them.
func (l *Ledger) orMoved(ctx context.Context, err error) error {
	if !errors.Is(err, ErrTampered) {
		return err
	}
	l.mu.Lock()
	l.last = nil
	l.mu.Unlock()
	if away := l.Here(ctx); errors.Is(away, ErrMoved) {
		return away
	}
	return err
}

// MovedTo returns the store that the ledger was moved to, and the number of the entry that says it; nil if the ledger is here.
func (l *Ledger) MovedTo(ctx context.Context) (to *record.Moved, entry int64, err error) {
	p, err := l.readPlace(ctx, preparing{l.store}, l.provedNow, false)
	if err != nil || p.here {
		return nil, 0, l.store.fail("read where the ledger is", err)
	}
	return &p.to, p.at, nil
}

// moved follows an entry of kind moved. What was appended after it was appended in the store that it names.
func (v *verification) moved(index int64, data string) {
	_, id, err := parseMoved([]byte(data))
	if err != nil {
		v.add(index, "where the ledger was moved to is missing or not readable")
	}
	v.movedTo, v.movedAt = append(v.movedTo, id), index
}

// movedHere compares the entries of kind moved with the store: nothing follows the one that names another store, and one names this
// store if a ledger was moved to it.
func (v *verification) movedHere(ctx context.Context, q querier) error {
	d, err := v.ledger.store.destination(ctx, q)
	if err != nil {
		return err
	}
	var own record.ID
	if d != nil {
		own = d.id
	}
	named := false
	for _, id := range v.movedTo {
		named = named || id == own
	}
	if d != nil && !named {
		v.add(-1, "the ledger was moved to this store, and no entry says so")
	}
	if last := len(v.movedTo) - 1; last >= 0 && v.movedTo[last] != own && v.Entries > v.movedAt+1 {
		v.add(v.movedAt+1, fmt.Sprintf("the entry was appended here after entry %d moved the ledger to another store", v.movedAt))
	}
	return nil
}
