// Package softhsmtest gives a test a PKCS#11 token of its own: a SoftHSM2 token in a temporary folder, which
// is gone when the test ends.
//
//	tok := softhsmtest.New(t)
//	tok.Import(t, keyPEM, "vendor", []byte{1})
//	ref, err := signer.ParseRef(tok.Ref("vendor"))
//	key, err := pkcs11.Backend(pkcs11.Options{}).Open(ctx, ref, signer.OpenOptions{})
//
// Faults come from two rigs around such a token: BuildFaultModule makes a PKCS#11 module that stands before
// SoftHSM2 and does what a script says (return values, locked PINs, hangs, crashes), and NewP11Kit puts the token
// behind p11-kit's socket, whose server can be stopped and killed.
//
// SoftHSM2 must be installed (Debian: apt-get install softhsm2). A missing one fails the test rather than
// skipping it: a build that signs with an HSM is not tested without one.
//
// SoftHSM2 finds its tokens by the variable SOFTHSM2_CONF, which New sets for the process. So a test that uses
// this package must not run in parallel, and close its keys before it calls New again. Child processes get the
// variable from Env.
//
// The PIN goes to softhsm2-util on its command line, where every process list shows it. That is fine for a
// token that lives for one test and holds a test key, and for nothing else.
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

// utilWait bounds one run of softhsm2-util; an import takes some 30 ms.
const utilWait = 30 * time.Second

// Token is a SoftHSM2 token that lives as long as its test. Its fields are not to be changed. Its methods may
// be used by several goroutines at once.
type Token struct {
	Dir     string // the folder of everything below
	Conf    string // SOFTHSM2_CONF
	Module  string // absolute path of libsofthsm2
	Label   string // of the token: CKA_LABEL's counterpart, 1 to 32 bytes
	PIN     string // the user PIN
	PINFile string // holds PIN and a newline; mode 0600
}

// Option changes what New makes.
type Option func(*Token)

// WithLabel names the token, in 1 to 32 bytes. Without it the label is "hsmsign-test".
func WithLabel(label string) Option { return func(t *Token) { t.Label = label } }

// WithPIN sets the user PIN, in 4 to 255 bytes. Without it the PIN is "648219".
func WithPIN(pin string) Option { return func(t *Token) { t.PIN = pin } }

// WithDir adds the token to those in the folder of another one, so that one module shows them all.
func WithDir(other *Token) Option { return func(t *Token) { t.Dir = other.Dir } }

// New makes an empty token and sets SOFTHSM2_CONF until the test ends. It ends the test when SoftHSM2 is
// missing or refuses.
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

// Import puts a private key into the token, with its public key beside it.
//
// keyPEM is one PKCS#8 key, "BEGIN PRIVATE KEY", not encrypted; label becomes CKA_LABEL and the bytes of id
// CKA_ID. The same label or id may be used again, for a test of what happens then.
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
	// --force: without it softhsm2-util refuses an id that is there already.
	t.util(tb, "--import", f.Name(), "--token", t.Label, "--pin", t.PIN, "--label", label, "--id", hex.EncodeToString(id), "--force")
}

// Ref is the key reference of an object: a PKCS#11 URI (RFC 7512) with module-path and pin-source. An empty
// object names whatever key the token holds.
func (t *Token) Ref(object string) string {
	ref := "pkcs11:token=" + url.PathEscape(t.Label)
	if object != "" {
		ref += ";object=" + url.PathEscape(object)
	}
	return ref + "?module-path=" + escape(t.Module) + "&pin-source=file:" + escape(t.PINFile)
}

// escape makes a file's path fit for a query attribute (RFC 7512 section 2.3, pk11-qchar).
func escape(path string) string {
	return strings.ReplaceAll((&url.URL{Path: path}).EscapedPath(), "&", "%26")
}

// Env is what a child process needs to see the token, to be added to os.Environ.
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

// FindModule finds SoftHSM2's PKCS#11 module in the places where the packages of Debian, Fedora, Arch and
// Homebrew put it. The path is absolute. The error says how to install it.
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
