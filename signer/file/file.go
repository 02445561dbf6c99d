// Package file is the backend for keys in files: for tests, for CI, and for a machine without an HSM.
//
//	file:vendor.key                                            relative to the working directory
//	file:/etc/hsmsign/vendor.key                               absolute
//	file:///etc/hsmsign/vendor.key?passphrase-file=/run/pass   absolute, with the file of its passphrase
//
// The path is percent-decoded ("%3F" is a question mark). The query attributes are:
//
//	passphrase-file      file with the passphrase, or credential:NAME for a systemd credential; default: HSMSIGN_PASSPHRASE, then a prompt, if the key is encrypted
//	insecure-mode=allow  also read files that group or others can read, with a warning
//	unencrypted=allow    Generate may write a key without a passphrase if none is given
//
// A key is RSA of 2048 to 8192 bits, in PKCS#8 or PKCS#1, PEM or DER; in PKCS#8 encrypted with PBES2 (PBKDF2 or scrypt;
// AES or triple DES in CBC mode); in PKCS#12; or in PEM with the encryption of RFC 1421 (AES or triple DES), of which Open
// warns. The error for any other content names what it is.
//
// The private key is in the memory of this process from Open to Close, and Go does not guarantee that no copy of it
// remains: that needs an HSM. Everything here is safe for concurrent use.
package file

import (
	"context"
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync/atomic"

	"hsmsign/fault"
	"hsmsign/secret"
	"hsmsign/signer"
)

// maxFile is the limit of a file, in bytes: more than a PKCS#12 file with an RSA-8192 key and its chain needs.
const maxFile = 64 << 10

// Options configures the backend. The zero value reads keys that are not encrypted, and those whose reference names a
// passphrase file.
type Options struct {
	Secrets secret.Reader        // where a passphrase comes from
	Warn    func(message string) // reports that insecure-mode=allow or unencrypted=allow was used; nil: silent
}

// Backend opens keys in files. Errors are *signer.Error: ErrReference for a malformed reference, ErrKeyNotFound if there
// is no such file, ErrAmbiguousKey for a file with several keys, ErrAuth for a missing or wrong passphrase, and ErrBadKey
// for any other file that cannot be used. List also accepts a folder and describes the keys in it; it asks for no
// passphrase.
func Backend(opts Options) signer.Backend {
	backend := signer.NewBackend(opts.connect)
	backend.Diagnose = opts.diagnose
	return backend
}

// withHint adds a hint to an unusable key whose error has none.
func withHint(err error) error {
	if fault.Hint(err) == "" && errors.Is(err, signer.ErrBadKey) {
		return fault.WithHint(err, "name an RSA key of 2048 bits or more as PKCS#8, PKCS#1 or PKCS#12; restore a damaged key from its backup")
	}
	return err
}

// session is one operation of the backend.
type session struct {
	Options
	reference
	ref signer.Ref
}

func (o Options) connect(_ context.Context, ref signer.Ref) (*session, error) {
	r, err := parseReference(ref)
	return &session{Options: o, reference: r, ref: ref}, err
}

// Close does nothing.
func (s *session) Close() error { return nil }

// reference is a parsed key reference.
type reference struct {
	path           string
	passphraseFile string // "": not named
	insecure       bool   // read files that others can read
	unencrypted    bool   // generate a key without a passphrase
}

// parseReference reads a reference. The error wraps ErrReference.
func parseReference(ref signer.Ref) (reference, error) {
	var r reference
	if err := ref.CheckQuery("passphrase-file", "insecure-mode", "unencrypted"); err != nil {
		return r, err
	}
	for _, name := range []string{"insecure-mode", "unencrypted"} {
		if value, ok := ref.Query(name); ok && value != "allow" {
			return r, fmt.Errorf("%w: %s is %q; the only value is \"allow\"", signer.ErrReference, name, value)
		}
	}
	_, r.insecure = ref.Query("insecure-mode")
	_, r.unencrypted = ref.Query("unencrypted")
	var ok bool
	if r.passphraseFile, ok = ref.Query("passphrase-file"); ok && r.passphraseFile == "" {
		return r, fmt.Errorf("%w: passphrase-file is empty", signer.ErrReference)
	}
	raw := ref.Path
	if authority, ok := strings.CutPrefix(raw, "//"); ok {
		if !strings.HasPrefix(authority, "/") { // RFC 8089 section 2: file://host/path
			return r, fmt.Errorf("%w: it names a host; write file:///PATH with three slashes", signer.ErrReference)
		}
		raw = authority
	}
	var err error
	if r.path, err = signer.Unescape(raw); err != nil || strings.ContainsRune(r.path, 0) {
		return r, fmt.Errorf("%w: in its path a %% must be followed by two hexadecimal digits other than 00", signer.ErrReference)
	}
	return r, nil
}

