//go:build cgo

package pkcs11

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
	softhsmtest "hsmsign/softhsm-test"
)

// diagnosed are the steps of one diagnosis.
func diagnosed(ctx context.Context, t *testing.T, ref string) []signer.Step {
	t.Helper()
	var steps []signer.Step
	key := Backend(Options{}).Diagnose(ctx, parse(t, ref), signer.OpenOptions{}, func(s signer.Step) { steps = append(steps, s) })
	last := steps[len(steps)-1].Status
	if (key != nil) != (last == signer.StatusOK || last == signer.StatusWarn) {
		t.Errorf("key %v after a last step that is %s", key, last)
	}
	if key != nil {
		if err := key.Close(); err != nil {
			t.Error(err)
		}
	}
	return steps
}

// bad is the one step that is not ok, before those that are skipped; none is the zero Step.
func bad(t *testing.T, steps []signer.Step) signer.Step {
	t.Helper()
	var found signer.Step
	for _, s := range steps {
		switch {
		case s.Status == signer.StatusSkipped && found.Status != signer.StatusFail:
			t.Errorf("%s is skipped after no failure", s.Name)
		case s.Status != signer.StatusSkipped && found.Status == signer.StatusFail:
			t.Errorf("%s is %s after a failure", s.Name, s.Status)
		case s.Status == signer.StatusOK || s.Status == signer.StatusSkipped:
		case found.Name != "":
			t.Errorf("%s is %s, and so is %s", found.Name, found.Status, s.Name)
		default:
			found = s
		}
	}
	if len(steps) != 13 {
		t.Errorf("%d steps", len(steps))
	}
	return found
}

func TestDiagnose(t *testing.T) {
	tok := newToken(t)
	if step := bad(t, diagnosed(t.Context(), t, tok.Ref("vendor"))); step.Name != "key attributes" || step.Status != signer.StatusWarn || !strings.Contains(step.Detail, "CKA_LOCAL no") {
		t.Errorf("an imported key: %+v", step)
	}
	key, err := generateKey(t, tok.Ref("made"), 2048)
	if err != nil {
		t.Fatal(err)
	}
	if err := key.Close(); err != nil {
		t.Fatal(err)
	}
	s := script(t, tok.Module)
	steps := diagnosed(t.Context(), t, tok.Ref("made"))
	if step := bad(t, steps); step.Name != "" {
		t.Errorf("a good key: %+v", step)
	}
	for _, s := range steps {
		if s.Detail == "" || strings.Contains(s.Detail+s.Fix, tok.PIN) {
			t.Errorf("a step that says too little or too much: %+v", s)
		}
	}
	c := s.counts()
	if c["C_Login"] != 1 || c["C_Initialize"] != c["C_Finalize"] || c["C_OpenSession"] != c["C_CloseSession"] {
		t.Errorf("calls %v; want one login, and all given back", c)
	}
}

