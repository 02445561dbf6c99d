package backup

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"filippo.io/age"
	"filippo.io/age/armor"

	"hsmsign/fault"
	"hsmsign/internal/input"
	"hsmsign/internal/wholefile"
)

// ErrDamaged means that a file is not a whole backup.
var ErrDamaged = fault.Defects.New("the backup is damaged")

// The first bytes of files.
const (
	magicAge    = "age-encryption.org/" // its first line
	magicSQLite = "SQLite format 3\x00"
)

// unpacked is a backup in a folder that only the user can open.
type unpacked struct {
	dir  string
	path string // of the SQLite file
}

// remove removes the folder; what was placed has another name.
func (u *unpacked) remove() { _ = os.RemoveAll(u.dir) }

// unpack copies a backup into a new folder next to a path, and decrypts it with the identities if it is encrypted.
func unpack(ctx context.Context, backup, near string, identities []age.Identity) (*unpacked, error) {
	in, err := input.Open(backup)
	if err != nil {
		return nil, fault.Refused.Errorf("%s: %w", backup, err).Fix("name a file that hsmsign ledger backup wrote")
	}
	defer in.Close()
	content, err := decrypt(bufio.NewReader(reader{ctx, in}), identities)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", backup, err)
	}
	wholefile.Sweep(filepath.Dir(near))
	dir, err := wholefile.Folder(near)
	if err != nil {
		return nil, unwritable(err)
	}
	u := &unpacked{dir, filepath.Join(dir, "ledger.db")}
	if err := u.fill(content); err != nil {
		u.remove()
		return nil, fmt.Errorf("%s: %w", backup, err)
	}
	return u, nil
}

// fill writes the file.
func (u *unpacked) fill(content *bufio.Reader) error {
	start, err := content.Peek(len(magicSQLite))
	if err != nil && !errors.Is(err, io.EOF) {
		return damaged(err)
	}
	if string(start) != magicSQLite {
		return fault.Refused.Errorf("not a backup of a SQLite ledger").Fix("name a file that hsmsign ledger backup wrote; a database server is named by its reference")
	}
	out, err := os.OpenFile(u.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return unwritable(err)
	}
	_, err = content.WriteTo(out)
	if err = errors.Join(err, out.Close()); err == nil {
		return nil
	}
	if path, ok := errors.AsType[*fs.PathError](err); ok && path.Op == "write" { // not an error of reading
		return unwritable(path.Err)
	}
	return damaged(err)
}

// damaged returns the error of a file that cannot be read to its end.
func damaged(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fault.Errorf("%w: %w", ErrDamaged, err).Fix("use another backup, or copy this one again")
}

// decrypt returns the content of a backup.
func decrypt(in *bufio.Reader, identities []age.Identity) (*bufio.Reader, error) {
	start, err := in.Peek(len(armor.Header))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	var encrypted io.Reader = in
	switch {
	case bytes.HasPrefix(start, []byte(armor.Header)):
		encrypted = armor.NewReader(in)
	case !bytes.HasPrefix(start, []byte(magicAge)):
		return in, nil
	}
	if len(identities) == 0 {
		return nil, fault.Usage.Errorf("it is encrypted").Fix("name the file with your age identity with --identity")
	}
	content, err := age.Decrypt(encrypted, identities...)
	if _, ok := errors.AsType[*age.NoIdentityMatchError](err); ok {
		return nil, fault.Auth.Errorf("it is not encrypted to this identity").Fix("name the identity of one of its recipients with --identity")
	}
	if err != nil {
		return nil, damaged(err)
	}
	return bufio.NewReader(content), nil
}

// Identities reads age identities, one a line ("AGE-SECRET-KEY-1..."); # begins a comment.
func Identities(data []byte) ([]age.Identity, error) {
	found, err := age.ParseIdentities(bytes.NewReader(data))
	if err != nil { // its text may repeat the secret
		return nil, fault.Auth.Errorf("not a file with age identities").Fix("use the file that age-keygen wrote; decrypt it first if it is encrypted itself")
	}
	return found, nil
}
