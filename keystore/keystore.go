// Package keystore opens keys and certificates by their reference, whatever the scheme: file, pkcs11, vault, awskms, gcpkms, azurekms.
//
// A program that wants one key calls Open. A program that uses several builds a Store once and parses each reference
// once:
//
//	store := keystore.New(keystore.Options{Secrets: secret.Reader{Getenv: os.Getenv}})
//	key, err := store.Parse("pkcs11:token=mdm;object=vendor?module-path=/usr/lib/softhsm/libsofthsm2.so")
//	opened, err := key.Open(ctx, signer.OpenOptions{})
//
// The build tag nocloud leaves out awskms, gcpkms and azurekms, and a build without cgo leaves out pkcs11. Everything here is safe
// for concurrent use.
package keystore

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/internal/input"
	"hsmsign/secret"
	"hsmsign/signer"
	"hsmsign/signer/file"
	"hsmsign/signer/pkcs11"
	"hsmsign/signer/vault"
)

// Options are what the backends need from the program around them. The zero value reads PINs and passphrases from the
// files that references name, and drops warnings.
type Options struct {
	// Secrets reads PINs, passphrases and tokens.
	Secrets secret.Reader
	// Warn receives one line, without secrets, about something that works and should not stay so. It may be called by
	// several goroutines at once. Nil drops the warnings.
	Warn func(message string)
	// AllowedModules are the absolute paths of the PKCS#11 modules that may be loaded; nil allows any.
	AllowedModules []string
	// Worker is the command line that starts this program as a PKCS#11 worker process, for isolate=yes in a reference;
	// nil: isolate=yes is refused. See RunWorker.
	Worker []string
	// Isolate makes isolate=yes the default of references.
	Isolate bool
	// ReadFile reads at most limit+1 bytes of a certificate file; nil: from the file system. Its errors do not repeat the
	// name.
	ReadFile func(ctx context.Context, name string, limit int64) ([]byte, error)
}

// openTimeout bounds opening a store for its certificates, a person's typing included.
const openTimeout = 2 * time.Minute

// cloudSchemes are the schemes that the build tag nocloud leaves out.
var cloudSchemes = []string{"awskms", "gcpkms", "azurekms"}

// Schemes returns the schemes of this build.
func Schemes() []string {
	schemes := []string{"file"}
	if pkcs11.Available {
		schemes = append(schemes, "pkcs11")
	}
	schemes = append(schemes, "vault")
	if withCloud {
		schemes = append(schemes, cloudSchemes...)
	}
	return schemes
}

// Store is the set of backends.
type Store struct {
	backends map[string]signer.Backend
	readFile func(ctx context.Context, name string, limit int64) ([]byte, error)
}

// New builds the backends.
func New(opts Options) *Store {
	if opts.Warn == nil {
		opts.Warn = func(string) {}
	}
	backends := cloudBackends(opts.Warn)
	backends["vault"] = vault.Backend(vault.Options{Secrets: opts.Secrets, Warn: opts.Warn})
	backends["file"] = file.Backend(file.Options{Secrets: opts.Secrets, Warn: opts.Warn})
	backends["pkcs11"] = pkcs11.Backend(pkcs11.Options{
		Secrets: opts.Secrets, Warn: opts.Warn, AllowedModules: opts.AllowedModules, Worker: opts.Worker, Isolate: opts.Isolate,
	})
	if opts.ReadFile == nil {
		opts.ReadFile = input.Reader{Stdin: strings.NewReader("")}.Read
	}
	return &Store{backends, opts.ReadFile}
}

// Open opens the key that a reference names. The caller closes it. Errors wrap one of the families of package signer.
func Open(ctx context.Context, reference string, opts Options) (signer.Signer, error) {
	key, err := New(opts).Parse(reference)
	if err != nil {
		return nil, err
	}
	return key.Open(ctx, signer.OpenOptions{})
}

// Modules returns the name of each PKCS#11 module that is installed on this machine, by its absolute path. It loads none.
func Modules() map[string]string { return pkcs11.Modules() }

// RunWorker is the work of a worker process (Options.Worker): it serves one PKCS#11 key to the process that started it,
// until that process ends. Args are the arguments that were added to the command line.
func RunWorker(ctx context.Context, args []string) error { return pkcs11.RunWorker(ctx, args) }

// Parse reads a reference and selects the backend of its scheme. It opens nothing. Errors wrap signer.ErrReference, or
// signer.ErrUnsupported for a scheme that this build leaves out.
func (s *Store) Parse(reference string) (Key, error) {
	ref, err := signer.ParseRef(reference)
	if err != nil {
		return Key{}, err
	}
	backend, ok := s.backends[ref.Scheme]
	switch {
	case ok:
		return Key{ref, backend}, nil
	case slices.Contains(cloudSchemes, ref.Scheme):
		return Key{}, fmt.Errorf("%w: this build has no cloud KMS, it was made with -tags nocloud; use another build for %s", signer.ErrUnsupported, ref)
	}
	return Key{}, fmt.Errorf("%w: unknown scheme %q; the schemes are file, pkcs11, vault, awskms, gcpkms and azurekms", signer.ErrReference, ref.Scheme)
}

// LoadCertificates returns all certificates of the given files (PEM, DER or PKCS#7) in their order. A name may also be
// the reference of certificates in a token. Errors are of kind vendor; those about the content of a file are a
// *fault.Finding.
func (s *Store) LoadCertificates(ctx context.Context, names ...string) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for _, name := range names {
		certs, err := s.loadCertificates(ctx, name)
		if err != nil {
			return nil, err
		}
		all = append(all, certs...)
	}
	return all, nil
}

