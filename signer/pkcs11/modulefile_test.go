//go:build cgo && linux

package pkcs11

import (
	"bytes"
	"debug/elf"
	"debug/macho"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"hsmsign/signer"
	softhsmtest "hsmsign/softhsm-test"
)

func TestNotAModule(t *testing.T) {
	module, err := softhsmtest.FindModule()
	if err != nil {
		t.Fatal(err)
	}
	lib, err := os.ReadFile(module) // #nosec G304 -- a test's own file
	if err != nil {
		t.Fatal(err)
	}
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
			if err := os.WriteFile(path, tt.content, 0o600); err != nil {
				t.Fatal(err)
			}
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
	if err := os.Symlink(f.Path, tok.Module); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, tok.Ref("vendor"))
	calls(t, f, map[string]int{"C_Initialize": 1})
}

func TestAllowedModules(t *testing.T) {
	tok := newToken(t)
	link := filepath.Join(t.TempDir(), "module.so")
	if err := os.Symlink(tok.Module, link); err != nil {
		t.Fatal(err)
	}
	target, err := filepath.EvalSymlinks(tok.Module)
	if err != nil {
		t.Fatal(err)
	}
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
		_, listErr := b.List(t.Context(), parse(t, tt.tok.Ref("vendor")))
		key, err := b.Open(t.Context(), parse(t, tt.tok.Ref("vendor")), signer.OpenOptions{})
		if tt.family != nil {
			refused(t, err, tt.family, "does not allow", target)
			refused(t, listErr, tt.family, "does not allow", target)
			continue
		}
		if err != nil || listErr != nil {
			t.Errorf("%s: %v, %v", name, err, listErr)
			continue
		}
		closeKey(t, key)
	}
}
