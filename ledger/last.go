package ledger

import (
	"errors"
	"fmt"
	"io/fs"

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

// LastCheckpoint returns the checkpoint in the file that a configuration names; nil if there is none.
func LastCheckpoint(cfg Config) (*Checkpoint, error) {
	verifiers, err := parseVerifiers(cfg.Verifier)
	if err != nil {
		return nil, err
	}
	return readLast(cfg.LastCheckpoint, verifiers)
}

// Known reads a checkpoint that was kept elsewhere. verifierKeys are those of the ledger, one a line. Errors wrap ErrTampered, or
// are of kind usage if the keys are not readable.
func Known(signed []byte, verifierKeys string) (*Checkpoint, error) {
	verifiers, err := parseVerifiers(verifierKeys)
	if err != nil {
		return nil, err
	}
	return ParseCheckpoint(signed, verifiers...)
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
