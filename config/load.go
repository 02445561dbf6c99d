package config

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// MaxFile is the size limit of a config file, in bytes.
const MaxFile = 256 << 10

// Load reads a config file. Because the file names a module that is loaded as code, it must belong to root or to the
// user, and nobody else may have write access; otherwise the error is *Error, as for an error of Parse.
//
// Relative paths become paths relative to the folder of the file, not to the working directory: cert, chain, trust-root,
// out-dir, and the path and passphrase-file of a file: reference. Other references (module-path and pin-source of
// pkcs11:, also for a certificate in a token) do not change; use absolute paths in them.
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
	own := Vendor{c.Key, c.Cert, c.Chain, c.TrustRoot}.in(dir)
	c.Key, c.Cert, c.OutDir = own.Key, own.Cert, inFolder(dir, c.OutDir)
	for name, v := range c.Vendors {
		c.Vendors[name] = v.in(dir)
	}
	return c, nil
}

// in returns the identity with its relative paths joined to dir. It changes the lists in place.
func (v Vendor) in(dir string) Vendor {
	v.Key, v.Cert = refInFolder(dir, v.Key), inFolder(dir, v.Cert)
	for _, list := range [][]string{v.Chain, v.TrustRoot} {
		for i := range list {
			list[i] = inFolder(dir, list[i])
		}
	}
	return v
}

// read returns the content of the file. It checks the open file, so that nobody can replace it between check and read.
func read(path string) ([]byte, error) {
	// O_NONBLOCK: do not wait for the writer of a pipe. Windows ignores it.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // #nosec G304 -- the operator chooses the path
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, &Error{File: path, Message: "not a regular file", Fix: "name a regular file"}
	}
	// Go reports mode 0666 for every writable file on Windows.
	if mode := info.Mode().Perm(); mode&0o022 != 0 && runtime.GOOS != "windows" {
		return nil, &Error{File: path, Message: fmt.Sprintf("group or others can write to it (mode %04o)", mode), Fix: "chmod go-w " + path}
	}
	if uid, ok := owner(info); ok && !trusted(uid, os.Geteuid()) {
		return nil, &Error{File: path, Message: fmt.Sprintf("it belongs to user %d, neither to root nor to you", uid), Fix: "chown root " + path}
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return data, nil
}

// trusted reports whether user me accepts a file of user uid: root can replace hsmsign itself, and me runs it.
func trusted(uid, me int) bool { return uid == 0 || uid == me }

// inFolder returns a relative path joined to dir. Other paths, and references to a token, do not change.
func inFolder(dir, path string) string {
	if path == "" || filepath.IsAbs(path) || strings.HasPrefix(strings.ToLower(path), "pkcs11:") {
		return path
	}
	return filepath.Join(dir, path)
}

// refInFolder is inFolder for the paths in a file: reference. Other references do not change.
func refInFolder(dir, ref string) string {
	const scheme = "file:"
	if len(ref) <= len(scheme) || !strings.EqualFold(ref[:len(scheme)], scheme) {
		return ref
	}
	join := func(encoded string) string {
		if encoded == "" || strings.HasPrefix(encoded, "/") {
			return encoded
		}
		return strings.TrimSuffix(escapeFolder(dir), "/") + "/" + encoded
	}
	path, query, hasQuery := strings.Cut(ref[len(scheme):], "?")
	if !hasQuery {
		return scheme + join(path)
	}
	attrs := strings.Split(query, "&")
	for i, attr := range attrs {
		if value, ok := strings.CutPrefix(attr, "passphrase-file="); ok {
			attrs[i] = "passphrase-file=" + join(value)
		}
	}
	return scheme + join(path) + "?" + strings.Join(attrs, "&")
}

// escapeFolder percent-encodes the characters that have a meaning in a key reference.
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
