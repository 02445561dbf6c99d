// Package config reads hsmsign.yaml, the file with the settings of the command line. A flag or its environment variable
// overrides the file. Find selects the file, Load reads it, and Parse reads a text.
//
// Reading is strict: an unknown or repeated key, a wrong type, a tab, a second document, an anchor or a tag is an error
// with its line and column, so that a typing error cannot weaken a setting. The file contains no secrets: a PIN or
// passphrase is named by the file that contains it.
//
// hsmsign.example.yaml, next to go.mod, shows every key. All functions are safe for concurrent use.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"syscall"

	"hsmsign/agent/policy"
	"hsmsign/fault"
	"hsmsign/internal/suggest"
)

// Config is the content of hsmsign.yaml. A zero field is not set. The fields are those of the flags with the same
// names, except Modules, which has no flag, and Vendors.
//
// A new key is a new field: Parse checks and decodes nested structs, maps and lists by their types. The tag values lists
// the only strings that a field accepts, and path:"absolute" demands absolute paths.
type Config struct {
	Key       string   `yaml:"key"`                             // reference of the vendor key, for signer.ParseRef
	Cert      string   `yaml:"cert"`                            // path of the vendor certificate
	Chain     []string `yaml:"chain"`                           // paths of intermediate and root certificates
	TrustRoot []string `yaml:"trust-root"`                      // paths of trusted roots, in addition to Apple's
	Format    string   `yaml:"format" values:"base64 or plist"` // of the request file
	Digest    string   `yaml:"digest" values:"sha256 or sha1"`  // of the signature
	OutDir    string   `yaml:"out-dir"`                         // folder for the finished requests
	Modules   []string `yaml:"modules" path:"absolute"`         // PKCS#11 modules that may be loaded; nil: any; empty: none
	Vendor    string   `yaml:"vendor"`                          // name of the active one of Vendors; may be empty
	Ledger    Ledger   `yaml:"ledger" scalar:"store"`           // the reference of the store, or several keys
	// Vendors are several vendor identities by name, for the time of a renewal. They exclude Key, Cert and Chain of the
	// Config itself. Its TrustRoot applies to those that have none.
	Vendors map[string]Vendor `yaml:"vendors"`
	// Profiles are identities that sign configuration profiles, by name; Profile is the active one, and may be empty if there is
	// only one. Their keys are not those of vendor identities.
	Profiles map[string]ProfileIdentity `yaml:"profiles"`
	Profile  string                     `yaml:"profile"`
	// Callers are those who may ask for requests, by name, and Roles what they may. With callers nobody else may.
	Callers map[string]policy.CallerConfig `yaml:"callers"`
	Roles   map[string]policy.RoleConfig   `yaml:"roles"`
	Serve   Serve                          `yaml:"serve"`
	OIDC    map[string]OIDC                `yaml:"oidc"` // issuers of OIDC tokens, by the names that callers use
	Notify  Notify                         `yaml:"notify"`
	Agent   Agent                          `yaml:"agent" scalar:"url"` // the URL of the service that signs, or several keys
}

// Empty returns whether nothing is set, as in a file with comments alone.
func (c *Config) Empty() bool { return reflect.ValueOf(*c).IsZero() }

// Notify is how hsmsign serve tells people that something waits for them.
type Notify struct {
	Link    string  `yaml:"link"` // URL of the service, for links; default: from serve
	SMTP    SMTP    `yaml:"smtp"`
	Webhook Webhook `yaml:"webhook"`
}

// SMTP is a mail server.
type SMTP struct {
	Host         string   `yaml:"host"`
	Port         int      `yaml:"port"` // 0: 587
	From         string   `yaml:"from"` // address of the sender
	To           []string `yaml:"to"`   // addresses of those who get notices
	Username     string   `yaml:"username"`
	PasswordFile string   `yaml:"password-file"` // mode 0600
	CA           string   `yaml:"ca"`            // path, PEM: CAs of the server, instead of those of the system
}

// Set returns whether anything is set.
func (s SMTP) Set() bool {
	return s.Host != "" || s.Port != 0 || s.From != "" || len(s.To) > 0 || s.Username != "" || s.PasswordFile != "" || s.CA != ""
}

// Webhook is a server that gets notices as JSON.
type Webhook struct {
	URL        string `yaml:"url"`
	SecretFile string `yaml:"secret-file"` // mode 0600: the key of the signatures
	CA         string `yaml:"ca"`          // path, PEM: CAs of the server, instead of those of the system
}

