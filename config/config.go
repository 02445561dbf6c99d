// Package config reads hsmsign.yaml, the file that holds the command line's flags so that they need not be
// typed. A flag or its environment variable goes before the file.
//
//	path, where, err := config.Find(flag, os.Getenv, os.UserConfigDir)
//	if path != "" {
//		cfg, err := config.Load(path)
//	}
//
// It is strict: an unknown or repeated key, a wrong type, a tab, a second document, an anchor or a tag is
// refused with its line and column, because a typing error must not weaken a setting. It holds no secrets, by
// design: a PIN or passphrase is named by the file it lies in.
//
// hsmsign.example.yaml, next to go.mod, shows every key. All functions are safe for concurrent use.
package config

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"hsmsign/fault"
)

// MaxFile is the largest config file that is read, in bytes.
const MaxFile = 256 << 10

// Config is what hsmsign.yaml says. A zero field is not set. The fields are those of the flags with the same
// names, but for Modules, which no flag can change, and Vendors, among which Vendor chooses.
type Config struct {
	Key       string   `yaml:"key"`        // the vendor key's reference, as signer.ParseRef reads it
	Cert      string   `yaml:"cert"`       // path of the vendor certificate
	Chain     []string `yaml:"chain"`      // paths of intermediate and root certificates
	TrustRoot []string `yaml:"trust-root"` // paths of roots trusted besides Apple's
	Format    string   `yaml:"format"`     // "base64" or "plist"
	Digest    string   `yaml:"digest"`     // "sha256" or "sha1"
	OutDir    string   `yaml:"out-dir"`    // folder for the finished requests
	Modules   []string `yaml:"modules"`    // absolute paths of the PKCS#11 modules that may be loaded; none: any
	Vendor    string   `yaml:"vendor"`     // which of Vendors is active; empty: none
	// Vendors are several vendor identities by name, for the time of a renewal. With them there is no Key, Cert or
	// Chain of the Config itself; its TrustRoot counts for those that have none.
	Vendors map[string]Vendor `yaml:"vendors"`
}

// Vendor is one vendor identity. The fields are those of Config; Key is always set.
type Vendor struct {
	Key       string   `yaml:"key"`
	Cert      string   `yaml:"cert"`
	Chain     []string `yaml:"chain"`
	TrustRoot []string `yaml:"trust-root"`
}

// Error is a config file that is refused. Line and Column count from 1; both are 0 when the file as a whole is
// meant.
type Error struct {
	File         string
	Line, Column int
	Message      string // one line, lower case; never a value that may be a secret
	Fix          string // what to do, one line; may be empty
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%s: %s", e.File, e.Message)
	}
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Message)
}

// Hint returns what to do.
func (e *Error) Hint() string { return e.Fix }

// Kind returns fault.Usage.
func (e *Error) Kind() fault.Kind { return fault.Usage }

// Load reads a config file. Since it names the module that is loaded as code, it must belong to root or to the
// user, and nobody else may be able to write to it; otherwise, and when Parse refuses it, the error is *Error.
//
// Relative paths are taken from the folder of the file, not from the working directory: cert, chain,
// trust-root, out-dir, and in a key that is a file: reference its path and its passphrase-file. Other
// references (a pkcs11: module-path or pin-source, also of a certificate in a token) are left as they are; write
// absolute paths there.
func Load(path string) (*Config, error) {
	data, err := read(path)
	if err != nil {
		return nil, err
	}
	c, err := Parse(path, data)
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(path)
	own := Vendor{c.Key, c.Cert, c.Chain, c.TrustRoot}.from(dir)
	c.Key, c.Cert = own.Key, own.Cert
	c.OutDir = fromFolder(dir, c.OutDir)
	for name, v := range c.Vendors {
		c.Vendors[name] = v.from(dir)
	}
	return c, nil
}

// from takes relative paths from the folder dir.
func (v Vendor) from(dir string) Vendor {
	v.Key, v.Cert = fromFolderRef(dir, v.Key), fromFolder(dir, v.Cert)
	for _, list := range [][]string{v.Chain, v.TrustRoot} {
		for i := range list {
			list[i] = fromFolder(dir, list[i])
		}
	}
	return v
}

// read checks the open file, so that it cannot be swapped in between.
func read(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|nonblock, 0) // #nosec G304 -- the path is the operator's own
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	refuse := func(message, fix string) error { return &Error{File: path, Message: message, Fix: fix} }
	if !info.Mode().IsRegular() {
		return nil, refuse("it is not a regular file", "")
	}
	// Windows has no such modes: Go reports 0666 for every writable file there.
	if mode := info.Mode().Perm(); mode&0o022 != 0 && runtime.GOOS != "windows" {
		return nil, refuse(fmt.Sprintf("group or others can write to it (mode %04o)", mode), "chmod go-w "+path)
	}
	if uid, ok := owner(info); ok && !trusted(uid, os.Geteuid()) {
		return nil, refuse(fmt.Sprintf("it belongs to user %d, neither to root nor to you", uid), "chown root "+path)
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return data, nil
}

// trusted: root could change the program itself, and the user runs it.
func trusted(uid, me int) bool { return uid == 0 || uid == me }

// fromFolder makes a relative path one from dir; a certificate in a token is none.
func fromFolder(dir, path string) string {
	if path == "" || filepath.IsAbs(path) || strings.HasPrefix(strings.ToLower(path), "pkcs11:") {
		return path
	}
	return filepath.Join(dir, path)
}

// fromFolderRef does the same for the paths in a file: reference; all other references stay as they are.
func fromFolderRef(dir, ref string) string {
	const scheme = "file:"
	if len(ref) <= len(scheme) || !strings.EqualFold(ref[:len(scheme)], scheme) {
		return ref
	}
	path, query, hasQuery := strings.Cut(ref[len(scheme):], "?")
	from := func(encoded string) string {
		if encoded == "" || strings.HasPrefix(encoded, "/") {
			return encoded
		}
		return strings.TrimSuffix(escapeFolder(dir), "/") + "/" + encoded
	}
	path = from(path)
	if !hasQuery {
		return scheme + path
	}
	attrs := strings.Split(query, "&")
	for i, attr := range attrs {
		if value, ok := strings.CutPrefix(attr, "passphrase-file="); ok {
			attrs[i] = "passphrase-file=" + from(value)
		}
	}
	return scheme + path + "?" + strings.Join(attrs, "&")
}

// escapeFolder percent-encodes what has a meaning in a key reference.
func escapeFolder(dir string) string {
	var b strings.Builder
	for _, c := range []byte(dir) {
		if c <= ' ' || c == 0x7f || strings.IndexByte("%?&#", c) >= 0 {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
