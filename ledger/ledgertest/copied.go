package ledgertest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hsmsign/fault"
	"hsmsign/ledger"
)

// against compares the ledger with a copy.
func against(t *testing.T, l *ledger.Ledger, path string) (int, error) {
	t.Helper()
	f, err := os.Open(path) // #nosec G304 -- a file of the test
	must(t, err)
	defer func() { _ = f.Close() }() // it was read
	return l.CheckAgainst(t.Context(), f)
}

// testCopies: each process appends the newest checkpoint to the copies; one that was cut off is no obstacle.
func testCopies(t *testing.T, f *fixture) {
	f.witnesses(t, 1)
	path := filepath.Join(t.TempDir(), "copy")
	f.cfg.Copies = []string{path}
	for i := range 3 {
		l := f.open(t)
		issue(t, l, use("acme", fmt.Sprint("csr ", i), "key 1", "vendor"))
		must(t, l.Close())
		if got := l.CopyStatuses(); len(got) != 1 || got[0].Size != size(t, l) || got[0].Failure != "" {
			t.Errorf("status %+v", got)
		}
		notes, err := against(t, l, path)
		if err != nil || notes < i+1 {
			t.Errorf("%d notes, %v", notes, err)
		}
	}
	l := f.open(t)
	must(t, l.Close())
	whole, err := os.ReadFile(path) // #nosec G304 -- a file of the test
	must(t, err)
	notes, err := against(t, l, path)
	must(t, err)
	// Wherever the last append was cut off, the next one can be read.
	last := strings.LastIndex(string(whole), "\n\n"+origin+"\n") + 2
	for cut := last; cut <= len(whole); cut++ {
		must(t, os.WriteFile(path, whole[:cut], 0o600)) // #nosec G703 -- a file of the test
		if cp, err := l.Copy(t.Context(), path, 1); err != nil || cp.Size != size(t, l) {
			t.Fatalf("cut at %d: %+v, %v", cut-last, cp, err)
		}
		if got, err := against(t, l, path); err != nil || got < notes || got > notes+1 {
			t.Fatalf("cut at %d: %d notes, %v", cut-last, got, err)
		}
	}
	for _, text := range []string{"", "x", "\n\n", "a\n1\nb\n\n— a b\n"} {
		if _, err := l.CheckAgainst(t.Context(), strings.NewReader(text)); !errors.Is(err, ledger.ErrTampered) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := l.CheckAgainst(t.Context(), strings.NewReader(string(whole[:last])+strings.Repeat("x", 1<<17))); !errors.Is(err, ledger.ErrTampered) {
		t.Errorf("a long line: %v", err)
	}
	if _, err := l.Copy(t.Context(), filepath.Dir(path), 1); !errors.Is(err, ledger.ErrStore) || fault.Hint(err) == "" {
		t.Errorf("a folder: %v", err)
	}
	// A copy of another ledger is not continued.
	other := strings.ReplaceAll(string(whole), origin, "example.com/other")
	must(t, os.WriteFile(path+".other", []byte(other), 0o600)) // #nosec G703 -- a file of the test
	f.cfg.Copies = []string{path + ".other"}
	if _, err := ledger.Open(t.Context(), f.cfg); !errors.Is(err, ledger.ErrTampered) || !strings.Contains(fault.Hint(err), "name another file") {
		t.Errorf("a copy of another ledger: %v", err)
	}
	// A copy that cannot be written is reported, and stops nobody.
	f.cfg.Copies = []string{filepath.Join(path, "x"), path}
	if _, err := ledger.Open(t.Context(), f.cfg); !errors.Is(err, ledger.ErrStore) {
		t.Errorf("a copy below a file: %v", err)
	}
	f.cfg.Copies = []string{filepath.Join(filepath.Dir(path), "not", "mounted"), path}
	l = f.open(t)
	issue(t, l, use("acme", "csr 9", "key 1", "vendor"))
	if err := l.Close(); !errors.Is(err, ledger.ErrStore) || !strings.Contains(err.Error(), "mounted") {
		t.Errorf("Close with a copy that is not mounted: %v", err)
	}
}

// testCopiedForks: a rollback and a fork are found when the ledger is opened, and named with their size.
func testCopiedForks(t *testing.T, f *fixture) {
	f.cfg.Copies = []string{filepath.Join(t.TempDir(), "copy")}
	open := func() *ledger.Ledger {
		l := f.open(t)
		issue(t, l, use("acme", fmt.Sprint("csr ", size(t, l)), "key 1", "vendor"))
		must(t, l.Close())
		return l
	}
	open()
	agrees := size(t, open())
	restore := f.snapshot(t)
	first := size(t, open())
	newest := size(t, open())
	restore(t)
	kept, err := os.ReadFile(f.cfg.Copies[0])
	must(t, err)
	oldest := kept[:strings.Index(string(kept), "\n\n"+origin+"\n")+2]
	for _, text := range [][]byte{kept, append(kept, oldest...)} { // another process may have appended an older one later
		must(t, os.WriteFile(f.cfg.Copies[0], text, 0o600)) // #nosec G703 -- a file of the test
		if _, err := ledger.Open(t.Context(), f.cfg); !errors.Is(err, ledger.ErrTampered) || !strings.Contains(err.Error(), "older copy") {
			t.Errorf("a rollback: %v", err)
		}
	}
	other := f.cfg
	other.Copies = nil
	l, err := ledger.Open(t.Context(), other)
	must(t, err)
	if _, err := against(t, l, f.cfg.Copies[0]); !errors.Is(err, ledger.ErrTampered) || !strings.Contains(err.Error(), fmt.Sprintf("it had %d entries and has %d", newest, agrees)) {
		t.Errorf("a rollback: %v", err)
	}
	for i := range 4 {
		issue(t, l, use("acme", fmt.Sprint("csr of the thief ", i), "key 1", "vendor"))
	}
	must(t, l.Close())
	verified(t, l)
	if _, err := ledger.Open(t.Context(), f.cfg); !errors.Is(err, ledger.ErrTampered) || !strings.Contains(err.Error(), "not those of the checkpoint") {
		t.Errorf("a fork: %v", err)
	}
	_, err = against(t, l, f.cfg.Copies[0])
	want := fmt.Sprintf("entries are not those of the checkpoint that was seen before; the newest checkpoint that agrees has %d entries: this is a fork", agrees)
	var at int64 // a copy may also have the checkpoint of the intent
	if err == nil || !errors.Is(err, ledger.ErrTampered) || !strings.Contains(err.Error(), want) {
		t.Errorf("a fork: %v, want %q", err, want)
	} else if _, scanErr := fmt.Sscanf(err.Error()[strings.Index(err.Error(), "the first "):], "the first %d", &at); scanErr != nil || at <= agrees || at > first {
		t.Errorf("a fork at %d, want one of %d to %d", at, agrees+1, first)
	}
	// Nothing is appended to a copy that the ledger has not grown from.
	before, err := os.ReadFile(f.cfg.Copies[0])
	must(t, err)
	if _, err := l.Copy(t.Context(), f.cfg.Copies[0], 0); !errors.Is(err, ledger.ErrTampered) {
		t.Errorf("copied: %v", err)
	}
	if after, err := os.ReadFile(f.cfg.Copies[0]); err != nil || string(after) != string(before) {
		t.Errorf("the copy has changed, %v", err)
	}
}