func TestDiagnoseReferences(t *testing.T) {
	tok := newToken(t)
	text, _ := vendorKey(t)
	tok.Import(t, text, "twin", []byte{2})
	tok.Import(t, text, "twin", []byte{3})
	dir := t.TempDir()
	lib, err := os.ReadFile(tok.Module)
	if err != nil {
		t.Fatal(err)
	}
	binary.NativeEndian.PutUint16(lib[18:], 43) // e_machine: EM_SPARCV9
	file := func(name string, content []byte, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	module := func(path string) string { return strings.Replace(tok.Ref("vendor"), tok.Module, path, 1) }
	symbols := bytes.ReplaceAll(lib, []byte(entryPoint), []byte("C_GetFunctionLisp"))
	binary.NativeEndian.PutUint16(symbols[18:], binary.NativeEndian.Uint16(readFile(t, tok.Module)[18:]))
	for name, tt := range map[string]struct {
		ref, step string
		family    error
		says      string
	}{
		"bad reference":      {"pkcs11:objekt=x?module-path=/m.so", "reference", signer.ErrReference, "objekt"},
		"no module":          {module("/none.so"), "module file", signer.ErrKeyNotFound, "no such file"},
		"wrong architecture": {module(file("sparc.so", lib, 0o600)), "architecture", signer.ErrUnsupported, "EM_SPARCV9"},
		"text":               {module(file("text.so", []byte("#!/bin/sh\n"), 0o600)), "architecture", signer.ErrUnsupported, "not a shared library"},
		"no PKCS#11 module":  {module(file("other.so", symbols, 0o600)), "load", signer.ErrUnsupported, "exports no"},
		"no token":           {strings.Replace(tok.Ref("vendor"), tok.Label, "nope", 1), "token", signer.ErrKeyNotFound, tok.Label},
		"no key":             {tok.Ref("none"), "key", signer.ErrKeyNotFound, `"vendor"`},
		"two keys":           {tok.Ref("twin"), "key", signer.ErrAmbiguousKey, "%02"},
		"no PIN file":        {tok.Ref("vendor") + "-none", "login", signer.ErrAuth, "no such file"},
	} {
		step := bad(t, diagnosed(t.Context(), t, tt.ref))
		if step.Name != tt.step || step.Status != signer.StatusFail || !errors.Is(step.Err, tt.family) || !strings.Contains(step.Detail, tt.says) || step.Fix == "" && name != "bad reference" && name != "no PIN file" {
			t.Errorf("%s: %+v; want %s to fail with %v, %q", name, step, tt.step, tt.family, tt.says)
		}
	}
	open := file("open.so", readFile(t, tok.Module), 0o666)
	if steps := diagnosed(t.Context(), t, module(open)); steps[1].Status != signer.StatusWarn || !strings.Contains(steps[1].Fix, "chmod go-w") {
		t.Errorf("a module that others can write to: %+v", steps[1])
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	lib, err := os.ReadFile(path) // #nosec G304 -- a test's own file
	if err != nil {
		t.Fatal(err)
	}
	return lib
}

// SoftHSM2 never locks and sets no counters, so the flags are set on the way. No PIN is sent where it might lock.
func TestDiagnoseTokenState(t *testing.T) {
	tok := newToken(t)
	s := script(t, tok.Module)
	for flag, want := range map[uint]signer.Step{
		pkcs11.CKF_USER_PIN_LOCKED:    {Name: "token state", Status: signer.StatusFail, Detail: "CKF_USER_PIN_LOCKED"},
		pkcs11.CKF_USER_PIN_FINAL_TRY: {Name: "token state", Status: signer.StatusFail, Detail: "CKF_USER_PIN_FINAL_TRY"},
	} {
		s.flags = flag
		step := bad(t, diagnosed(t.Context(), t, tok.Ref("vendor")))
		if step.Name != want.Name || step.Status != want.Status || !strings.Contains(step.Detail, want.Detail) || !errors.Is(step.Err, signer.ErrAuth) || step.Fix == "" {
			t.Errorf("%+v; want %+v", step, want)
		}
	}
	if n := s.counts()["C_Login"]; n != 0 {
		t.Errorf("%d logins", n)
	}
	s.flags = pkcs11.CKF_USER_PIN_COUNT_LOW
	if steps := diagnosed(t.Context(), t, tok.Ref("vendor")); steps[7].Name != "token state" || steps[7].Status != signer.StatusWarn || !strings.Contains(steps[7].Detail, "COUNT_LOW") {
		t.Errorf("%+v; want a warning", steps[7])
	}
	if n := s.counts()["C_Login"]; n != 1 {
		t.Errorf("%d logins; want 1", n)
	}
	s.flags = pkcs11.CKF_PROTECTED_AUTHENTICATION_PATH
	if steps := diagnosed(t.Context(), t, tok.Ref("vendor")); steps[7].Status != signer.StatusOK || !strings.Contains(steps[7].Detail, "PIN pad") {
		t.Errorf("%+v; want the PIN pad told", steps[7])
	}
}

func TestDiagnoseWrongPIN(t *testing.T) {
	tok := newToken(t, softhsmtest.WithLabel("wrong-pin"))
	s := script(t, tok.Module)
	bare, _, _ := strings.Cut(tok.Ref("vendor"), "&pin-source")
	for range 2 {
		steps := diagnosed(t.Context(), t, bare+"&pin-value=91735")
		if step := steps[8]; step.Name != "login" || step.Status != signer.StatusFail || !errors.Is(step.Err, signer.ErrAuth) || strings.Contains(step.Detail+step.Fix, "91735") {
			t.Errorf("%+v", step)
		}
	}
	if n := s.counts()["C_Login"]; n != 1 {
		t.Errorf("%d logins; a wrong PIN is sent once", n)
	}
}

// What is asked of the key's protection and of the mechanisms.
func TestDiagnoseKey(t *testing.T) {
	tok := newToken(t)
	s := script(t, tok.Module)
	honest := s.cryptoki
	for _, tt := range []struct {
		says   map[uint][]byte
		status signer.Status
		want   string
	}{
		{map[uint][]byte{pkcs11.CKA_EXTRACTABLE: {1}}, signer.StatusWarn, "can leave the token"},
		{map[uint][]byte{pkcs11.CKA_SENSITIVE: {0}}, signer.StatusWarn, "can leave the token"},
		{map[uint][]byte{pkcs11.CKA_SIGN: {0}}, signer.StatusFail, "CKA_SIGN"},
	} {
		s.cryptoki = liar{honest, tt.says}
		step := bad(t, diagnosed(t.Context(), t, tok.Ref("vendor")))
		if step.Name != "key attributes" || step.Status != tt.status || !strings.Contains(step.Detail+step.Fix, tt.want) {
			t.Errorf("%v: %+v", tt.says, step)
		}
	}
	s.cryptoki = mute{honest}
	if steps := diagnosed(t.Context(), t, tok.Ref("vendor")); steps[11].Name != "mechanisms" || !errors.Is(steps[11].Err, signer.ErrUnsupported) {
		t.Errorf("%+v; want no mechanism", steps[11])
	}
}

// mute offers no mechanism.
type mute struct{ cryptoki }

func (mute) GetMechanismInfo(uint, []*pkcs11.Mechanism) (pkcs11.MechanismInfo, error) {
	return pkcs11.MechanismInfo{}, pkcs11.Error(pkcs11.CKR_MECHANISM_INVALID)
}

// A module that hangs fails its step when the context ends, and all is given back once it answers.
func TestDiagnoseHangs(t *testing.T) {
	tok := newToken(t)
	s := script(t, tok.Module)
	held := make(chan struct{})
	s.login = func() error { <-held; return nil }
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	step := bad(t, diagnosed(ctx, t, tok.Ref("vendor")))
	if took := time.Since(start); took > 3*time.Second || !errors.Is(step.Err, context.DeadlineExceeded) || !errors.Is(step.Err, signer.ErrUnavailable) {
		t.Errorf("%+v after %v", step, took)
	}
	close(held)
	awaitTrue(t, func() bool { c := s.counts(); return c["C_Finalize"] == 1 && c["C_OpenSession"] == c["C_CloseSession"] })
}
