package ledger

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
	"syscall"

	"golang.org/x/mod/sumdb/note"

	"hsmsign/fault"
	"hsmsign/internal/wholefile"
)

// A copy is a file to which checkpoints are appended: one signed note after another, each followed by an empty line. An append
// that was cut off (a power cut, a full disk) leaves an incomplete note; the next one writes a line that says so.

const (
	incomplete = "# the note above is incomplete\n"
	// maxTail is how much of a copy is read to find its newest checkpoint.
	maxTail = 4 * maxCheckpoint
)

// splitNotes calls do for each signed note of a text, in their order. cut says that the note may have been cut off.
func splitNotes(in io.Reader, do func(signed []byte, cut bool) error) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(make([]byte, 4096), maxCheckpoint)
	lines.Split(wholeLines)
	var note []byte
	blank, signed := false, false // after the text, among the signatures
	emit := func(cut bool) error {
		whole := note
		note, blank, signed = nil, false, false
		if len(bytes.TrimSpace(whole)) == 0 {
			return nil
		}
		return do(whole, cut)
	}
	for lines.Scan() {
		line := lines.Bytes()
		signature, empty := bytes.HasPrefix(line, []byte("— ")), string(line) == "\n"
		var err error
		switch {
		case string(line) == incomplete:
			err = emit(true)
			line = nil
		case blank && !signature: // a note ends with its signatures; one without them was cut off
			err = emit(!signed)
			if empty {
				line = nil
			}
		case empty && len(note) == 0:
			line = nil
		}
		if err != nil {
			return err
		}
		if note = append(note, line...); len(note) > maxCheckpoint {
			return fmt.Errorf("%w: a note is larger than %d bytes", ErrTampered, maxCheckpoint)
		}
		blank = blank || len(line) > 0 && empty
		signed = signed || blank && signature
	}
	if err := lines.Err(); err != nil {
		if errors.Is(err, bufio.ErrTooLong) {
			return fmt.Errorf("%w: a line is larger than %d bytes", ErrTampered, maxCheckpoint)
		}
		return err
	}
	return emit(true)
}

// wholeLines is bufio.ScanLines that keeps the newline.
func wholeLines(data []byte, atEOF bool) (int, []byte, error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i+1], nil
	}
	if atEOF && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}

// openCopy opens a copy; create makes it if it does not exist.
func openCopy(path string, create bool) (*os.File, error) {
	flags := os.O_RDONLY
	if create {
		flags = os.O_RDWR | os.O_APPEND | os.O_CREATE
	}
	f, err := os.OpenFile(path, flags|syscall.O_NONBLOCK, 0o644) // #nosec G302,G304 -- public, and the operator names the path
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		_ = f.Close() // nothing was written
		return nil, errors.Join(err, errors.New("not a regular file"))
	}
	return f, nil
}

