package ledger

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// openTarget is the name of the opening with a watched target.
const openTarget = "target"

// maxWatched is how many targets can be watched: package watch reads no more.
const maxWatched = 128

// Watched is a file or a TLS endpoint whose certificates are reported with what is due; see package watch.
type Watched struct {
	Target string
	Entry  int64     // that says it
	Since  time.Time // UTC
}

// Watch records that a target is watched. The error is of kind conflict if it is watched already, or if there are too many.
func (l *Ledger) Watch(ctx context.Context, actor, channel, target string) error {
	if target == "" || utf8.RuneCountInString(target) > maxText || !utf8.ValidString(target) {
		return fault.Usage.Errorf("the target %q", fault.Clip(target, 64)).Fix(fmt.Sprintf("write at most %d characters", maxText))
	}
	return l.Append(ctx, func(ctx context.Context, tx *Tx) error {
		known, n, err := tx.watched(ctx, target)
		switch {
		case err != nil:
			return err
		case known:
			return fault.Conflict.Errorf("%q is watched already", target)
		case n >= maxWatched:
			return fault.Conflict.Errorf("%d targets are watched, and no more can be", n).Fix("remove one with hsmsign ledger watch remove")
		}
		index, err := tx.watchEntry(ctx, record.KindWatched, actor, channel, target)
		tx.exec("INSERT INTO watches (target, entry) VALUES (?, ?)", target, index)
		return err
	})
}

// Unwatch records that a target is no longer watched. The error is of kind not found if it was not.
func (l *Ledger) Unwatch(ctx context.Context, actor, channel, target string) error {
	return l.Append(ctx, func(ctx context.Context, tx *Tx) error {
		known, _, err := tx.watched(ctx, target)
		if err != nil {
			return err
		}
		if !known {
			return fault.NotFound.Errorf("%q is not watched", fault.Clip(target, 64)).Fix("hsmsign ledger watch list shows the targets")
		}
		_, err = tx.watchEntry(ctx, record.KindUnwatched, actor, channel, target)
		tx.exec("DELETE FROM watches WHERE target = ?", target)
		return err
	})
}

// watched returns whether a target is watched, and how many are.
func (tx *Tx) watched(ctx context.Context, target string) (known bool, n int, err error) {
	var same int
	err = tx.row(ctx, "SELECT count(*), count(CASE WHEN target = ? THEN 1 END) FROM watches", target).Scan(&n, &same)
	return same > 0, n, err
}

func (tx *Tx) watchEntry(ctx context.Context, kind, actor, channel, target string) (int64, error) {
	id, err := tx.actor(ctx, actor)
	if err != nil {
		return 0, err
	}
	return tx.Append(&record.Entry{Kind: kind, Actor: id, Channel: channel},
		record.NewOpening(openActor, []byte(actor)), record.NewOpening(openTarget, []byte(target)))
}

// Watched returns the targets in their order, each proved by its entry.
func (l *Ledger) Watched(ctx context.Context) ([]Watched, error) {
	head, err := l.Head(ctx)
	if err != nil {
		return nil, err
	}
	var all []Watched
	err = l.rows(ctx, "SELECT target, entry FROM watches", nil, func(rows *sql.Rows) error {
		var w Watched
		err := rows.Scan(&w.Target, &w.Entry)
		all = append(all, w)
		return err
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b Watched) int { return strings.Compare(a.Target, b.Target) })
	for i := range all {
		w := &all[i]
		e, err := l.entry(ctx, l.store.DB, head, w.Entry)
		var target []byte
		if err == nil {
			w.Since = e.Time
			target, err = l.opening(ctx, l.store.DB, w.Entry, e, openTarget)
		}
		if err == nil && (string(target) != w.Target || e.Kind != record.KindWatched) {
			err = fmt.Errorf("%w: entry %d does not say that %q is watched", ErrTampered, w.Entry, w.Target)
		}
		if err != nil {
			return nil, l.store.fail("read what is watched", err)
		}
	}
	return all, nil
}

// watch follows an entry about a target.
func (v *verification) watch(kind, target string, index int64) {
	if kind == record.KindWatched {
		v.watches[target] = index
	} else {
		delete(v.watches, target)
	}
}

func (v *verification) cachedWatches(ctx context.Context, tx *sql.Tx) error {
	rows, err := tx.QueryContext(ctx, "SELECT target, entry FROM watches")
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }() // Err has the error
	for rows.Next() {
		var target string
		var index int64
		if err := rows.Scan(&target, &index); err != nil {
			return err
		}
		if at, ok := v.watches[target]; !ok || at != index {
			v.add(index, fmt.Sprintf("no entry says that %q is watched", target))
		}
		delete(v.watches, target)
	}
	for _, index := range slices.Sorted(maps.Values(v.watches)) {
		v.add(index, "the target of the entry is missing in the list of what is watched")
	}
	return rows.Err()
}
