package wholefile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"testing/cryptotest"
)

// The data is flushed: a pipe accepts it, and cannot be flushed.
func TestFillFlushes(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if err := fill(w, bytesOf([]byte("x"))); err == nil {
		t.Error("no flush")
	}
}

// A temporary name that is taken is not used: it may be a link to a file of another user.
func TestTakenTemporaryName(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	cryptotest.SetGlobalRandom(t, 1)
	err := errors.Join(os.WriteFile(victim, []byte("theirs"), 0o600), os.Symlink(victim, tempName(victim)))
	if err != nil {
		t.Fatal(err)
	}
	cryptotest.SetGlobalRandom(t, 1)
	err = writeNamed(filepath.Join(dir, "a"), bytesOf([]byte("ours")), 0o600, false)
	if data, _ := os.ReadFile(victim); !errors.Is(err, fs.ErrExist) || string(data) != "theirs" {
		t.Errorf("%v, and the other file contains %q", err, data)
	}
}
