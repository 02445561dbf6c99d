package ledgertest

import (
	"errors"
	"strings"
	"testing"

	"hsmsign/fault"
	"hsmsign/ledger"
)

// newKeys returns another key pair for the origin of the fixture.
func newKeys(t *testing.T) (key, verifier string) {
	t.Helper()
	key, verifier, err := ledger.GenerateKey("example.com/ledger")
	must(t, err)
	return key, verifier
}

// opens returns whether a verifier with a key accepts the ledger.
func (f *fixture) opens(t *testing.T, verifier string) bool {
	t.Helper()
	l, err := ledger.Open(t.Context(), ledger.Config{Store: f.cfg.Store, Verifier: verifier})
	if err != nil {
		if !errors.Is(err, ledger.ErrTampered) || fault.Hint(err) == "" {
			t.Errorf("refused with %v", err)
		}
		return false
	}
	verified(t, l)
	must(t, l.Close())
	return true
}

// testRotated: during the overlap both keys sign and either verifier accepts; after the end only the new one does.
func testRotated(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	first := issue(t, l, use("acme", "csr 1", "key 1", "vendor"))
	oldReceipt, err := l.Prove(ctx, mustID(t, first.Request))
	must(t, err)
	newKey, newVerifier := newKeys(t)
	if _, err := l.EndRotation(ctx, "uid 0", "local"); fault.KindOf(err) != fault.Conflict {
		t.Errorf("the end of no rotation: %v", err)
	}
	if err := l.Rotate(ctx, "uid 0", "local", f.cfg.Key); fault.KindOf(err) != fault.Conflict {
		t.Errorf("to the same key: %v", err)
	}
	other, _, err := ledger.GenerateKey("example.com/other")
	must(t, err)
	if err := l.Rotate(ctx, "uid 0", "local", other); fault.KindOf(err) != fault.Usage {
		t.Errorf("to a key of another origin: %v", err)
	}
	both := f.cfg
	both.Key += "\n" + newKey
	must(t, l.Close())
	l, err = ledger.Open(ctx, both) // prepared: nothing changes yet
	must(t, err)
	issue(t, l, use("acme", "csr 2", "key 1", "vendor"))
	if f.opens(t, newVerifier) {
		t.Error("the new key signs before the rotation")
	}
	must(t, l.Rotate(ctx, "uid 0", "local", newKey))
	if !f.opens(t, f.cfg.Verifier) || !f.opens(t, newVerifier) {
		t.Error("during the overlap")
	}
	issue(t, l, use("acme", "csr 3", "key 1", "vendor"))
	if !f.opens(t, f.cfg.Verifier) || !f.opens(t, newVerifier) {
		t.Error("after another append")
	}
	if err := l.Rotate(ctx, "uid 0", "local", other); fault.KindOf(err) != fault.Usage {
		t.Error(err)
	}
	third, _ := newKeys(t)
	if err := l.Rotate(ctx, "uid 0", "local", third); fault.KindOf(err) != fault.Conflict {
		t.Errorf("a second rotation: %v", err)
	}
	if _, err := l.EndRotation(ctx, "uid 0", "local"); fault.KindOf(err) != fault.Usage || !strings.Contains(fault.Hint(err), newVerifier) {
		t.Errorf("the end while the old key is pinned: %v", err)
	}
	must(t, l.Close())
	both.Verifier = newVerifier
	l, err = ledger.Open(ctx, both)
	must(t, err)
	for range 2 { // the second run completes one that was killed
		if got, err := l.EndRotation(ctx, "uid 0", "local"); err != nil || got != newVerifier {
			t.Errorf("the end: %s, %v", got, err)
		}
	}
	last := issue(t, l, use("acme", "csr 4", "key 1", "vendor"))
	if f.opens(t, f.cfg.Verifier) || !f.opens(t, newVerifier) {
		t.Error("after the end")
	}
	if got := kinds(t, l); strings.Count(got, "rotated") != 2 {
		t.Errorf("entries %s", got)
	}
	newReceipt, err := l.Prove(ctx, mustID(t, last.Request))
	must(t, err)
	for _, tt := range []struct {
		receipt  []byte
		verifier string
		ok       bool
	}{
		{oldReceipt, f.cfg.Verifier, true}, {oldReceipt, newVerifier, false}, {oldReceipt, newVerifier + "\n" + f.cfg.Verifier, true},
		{newReceipt, newVerifier, true}, {newReceipt, f.cfg.Verifier, false},
	} {
		if _, err := ledger.CheckProof(tt.receipt, tt.verifier); (err == nil) != tt.ok {
			t.Errorf("receipt with %.40s: %v", tt.verifier, err)
		}
	}
	must(t, l.Close())
	if _, err := ledger.Open(ctx, f.cfg); !errors.Is(err, ledger.ErrTampered) || !strings.Contains(fault.Hint(err), "pin the new verifier key") {
		t.Errorf("a process with the old keys: %v", err)
	}
}

