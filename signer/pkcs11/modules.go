package pkcs11

import (
	"os"
	"path/filepath"

	"hsmsign/signer/pkcs11/internal/p11kit"
)

// softHSMPaths is where Linux distributions and Homebrew install SoftHSM2's module, which need not be in p11-kit's configuration.
var softHSMPaths = []string{
	"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/*-linux-*/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so",
	"/usr/lib64/pkcs11/libsofthsm2.so", "/usr/local/lib/softhsm/libsofthsm2.so", "/opt/homebrew/lib/softhsm/libsofthsm2.so",
}

// Modules returns the name of each PKCS#11 module that is installed on this machine, by its absolute path with links followed: those of
// p11-kit's configuration, and SoftHSM2. It loads none. A configuration that cannot be read counts as empty.
func Modules() map[string]string {
	named, _ := p11kit.Installed().Paths() // Find has the error for a module that is asked for
	found := map[string]string{}
	add := func(path, name string) {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			found[realPath(path)] = name
		}
	}
	for _, pattern := range softHSMPaths {
		paths, _ := filepath.Glob(pattern) // the patterns are valid
		for _, path := range paths {
			add(path, "softhsm2")
		}
	}
	for name, path := range named {
		add(path, name)
	}
	return found
}

// realPath follows links. It returns the path of a file that does not exist, for which findModule reports the error.
func realPath(path string) string {
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		return resolved
	}
	return path
}
