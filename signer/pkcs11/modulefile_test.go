//go:build cgo && linux

package pkcs11

import (
	"bytes"
	"debug/elf"
	"debug/macho"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/miekg/pkcs11"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	softhsmtest "hsmsign/softhsm-test"
)

func TestNotAModule(t *testing.T) {
	module := testkit.Value(softhsmtest.FindModule())(t)
	// #nosec G304 -- a test's own file
	lib := testkit.Value(os.ReadFile(module))(t)
	// e_machine is at byte 18 of an ELF header, e_type at 16.
	patched := func(offset int, value uint16) []byte {
		b := bytes.Clone(lib)
		binary.NativeEndian.PutUint16(b[offset:], value)
		return b
	}
	machO := func(cpu macho.Cpu) []byte {
		b := make([]byte, 32)
		binary.LittleEndian.PutUint32(b, macho.Magic64)
		binary.LittleEndian.PutUint32(b[4:], uint32(cpu))
		binary.LittleEndian.PutUint32(b[12:], uint32(macho.TypeDylib))
		return b
	}
	renamed := bytes.ReplaceAll(lib, []byte("libcrypto.so."), []byte("libcrypt0.so."))
	if bytes.Equal(renamed, lib) {
		t.Fatal("this libsofthsm2.so does not need libcrypto; the test must rename another library")
	}

	dir := t.TempDir()
	tests := []struct {
		name    string
		content []byte // nil: no such file
		family  error
		says    []string
	}{
		{"missing.so", nil, signer.ErrKeyNotFound, []string{"missing.so", "no such file"}},
		{"empty.so", []byte{}, signer.ErrUnsupported, []string{"not a shared library of this system"}},
		{"text.so", []byte("#!/bin/sh\n"), signer.ErrUnsupported, []string{"text.so", "not a shared library of this system"}},
		{"cut.so", lib[:200], signer.ErrUnsupported, []string{"not a shared library of this system"}},
		{"machine.so", patched(18, uint16(elf.EM_SPARCV9)), signer.ErrUnsupported, []string{"it is built for EM_SPARCV9, this program for"}},
		{"program.so", patched(16, uint16(elf.ET_REL)), signer.ErrUnsupported, []string{"it is not a shared library but ET_REL"}},
		{"needs.so", renamed, signer.ErrUnsupported, []string{"libraries that it needs are not in the usual places: libcrypt0.so."}},
		{"unnamed.so", bytes.ReplaceAll(lib, []byte(entryPoint), []byte("C_GetFunctionLisp")), signer.ErrUnsupported, []string{"it does not export C_GetFunctionList"}},
		{"macho.dylib", machO(macho.CpuArm64), signer.ErrUnsupported, []string{"it is a macOS library for CpuArm64"}},
	}
	for _, tt := range tests {
		path := filepath.Join(dir, tt.name)
		if tt.content != nil {
			testkit.OK(t, os.WriteFile(path, tt.content, 0o600))
		}
		openFails(t, "pkcs11:object=k?module-path="+path, tt.family, tt.says...)
	}
	openFails(t, "pkcs11:object=k?module-path="+dir, signer.ErrUnsupported, "is not a file")
	openFails(t, "pkcs11:object=k?module-name=no-such-module", signer.ErrKeyNotFound, "no-such-module")
}

// A link and its target are one module, which is initialized once.
func TestModuleByRealPath(t *testing.T) {
	tok, f := faulty(t)
	mustOpen(t, tok.Ref("vendor"))
	tok.Module = filepath.Join(t.TempDir(), "module.so")
	testkit.OK(t, os.Symlink(f.Path, tok.Module))
	mustOpen(t, tok.Ref("vendor"))
	calls(t, f, map[string]int{"C_Initialize": 1})
}