// Open reads the key.
func (s *session) Open(ctx context.Context, _ signer.OpenOptions) (signer.Signer, error) {
	data, err := s.readKey()
	if err != nil {
		return nil, err
	}
	defer clear(data)
	block, err := s.keyBlock(data)
	if err != nil {
		return nil, withHint(err)
	}
	defer clear(block.Bytes)
	private, err := s.parse(ctx, block)
	if err != nil {
		return nil, withHint(err)
	}
	if formOf(block) == formOldPEM && s.Warn != nil {
		s.Warn(fmt.Sprintf("%q is %s, which is weak; %s", s.path, formOldPEM, fixOldPEM))
	}
	return newKey(s.ref, private), nil
}

// readKey returns the content of the key's file. The caller clears it.
func (s *session) readKey() ([]byte, error) {
	data, err := s.read(func(anyMode bool) ([]byte, error) {
		return secret.ReadFile(s.path, maxFile, anyMode)
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: %w", signer.ErrKeyNotFound, err)
	case errors.Is(err, secret.ErrInsecureMode):
		return nil, fault.Errorf("%w: %w", signer.ErrBadKey, err).Fix(fmt.Sprintf("chmod 600 %s, or add ?insecure-mode=allow to the reference", s.path))
	case err != nil:
		return nil, withHint(fmt.Errorf("%w: %w", signer.ErrBadKey, err))
	}
	return data, nil
}

// read reads a file that contains a secret. If the reference allows that others can read the file, and they can, it
// warns.
func (s *session) read(file func(anyMode bool) ([]byte, error)) ([]byte, error) {
	data, err := file(false)
	if !s.insecure || !errors.Is(err, secret.ErrInsecureMode) {
		return data, err
	}
	if s.Warn != nil {
		s.Warn(fmt.Sprintf("insecure-mode=allow: %v", err))
	}
	return file(true)
}

// passphrase returns the passphrase of a key that is known to be encrypted. The caller clears it.
func (s *session) passphrase(ctx context.Context) ([]byte, error) {
	src := secret.Source{Label: fmt.Sprintf("passphrase of %q", s.path), Env: envPassphrase}
	if s.passphraseFile != "" {
		if src.From = s.passphraseFile; !strings.HasPrefix(src.From, "credential:") {
			src.From = "file:" + s.passphraseFile
		}
	}
	passphrase, err := s.read(func(anyMode bool) ([]byte, error) {
		src.AnyMode = anyMode
		return s.Secrets.Read(ctx, src)
	})
	if errors.Is(err, secret.ErrNoFile) {
		return nil, err
	}
	if err != nil {
		return nil, fault.Errorf("%w: %w", signer.ErrAuth, err).Fix("add ?passphrase-file=PATH to the reference, or set " + envPassphrase)
	}
	if err := ctx.Err(); err != nil { // the caller did not wait for the person at the terminal
		clear(passphrase)
		return nil, err
	}
	return passphrase, nil
}

func newKey(ref signer.Ref, private *rsa.PrivateKey) *key {
	k := &key{ref: ref, public: &private.PublicKey}
	k.private.Store(private)
	return k
}

// key is an opened file. Close drops the private key; signatures in flight are completed.
type key struct {
	ref     signer.Ref
	public  *rsa.PublicKey
	private atomic.Pointer[rsa.PrivateKey] // nil once closed
}

func (k *key) Public() crypto.PublicKey { return k.public }

func (k *key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.SignContext(context.Background(), digest, opts)
}

func (k *key) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	sig, err := k.sign(ctx, digest, opts)
	if err != nil {
		return nil, &signer.Error{Op: "sign", Ref: k.ref, Err: err}
	}
	return sig, nil
}

func (k *key) sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	private := k.private.Load()
	if private == nil {
		return nil, signer.ErrClosed
	}
	h, err := signer.CheckDigest(digest, opts, crypto.SHA256, crypto.SHA1)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	sig, err := rsa.SignPKCS1v15(nil, private, h, digest)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", signer.ErrBadKey, err)
	}
	return sig, nil
}

func (k *key) Close() error {
	k.private.Store(nil)
	return nil
}

// Export returns the private key of a Signer of this package, for a PKCS#12 file or to decrypt. The Signer does not clear
// it on Close. A Signer of any other backend wraps signer.ErrUnsupported; after Close the error wraps signer.ErrClosed.
func Export(s signer.Signer) (*rsa.PrivateKey, error) {
	k, ok := s.(*key)
	if !ok {
		return nil, fmt.Errorf("%w: only a key in a file can be exported", signer.ErrUnsupported)
	}
	private := k.private.Load()
	if private == nil {
		return nil, &signer.Error{Op: "export", Ref: k.ref, Err: signer.ErrClosed}
	}
	return private, nil
}