// testRotatedElsewhere: other processes run during a rotation. One that can read its key file again goes on; one that cannot
// stops, and writes no checkpoint that lacks the new signature.
func testRotatedElsewhere(t *testing.T, f *fixture) {
	ctx := t.Context()
	newKey, newVerifier := newKeys(t)
	file := f.cfg.Key
	following := f.cfg
	following.Store, following.Keys = f.again(t), func() (string, error) { return file, nil }
	follower, err := ledger.Open(ctx, following)
	must(t, err)
	stuck := f.open(t)
	issue(t, follower, use("acme", "csr 1", "key 1", "vendor"))
	issue(t, stuck, use("acme", "csr 2", "key 1", "vendor"))

	both := f.cfg
	both.Store, both.Key, both.Verifier = f.again(t), f.cfg.Key+"\n"+newKey, f.cfg.Verifier+"\n"+newVerifier
	file = both.Key
	rotating, err := ledger.Open(ctx, both)
	must(t, err)
	must(t, rotating.Rotate(ctx, "uid 0", "local", newKey))
	issue(t, follower, use("acme", "csr 3", "key 1", "vendor"))
	if _, err := stuck.Authorize(ctx, use("acme", "csr 4", "key 1", "vendor")); fault.KindOf(err) != fault.Auth || fault.Hint(err) == "" {
		t.Errorf("a process without the new key: %v", err)
	}
	if !f.opens(t, f.cfg.Verifier) || !f.opens(t, newVerifier) {
		t.Error("during the overlap")
	}
	_, err = rotating.EndRotation(ctx, "uid 0", "local")
	must(t, err)
	for _, l := range []*ledger.Ledger{follower, stuck} { // both have pinned the old key
		if _, err := l.Authorize(ctx, use("acme", "csr 5", "key 1", "vendor")); !errors.Is(err, ledger.ErrTampered) || !strings.Contains(fault.Hint(err), "pin the new verifier key") {
			t.Errorf("after the end: %v", err)
		}
	}
	if !f.opens(t, newVerifier) {
		t.Error("after the end")
	}
	must(t, errors.Join(follower.Close(), rotating.Close()))
}

// testRotationTampered: Verify finds a checkpoint that lacks the signature of a key, or has one too many.
func testRotationTampered(t *testing.T, f *fixture) {
	ctx := t.Context()
	newKey, newVerifier := newKeys(t)
	both := f.cfg
	both.Key += "\n" + newKey
	l, err := ledger.Open(ctx, both)
	must(t, err)
	must(t, l.Rotate(ctx, "uid 0", "local", newKey))
	head, err := l.Head(ctx)
	must(t, err)
	lines := strings.SplitAfter(strings.TrimSuffix(string(head.Signed), "\n"), "\n")
	cut := strings.Join(lines[:len(lines)-1], "") // without the last signature, which is that of the new key
	for _, tt := range []struct {
		verifier, signed, want string
	}{
		{f.cfg.Verifier, cut, "not signed by the keys that the entry says"},
		{newVerifier, string(head.Signed), ""},
		{newVerifier, string(head.Signed) + lines[len(lines)-1] + "\n", ""}, // once more the same line
		{newVerifier, string(head.Signed) + "\u2014 example.com/ledger AAAAAWFiY2RlZmdoaWprbG1ub3BxcnN0dXZ3eHl6\n", ""},
	} {
		f.exec(t, "UPDATE head SET checkpoint = ?", []byte(tt.signed))
		reader, err := ledger.Open(ctx, ledger.Config{Store: f.cfg.Store, Verifier: tt.verifier})
		must(t, err)
		report, err := reader.Verify(ctx, nil)
		must(t, err)
		if (len(report.Defects) == 0) != (tt.want == "") || tt.want != "" && !strings.Contains(report.Defects[0].Text, tt.want) {
			t.Errorf("%q: %+v", tt.signed, report.Defects)
		}
	}
	f.exec(t, "UPDATE head SET checkpoint = ?", []byte(cut))
	if f.opens(t, newVerifier) {
		t.Error("without the signature of the pinned key")
	}
	must(t, l.Close())
}

// testRotatedWitnessed: the witnesses cosign with either key during the overlap, and what they cosigned before is still valid.
func testRotatedWitnessed(t *testing.T, f *fixture) {
	ctx, all := t.Context(), f.witnesses(t, 2)
	f.cfg.Required = 2
	newKey, newVerifier := newKeys(t)
	both := f.cfg
	both.Key += "\n" + newKey
	l, err := ledger.Open(ctx, both)
	must(t, err)
	issue(t, l, use("acme", "csr 1", "key 1", "vendor"))
	must(t, l.Rotate(ctx, "uid 0", "local", newKey))
	issue(t, l, use("acme", "csr 2", "key 1", "vendor"))
	for _, w := range all {
		must(t, w.Trust(newVerifier))
	}
	issue(t, l, use("acme", "csr 3", "key 1", "vendor"))
	must(t, l.Close())
	both.Verifier = newVerifier
	l, err = ledger.Open(ctx, both)
	must(t, err)
	_, err = l.EndRotation(ctx, "uid 0", "local")
	must(t, err)
	issue(t, l, use("acme", "csr 4", "key 1", "vendor"))
	verified(t, l)
	must(t, l.Close())
}

// testRotatedPast: a checkpoint that was cosigned before a rotation, and that the new key never signed, is not a defect.
func testRotatedPast(t *testing.T, f *fixture) {
	ctx, all := t.Context(), f.witnesses(t, 1)
	newKey, newVerifier := newKeys(t)
	both := f.cfg
	both.Key, both.Required = f.cfg.Key+"\n"+newKey, 1
	l, err := ledger.Open(ctx, both)
	must(t, err)
	issue(t, l, use("acme", "csr 1", "key 1", "vendor"))
	must(t, l.Close())
	all[0].Stop() // it cosigns nothing any more
	both.Required, both.Verifier = 0, f.cfg.Verifier+"\n"+newVerifier
	l, err = ledger.Open(ctx, both)
	must(t, err)
	must(t, l.Rotate(ctx, "uid 0", "local", newKey))
	_, err = l.EndRotation(ctx, "uid 0", "local")
	must(t, err)
	_ = l.Close() // the witness does not answer
	reader := f.cfg
	reader.Key, reader.Verifier = "", newVerifier
	l, err = ledger.Open(ctx, reader)
	must(t, err)
	verified(t, l)
	must(t, l.Close())
}