func (s *Store) loadCertificates(ctx context.Context, name string) ([]*x509.Certificate, error) {
	scheme, _, _ := strings.Cut(name, ":")
	if store := s.backends[strings.ToLower(scheme)].Certificates; store != nil {
		ref, err := signer.ParseRef(name)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(ctx, openTimeout)
		defer cancel()
		return store.Load(ctx, ref)
	}
	data, err := s.readFile(ctx, name, chain.MaxFile)
	if err != nil {
		return nil, fault.Vendor.Errorf("certificate file %q: %w", Redact(name), err).Fix("check the path")
	}
	certs, err := chain.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", Redact(name), err)
	}
	return certs, nil
}

// Redact returns the name of a certificate file as it is, and a reference without its secrets. Of a reference that cannot
// be read it returns the scheme only.
func Redact(name string) string {
	ref, err := signer.ParseRef(name)
	if err == nil {
		return ref.String()
	}
	if scheme, _, ok := strings.Cut(name, ":"); ok && slices.Contains(append(cloudSchemes, "file", "pkcs11"), strings.ToLower(scheme)) {
		return scheme + ":(unreadable)"
	}
	return signer.Redact(name)
}

// IsReference returns whether text names a key by a reference, and not by the name of a file.
func (s *Store) IsReference(text string) bool {
	scheme, _, _ := strings.Cut(text, ":")
	_, known := s.backends[strings.ToLower(scheme)]
	_, err := signer.ParseRef(text)
	return known || err == nil
}

// Key is a parsed reference and the backend that reads it. The key may not exist. The zero Key names nothing.
type Key struct {
	Ref     signer.Ref
	backend signer.Backend
}

// String returns the reference without its secrets.
func (k Key) String() string { return k.Ref.String() }

// Scheme returns the scheme of the reference: file, pkcs11, awskms or gcpkms.
func (k Key) Scheme() string { return k.Ref.Scheme }

// Open opens the key; see signer.Backend.
func (k Key) Open(ctx context.Context, opts signer.OpenOptions) (signer.Signer, error) {
	return k.backend.Open(ctx, k.Ref, opts)
}

// Generate makes the key and opens it; see signer.Backend.
func (k Key) Generate(ctx context.Context, spec signer.KeySpec) (signer.Signer, error) {
	if spec.Decrypt && k.Ref.Scheme != "file" && k.Ref.Scheme != "pkcs11" {
		return nil, &signer.Error{Op: "generate", Ref: k.Ref, Err: fault.Errorf("%w: a key that decrypts in this key store", signer.ErrUnsupported).
			Fix("use a key in a file or in a PKCS#11 token")}
	}
	return k.backend.Generate(ctx, k.Ref, spec)
}

// Tokens returns every slot of the reference's module; see signer.Backend. The error is of kind usage if the backend has no
// tokens.
func (k Key) Tokens(ctx context.Context) ([]signer.TokenInfo, error) {
	if k.backend.Tokens == nil {
		return nil, fault.Usage.Errorf("%s: has no tokens", k.Ref.Scheme).Fix("name a PKCS#11 module: pkcs11:?module-path=PATH")
	}
	return k.backend.Tokens(ctx, k.Ref)
}

// List returns every key that the reference matches; see signer.Backend.
func (k Key) List(ctx context.Context) ([]signer.KeyInfo, error) { return k.backend.List(ctx, k.Ref) }

// Diagnose walks from the reference to a signature; see signer.Backend. A backend that this build leaves out has one
// step, which says so.
func (k Key) Diagnose(ctx context.Context, opts signer.OpenOptions, report func(signer.Step)) signer.Signer {
	if k.backend.Diagnose != nil {
		return k.backend.Diagnose(ctx, k.Ref, opts, report)
	}
	var opened signer.Signer
	signer.RunSteps(ctx, report, []signer.Check{{Name: "open", Run: func(ctx context.Context) signer.Step {
		var err error
		if opened, err = k.Open(ctx, opts); err != nil {
			return signer.StepFail(err)
		}
		return signer.StepSign(ctx, opened)
	}}})
	return opened
}

// Describe returns the backend's description of a key that was opened with this reference.
func (k Key) Describe(ctx context.Context, opened signer.Signer) (signer.KeyInfo, error) {
	infos, err := k.List(ctx)
	if err != nil {
		return signer.KeyInfo{}, err
	}
	pub, ok := opened.Public().(*rsa.PublicKey)
	for _, info := range infos {
		switch {
		case info.Type != "":
		case ok && info.Public == nil && len(infos) == 1: // an encrypted file
			info.Public, info.Algorithm, info.Bits = pub, "RSA", pub.N.BitLen()
			return info, nil
		case ok && pub.Equal(info.Public):
			return info, nil
		}
	}
	return signer.KeyInfo{}, fmt.Errorf("%w: %s: it was opened, and is not among the keys listed", signer.ErrKeyNotFound, k)
}

// StoresCertificates returns an error, of kind usage, if the backend cannot store a certificate with the key.
func (k Key) StoresCertificates() error {
	if k.backend.Certificates == nil {
		return fault.Usage.Errorf("%s: keys cannot have a certificate stored with them", k.Ref.Scheme).Fix("keep the certificate in a file")
	}
	return nil
}

// ImportCertificate stores a certificate with the key; see signer.CertificateStore.
func (k Key) ImportCertificate(ctx context.Context, cert *x509.Certificate) error {
	if err := k.StoresCertificates(); err != nil {
		return err
	}
	return k.backend.Certificates.Import(ctx, k.Ref, cert)
}

// InFlight returns how many signatures a batch should have in flight; def if the backend leaves it to the caller.
func (k Key) InFlight(def int) int {
	if k.backend.InFlight == nil {
		return def
	}
	return k.backend.InFlight(k.Ref)
}
