//go:build cgo && linux

package pkcs11

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/secret"
	"hsmsign/signer"
)

// diagnosed returns the steps of one diagnosis by name. It returns a key if no step fails.
func diagnosed(t *testing.T, ref string) map[string]signer.Step {
	t.Helper()
	steps, failed := map[string]signer.Step{}, false
	key := Backend(Options{}).Diagnose(t.Context(), signerkit.Ref(t, ref), signer.OpenOptions{}, func(s signer.Step) {
		steps[s.Name] = s
		failed = failed || s.Status == signer.StatusFail
	})
	if (key == nil) != failed || len(steps) != 14 {
		t.Errorf("key %v after %d steps, one of which failed: %v", key, len(steps), failed)
	}
	if key != nil {
		closeKey(t, key)
	}
	return steps
}

// A generated key has no defects, and the diagnosis releases everything.
func TestDiagnose(t *testing.T) {
	tok, f := faulty(t)
	key := testkit.Value(generate(t, tok.Ref("made"), 2048))(t)
	closeKey(t, key)
	logins := f.Calls(t)["C_Login"]
	for _, s := range diagnosed(t, tok.Ref("made")) {
		if s.Status != signer.StatusOK || s.Detail == "" || strings.Contains(s.Detail+s.Fix, tok.PIN) {
			t.Errorf("a step that is not ok, without detail or with the PIN: %+v", s)
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
	lib := testkit.Value(os.ReadFile(f.Path))(t)
	dir := t.TempDir()
	module := func(name string, content []byte, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		testkit.OK(t, os.WriteFile(path, content, 0o600))
		testkit.OK(t, os.Chmod(path, mode))
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
		"no PIN file":        {tok.Ref("vendor") + "-none", "", "login", fail, secret.ErrNoFile, "PIN file not found", noLogin},
		"imported":           {tok.Ref("vendor"), "", "key attributes", warn, nil, "CKA_LOCAL no", 1},
		"extractable":        {tok.Ref("vendor"), lie(pkcs11.CKA_EXTRACTABLE, "01"), "key attributes", warn, nil, "can leave the token", 1},
		"not sensitive":      {tok.Ref("vendor"), lie(pkcs11.CKA_SENSITIVE, "00"), "key attributes", warn, nil, "can leave the token", 1},
		"not for signing":    {tok.Ref("vendor"), lie(pkcs11.CKA_SIGN, "00"), "key attributes", fail, signer.ErrBadKey, "CKA_SIGN", 1},
		"writable module":    {module("open.so", lib, 0o666), "", "module file", warn, nil, "chmod go-w", 1},
		"PIN in reference":   {bare(tok.Ref("vendor")) + "&pin-value=" + tok.PIN, "", "reference", warn, nil, "pin-source", 1},
		"wrong PIN sent":     {tok.Ref("vendor"), "C_GetTokenInfo * flags 0x10000", "token state", warn, nil, "COUNT_LOW", 1},
		"PIN pad":            {tok.Ref("vendor"), "C_GetTokenInfo * flags 0x100", "token state", signer.StatusOK, nil, "PIN pad", 1},
		"short key":          {tok.Ref("short"), "", "key", warn, nil, "2048 bits or more", 1},
		"no generation":      {tok.Ref("vendor"), "C_GetMechanismInfo 3 return 0x70", "generation", warn, nil, "vendor's own tool", 1},
		"write-protected":    {tok.Ref("vendor"), "C_GetTokenInfo * flags 0x2", "generation", warn, nil, "CKF_WRITE_PROTECTED", 1},
		"TPM":                {tok.Ref("vendor"), library("TPM2.0 Cryptoki"), "generation", warn, nil, "tpm2_ptool addkey", 1},
		"NSS":                {tok.Ref("vendor"), library("NSS Internal"), "generation", warn, nil, "certutil -G", 1},
		"extractable, TPM":   {tok.Ref("vendor"), library("TPM2.0 Cryptoki") + "\n" + lie(pkcs11.CKA_EXTRACTABLE, "01"), "key attributes", warn, nil, "tpm2_ptool addkey", 1},
		"other library":      {tok.Ref("vendor"), library("My NSS TPM2.0 Cryptoki"), "generation", signer.StatusOK, nil, "RSA keys of", 1},
		"zero bytes":         {tok.Ref("vendor"), "C_GetTokenInfo * info 78 0000", "token", signer.StatusOK, nil, `model="SoftHSM v2"`, 1},
		"no mechanism":       {tok.Ref("vendor"), "C_GetMechanismInfo * return 0x70", "mechanisms", fail, signer.ErrUnsupported, "CKM_RSA_PKCS", 1},
	} {
		f.Script(t, tt.script)
		before := f.Calls(t)["C_Login"]
		step := diagnosed(t, tt.ref)[tt.step]
		noHint := tt.status == signer.StatusOK
		if step.Status != tt.status || !errors.Is(step.Err, tt.family) || !strings.Contains(step.Detail+step.Fix, tt.says) ||
			(step.Fix == "") != noHint || strings.Contains(step.Detail+step.Fix, tok.PIN) {
			t.Errorf("%s: %+v; want %s %s, %v, %q", name, step, tt.step, tt.status, tt.family, tt.says)
		}
		if n := f.Calls(t)["C_Login"] - before; n != max(0, tt.logins) {
			t.Errorf("%s: %d logins", name, n)
		}
	}
}

// library returns a script in which C_GetInfo returns this description of the library; CK_INFO has it at byte 48.
func library(text string) string {
	const lines = "C_GetInfo * info 48 %x\nC_GetInfo * info 58 %x\nC_GetInfo * info 68 %x\nC_GetInfo * info 75 %x"
	padded := fmt.Sprintf("%-32s", text)
	return fmt.Sprintf(lines, padded[:10], padded[10:20], padded[20:27], padded[27:])
}

// A wrong PIN is sent once, and not shown.
func TestDiagnoseWrongPIN(t *testing.T) {
	tok, f := faulty(t)
	for range 2 {
		Backend(Options{}).Diagnose(t.Context(), signerkit.Ref(t, bare(tok.Ref("vendor"))+"&pin-value="+wrong), signer.OpenOptions{}, func(s signer.Step) {
			failed := s.Status == signer.StatusFail && errors.Is(s.Err, signer.ErrAuth)
			if failed != (s.Name == "login") || strings.Contains(s.Detail+s.Fix, wrong) {
				t.Errorf("%+v", s)
			}
		})
	}
	calls(t, f, map[string]int{"C_Login": 1})
}
