//go:build cgo

package pkcs11

import (
	"debug/elf"
	"debug/macho"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/pkcs11/internal/p11kit"
)

// entryPoint is the one symbol that every PKCS#11 module exports.
const entryPoint = "C_GetFunctionList"

// reference parses a key reference, and finds the file of a module that is given by name. Errors are *signer.Error.
func (o Options) reference(op string, ref signer.Ref) (reference, error) {
	r, err := parseReference(ref)
	if err != nil {
		return r, r.wrap(op, err)
	}
	if r.moduleName != "" {
		if r.module, err = p11kit.Installed().Find(r.moduleName); err != nil {
			return r, r.wrap(op, fault.WithHint(err, "name the module's file with module-path"))
		}
	}
	if o.AllowedModules == nil {
		return r, nil
	}
	resolved := realPath(r.module)
	if slices.ContainsFunc(o.AllowedModules, func(allowed string) bool { return realPath(allowed) == resolved }) {
		r.module = resolved // the file that was checked is loaded
		return r, nil
	}
	return r, r.wrap(op, fault.Errorf("%w: the configuration does not allow module %q", signer.ErrReference, resolved).
		Fix("if you trust it, add it to modules: in the configuration"))
}

// whyNotLoaded returns why a module could not be loaded, because dlopen's message is not available. The error wraps
// signer.ErrUnsupported, or signer.ErrUnavailable if the file cannot be read.
func whyNotLoaded(path string) error {
	const fix = "install the module for this system, or correct module-path"
	info, err := os.Stat(path) // #nosec G703 -- the path is the operator's own
	if err == nil && !info.Mode().IsRegular() {
		return fault.Errorf("%w: module %q is not a file", signer.ErrUnsupported, path).Fix(fix)
	}
	f, err := os.Open(path) // #nosec G304 G703 -- the path is the operator's own
	if err != nil {
		return fault.Errorf("%w: module %q: %w", signer.ErrUnavailable, path, err).Fix(fix)
	}
	defer func() { _ = f.Close() }()
	why := "it is not a shared library of this system (" + runtime.GOOS + "/" + runtime.GOARCH + ")"
	if lib, err := elf.NewFile(f); err == nil {
		why = whyNotELF(lib)
	} else if lib, err := macho.NewFile(f); err == nil {
		why = whyNotMachO([]macho.FatArch{{FatArchHeader: macho.FatArchHeader{Cpu: lib.Cpu}, File: lib}})
	} else if fat, err := macho.NewFatFile(f); err == nil {
		why = whyNotMachO(fat.Arches)
	}
	return fault.Errorf("%w: module %q cannot be loaded: %s", signer.ErrUnsupported, path, why).Fix(fix)
}

// whyNotELF returns the first error of a Linux or BSD library.
func whyNotELF(lib *elf.File) string {
	if want, ok := thisMachine(); ok && lib.Machine != want {
		return fmt.Sprintf("it is built for %v, this program for %v", lib.Machine, want)
	}
	if lib.Type != elf.ET_DYN {
		return fmt.Sprintf("it is not a shared library but %v", lib.Type)
	}
	symbols, err := lib.DynamicSymbols()
	exports := func(s elf.Symbol) bool { return s.Name == entryPoint && s.Section != elf.SHN_UNDEF }
	if err != nil || !slices.ContainsFunc(symbols, exports) {
		return "it does not export " + entryPoint + ", so it is not a PKCS#11 module"
	}
	if missing := missingLibraries(lib); len(missing) > 0 {
		return "libraries that it needs are not in the usual places: " + list(missing)
	}
	return "the dynamic loader refuses it; \"ldd\" on the file may say why"
}

// thisMachine returns the ELF name of the processor that this program is built for, and whether it is known here.
func thisMachine() (elf.Machine, bool) {
	machines := map[string]elf.Machine{
		"amd64": elf.EM_X86_64, "386": elf.EM_386, "arm64": elf.EM_AARCH64, "arm": elf.EM_ARM,
		"ppc64le": elf.EM_PPC64, "s390x": elf.EM_S390, "riscv64": elf.EM_RISCV, "loong64": elf.EM_LOONGARCH,
	}
	m, ok := machines[runtime.GOARCH]
	return m, ok
}

// missingLibraries returns the needed libraries (DT_NEEDED) that are in no folder of the dynamic loader. It does not read
// the loader's cache, so a library that it returns may exist.
func missingLibraries(lib *elf.File) []string {
	needed, err := lib.ImportedLibraries()
	if err != nil {
		return nil
	}
	folders := []string{"/lib", "/usr/lib", "/lib64", "/usr/lib64", "/usr/local/lib", "/lib/*-linux-*", "/usr/lib/*-linux-*"}
	for _, tag := range []elf.DynTag{elf.DT_RUNPATH, elf.DT_RPATH} {
		paths, err := lib.DynString(tag)
		if err != nil {
			continue
		}
		for _, p := range paths {
			folders = append(folders, strings.Split(p, ":")...)
		}
	}
	return slices.DeleteFunc(needed, func(name string) bool {
		return slices.ContainsFunc(folders, func(folder string) bool {
			found, err := filepath.Glob(filepath.Join(folder, name))
			return err == nil && len(found) > 0
		})
	})
}

// whyNotMachO returns the first error of a macOS library, which may contain several architectures.
func whyNotMachO(arches []macho.FatArch) string {
	want := map[string]macho.Cpu{"amd64": macho.CpuAmd64, "arm64": macho.CpuArm64}[runtime.GOARCH]
	var have []string
	for _, a := range arches {
		have = append(have, a.Cpu.String())
		if a.Cpu != want || runtime.GOOS != "darwin" {
			continue
		}
		if a.Symtab != nil && !slices.ContainsFunc(a.Symtab.Syms, func(s macho.Symbol) bool { return s.Name == "_"+entryPoint }) {
			return "it does not export " + entryPoint + ", so it is not a PKCS#11 module"
		}
		return "the dynamic loader refuses it; \"otool -L\" on the file shows what it needs"
	}
	return "it is a macOS library for " + strings.Join(have, ", ") + ", and this program runs on " + runtime.GOOS + "/" + runtime.GOARCH
}
