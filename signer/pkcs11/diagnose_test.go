//go:build cgo && linux

package pkcs11

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"hsmsign/internal/testkit"
	"hsmsign/signer"
)

// diagnosed returns the steps of one diagnosis, and the one step that is not ok, before the skipped ones; if all are ok,
// the zero Step.
func diagnosed(t *testing.T, ref string) (steps []signer.Step, bad signer.Step) {
	t.Helper()
	key := Backend(Options{}).Diagnose(t.Context(), parse(t, ref), signer.OpenOptions{}, func(s signer.Step) { steps = append(steps, s) })
	last := steps[len(steps)-1].Status
	if (key != nil) != (last == signer.StatusOK || last == signer.StatusWarn) {
		t.Errorf("key %v after a last step that is %s", key, last)
	}
	if key != nil {
		closeKey(t, key)
	}
	for _, s := range steps {
		switch {
		case s.Status == signer.StatusSkipped && bad.Status != signer.StatusFail:
			t.Errorf("%s is skipped after no failure", s.Name)
		case s.Status == signer.StatusOK || s.Status == signer.StatusSkipped:
		case bad.Name != "":
			t.Errorf("%s is %s, and so is %s", bad.Name, bad.Status, s.Name)
		default:
			bad = s
		}
	}
	if len(steps) != 13 {
		t.Errorf("%d steps", len(steps))
	}
	return steps, bad
}

// A generated key has no defects, and the diagnosis releases everything.
func TestDiagnose(t *testing.T) {
	tok, f := faulty(t)
	key, err := generate(t, tok.Ref("made"), 2048)
	if err != nil {
		t.Fatal(err)
	}
	closeKey(t, key)
	logins := f.Calls(t)["C_Login"]
	steps, bad := diagnosed(t, tok.Ref("made"))
	if bad.Name != "" {
		t.Errorf("a good key: %+v", bad)
	}
	for _, s := range steps {
		if s.Detail == "" || strings.Contains(s.Detail+s.Fix, tok.PIN) {
			t.Errorf("a step without detail or with the PIN: %+v", s)
		}
	}
	c := f.Calls(t)
	if c["C_Login"] != logins+1 || c["C_Initialize"] != c["C_Finalize"] || c["C_OpenSession"] != c["C_CloseSession"] {
		t.Errorf("calls %v; want one login, and everything released", c)
	}
}

