package ledger

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger/witness"
)

// keptSizes is how many cosignatures of one witness are stored, besides those of the newest checkpoint with enough of them.
const keptSizes = 16

// maxFailure is the maximum length of a stored failure in bytes.
const maxFailure = 256

// keepCosignature stores a verified cosignature, so that all processes see it, and that the witness answers. Of the older ones
// the newest remain, and those of the checkpoint of size confirmed.
func (l *Ledger) keepCosignature(ctx context.Context, cp *Checkpoint, c *cosigner, line string, confirmed int64) error {
	return l.store.transact(ctx, func(tx *sql.Tx) error {
		for _, s := range []statement{
			{"INSERT INTO cosignatures (size, witness, checkpoint, line) VALUES (?, ?, ?, ?) ON CONFLICT (size, witness) DO UPDATE SET checkpoint = excluded.checkpoint, line = excluded.line",
				[]any{cp.Size, c.id, cp.Signed, []byte(line)}},
			{fmt.Sprintf("DELETE FROM cosignatures WHERE witness = ? AND size <> ? AND size NOT IN (SELECT size FROM cosignatures WHERE witness = ? ORDER BY size DESC LIMIT %d)", keptSizes),
				[]any{c.id, confirmed, c.id}},
			{writeWitness, []any{c.id, cp.Size, 0, "", 0}},
		} {
			if _, err := tx.ExecContext(ctx, l.store.bind(s.query), s.args...); err != nil {
				return err
			}
		}
		return nil
	})
}

const writeWitness = "INSERT INTO witnesses (id, size, failed, failure, alarm) VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET size = excluded.size, failed = excluded.failed, failure = excluded.failure, alarm = excluded.alarm"

// witnessRow is what the store says of a witness; nothing in it is verified.
type witnessRow struct {
	size    int64 // that the witness has cosigned last
	failure string
	failed  time.Time
	alarm   bool
}

// keepFailure stores why a witness did not cosign. An alarm remains until the witness cosigns.
func (l *Ledger) keepFailure(ctx context.Context, c *cosigner, row witnessRow) error {
	alarm := 0
	if row.alarm {
		alarm = 1
	}
	return l.store.transact(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, l.store.bind(writeWitness+" WHERE witnesses.alarm = 0 OR excluded.alarm = 1"), c.id, row.size, row.failed.UnixMilli(), fault.Clip(row.failure, maxFailure), alarm)
		return err
	})
}

// witnessRows returns what the store says of the witnesses, by the id of their keys.
func (l *Ledger) witnessRows(ctx context.Context) (map[string]witnessRow, error) {
	rows, err := l.store.DB.QueryContext(ctx, "SELECT id, size, failed, failure, alarm FROM witnesses")
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // Err has the error
	all := map[string]witnessRow{}
	for rows.Next() {
		var id string
		var row witnessRow
		var failed, alarm int64
		if err := rows.Scan(&id, &row.size, &failed, &row.failure, &alarm); err != nil {
			return nil, err
		}
		row.failure, row.alarm = fault.Clip(row.failure, maxFailure), alarm != 0
		if row.failure != "" {
			row.failed = time.UnixMilli(failed).UTC()
		}
		all[id] = row
	}
	return all, rows.Err()
}

// storedCosignature is a row of the table of cosignatures; nothing in it is verified.
type storedCosignature struct {
	size       int64
	witness    string
	checkpoint []byte
	line       []byte
}

