package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"golang.org/x/mod/sumdb/note"

	"hsmsign/fault"
	"hsmsign/internal/input"
	"hsmsign/internal/wholefile"
)

// readLast reads the file with the newest checkpoint that this host saw; nil if there is none yet.
func readLast(path string, verifiers []note.Verifier) (*Checkpoint, error) {
	if path == "" {
		return nil, nil
	}
	data, err := input.File(path, maxCheckpoint)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.Errorf("%w: last checkpoint %q: %w", ErrStore, path, err).Fix("name a readable file, or a folder in which one can be made")
	}
	c, err := ParseCheckpoint(data, verifiers...)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", path, err)
	}
	return c, nil
}

// KeptCheckpoints returns the checkpoints that a configuration keeps outside the store: that of LastCheckpoint, and the newest
// of each of Copies. Files that do not exist are left out.
func KeptCheckpoints(cfg Config) (kept []*Checkpoint, err error) {
	l := &Ledger{cfg: cfg}
	if l.verifiers, err = parseVerifiers(cfg.Verifier); err != nil {
		return nil, err
	}
	last, err := readLast(cfg.LastCheckpoint, l.verifiers)
	if err != nil {
		return nil, err
	}
	copies, err := l.readCopies()
	if err != nil {
		return nil, err
	}
	for _, c := range append([]*Checkpoint{last}, slices.Collect(maps.Values(copies))...) {
		if c != nil {
			kept = append(kept, c)
		}
	}
	return kept, nil
}

// Known reads checkpoints that were kept elsewhere, one signed note after another as in a copy, and returns the one with the
// most entries. Notes of other ledgers and other keys are ignored, unless there are no others. verifierKeys are those of the
// ledger, one a line. Errors wrap ErrTampered, or are of kind usage if the keys are not readable.
func Known(kept []byte, verifierKeys string) (newest *Checkpoint, err error) {
	verifiers, err := parseVerifiers(verifierKeys)
	if err != nil {
		return nil, err
	}
	failed := fmt.Errorf("%w: there is no checkpoint", ErrTampered)
	err = splitNotes(bytes.NewReader(kept), func(signed []byte, _ bool) error {
		c, err := ParseCheckpoint(signed, verifiers...)
		switch {
		case err != nil:
			failed = err
		case newest == nil || c.Size >= newest.Size:
			newest = c
		}
		return nil
	})
	if err == nil && newest == nil {
		err = failed
	}
	return newest, err
}

// writeLast replaces the file with the newest checkpoint.
func writeLast(path string, c *Checkpoint) error {
	if path == "" || c == nil {
		return nil
	}
	if err := wholefile.Write(path, c.Signed, 0o644, true); err != nil {
		return fault.Errorf("%w: last checkpoint: %w", ErrStore, err).Fix("make its folder writable")
	}
	return nil
}