// Each step finds its defect, with what to do. No PIN is sent to a token that it might lock.
func TestDiagnoseDefects(t *testing.T) {
	tok, f := faulty(t)
	for id := range byte(2) {
		tok.Import(t, testkit.File(t, "golden/vendor.key"), "twin", []byte{2 + id})
	}
	tok.Import(t, keyPEM(t, testkit.KeyOf(1024, "short")), "short", []byte{9})
	lib, err := os.ReadFile(f.Path)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	module := func(name string, content []byte, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return strings.Replace(tok.Ref("vendor"), f.Path, path, 1)
	}
	foreign := append([]byte{}, lib...)
	binary.NativeEndian.PutUint16(foreign[18:], 43) // e_machine: EM_SPARCV9
	other := []byte(strings.ReplaceAll(string(lib), entryPoint, "C_GetFunctionLisp"))
	const fail, warn = signer.StatusFail, signer.StatusWarn
	const noLogin = -1
	for name, tt := range map[string]struct {
		ref    string
		script string
		step   string
		status signer.Status
		family error
		says   string // in the detail or the hint
		logins int
	}{
		"bad reference":      {"pkcs11:objekt=x?module-path=/m.so", "", "reference", fail, signer.ErrReference, "objekt", noLogin},
		"no module":          {strings.Replace(tok.Ref("vendor"), f.Path, "/none.so", 1), "", "module file", fail, signer.ErrKeyNotFound, "no such file", noLogin},
		"wrong architecture": {module("sparc.so", foreign, 0o600), "", "architecture", fail, signer.ErrUnsupported, "EM_SPARCV9", noLogin},
		"text":               {module("text.so", []byte("#!/bin/sh\n"), 0o600), "", "architecture", fail, signer.ErrUnsupported, "not a shared library", noLogin},
		"no PKCS#11 module":  {module("other.so", other, 0o600), "", "load", fail, signer.ErrUnsupported, "does not export", noLogin},
		"does not start":     {tok.Ref("vendor"), "C_Initialize * return 5", "initialize", fail, signer.ErrUnavailable, "C_Initialize", noLogin},
		"no token":           {strings.Replace(tok.Ref("vendor"), tok.Label, "nope", 1), "", "token", fail, signer.ErrKeyNotFound, tok.Label, noLogin},
		"locked":             {tok.Ref("vendor"), "C_GetTokenInfo * flags 0x40000", "token state", fail, signer.ErrAuth, "CKF_USER_PIN_LOCKED", noLogin},
		"final try":          {tok.Ref("vendor"), "C_GetTokenInfo * flags 0x20000", "token state", fail, signer.ErrAuth, "CKF_USER_PIN_FINAL_TRY", noLogin},
		"no key":             {tok.Ref("none"), "", "key", fail, signer.ErrKeyNotFound, `"vendor"`, 1},
		"two keys":           {tok.Ref("twin"), "", "key", fail, signer.ErrAmbiguousKey, "%02", 1},
		"no PIN file":        {tok.Ref("vendor") + "-none", "", "login", fail, signer.ErrAuth, "no such file", noLogin},
		"imported":           {tok.Ref("vendor"), "", "key attributes", warn, nil, "CKA_LOCAL no", 1},
		"extractable":        {tok.Ref("vendor"), lie(pkcs11.CKA_EXTRACTABLE, "01"), "key attributes", warn, nil, "can leave the token", 1},
		"not sensitive":      {tok.Ref("vendor"), lie(pkcs11.CKA_SENSITIVE, "00"), "key attributes", warn, nil, "can leave the token", 1},
		"not for signing":    {tok.Ref("vendor"), lie(pkcs11.CKA_SIGN, "00"), "key attributes", fail, signer.ErrBadKey, "CKA_SIGN", 1},
	} {
		f.Script(t, tt.script)
		before := f.Calls(t)["C_Login"]
		_, bad := diagnosed(t, tt.ref)
		if bad.Name != tt.step || bad.Status != tt.status || !errors.Is(bad.Err, tt.family) || !strings.Contains(bad.Detail+bad.Fix, tt.says) ||
			bad.Fix == "" && name != "bad reference" && name != "no PIN file" {
			t.Errorf("%s: %+v; want %s %s, %v, %q", name, bad, tt.step, tt.status, tt.family, tt.says)
		}
		if n := f.Calls(t)["C_Login"] - before; n != max(0, tt.logins) {
			t.Errorf("%s: %d logins", name, n)
		}
	}
	// Warnings in addition to that about the imported key.
	for name, tt := range map[string]struct {
		ref, script, step string
		status            signer.Status
		says              string
	}{
		"writable module":  {module("open.so", lib, 0o666), "", "module file", warn, "chmod go-w"},
		"PIN in reference": {bare(tok.Ref("vendor")) + "&pin-value=" + tok.PIN, "", "reference", warn, "pin-source"},
		"wrong PIN sent":   {tok.Ref("vendor"), "C_GetTokenInfo * flags 0x10000", "token state", warn, "COUNT_LOW"},
		"PIN pad":          {tok.Ref("vendor"), "C_GetTokenInfo * flags 0x100", "token state", signer.StatusOK, "PIN pad"},
		"short key":        {tok.Ref("short"), "", "key", warn, "2048 bits or more"},
		"no mechanism":     {tok.Ref("vendor"), "C_GetMechanismInfo * return 0x70", "mechanisms", fail, "CKM_RSA_PKCS"},
	} {
		f.Script(t, tt.script)
		found := false
		key := Backend(Options{}).Diagnose(t.Context(), parse(t, tt.ref), signer.OpenOptions{}, func(s signer.Step) {
			if s.Name == tt.step {
				found = s.Status == tt.status && strings.Contains(s.Detail+s.Fix, tt.says) && !strings.Contains(s.Detail+s.Fix, tok.PIN)
			}
		})
		if key != nil {
			closeKey(t, key)
		}
		if !found {
			t.Errorf("%s: %s is not %s with %q", name, tt.step, tt.status, tt.says)
		}
	}
}

// A wrong PIN is sent once, and not shown.
func TestDiagnoseWrongPIN(t *testing.T) {
	tok, f := faulty(t)
	for range 2 {
		Backend(Options{}).Diagnose(t.Context(), parse(t, bare(tok.Ref("vendor"))+"&pin-value="+wrong), signer.OpenOptions{}, func(s signer.Step) {
			failed := s.Status == signer.StatusFail && errors.Is(s.Err, signer.ErrAuth)
			if failed != (s.Name == "login") || strings.Contains(s.Detail+s.Fix, wrong) {
				t.Errorf("%+v", s)
			}
		})
	}
	calls(t, f, map[string]int{"C_Login": 1})
}