// in returns the paths joined to dir.
func (n Notify) in(dir string) Notify {
	n.SMTP.PasswordFile, n.SMTP.CA = inFolder(dir, n.SMTP.PasswordFile), inFolder(dir, n.SMTP.CA)
	n.Webhook.SecretFile, n.Webhook.CA = inFolder(dir, n.Webhook.SecretFile), inFolder(dir, n.Webhook.CA)
	return n
}

// Agent is the service that signs, and how its caller identifies itself. In the file it is this mapping, or only the URL.
type Agent struct {
	URL        string `yaml:"url"`         // https://HOST:PORT, unix:///PATH, http://LOOPBACK:PORT
	ClientCert string `yaml:"client-cert"` // path, PEM
	ClientKey  string `yaml:"client-key"`  // path, PEM, mode 0600
	CA         string `yaml:"ca"`          // path, PEM: CAs of the service's certificate, instead of those of the system
	TokenFrom  string `yaml:"token-from"`  // where the token comes from, for secret.Reader
	AWS        bool   `yaml:"aws"`         // the credentials are those of the AWS SDK
}

// UnmarshalYAML decodes either form.
func (a *Agent) UnmarshalYAML(unmarshal func(any) error) error {
	if unmarshal(&a.URL) == nil {
		return nil
	}
	type mapping Agent
	return unmarshal((*mapping)(a))
}

// in returns the paths joined to dir.
func (a Agent) in(dir string) Agent {
	a.ClientCert, a.ClientKey, a.CA = inFolder(dir, a.ClientCert), inFolder(dir, a.ClientKey), inFolder(dir, a.CA)
	if path, ok := strings.CutPrefix(a.TokenFrom, "file:"); ok {
		a.TokenFrom = "file:" + inFolder(dir, path)
	}
	return a
}

// Ledger says where the ledger and its keys are. In the file it is this mapping, or only the reference of the store.
type Ledger struct {
	Store          string `yaml:"store"`           // sqlite:PATH or postgres://...
	Origin         string `yaml:"origin"`          // name of the ledger
	VerifierKey    string `yaml:"verifier-key"`    // as ledger init prints it
	CheckpointKey  string `yaml:"checkpoint-key"`  // file with the secret key
	LastCheckpoint string `yaml:"last-checkpoint"` // file that keeps the newest checkpoint
	// Watch are files and endpoints (HOST:PORT, https://HOST) whose certificates ledger due reports.
	Watch []string `yaml:"watch"`

	Copies    []string  `yaml:"copies"`    // files to which checkpoints are appended
	Witnesses []Witness `yaml:"witnesses"` // servers that cosign checkpoints
	Required  int       `yaml:"required"`  // how many operators of witnesses must have cosigned a request before it is released
}

// Witness is a server that cosigns the ledger's checkpoints.
type Witness struct {
	Name        string `yaml:"name"`         // unique
	Operator    string `yaml:"operator"`     // who runs it; the witnesses of one operator count once
	URL         string `yaml:"url"`          // prefix of its addresses
	VerifierKey string `yaml:"verifier-key"` // its public key
}

// UnmarshalYAML decodes either form.
func (l *Ledger) UnmarshalYAML(unmarshal func(any) error) error {
	if unmarshal(&l.Store) == nil {
		return nil
	}
	type mapping Ledger
	return unmarshal((*mapping)(l))
}

// in returns the paths joined to dir. It changes the list in place.
func (l Ledger) in(dir string) Ledger {
	if path, ok := strings.CutPrefix(l.Store, "sqlite:"); ok {
		l.Store = "sqlite:" + inFolder(dir, path)
	}
	l.CheckpointKey, l.LastCheckpoint = inFolder(dir, l.CheckpointKey), inFolder(dir, l.LastCheckpoint)
	for i, target := range l.Watch {
		if !strings.Contains(target, ":") || strings.HasPrefix(target, ".") { // not HOST:PORT, not a URL
			l.Watch[i] = inFolder(dir, target)
		}
	}
	for i := range l.Copies {
		l.Copies[i] = inFolder(dir, l.Copies[i])
	}
	return l
}

// Vendor is one vendor identity. The fields are those of Config; Key is always set.
type Vendor struct {
	Key       string   `yaml:"key"`
	Cert      string   `yaml:"cert"`
	Chain     []string `yaml:"chain"`
	TrustRoot []string `yaml:"trust-root"`
}

