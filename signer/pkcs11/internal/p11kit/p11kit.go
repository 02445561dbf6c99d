// Package p11kit finds PKCS#11 modules by name in p11-kit's configuration (pkcs11.conf(5)).
//
// It does not read the user's own configuration, which needs the environment, nor enable-in and disable-in, which are
// for programs that load all modules. Everything here is safe for concurrent use.
package p11kit

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

// The limits of a configuration: a machine has a handful of modules, and a file a dozen lines.
const (
	maxConfigs = 256
	maxConfig  = 64 << 10
)

// Config is where p11-kit keeps the modules of a machine.
type Config struct {
	Folders []string // contain NAME.module files; an earlier folder overrides a later one
	Modules []string // patterns of the folders to which a relative module path belongs; at least one
}

// Installed returns the configuration that Linux distributions and Homebrew install.
func Installed() Config {
	return Config{
		Folders: []string{"/etc/pkcs11/modules", "/usr/share/p11-kit/modules", "/opt/homebrew/share/p11-kit/modules"},
		Modules: []string{"/usr/lib/*-linux-*/pkcs11", "/usr/lib64/pkcs11", "/usr/lib/pkcs11", "/usr/local/lib/pkcs11", "/opt/homebrew/lib/pkcs11"},
	}
}

// Find returns the absolute path of the module with this name: that of its configuration file without ".module", or that
// of its library without "lib" and suffix, in any case (RFC 7512 section 2.3, module-name). Errors wrap
// signer.ErrKeyNotFound, signer.ErrAmbiguousKey, or another family if the configuration cannot be read.
func (c Config) Find(name string) (string, error) {
	libraries, err := c.libraries()
	if err != nil {
		return "", err
	}
	var known, matches []string
	for config, library := range libraries {
		known = append(known, config)
		if !strings.EqualFold(config, name) && !strings.EqualFold(libraryName(library), name) {
			continue
		}
		if path := c.absolute(library); !slices.Contains(matches, path) {
			matches = append(matches, path)
		}
	}
	slices.Sort(known)
	slices.Sort(matches)
	switch len(matches) {
	case 0:
		return "", fmt.Errorf("%w: p11-kit's configuration has no module %q; it has: %s", signer.ErrKeyNotFound, name, strings.Join(known, "; "))
	case 1:
		return matches[0], nil
	}
	return "", fmt.Errorf("%w: %d modules have the name %q: %s", signer.ErrAmbiguousKey, len(matches), name, strings.Join(matches, "; "))
}

// Paths returns the absolute path of each module of the configuration, by name. A path may not exist.
func (c Config) Paths() (map[string]string, error) {
	libraries, err := c.libraries()
	for name, library := range libraries {
		libraries[name] = c.absolute(library)
	}
	return libraries, err
}

// libraries returns the "module:" of each configuration file, by the name of the file. An empty one removes the module
// (pkcs11.conf(5)), and a remote module has none.
func (c Config) libraries() (map[string]string, error) {
	found := map[string]string{}
	for _, folder := range c.Folders {
		files, err := filepath.Glob(filepath.Join(folder, "*.module"))
		if err != nil {
			return nil, fmt.Errorf("%w: folder %q: %w", signer.ErrReference, folder, err)
		}
		if len(files) > maxConfigs {
			return nil, fmt.Errorf("%w: %d files in %q; at most %d are read", signer.ErrUnsupported, len(files), folder, maxConfigs)
		}
		for _, file := range files {
			name := strings.TrimSuffix(filepath.Base(file), ".module")
			if _, overridden := found[name]; overridden {
				continue
			}
			library, ok, err := readModule(file)
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

// readModule returns the value of "module:" in a configuration file, and whether the file has it.
func readModule(path string) (value string, ok bool, err error) {
	f, err := os.Open(path) // #nosec G304 -- a file of the machine's own configuration
	if err != nil {
		return "", false, err
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(io.LimitReader(f, maxConfig))
	for lines.Scan() {
		name, v, found := strings.Cut(lines.Text(), ":")
		if found && strings.TrimSpace(name) == "module" {
			return strings.TrimSpace(v), true, nil
		}
	}
	return "", false, lines.Err()
}

// absolute returns the path of a library. If it is in no folder, that is its path in the first, for the error.
func (c Config) absolute(library string) string {
	if filepath.IsAbs(library) {
		return library
	}
	for _, folder := range c.Modules {
		if found, err := filepath.Glob(filepath.Join(folder, library)); err == nil && len(found) > 0 {
			return found[0]
		}
	}
	return filepath.Join(c.Modules[0], library)
}

// libraryName returns the name of a library without prefix and suffix.
func libraryName(path string) string {
	name := strings.TrimPrefix(filepath.Base(path), "lib")
	for _, suffix := range []string{".so", ".dylib", ".dll"} {
		if cut, ok := strings.CutSuffix(name, suffix); ok {
			return cut
		}
	}
	return name
}