// storedCosignatures returns the stored cosignatures of checkpoints with more than after entries, the largest first.
func (l *Ledger) storedCosignatures(ctx context.Context, q querier, after int64) ([]storedCosignature, error) {
	const most = 4 * maxWitnesses * (keptSizes + 1) // of former witnesses too
	rows, err := q.QueryContext(ctx, l.store.bind(fmt.Sprintf("SELECT size, witness, checkpoint, line FROM cosignatures WHERE size > ? ORDER BY size DESC LIMIT %d", most)), after)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // Err has the error
	var all []storedCosignature
	for rows.Next() {
		var s storedCosignature
		if err := rows.Scan(&s.size, &s.witness, &s.checkpoint, &s.line); err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, rows.Err()
}

// cosignedBy returns the newest checkpoint with more than after entries that at least enough operators of the witnesses have
// cosigned; if there is none, the one that most have; nil if there is none. Rows that do not verify are ignored: Verify reports
// them.
func (l *Ledger) cosignedBy(ctx context.Context, head *Checkpoint, witnesses []*cosigner, after int64, enough int) (best *Cosigned, err error) {
	if len(witnesses) == 0 {
		return nil, nil
	}
	rows, err := l.storedCosignatures(ctx, l.store.DB, after)
	if err != nil {
		return nil, err
	}
	for len(rows) > 0 {
		same := 1
		for same < len(rows) && rows[same].size == rows[0].size {
			same++
		}
		found, err := l.merge(ctx, head, witnesses, rows[:same])
		if err != nil {
			return nil, err
		}
		if found.Operators() > best.Operators() {
			best = found
		}
		if best.Operators() >= max(enough, 1) {
			return best, nil
		}
		rows = rows[same:]
	}
	return best, nil
}

// merge returns the checkpoint of stored cosignatures of one size with those that are valid; nil if none is.
func (l *Ledger) merge(ctx context.Context, head *Checkpoint, witnesses []*cosigner, rows []storedCosignature) (*Cosigned, error) {
	var base *Checkpoint
	for _, row := range rows {
		cp, err := ParseCheckpoint(row.checkpoint, l.verifiers...)
		if err != nil || cp.Size != row.size || cp.Size > head.Size {
			continue
		}
		if checkGrowth(cp, head, l.store.hashReader(ctx, l.store.DB)) == nil {
			base = cp
			break
		}
	}
	if base == nil {
		return nil, ctx.Err()
	}
	found := &Cosigned{Checkpoint: &Checkpoint{Origin: base.Origin, Size: base.Size, Root: base.Root, Signed: base.Signed}}
	for _, c := range witnesses {
		for _, row := range rows {
			if row.witness != c.id {
				continue
			}
			signed := append(append([]byte{}, found.Signed...), row.line...)
			valid, ok := witness.Find(signed, c.key)
			if !ok || valid.Line != string(row.line) || len(signed) > maxCheckpoint {
				continue
			}
			found.Signed = signed
			found.Cosignatures = append(found.Cosignatures, Cosignature{Witness: c.Name, Operator: c.Operator, Time: valid.Time})
		}
	}
	if len(found.Cosignatures) == 0 {
		return nil, nil
	}
	return found, nil
}

// cachedCosignatures checks the stored cosignatures: each is below a checkpoint of this ledger, and valid if the witness is known.
func (v *verification) cachedCosignatures(ctx context.Context, tx *sql.Tx) error {
	rows, err := v.ledger.storedCosignatures(ctx, tx, -1)
	if err != nil {
		return err
	}
	keys := map[string]*cosigner{}
	for _, c := range v.ledger.witnesses {
		keys[c.id] = c
	}
	for _, row := range rows {
		cp, err := ParseCheckpoint(row.checkpoint, v.verifiers...)
		if err == nil && cp.Size != row.size {
			err = fmt.Errorf("it is one of %d entries", cp.Size)
		}
		if err == nil {
			err = checkGrowth(cp, v.Head, v.ledger.store.hashReader(ctx, tx))
		}
		if err == nil {
			if c := keys[row.witness]; c != nil {
				if _, ok := witness.Find(append(cp.Signed, row.line...), c.key); !ok {
					err = fmt.Errorf("the cosignature of the witness %q is not valid", c.Name)
				}
			}
		}
		if err != nil {
			v.add(-1, fmt.Sprintf("the stored cosigned checkpoint of %d entries: %v", row.size, err))
		}
	}
	return nil
}
