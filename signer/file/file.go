// Package file is the backend for a key in a file: for tests, for CI, and for a machine that has no HSM.
//
//	file:vendor.key                                            relative to the working directory
//	file:/etc/hsmsign/vendor.key                               absolute
//	file:///etc/hsmsign/vendor.key?passphrase-file=/run/pass   the same with its passphrase
//
// The path is percent-decoded ("%3F" is a question mark). Three attributes are known. passphrase-file names the
// file that holds the passphrase; without it HSMSIGN_PASSPHRASE is read, then the person at the terminal is
// asked, and both only when the key is encrypted. insecure-mode=allow reads files that group or others can
// read, and warns. unencrypted=allow lets Generate write a key without a passphrase where none is given.
//
// A key is RSA of 2048 to 8192 bits, in PKCS#8 or PKCS#1, PEM or DER; in PKCS#8 encrypted with PBES2 (PBKDF2
// or scrypt; AES or triple DES in CBC mode); or in PKCS#12. Whatever else the file holds is refused by name.
//
// The private key is in this process's memory from Open to Close, and Go gives no promise that nothing of it
// stays there: that is what an HSM is for. Everything here is safe for concurrent use.
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

// maxFile is more than a PKCS#12 file with an RSA-8192 key and its chain has.
const maxFile = 64 << 10

// Options is what the backend needs from the program around it. The zero value reads keys that are not
// encrypted, and those whose reference names a passphrase file.
type Options struct {
	Secrets secret.Reader        // where a passphrase comes from
	Warn    func(message string) // told when insecure-mode=allow is made use of; nil: silent
}

// Backend opens keys that lie in files. Errors are *signer.Error: ErrReference for a reference it cannot read,
// ErrKeyNotFound where there is no such file, ErrAmbiguousKey for a file with several keys, ErrAuth for a
// missing or wrong passphrase, and ErrBadKey for any other file that it does not sign with. List also takes a
// folder, whose keys it gives, and asks for no passphrase.
func Backend(opts Options) signer.Backend {
	return signer.Backend{
		Open: func(ctx context.Context, ref signer.Ref, _ signer.OpenOptions) (signer.Signer, error) {
			o := opening{Options: opts, ref: ref}
			private, err := o.open(ctx)
			if err != nil {
				return nil, o.fail("open", err)
			}
			return newKey(ref, private), nil
		},
		Generate: func(ctx context.Context, ref signer.Ref, spec signer.KeySpec) (signer.Signer, error) {
			o := opening{Options: opts, ref: ref}
			private, err := o.generate(ctx, spec)
			if err != nil {
				return nil, o.fail("generate", err)
			}
			return newKey(ref, private), nil
		},
		List: func(ctx context.Context, ref signer.Ref) ([]signer.KeyInfo, error) {
			o := opening{Options: opts, ref: ref}
			infos, err := o.list(ctx)
			if err != nil {
				return nil, o.fail("list", err)
			}
			return infos, nil
		},
		Diagnose: opts.diagnose,
	}
}

func newKey(ref signer.Ref, private *rsa.PrivateKey) *key {
	k := &key{ref: ref, public: &private.PublicKey}
	k.private.Store(private)
	return k
}

// opening is one call of Open, or of what else reads the reference.
type opening struct {
	Options
	ref      signer.Ref
	path     string
	insecure bool
	// unencrypted: a key may be generated without a passphrase.
	unencrypted bool
	fix         string // what to do about the error
}

func (o *opening) fail(op string, err error) error {
	if o.fix == "" && errors.Is(err, signer.ErrBadKey) {
		o.fix = "name an RSA key of 2048 bits or more as PKCS#8, PKCS#1 or PKCS#12; a damaged one has to come from its backup"
	}
	return &signer.Error{Op: op, Ref: o.ref, Err: fault.WithHint(err, o.fix)}
}

func (o *opening) open(ctx context.Context) (*rsa.PrivateKey, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := o.settings(); err != nil {
		return nil, err
	}
	data, err := o.readKey()
	if err != nil {
		return nil, err
	}
	defer clear(data)
	der, err := o.keyBlock(data)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	return o.parse(ctx, der)
}

// readKey reads the key's file. The caller clears it.
func (o *opening) readKey() ([]byte, error) {
	data, err := o.read(func(anyMode bool) ([]byte, error) {
		return secret.ReadFile(o.path, maxFile, anyMode)
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: %w", signer.ErrKeyNotFound, err)
	case errors.Is(err, secret.ErrInsecureMode):
		o.fix = fmt.Sprintf("chmod 600 %s, or add ?insecure-mode=allow to the reference", o.path)
		fallthrough
	case err != nil:
		return nil, fmt.Errorf("%w: %w", signer.ErrBadKey, err)
	}
	return data, nil
}

// settings reads the reference.
func (o *opening) settings() error {
	if err := o.ref.CheckQuery("passphrase-file", "insecure-mode", "unencrypted"); err != nil {
		return err
	}
	if v, ok := o.ref.Query("unencrypted"); ok {
		if v != "allow" {
			return fmt.Errorf("%w: unencrypted is %q; it can only be \"allow\"", signer.ErrReference, v)
		}
		o.unencrypted = true
	}
	if mode, ok := o.ref.Query("insecure-mode"); ok {
		if mode != "allow" {
			return fmt.Errorf("%w: insecure-mode is %q; it can only be \"allow\"", signer.ErrReference, mode)
		}
		o.insecure = true
	}
	if path, ok := o.ref.Query("passphrase-file"); ok && path == "" {
		return fmt.Errorf("%w: passphrase-file is empty", signer.ErrReference)
	}
	raw := o.ref.Path
	if authority, ok := strings.CutPrefix(raw, "//"); ok {
		if !strings.HasPrefix(authority, "/") { // RFC 8089 section 2: file://host/path
			return fmt.Errorf("%w: it names a host; write file:///PATH with three slashes", signer.ErrReference)
		}
		raw = authority
	}
	path, err := signer.Unescape(raw)
	if err != nil || strings.ContainsRune(path, 0) {
		return fmt.Errorf("%w: in its path a %% must be followed by two hexadecimal digits other than 00", signer.ErrReference)
	}
	o.path = path
	return nil
}

// read reads a file that holds a secret. Where the reference allows that others can read it, it says so once
// that is the case.
func (o *opening) read(file func(anyMode bool) ([]byte, error)) ([]byte, error) {
	data, err := file(false)
	if !o.insecure || !errors.Is(err, secret.ErrInsecureMode) {
		return data, err
	}
	if o.Warn != nil {
		o.Warn(fmt.Sprintf("insecure-mode=allow: %v", err))
	}
	return file(true)
}

// passphrase is asked for only once the key is known to be encrypted. The caller clears it.
func (o *opening) passphrase(ctx context.Context) ([]byte, error) {
	src := secret.Source{Label: fmt.Sprintf("passphrase of %q", o.path), Env: envPassphrase}
	if path, ok := o.ref.Query("passphrase-file"); ok {
		src.From = "file:" + path
	}
	o.fix = "add ?passphrase-file=PATH to the reference, or set " + envPassphrase
	passphrase, err := o.read(func(anyMode bool) ([]byte, error) {
		src.AnyMode = anyMode
		return o.Secrets.Read(ctx, src)
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", signer.ErrAuth, err)
	}
	if err := ctx.Err(); err != nil { // the person took longer than the caller would wait
		clear(passphrase)
		return nil, err
	}
	o.fix = ""
	return passphrase, nil
}

// key is an opened file. Close lets go of the private key; signatures in flight end as they would have.
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
