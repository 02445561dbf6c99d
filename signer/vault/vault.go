// Package vault is the backend for keys in the transit secrets engine of HashiCorp Vault or OpenBao. The key never leaves
// the server: the package sends digests and receives signatures. It speaks the HTTP API itself; there is no SDK.
//
//	vault://vault.example.com/transit/keys/mdm-vendor?version=1&token-source=file:/run/secrets/vault-token
//	vault://vault.example.com:8200/team/transit/keys/mdm-vendor?version=1&namespace=mdm&ca=/etc/hsmsign/vault-ca.pem
//	vault://vault.example.com/transit/keys/mdm-vendor?version=1&role-id=ID&secret-id-source=credential:secret-id
//	vault://vault.example.com/transit/keys/mdm-vendor?version=1&kubernetes-role=hsmsign
//
// The part before "?" is the server (https; port 8200 unless it says another), the path on which the engine is mounted,
// and the name of the key. The query attributes are:
//
//	version                  version of the key, required: after a rotation the newest one is another key
//	namespace                namespace of the engine and of the login
//	ca                       file with the CA certificates (PEM) that the server's certificate must chain to; default:
//	                         those of the system
//	tls                      off: plain HTTP, on loopback only
//	token-source             where the token comes from, as package secret reads it; default: $VAULT_TOKEN, then the terminal
//	role-id, secret-id-source    log in with AppRole; the secret id comes from a source as token-source does
//	kubernetes-role, jwt-file    log in with the service account of a Kubernetes pod; jwt-file is its projected token
//	auth-mount               where the login method is mounted; default: approle, kubernetes
//	max-rps, max-concurrent, timeout    limits, see kms.Policy
//
// Open sends one request, which reads the key, and a signature is one request. With signer.OpenOptions.PublicKey, Open
// sends none: the first signature proves the key (kms.NewKey). A login is one more request before these.
//
// A token that expires is renewed after two thirds of its life, in the background, until Close; a login method logs in
// again when a token cannot be renewed any more. If the server refuses a token (status 403), the package logs in or reads
// the source once more, so that a file which another program renews is read again. A refusal by policy is not repeated.
//
// Redirects are not followed: a token is sent to the server of the reference only. Generate and List need more
// permissions, which are for administrators of keys; nothing is ever deleted. Everything here is safe for concurrent use.
package vault

import (
	"context"
	"crypto/rsa"
	"net/http"
	"time"

	"hsmsign/fault"
	"hsmsign/secret"
	"hsmsign/signer"
	"hsmsign/signer/kms"
)

// Options configures the backend. The zero value reads secrets from the files that references name.
type Options struct {
	Secrets secret.Reader
	Warn    func(message string) // reports a token that ends soon; nil: silent
	Policy  kms.Policy           // limits of the calls; the reference overrides them

	// sleep waits for the renewal of a token, and returns false if ctx ends first; nil: it does. Tests replace it.
	sleep func(ctx context.Context, d time.Duration) bool
}

// Backend opens keys in Vault. Errors are *signer.Error: ErrReference for a malformed reference, ErrKeyNotFound if there is
// no such key, version, engine or namespace, ErrAuth for a missing, expired or insufficient token (never retried, except
// as the package comment says), ErrBadKey for a key that is not RSA or must not sign, and ErrUnavailable if the server is
// sealed, throttles, fails or does not answer in time.
func Backend(opts Options) signer.Backend {
	backend := signer.NewBackend(opts.connect)
	backend.Diagnose = opts.diagnose
	backend.InFlight = func(ref signer.Ref) int {
		r, _ := parseReference(ref, opts.Policy) // Open reports the error
		return r.policy.InFlight()
	}
	return backend
}

// session is a reference and the client that it leads to. An open key keeps its session until Close.
type session struct {
	Options
	reference
	ref       signer.Ref
	transport *http.Transport
	client    *http.Client
	caller    *kms.Caller
	identity  *identity
	public    *rsa.PublicKey
	end       context.CancelFunc // ends the renewal of the token
}

// connect reads the reference and the CA file. It sends nothing.
func (o Options) connect(ctx context.Context, ref signer.Ref) (*session, error) {
	s := &session{Options: o, ref: ref}
	var err error
	if s.reference, err = parseReference(ref, o.Policy); err != nil {
		return s, err
	}
	return s, s.dial(ctx)
}

// requireVersion returns an error unless the reference names one version of a key. If it names a key only, the error lists
// the versions that the key has.
func (s *session) requireVersion(ctx context.Context) error {
	if s.version != 0 || s.name == "" {
		return s.checkComplete()
	}
	k, err := s.readKey(ctx)
	if err != nil {
		return err
	}
	return fault.Errorf("%w: it names no version; key %q has %s", signer.ErrAmbiguousKey, s.name, k.list()).Fix("add version=N to the reference")
}

// Close ends the renewal of the token and closes the idle connections. It may be called several times. The token stays
// valid until it expires: other programs may use the same one.
func (s *session) Close() error {
	if s.end != nil {
		s.end()
		s.transport.CloseIdleConnections()
	}
	return nil
}