func TestAllowedModules(t *testing.T) {
	tok := newToken(t)
	link := filepath.Join(t.TempDir(), "module.so")
	testkit.OK(t, os.Symlink(tok.Module, link))
	target := testkit.Value(filepath.EvalSymlinks(tok.Module))(t)
	byLink := *tok
	byLink.Module = link
	for name, tt := range map[string]struct {
		tok     *softhsmtest.Token
		allowed []string
		family  error
	}{
		"any":                    {tok, nil, nil},
		"the one":                {tok, []string{"/other.so", tok.Module}, nil},
		"its target":             {tok, []string{target}, nil},
		"a link to it":           {&byLink, []string{tok.Module}, nil},
		"allowed by link":        {tok, []string{link}, nil},
		"another":                {tok, []string{"/other.so"}, signer.ErrReference},
		"a link to another":      {&byLink, []string{"/other.so"}, signer.ErrReference},
		"none":                   {tok, []string{}, signer.ErrReference},
		"its folder is no match": {tok, []string{filepath.Dir(target)}, signer.ErrReference},
	} {
		b := Backend(Options{AllowedModules: tt.allowed})
		_, listErr := b.List(t.Context(), signerkit.Ref(t, tt.tok.Ref("vendor")))
		key, err := b.Open(t.Context(), signerkit.Ref(t, tt.tok.Ref("vendor")), signer.OpenOptions{})
		if tt.family != nil {
			signerkit.Refused(t, err, tt.family, "does not allow", target)
			signerkit.Refused(t, listErr, tt.family, "does not allow", target)
			continue
		}
		if err != nil || listErr != nil {
			t.Errorf("%s: %v, %v", name, err, listErr)
			continue
		}
		closeKey(t, key)
	}
}

// The init string reaches C_Initialize, also after a recovery and in a worker; a module that is in use has only one.
func TestModuleInit(t *testing.T) {
	tok, f := faulty(t)
	good := tok.Ref("vendor") + "&module-init=a=b"
	f.Script(t, "C_Initialize * reserved a=b 0x7", "C_Sign 2 return 0x30")
	openFails(t, tok.Ref("vendor"), signer.ErrUnavailable, "CKR_ARGUMENTS_BAD")
	k := mustOpen(t, good)
	mustSign(t, k)
	mustSign(t, k)
	if n := stats(k).Reinitialized; n != 1 {
		t.Errorf("initialized again %d times; want once", n)
	}
	_, err := open(t, Options{}, good+"c")
	hinted(t, err, signer.ErrReference, "in use with another module-init")
	closeKey(t, k)
	openFails(t, good+"c", signer.ErrUnavailable, "CKR_ARGUMENTS_BAD")
	mustSign(t, mustOpenWith(t, workerOptions(), good))
}

// NSS softokn needs an init string: the folder of its database.
func TestNSS(t *testing.T) {
	const softokn = "/usr/lib/x86_64-linux-gnu/libsoftokn3.so"
	if _, err := os.Stat(softokn); err != nil {
		t.Skip("needs libnss3")
	}
	ref := fmt.Sprintf("pkcs11:token=NSS%%20Certificate%%20DB;object=new?module-path=%s&pin-value=12345678&module-init=configdir='sql:%s'", softokn, t.TempDir())
	openFails(t, "pkcs11:?module-path="+softokn, signer.ErrUnavailable, "C_Initialize returns CKR_ARGUMENTS_BAD")
	initialize := func(m *module) (none struct{}, err error) {
		slots := testkit.Value(m.lib.GetSlotList(true))(t)
		sh := testkit.Value(m.lib.OpenSession(slots[1], pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION))(t)
		testkit.OK(t, m.lib.Login(sh, pkcs11.CKU_SO, ""))
		testkit.OK(t, m.lib.InitPIN(sh, "12345678"))
		return none, m.lib.CloseSession(sh)
	}
	testkit.Value(withModule(t.Context(), testkit.Value(parseReference(signerkit.Ref(t, ref)))(t), initialize))(t)
	_, err := generate(t, ref, 2048)
	hinted(t, err, signer.ErrBadKey, "CKA_LOCAL is no") // NSS does not set it
	mustSign(t, mustOpen(t, ref))
}