// ProfileIdentity is a key and its certificate that sign configuration profiles.
type ProfileIdentity struct {
	Key   string   `yaml:"key"`   // reference
	Cert  string   `yaml:"cert"`  // path of the certificate, or the whole chain
	Chain []string `yaml:"chain"` // paths of the certificates of its issuers
}

// in returns the identity with its relative paths joined to dir. It changes the list in place.
func (i ProfileIdentity) in(dir string) ProfileIdentity {
	own := Vendor{i.Key, i.Cert, i.Chain, nil}.in(dir)
	return ProfileIdentity{own.Key, own.Cert, own.Chain}
}

// Error is an error in a config file. Line and Column count from 1; both are 0 if the error is about the file as a whole.
type Error struct {
	File         string
	Line, Column int
	Message      string // one line, lower case; never a value that may be a secret
	Fix          string // what to do, one line
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

// systemFile is the last place that Find looks at.
const systemFile = "/etc/hsmsign/hsmsign.yaml"

// Find returns the path of the config file to load, and its origin: "--config" (explicit), "HSMSIGN_CONFIG", "user" or
// "system", the first that exists. It returns "", "" and no error if there is none. It ignores the working directory,
// because a config file names a module that is loaded as code.
//
// A file that --config or HSMSIGN_CONFIG names must exist; otherwise the error wraps fs.ErrNotExist. env is os.Getenv,
// userConfigDir is os.UserConfigDir, whose error means that the user has no config folder.
func Find(explicit string, env func(string) string, userConfigDir func() (string, error)) (path, where string, err error) {
	return find(explicit, env, userConfigDir, systemFile)
}

func find(explicit string, env func(string) string, userConfigDir func() (string, error), system string) (path, where string, err error) {
	user := ""
	if dir, err := userConfigDir(); err == nil {
		user = filepath.Join(dir, "hsmsign", "hsmsign.yaml")
	}
	for _, place := range []struct {
		path, where string
		required    bool
	}{
		{explicit, "--config", true},
		{env("HSMSIGN_CONFIG"), "HSMSIGN_CONFIG", true},
		{user, "user", false},
		{system, "system", false},
	} {
		if place.path == "" {
			continue
		}
		_, err := os.Stat(place.path)
		switch {
		case err == nil:
			return place.path, place.where, nil
		case place.required || !errors.Is(err, fs.ErrNotExist):
			return "", "", fmt.Errorf("config file of %s: %w", place.where, err)
		}
	}
	return "", "", nil
}

// SuggestVendor returns the hint for an unknown vendor name: the most similar of names, or all of them.
func SuggestVendor(name string, names []string) string {
	if len(names) == 0 {
		return "there are no vendors in the configuration"
	}
	return suggest.Name(name, names, "there are "+strings.Join(names, ", "))
}

// MaxFile is the size limit of a config file, in bytes.
const MaxFile = 256 << 10

// Load reads a config file. Because the file names a module that is loaded as code, it must belong to root or to the
// user, and nobody else may have write access; otherwise the error is *Error, as for an error of Parse.
//
// Relative paths become paths relative to the folder of the file, not to the working directory: cert, chain, trust-root,
// out-dir, the files of the ledger, of serve, oidc, notify and agent, and the path and passphrase-file of a file: reference. Other references (module-path and pin-source of
// pkcs11:, also for a certificate in a token) do not change; use absolute paths in them. credential:NAME does not change either (see package secret).
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
	c.Key, c.Cert, c.OutDir, c.Ledger = own.Key, own.Cert, inFolder(dir, c.OutDir), c.Ledger.in(dir)
	c.Serve, c.Notify, c.Agent = c.Serve.in(dir), c.Notify.in(dir), c.Agent.in(dir)
	for name, v := range c.Vendors {
		c.Vendors[name] = v.in(dir)
	}
	for name, i := range c.Profiles {
		c.Profiles[name] = i.in(dir)
	}
	for name, i := range c.OIDC {
		i.CA, i.TokenFile = inFolder(dir, i.CA), inFolder(dir, i.TokenFile)
		c.OIDC[name] = i
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

// credential is how a systemd credential begins, which is named instead of a file with a secret.
const credential = "credential:" // #nosec G101 -- a prefix

// inFolder returns a relative path joined to dir. Other paths, references to a token, and systemd credentials do not change.
func inFolder(dir, path string) string {
	if path == "" || filepath.IsAbs(path) || strings.HasPrefix(strings.ToLower(path), "pkcs11:") || strings.HasPrefix(path, credential) {
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
		if encoded == "" || strings.HasPrefix(encoded, "/") || strings.HasPrefix(encoded, credential) {
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
