package ledger

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"hsmsign/fault"
	"hsmsign/internal/input"
	"hsmsign/internal/wholefile"
	"hsmsign/ledger/record"
)

// maxErasures is the maximum length of an erasures file in bytes: half a million customers.
const maxErasures = 16 << 20

// ErasuresFile returns the name of the file with the ids of the customers that were erased, one a line. It is next to the
// file with the last checkpoint, outside the store: a restored copy does not know of later erasures. Empty: there is none.
func ErasuresFile(lastCheckpoint string) string {
	if lastCheckpoint == "" {
		return ""
	}
	return lastCheckpoint + ".erased"
}

// Erasures returns the ids of the customers that were erased, as the file next to the last checkpoint lists them.
func Erasures(lastCheckpoint string) ([]record.ID, error) {
	path := ErasuresFile(lastCheckpoint)
	if path == "" {
		return nil, nil
	}
	data, err := input.File(path, maxErasures)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err == nil && len(data) > maxErasures:
		err = fmt.Errorf("larger than %d bytes", maxErasures)
	}
	if err != nil {
		return nil, fault.Errorf("%w: erasures file %q: %w", ErrStore, path, err).Fix("make it a readable file")
	}
	var ids []record.ID
	n := 0
	for line := range bytes.Lines(data) {
		n++
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		id, err := record.ParseID(string(line))
		if err != nil {
			return nil, fault.Usage.Errorf("erasures file %q, line %d: not an id of 32 hexadecimal digits", path, n).Fix("correct the line; if it was cut, its customer may have to be erased again by name")
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// noteErasure appends an id to the erasures file and flushes it.
func noteErasure(lastCheckpoint string, id record.ID) error {
	path := ErasuresFile(lastCheckpoint)
	if path == "" {
		return nil
	}
	err := appendLine(path, hex.EncodeToString(id[:]))
	if err != nil {
		return fault.Errorf("%w: erasures file: %w", ErrStore, err).Fix("make its folder writable; nothing was erased")
	}
	return nil
}

// appendLine appends a line to a file with one write, and flushes it. A line that a crash cut remains, and ends there.
func appendLine(path, line string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644) // #nosec G302 G304 -- random ids, at the operator's path
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%q is not a regular file", path)
	}
	if err != nil {
		return err
	}
	last := []byte{'\n'}
	if info.Size() > 0 {
		if _, err := f.ReadAt(last, info.Size()-1); err != nil {
			return err
		}
	}
	text := line + "\n"
	if last[0] != '\n' {
		text = "\n" + text
	}
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Sync()); err == nil && info.Size() == 0 {
		err = wholefile.FlushFolder(filepath.Dir(path))
	}
	return err
}

// EraseAgain erases the customers of the given ids in a copy that was made before they were erased, and returns how many
// there were. Those that no entry is about, or whose erasure is in the copy, are skipped.
func (l *Ledger) EraseAgain(ctx context.Context, actor, channel string, ids []record.ID) (int, error) {
	erased := 0
	for _, id := range ids {
		known, err := l.unerased(ctx, id)
		if err != nil {
			return erased, err
		}
		if !known {
			continue
		}
		err = l.Append(ctx, func(ctx context.Context, tx *Tx) error {
			actorID, err := tx.actor(ctx, actor)
			if err != nil {
				return err
			}
			if err := tx.thaw(ctx, id, actorID, actor, channel); err != nil {
				return err
			}
			return tx.erase(id, actorID, channel)
		})
		if err != nil {
			return erased, err
		}
		erased++
	}
	if erased == 0 {
		return 0, nil
	}
	return erased, l.forget(ctx)
}

// Unerased returns those of the given ids that EraseAgain would erase.
func (l *Ledger) Unerased(ctx context.Context, ids []record.ID) (found []record.ID, err error) {
	for _, id := range ids {
		known, err := l.unerased(ctx, id)
		if err != nil {
			return nil, err
		}
		if known {
			found = append(found, id)
		}
	}
	return found, nil
}

// unerased returns whether entries are about a customer, and none says that its data was erased.
func (l *Ledger) unerased(ctx context.Context, id record.ID) (bool, error) {
	var entries, erased int
	err := l.store.DB.QueryRowContext(ctx, l.store.bind("SELECT count(*), coalesce(sum(CASE WHEN kind = ? THEN 1 ELSE 0 END), 0) FROM entries WHERE customer = ?"),
		record.KindErased, id[:]).Scan(&entries, &erased)
	return entries > 0 && erased == 0, l.store.fail("find what to erase", err)
}

// eraseOpenings deletes the side rows of a customer.
const eraseOpenings = "DELETE FROM openings WHERE name <> 'freezes' AND entry IN (SELECT idx FROM entries WHERE customer = ?)"

// erase deletes what is known of a customer, and appends the entry that says so. What is frozen remains: it names the customer
// by its random id, and may be about others too.
func (tx *Tx) erase(id, actor record.ID, channel string) error {
	tx.exec(eraseOpenings, id[:])
	for i, added := range tx.added { // of this batch
		if added.customer == id {
			tx.exec("DELETE FROM openings WHERE name <> 'freezes' AND entry = ?", tx.head.Size+int64(i))
		}
	}
	tx.exec("DELETE FROM approvals WHERE request IN (SELECT id FROM requests WHERE customer = ?)", id[:])
	for _, table := range []string{"customers WHERE id", "pushes WHERE customer", "keys WHERE customer", "requests WHERE customer", "outbox WHERE customer"} {
		tx.exec("DELETE FROM "+table+" = ?", id[:])
	}
	_, err := tx.Append(&record.Entry{Kind: record.KindErased, Customer: id, Actor: actor, Channel: channel})
	return err
}

// forget overwrites what was deleted in the files of the store.
func (l *Ledger) forget(ctx context.Context) error {
	if l.store.Forget == "" {
		return nil
	}
	_, err := l.store.DB.ExecContext(ctx, l.store.Forget)
	return l.store.fail("erase the customer", err)
}