// appendCopy appends a signed note to a copy and flushes it.
func appendCopy(path string, signed []byte) (err error) {
	_, statErr := os.Lstat(path)
	f, err := openCopy(path, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	tail, err := readTail(f, 2)
	if err != nil {
		return err
	}
	var data []byte
	switch {
	case len(tail) == 0 || string(tail) == "\n\n":
	case bytes.HasSuffix(tail, []byte("\n")):
		data = []byte(incomplete)
	default:
		data = []byte("\n" + incomplete)
	}
	if _, err := f.Write(append(append(data, signed...), '\n')); err != nil { // one write: other processes append too
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if errors.Is(statErr, fs.ErrNotExist) {
		return wholefile.FlushFolder(filepath.Dir(path))
	}
	return nil
}

// readTail returns the last n bytes of a file, or all.
func readTail(f *os.File, n int64) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	from := max(0, info.Size()-n)
	return io.ReadAll(io.NewSectionReader(f, from, info.Size()-from))
}

// newestCopied returns the newest checkpoint at the end of a copy; nil if the file does not exist or is empty.
func newestCopied(path string, verifiers []note.Verifier) (newest *Checkpoint, err error) {
	f, err := openCopy(path, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.Errorf("%w: copy %q: %w", ErrStore, path, err).Fix("make it readable, or remove it from the configuration")
	}
	defer func() { _ = f.Close() }() // it was read
	tail, err := readTail(f, maxTail)
	if err == nil {
		err = splitNotes(bytes.NewReader(tail), func(signed []byte, _ bool) error {
			// The first note of the tail may be cut. Several processes append, so that the last one may not be the newest. Of two
			// of one size the later one may have cosignatures.
			if cp, err := ParseCheckpoint(signed, verifiers...); err == nil && (newest == nil || cp.Size >= newest.Size) {
				newest = cp
			}
			return nil
		})
	}
	if err == nil && newest == nil && len(bytes.TrimSpace(tail)) > 0 {
		err = fault.Errorf("%w: it contains no checkpoint of %s", ErrTampered, verifiers[0].Name()).Fix("a ledger with a new origin needs new copies: name another file")
	}
	if err != nil {
		return nil, fmt.Errorf("copy %q: %w", path, err)
	}
	return newest, nil
}

// readCopies returns the newest checkpoint of each copy.
func (l *Ledger) readCopies() (map[string]*Checkpoint, error) {
	all := map[string]*Checkpoint{}
	for _, path := range l.cfg.Copies {
		newest, err := newestCopied(path, l.verifiers)
		if err != nil {
			return nil, err
		}
		all[path] = newest
	}
	return all, nil
}

// checkCopies checks that the ledger has grown from the newest checkpoint of each copy.
func (l *Ledger) checkCopies(ctx context.Context, copies map[string]*Checkpoint, head *Checkpoint) error {
	for path, newest := range copies {
		if newest == nil {
			continue
		}
		if err := checkGrowth(newest, head, l.store.hashReader(ctx, l.store.DB)); err != nil {
			return l.store.fail("compare with the copies", fmt.Errorf("copy %q: %w", path, err))
		}
	}
	return nil
}

// copyTo appends a checkpoint with its stored cosignatures to a copy.
func (l *Ledger) copyTo(ctx context.Context, path string, head *Checkpoint) error {
	ctx, cancel := context.WithTimeout(ctx, storeWait)
	defer cancel()
	signed := head.Signed
	if cosigned, err := l.cosignedBy(ctx, head, l.witnesses, head.Size-1, allOperators(l.witnesses)); err == nil && cosigned != nil {
		signed = cosigned.Signed
	}
	return appendCopy(path, signed)
}

// Copy appends the newest checkpoint that at least enough operators have cosigned to a file, or the head if there is none, after
// checking that the ledger has grown from what the file contains. It returns the checkpoint.
func (l *Ledger) Copy(ctx context.Context, path string, enough int) (*Checkpoint, error) {
	newest, err := newestCopied(path, l.verifiers)
	if err != nil {
		return nil, err
	}
	head, err := l.Head(ctx)
	if err != nil {
		return nil, err
	}
	if err := l.checkCopies(ctx, map[string]*Checkpoint{path: newest}, head); err != nil {
		return nil, err
	}
	cosigned, err := l.cosignedBy(ctx, head, l.witnesses, 0, max(enough, 1))
	if err != nil {
		return nil, l.store.fail("read the cosignatures", err)
	}
	if cosigned != nil {
		head = cosigned.Checkpoint
	}
	if err := appendCopy(path, head.Signed); err != nil {
		return nil, fault.Errorf("%w: copy %q: %w", ErrStore, path, err).Fix("name a file that can be made or appended to")
	}
	return head, nil
}

// CopyStatus is what is known of one copy.
type CopyStatus struct {
	Path    string
	Size    int64 // of its newest checkpoint
	Failure string
}

// CopyStatuses returns the state of each copy of the configuration.
func (l *Ledger) CopyStatuses() (all []CopyStatus) {
	for _, path := range l.cfg.Copies {
		status := CopyStatus{Path: path}
		newest, err := newestCopied(path, l.verifiers)
		switch {
		case err != nil:
			status.Failure = err.Error()
		case newest == nil:
			status.Failure = "it does not exist"
		default:
			status.Size = newest.Size
		}
		all = append(all, status)
	}
	return all
}

// CheckAgainst checks that the ledger has grown from each of the checkpoints that were kept elsewhere, one signed note after
// another as in a copy, and returns how many there are. It finds an older copy and a fork, and names the size at which it is.
// The error wraps ErrTampered.
func (l *Ledger) CheckAgainst(ctx context.Context, kept io.Reader) (checked int, err error) {
	var notes []*Checkpoint // a window of those that were read and not checked
	compared := comparison{}
	flush := func() error {
		head, err := l.Head(ctx)
		if err == nil {
			err = compared.add(ctx, l, head, notes)
		}
		notes = notes[:0]
		return err
	}
	err = splitNotes(kept, func(signed []byte, cut bool) error {
		cp, err := ParseCheckpoint(signed, l.verifiers...)
		if err != nil {
			if cut && checked > 0 {
				return nil
			}
			return fmt.Errorf("note %d: %w", checked+1, err)
		}
		checked++
		if notes = append(notes, cp); len(notes) < 1000 {
			return nil
		}
		return flush()
	})
	if err == nil {
		err = flush()
	}
	if err == nil && checked == 0 {
		err = fmt.Errorf("%w: there is no checkpoint to compare with", ErrTampered)
	}
	if err == nil {
		err = compared.err()
	}
	return checked, l.store.fail("compare the checkpoints", err)
}

// comparison is what comparing the ledger with many checkpoints found.
type comparison struct {
	agrees int64       // largest size of a checkpoint that the ledger has grown from
	fork   int64       // smallest size of one that it has not
	newer  *Checkpoint // largest one that has more entries than the ledger
	size   int64       // of the ledger
}

func (c *comparison) add(ctx context.Context, l *Ledger, head *Checkpoint, notes []*Checkpoint) error {
	c.size = head.Size
	for _, older := range notes {
		err := checkGrowth(older, head, l.store.hashReader(ctx, l.store.DB))
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			c.agrees = max(c.agrees, older.Size)
		case !errors.Is(err, ErrTampered):
			return err
		case older.Size > head.Size:
			if c.newer == nil || older.Size > c.newer.Size {
				c.newer = older
			}
		case c.fork == 0 || older.Size < c.fork:
			c.fork = older.Size
		}
	}
	return nil
}

func (c *comparison) err() error {
	var err error
	if c.fork > 0 {
		err = fmt.Errorf("%w; the newest checkpoint that agrees has %d entries: this is a fork", forked(c.fork), c.agrees)
	}
	if c.newer != nil {
		err = errors.Join(err, fmt.Errorf("%w: it had %d entries and has %d: this is an older copy", ErrTampered, c.newer.Size, c.size))
	}
	return err
}
