//go:build cgo

package pkcs11

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"hsmsign/signer"
)

// The bounds of p11-kit's configuration: a machine has a handful of modules, and a file a dozen lines.
const (
	maxModuleConfigs = 256
	maxModuleConfig  = 64 << 10
)

// p11kit is where p11-kit keeps which modules a machine has: pkcs11.conf(5). The user's own configuration, which
// needs the environment, is not read; nor are enable-in and disable-in, which speak to programs that load all.
type p11kit struct {
	configs []string // folders with NAME.module files; an earlier one overrides a later one
	modules []string // patterns of the folders that a relative path is taken from
}

// installed is p11-kit as Linux distributions and Homebrew install it.
func installed() p11kit {
	return p11kit{
		configs: []string{"/etc/pkcs11/modules", "/usr/share/p11-kit/modules", "/opt/homebrew/share/p11-kit/modules"},
		modules: []string{"/usr/lib/*-linux-*/pkcs11", "/usr/lib64/pkcs11", "/usr/lib/pkcs11", "/usr/local/lib/pkcs11", "/opt/homebrew/lib/pkcs11"},
	}
}

// reference reads a key reference in full, and finds the file of a module that is given by name. Errors are
// *signer.Error.
func (o Options) reference(op string, ref signer.Ref) (reference, error) {
	r, err := parseReference(ref)
	if err != nil {
		return r, r.fail(op, err, "")
	}
	if r.moduleName != "" {
		if r.module, err = installed().find(r.moduleName); err != nil {
			return r, r.fail(op, err, "name the module's file with module-path")
		}
	}
	if o.AllowedModules == nil {
		return r, nil
	}
	resolved, err := filepath.EvalSymlinks(r.module)
	if err != nil {
		resolved = r.module // findModule says what is wrong with it, if it is allowed at all
	}
	for _, allowed := range o.AllowedModules {
		if a, err := filepath.EvalSymlinks(allowed); err == nil {
			allowed = a
		}
		if allowed == resolved {
			r.module = resolved // what was checked is what is loaded
			return r, nil
		}
	}
	return r, r.fail(op, fmt.Errorf("%w: module %q is not one of those that the configuration allows", signer.ErrReference, resolved),
		"add it to modules: in the configuration, if it is to be trusted")
}

// find gives the absolute path of the module of this name: that of its configuration file without ".module", or
// that of its library without "lib" and suffix, both in any case (RFC 7512 section 2.3, module-name). Errors wrap
// signer.ErrKeyNotFound or signer.ErrAmbiguousKey.
func (p p11kit) find(name string) (string, error) {
	libraries, err := p.libraries()
	if err != nil {
		return "", err
	}
	var known, matches []string
	for config, library := range libraries {
		known = append(known, config)
		if !strings.EqualFold(config, name) && !strings.EqualFold(libraryName(library), name) {
			continue
		}
		if path := p.absolute(library); !slices.Contains(matches, path) {
			matches = append(matches, path)
		}
	}
	slices.Sort(known)
	slices.Sort(matches)
	switch len(matches) {
	case 0:
		return "", fmt.Errorf("%w: p11-kit's configuration knows no module %q; there: %s", signer.ErrKeyNotFound, name, list(known))
	case 1:
		return matches[0], nil
	}
	return "", fmt.Errorf("%w: %d modules are called %q: %s", signer.ErrAmbiguousKey, len(matches), name, list(matches))
}

// libraries gives the "module:" of each configuration, by the configuration's name. A blank one takes the module
// away (pkcs11.conf(5)), and a remote one has none.
func (p p11kit) libraries() (map[string]string, error) {
	found := map[string]string{}
	for _, folder := range p.configs {
		files, err := filepath.Glob(filepath.Join(folder, "*.module"))
		if err != nil {
			return nil, fmt.Errorf("%w: folder %q: %w", signer.ErrReference, folder, err)
		}
		if len(files) > maxModuleConfigs {
			return nil, fmt.Errorf("%w: %d files in %q; at most %d are read", signer.ErrUnsupported, len(files), folder, maxModuleConfigs)
		}
		for _, file := range files {
			name := strings.TrimSuffix(filepath.Base(file), ".module")
			if _, overridden := found[name]; overridden {
				continue
			}
			library, ok, err := moduleSetting(file)
			if err != nil {
				return nil, fmt.Errorf("%w: p11-kit's configuration: %w", signer.ErrUnavailable, err)
			}
			if ok {
				found[name] = library
			}
		}
	}
	for name, library := range found {
		if library == "" {
			delete(found, name)
		}
	}
	return found, nil
}

// moduleSetting reads the value of "module:" from a configuration file, and whether it stands there.
func moduleSetting(path string) (value string, ok bool, err error) {
	f, err := os.Open(path) // #nosec G304 -- a file of the machine's own configuration
	if err != nil {
		return "", false, err
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(io.LimitReader(f, maxModuleConfig))
	for lines.Scan() {
		name, v, found := strings.Cut(lines.Text(), ":")
		if found && strings.TrimSpace(name) == "module" {
			return strings.TrimSpace(v), true, nil
		}
	}
	return "", false, lines.Err()
}

// absolute is where a library lies; one that is nowhere is left in the first folder, for the error that names it.
func (p p11kit) absolute(library string) string {
	if filepath.IsAbs(library) {
		return library
	}
	for _, folder := range p.modules {
		if found, err := filepath.Glob(filepath.Join(folder, library)); err == nil && len(found) > 0 {
			return found[0]
		}
	}
	return filepath.Join(p.modules[0], library)
}

// libraryName is a library's name without what the system adds to it.
func libraryName(path string) string {
	name := strings.TrimPrefix(filepath.Base(path), "lib")
	for _, suffix := range []string{".so", ".dylib", ".dll"} {
		if cut, ok := strings.CutSuffix(name, suffix); ok {
			return cut
		}
	}
	return name
}
