// Package softhsmtest creates a PKCS#11 token for a test: a SoftHSM2 token in a temporary folder, which is removed when the
// test ends. Import stores a key in it, and Ref returns the reference that signer/pkcs11 opens.
//
// There are two ways to add faults. BuildFaultModule returns a PKCS#11 module that forwards to SoftHSM2 and follows a
// script: return values, wrong attributes, locked PINs, hangs, crashes. NewP11Kit puts the token behind p11-kit's socket,
// whose server can be stopped and killed.
//
// SoftHSM2 must be installed (Debian: apt-get install softhsm2). If it is missing, the test fails and is not skipped: a
// build that signs with an HSM is not tested without one.
//
// SoftHSM2 finds its tokens by the variable SOFTHSM2_CONF, which New sets for the process. So a test that uses this package
// must not run in parallel, and must close its keys before it calls New again. Child processes get the variable from Env.
//
// The PIN is passed to softhsm2-util on its command line, where every process list shows it. Use these tokens for test keys
// only.
package softhsmtest

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// confVariable names the configuration file for SoftHSM2.
const confVariable = "SOFTHSM2_CONF"

// utilWait is the time limit of one run of softhsm2-util or cc; an import takes about 30 ms.
const utilWait = 30 * time.Second

// Token is a SoftHSM2 token that exists as long as its test. Do not change its fields. Its methods are safe for concurrent
// use.
type Token struct {
	Dir     string // contains all files below
	Conf    string // SOFTHSM2_CONF
	Module  string // absolute path of libsofthsm2
	Label   string // of the token, 1 to 32 bytes
	PIN     string // the user PIN
	PINFile string // contains PIN and a newline; mode 0600
}

// Option changes the token that New creates.
type Option func(*Token)

// WithLabel sets the label of the token, 1 to 32 bytes. The default is "hsmsign-test".
func WithLabel(label string) Option { return func(t *Token) { t.Label = label } }

// WithPIN sets the user PIN, 4 to 255 bytes. The default is "648219".
func WithPIN(pin string) Option { return func(t *Token) { t.PIN = pin } }

// WithDir adds the token to those in the folder of another token, so that one module shows all of them.
func WithDir(other *Token) Option { return func(t *Token) { t.Dir = other.Dir } }

// New creates an empty token and sets SOFTHSM2_CONF until the test ends. It ends the test if SoftHSM2 is missing or fails.
func New(tb testing.TB, opts ...Option) *Token {
	tb.Helper()
	t := &Token{Label: "hsmsign-test", PIN: "648219"}
	for _, opt := range opts {
		opt(t)
	}
	var err error
	if t.Module, err = FindModule(); err != nil {
		tb.Fatal(err)
	}
	if t.Dir == "" {
		t.Dir = tb.TempDir()
	}
	t.Conf = filepath.Join(t.Dir, "softhsm2.conf")
	tokens := filepath.Join(t.Dir, "tokens")
	if err := os.MkdirAll(tokens, 0o700); err != nil {
		tb.Fatal(err)
	}
	conf := "directories.tokendir = " + tokens + "\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n"
	if err := os.WriteFile(t.Conf, []byte(conf), 0o600); err != nil {
		tb.Fatal(err)
	}
	pin, err := os.CreateTemp(t.Dir, "pin-")
	if err != nil {
		tb.Fatal(err)
	}
	t.PINFile = pin.Name()
	if _, err = pin.WriteString(t.PIN + "\n"); err == nil {
		err = pin.Close()
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Setenv(confVariable, t.Conf)
	t.util(tb, "--init-token", "--free", "--label", t.Label, "--pin", t.PIN, "--so-pin", t.PIN+"-so")
	return t
}

// Import stores a private key and its public key in the token. keyPEM is one PKCS#8 key, "BEGIN PRIVATE KEY", not
// encrypted; label becomes CKA_LABEL and the bytes of id become CKA_ID. The same label or id may be used again.
func (t *Token) Import(tb testing.TB, keyPEM []byte, label string, id []byte) {
	tb.Helper()
	f, err := os.CreateTemp(t.Dir, "import-*.pem")
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = os.Remove(f.Name()) }()
	if _, err = f.Write(keyPEM); err == nil {
		err = f.Close()
	}
	if err != nil {
		tb.Fatal(err)
	}
	// Without --force softhsm2-util refuses an id that exists.
	t.util(tb, "--import", f.Name(), "--token", t.Label, "--pin", t.PIN, "--label", label, "--id", hex.EncodeToString(id), "--force")
}

// Ref returns the key reference of an object: a PKCS#11 URI (RFC 7512) with module-path and pin-source. An empty object
// matches every key of the token.
func (t *Token) Ref(object string) string {
	ref := "pkcs11:token=" + url.PathEscape(t.Label)
	if object != "" {
		ref += ";object=" + url.PathEscape(object)
	}
	return ref + "?module-path=" + escape(t.Module) + "&pin-source=file:" + escape(t.PINFile)
}

// escape encodes a path for a query attribute (RFC 7512 section 2.3, pk11-qchar).
func escape(path string) string {
	return strings.ReplaceAll((&url.URL{Path: path}).EscapedPath(), "&", "%26")
}

// Env returns the variables that a child process needs to see the token, in addition to os.Environ.
func (t *Token) Env() []string { return []string{confVariable + "=" + t.Conf} }

// util runs softhsm2-util on this token.
func (t *Token) util(tb testing.TB, args ...string) {
	tb.Helper()
	path, err := exec.LookPath("softhsm2-util")
	if err != nil {
		tb.Fatalf("%v; %s", err, installHint)
	}
	ctx, cancel := context.WithTimeout(context.Background(), utilWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...) // #nosec G204 -- a test's own arguments
	cmd.Env = append(os.Environ(), t.Env()...)
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("softhsm2-util %s: %v: %s", args[0], err, strings.TrimSpace(string(out)))
	}
}

const installHint = "SoftHSM2 is needed: apt-get install softhsm2 (Debian, Ubuntu), dnf install softhsm (Fedora), brew install softhsm (macOS), pacman -S softhsm (Arch)"

// FindModule returns the absolute path of SoftHSM2's PKCS#11 module, where the packages of Debian, Fedora, Arch and Homebrew
// install it. The error says how to install it.
func FindModule() (string, error) {
	for _, pattern := range []string{
		"/usr/lib/softhsm/libsofthsm2.so",           // Debian, Ubuntu
		"/usr/lib/*-linux-*/softhsm/libsofthsm2.so", // Debian's multiarch folders
		"/usr/lib64/pkcs11/libsofthsm2.so",          // Fedora, RHEL
		"/usr/lib64/softhsm/libsofthsm2.so",         // openSUSE
		"/usr/lib/pkcs11/libsofthsm2.so",            // Arch
		"/usr/local/lib/softhsm/libsofthsm2.so",     // from source; Homebrew on Intel
		"/opt/homebrew/lib/softhsm/libsofthsm2.so",  // Homebrew on Apple silicon
		"/opt/homebrew/opt/softhsm/lib/softhsm/libsofthsm2.so",
	} {
		if found, err := filepath.Glob(pattern); err == nil && len(found) > 0 {
			return found[0], nil
		}
	}
	return "", fmt.Errorf("no libsofthsm2.so in the usual places; %s", installHint)
}
