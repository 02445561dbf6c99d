// Package backup copies a SQLite ledger to a file, and back.
//
// Write copies a ledger while it is in use, verifies the copy, and encrypts it to age recipients if there are any. Open reads
// a copy back into a private folder, decrypts and verifies it; Place then gives it the name of the ledger in one step. At any
// moment, also after a kill, the name has the whole file or none, and no unencrypted copy is outside a folder that only the
// user can open.
//
// Functions are safe for concurrent use; a Copy is not.
package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/age"

	"hsmsign/fault"
	"hsmsign/internal/wholefile"
	"hsmsign/ledger"
	"hsmsign/ledger/sqlite"
)

// Options is what Write needs besides the ledger.
type Options struct {
	Path       string          // of the backup, a new file
	Verifier   string          // the pinned verifier key of the ledger
	Near       string          // the file of the ledger: an encrypted backup is prepared next to it
	Recipients []age.Recipient // empty: the backup is not encrypted
}

// Write copies a ledger to a new file of mode 0600 and returns the report about the copy. Errors: one that wraps fs.ErrExist if
// the file exists; kind defects if the copy does not verify.
func Write(ctx context.Context, l *ledger.Ledger, o Options) (*ledger.Report, error) {
	if _, err := os.Lstat(o.Path); err == nil {
		return nil, fmt.Errorf("write %q: %w", o.Path, fs.ErrExist)
	}
	// Unencrypted data goes to the disk of the ledger, where it is anyway, or to the one that the user chose for it.
	near := o.Path
	if len(o.Recipients) > 0 {
		near = o.Near
	}
	wholefile.Sweep(filepath.Dir(near))
	dir, err := wholefile.Folder(near)
	if err != nil {
		return nil, unwritable(err)
	}
	defer func() { _ = os.RemoveAll(dir) }() // what is to remain has another name
	copied := filepath.Join(dir, "ledger.db")
	if err := l.Backup(ctx, copied); err != nil {
		return nil, err
	}
	report, err := verify(ctx, copied, o.Verifier)
	if err != nil {
		return nil, err
	}
	if len(o.Recipients) == 0 {
		err = wholefile.Place(copied, o.Path)
	} else {
		err = encrypt(ctx, copied, o.Path, o.Recipients)
	}
	return report, unwritable(err)
}

// unwritable returns an error about a file that cannot be written, with what to do.
func unwritable(err error) error {
	if err == nil || errors.Is(err, fs.ErrExist) || errors.Is(err, context.Canceled) {
		return err
	}
	return fault.Errorf("%w: %w", ledger.ErrStore, err).Fix("make room, or choose a folder that can be written")
}

// encrypt writes the file from, encrypted, to a new file.
func encrypt(ctx context.Context, from, to string, recipients []age.Recipient) error {
	in, err := os.Open(from) // #nosec G304 -- the copy that was made
	if err != nil {
		return err
	}
	defer in.Close()
	return wholefile.WriteFrom(to, func(w io.Writer) error {
		out, err := age.Encrypt(w, recipients...)
		if err == nil {
			_, err = io.Copy(out, reader{ctx, in})
		}
		if err == nil {
			err = out.Close()
		}
		if err != nil {
			return fmt.Errorf("write %q: %w", to, err)
		}
		return nil
	}, 0o600, false)
}

// reader reads until its context ends.
type reader struct {
	ctx context.Context
	io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}

// verify verifies the ledger in a SQLite file. The error is of kind defects if something is wrong with it.
func verify(ctx context.Context, path, verifier string) (*ledger.Report, error) {
	store, err := sqlite.Open(ctx, path, false)
	if err != nil {
		return nil, err
	}
	defer func() { _ = store.DB.Close() }() // nothing was written
	l, err := ledger.Open(ctx, ledger.Config{Store: store, Verifier: verifier})
	if err != nil {
		return nil, err
	}
	defer func() { _ = l.Close() }() // it keeps nothing
	return Verify(ctx, l)
}

// Verify verifies a ledger. The error is of kind defects, and names the first one, if something is wrong with it.
func Verify(ctx context.Context, l *ledger.Ledger) (*ledger.Report, error) {
	report, err := l.Verify(ctx, nil)
	if err != nil || len(report.Defects) == 0 {
		return report, err
	}
	first, where := report.Defects[0], "the ledger"
	if first.Entry >= 0 {
		where = fmt.Sprintf("entry %d", first.Entry)
	}
	return report, fault.Errorf("%w: %s: %s", ledger.ErrTampered, where, first.Text).Fix("hsmsign ledger verify lists every defect; use another copy")
}

// Recipients reads age recipients, one a line ("age1..."); # begins a comment. The error is of kind usage.
func Recipients(text string) ([]age.Recipient, error) {
	found, err := age.ParseRecipients(strings.NewReader(text))
	if err != nil { // it may repeat a line, which is a secret if an identity file was named
		return nil, fault.Usage.Errorf("not a list of age recipients").Fix("write age1..., as age-keygen prints it, one a line")
	}
	return found, nil
}
