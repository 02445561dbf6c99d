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
	// e_machine stands at byte 18 of an ELF header, e_type at 16.
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
		{"machine.so", patched(18, uint16(elf.EM_SPARCV9)), signer.ErrUnsupported, []string{"it is built for EM_SPARCV9, and this program for"}},
		{"program.so", patched(16, uint16(elf.ET_REL)), signer.ErrUnsupported, []string{"it is not a shared library but ET_REL"}},
		{"needs.so", renamed, signer.ErrUnsupported, []string{"libraries it needs are in none of the usual places: libcrypt0.so."}},
		{"unnamed.so", bytes.ReplaceAll(lib, []byte(entryPoint), []byte("C_GetFunctionLisp")), signer.ErrUnsupported, []string{"it exports no C_GetFunctionList"}},
		{"macho.dylib", machO(macho.CpuArm64), signer.ErrUnsupported, []string{"it is a macOS library for CpuArm64"}},
	}
	for _, tt := range tests {
		path := filepath.Join(dir, tt.name)
		if tt.content != nil {
			if err := os.WriteFile(path, tt.content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		_, err := Backend(Options{}).Open(t.Context(), parse(t, "pkcs11:object=k?module-path="+path), signer.OpenOptions{})
		refused(t, err, tt.family, tt.says...)
	}
	_, err = Backend(Options{}).Open(t.Context(), parse(t, "pkcs11:object=k?module-path="+dir), signer.OpenOptions{})
	refused(t, err, signer.ErrUnsupported, "is not a file")
}

// A link and its target are one module, which is initialized once.
func TestModuleByRealPath(t *testing.T) {
	tok := newToken(t)
	link := filepath.Join(t.TempDir(), "module.so")
	if err := os.Symlink(tok.Module, link); err != nil {
		t.Fatal(err)
	}
	s := script(t, tok.Module)
	mustOpen(t, tok.Ref("vendor"))
	tok.Module = link
	mustOpen(t, tok.Ref("vendor"))
	if n := s.counts()["C_Initialize"]; n != 1 {
		t.Errorf("%d calls of C_Initialize; want 1", n)
	}
}
