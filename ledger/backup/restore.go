package backup

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"

	"filippo.io/age"

	"hsmsign/fault"
	"hsmsign/internal/wholefile"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/ledger/sqlite"
)

// ErrOlder means that a copy lacks entries that the ledger had.
var ErrOlder = fault.Conflict.New("the copy is older than the ledger")

// Source is a copy of a ledger: a file, or a store that is open.
type Source struct {
	Backup     string         // file that Write wrote, or a copy of the database's file
	Identities []age.Identity // to decrypt it
	Store      *ledger.Store  // if Backup is empty
}

// Ledger is what is known of a ledger outside its store.
type Ledger struct {
	Config ledger.Config        // Store is not used; Key only to append erasures
	Known  []*ledger.Checkpoint // checkpoints that were kept elsewhere, besides the last one and the copies of Config
	Actor  string               // who restores
}

// channel is how the order to restore comes.
const channel = "local"

// Result is what Restore did.
type Result struct {
	Entries int64 // in the ledger
	Erased  int   // customers that were erased again
}

// Restore puts a copy of a SQLite ledger in its place, path, after verifying it and erasing again what was erased since. A
// source that is a store stays where it is, and path is not used.
//
// Errors: kind usage if a file has the name already, or no checkpoint of the ledger is known; one that wraps ErrOlder if the
// copy lacks entries that the newest checkpoint has, and ledger.ErrTampered if it does not verify or is a fork.
func Restore(ctx context.Context, from Source, path string, of Ledger) (*Result, error) {
	known, err := of.checkpoints()
	if err != nil {
		return nil, err
	}
	if len(known) == 0 {
		return nil, fault.Usage.Errorf("no checkpoint of the ledger is known, so nobody can tell whether entries are missing in the copy").
			Fix("name a checkpoint that was kept elsewhere with --against, or continue under a new origin with --new-origin")
	}
	if from.Store != nil {
		result, err := of.restore(ctx, from.Store, known)
		if err != nil {
			return nil, err
		}
		return result, of.keep(ctx, from.Store)
	}
	if err := vacant(path); err != nil {
		return nil, err
	}
	u, err := unpack(ctx, from.Backup, path, from.Identities)
	if err != nil {
		return nil, err
	}
	defer u.remove()
	store, err := sqlite.Open(ctx, u.path, false)
	if err != nil {
		return nil, err
	}
	result, err := of.restore(ctx, store, known)
	if err = errors.Join(err, store.DB.Close()); err != nil { // closing writes everything to the one file
		return nil, err
	}
	if err := wholefile.Place(u.path, path); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil, occupied(path)
		}
		return nil, unwritable(err)
	}
	if store, err = sqlite.Open(ctx, path, false); err != nil {
		return nil, err
	}
	return result, errors.Join(of.keep(ctx, store), store.DB.Close())
}

// vacant returns an error if a file of a SQLite database has the name.
func vacant(path string) error {
	for _, name := range []string{path, path + "-wal", path + "-shm", path + "-journal"} { // an old log would be applied to the copy
		if _, err := os.Lstat(name); err == nil {
			return occupied(name)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return unwritable(err)
		}
	}
	return nil
}

func occupied(path string) error {
	return fault.Usage.Errorf("%q exists", path).Fix("a ledger is never overwritten; stop the programs that use it, and move its files away (with -wal and -shm)")
}

// checkpoints returns the checkpoints that are known, with those that the configuration keeps.
func (of Ledger) checkpoints() ([]*ledger.Checkpoint, error) {
	kept, err := ledger.KeptCheckpoints(of.Config)
	return append(kept, of.Known...), err
}

// restore checks a copy and erases in it what was erased since.
func (of Ledger) restore(ctx context.Context, store *ledger.Store, known []*ledger.Checkpoint) (*Result, error) {
	cfg := of.Config
	cfg.Store, cfg.Key, cfg.LastCheckpoint, cfg.Copies = store, "", "", nil
	l, err := ledger.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() { _ = l.Close() }() // it keeps nothing
	report, err := Verify(ctx, l)
	if err != nil {
		return nil, err
	}
	if err := compare(ctx, l, report.Head, known); err != nil {
		return nil, err
	}
	ids, err := ledger.Erasures(of.Config.LastCheckpoint)
	if err != nil {
		return nil, err
	}
	if ids, err = l.Unerased(ctx, ids); err != nil {
		return nil, err
	}
	result := &Result{Entries: report.Entries + int64(len(ids)), Erased: len(ids)}
	if len(ids) == 0 {
		return result, nil
	}
	return result, of.erase(ctx, store, ids)
}

// erase appends the erasures that a copy lacks.
func (of Ledger) erase(ctx context.Context, store *ledger.Store, ids []record.ID) error {
	cfg := of.Config
	cfg.Store, cfg.LastCheckpoint, cfg.Copies = store, "", nil
	if cfg.Key == "" {
		return fault.Usage.Errorf("%d customers were erased after the copy was made, and there is no checkpoint key to erase them again", len(ids)).Fix("name it with --checkpoint-key")
	}
	l, err := ledger.Open(ctx, cfg)
	if err != nil {
		return err
	}
	_, err = l.EraseAgain(ctx, of.Actor, channel, ids)
	if err == nil {
		_, err = Verify(ctx, l)
	}
	return errors.Join(err, l.Close())
}

// keep opens the restored ledger and writes the file with the last checkpoint.
func (of Ledger) keep(ctx context.Context, store *ledger.Store) error {
	cfg := of.Config
	cfg.Store, cfg.Key = store, ""
	l, err := ledger.Open(ctx, cfg)
	if err != nil {
		return err
	}
	return l.Close()
}

// compare checks that a copy with a head contains everything that the known checkpoints say.
func compare(ctx context.Context, l *ledger.Ledger, head *ledger.Checkpoint, known []*ledger.Checkpoint) error {
	for _, c := range known {
		if c.Size <= head.Size {
			if _, err := l.CheckAgainst(ctx, bytes.NewReader(c.Signed)); err != nil {
				return fault.WithHint(err, "this is a fork: use another copy, or continue from this one under a new origin: --new-origin NAME --new-ledger REFERENCE")
			}
		}
	}
	if n := newest(known); n != nil && n.Size > head.Size {
		return fault.Errorf("%w: it has %d entries and the ledger had %d, so %d are missing", ErrOlder, head.Size, n.Size, n.Size-head.Size).
			Fix("use a newer copy, or continue without these entries under a new origin: --new-origin NAME --new-ledger REFERENCE")
	}
	return nil
}

// newest returns the checkpoint with the most entries, and of these the one with the most signatures; nil if there is none.
func newest(known []*ledger.Checkpoint) (found *ledger.Checkpoint) {
	for _, c := range known {
		if found == nil || c.Size > found.Size || c.Size == found.Size && len(c.Signed) > len(found.Signed) {
			found = c
		}
	}
	return found
}
