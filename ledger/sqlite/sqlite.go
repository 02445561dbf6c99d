// Package sqlite opens a ledger's store in one SQLite file, for the processes of one host.
//
// The file is in WAL mode with synchronous=FULL: a commit is on the disk when it returns. A network file system is refused,
// because the locks of WAL need shared memory.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"modernc.org/sqlite"

	"hsmsign/fault"
	"hsmsign/ledger"
)

// busyWait is how long SQLite waits for a lock at a time; it does not look at a context meanwhile.
const busyWait = time.Second

// busy is SQLITE_BUSY without its extended part.
const busy = 5

// Open opens the SQLite file; create makes it if it does not exist. The caller closes Store.DB.
func Open(ctx context.Context, path string, create bool) (*ledger.Store, error) {
	name := "sqlite:" + path
	refused := func(err error, fix string) (*ledger.Store, error) {
		return nil, fault.Errorf("%w: %s: %w", ledger.ErrStore, name, err).Fix(fix)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return refused(err, "name the file by its absolute path")
	}
	if err := checkFileSystem(filepath.Dir(path)); err != nil {
		return refused(err, "use a folder on a disk of this host, or PostgreSQL")
	}
	if create {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) // #nosec G304 -- the operator names the path
		if err != nil {
			return refused(err, "name a file that can be made")
		}
		_ = f.Close() // nothing was written
	}
	opened, err := os.Stat(path)
	if err == nil && !opened.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		return refused(err, "make the ledger with hsmsign ledger init")
	}
	query := url.Values{"_txlock": {"immediate"}, "_pragma": {
		fmt.Sprintf("busy_timeout(%d)", busyWait.Milliseconds()), "journal_mode(WAL)", "synchronous(FULL)", "secure_delete(ON)", "trusted_schema(OFF)",
	}}
	dsn := (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: query.Encode()}).String()
	db, err := sql.Open("sqlite", dsn)
	if err == nil {
		err = db.PingContext(ctx)
	}
	if err != nil {
		return refused(err, "check the file's owner and mode")
	}
	return &ledger.Store{Name: name, DB: db, Bytes: "BLOB", Integer: "INTEGER", LockSchema: "SELECT 1", Busy: func(err error) bool {
		e, ok := errors.AsType[*sqlite.Error](err)
		return ok && e.Code()&0xff == busy
	}, Forget: "PRAGMA wal_checkpoint(TRUNCATE)", Backup: func(ctx context.Context, to string) error {
		return backup(ctx, db, to)
	}, Free: func() (uint64, error) {
		return freeSpace(filepath.Dir(path))
	}, Check: func() error {
		now, err := os.Stat(path)
		if err == nil && !os.SameFile(opened, now) {
			err = errors.New("another file has its name now")
		}
		if err != nil {
			return fault.Errorf("%w: %s: %w", ledger.ErrStore, name, err).Fix("the file was deleted or replaced while it was open: restore it, then start again")
		}
		return nil
	}}, nil
}

// backup copies the database to a new file of mode 0600 and flushes it.
func backup(ctx context.Context, db *sql.DB, to string) error {
	f, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600) // #nosec G304 -- the operator names the path
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, "VACUUM INTO ?", to) // which accepts an empty file
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(to) // it is not a backup
	}
	return err
}
