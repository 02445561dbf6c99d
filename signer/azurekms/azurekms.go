// Package azurekms is the backend for keys in Azure Key Vault and Azure Managed HSM. The key never leaves the service: the
// package sends digests and receives signatures.
//
//	azurekms://VAULT.vault.azure.net/keys/mdm-vendor/78deebed173b48e48f55abf87ed4cf71
//	azurekms://HSM.managedhsm.azure.net/keys/mdm-vendor/78deebed173b48e48f55abf87ed4cf71?credential=workload
//
// The host is that of the vault, in the public cloud, in China (azure.cn) or in the US government's cloud
// (usgovcloudapi.net). The version is required. The query attributes are:
//
//	credential               environment (AZURE_CLIENT_ID with a secret or a certificate), workload (a pod's identity), managed
//	                         (the identity of a machine or an app) or cli (the login of the program az, for administrators);
//	                         default: the first of environment, workload and managed that is configured
//	client-id                the managed identity, if the machine has several
//	require-hsm              yes: only a key in an HSM signs; checked when the key is opened
//	protection               hsm or software: the protection of a key that Generate makes; default: hsm
//	ca                       file with the CA certificate (PEM) of a double; on loopback only
//	max-rps, max-concurrent, timeout    limits, see kms.Policy
//
// Open sends one request, which reads the public key, and a signature is one request. The first of them is answered with a
// challenge, gets a token and is sent again; the others wait for it. The SDK checks that the challenge belongs to the host
// of the vault. With signer.OpenOptions.PublicKey, Open sends no request: the first signature proves the key (kms.NewKey).
//
// A host on loopback with a port is a double of the service: the challenge is then not checked, and the SDK finds the
// server of the tokens in AZURE_AUTHORITY_HOST.
//
// Key Vault offers no SHA-1. Generate and List need more permissions, which are for administrators of keys; nothing is ever
// deleted. Everything here is safe for concurrent use.
package azurekms

import (
	"context"
	"crypto/rsa"
	"net/http"
	"sync/atomic"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/kms"
)

// Options configures the backend. The zero value is usable.
type Options struct {
	Policy kms.Policy // limits of the calls; the reference overrides them
}

// Backend opens keys in Azure Key Vault. Errors are *signer.Error: ErrReference for a malformed reference, ErrKeyNotFound if
// the vault has no such key or version, ErrAuth for missing, expired or insufficient credentials (never retried), ErrBadKey
// for a key that is disabled, expired or not an RSA signing key, and ErrUnavailable if the service throttles, fails or does
// not answer in time.
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
	ref        signer.Ref
	client     *azkeys.Client
	caller     *kms.Caller
	transport  *http.Transport
	credential azcore.TokenCredential
	source     string // what the credential is, for people
	managed    bool   // it is a managed identity
	public     *rsa.PublicKey
	turn       chan struct{} // held by the request that gets the challenge
	challenged atomic.Bool   // the challenge was answered
	created    bool          // this session created the key
}

// connect reads the reference and the environment of the SDK. It sends nothing.
func (o Options) connect(_ context.Context, ref signer.Ref) (*session, error) {
	s := &session{Options: o, ref: ref, turn: make(chan struct{}, 1)}
	var err error
	if s.reference, err = parseReference(ref, o.Policy); err != nil {
		return s, err
	}
	return s, s.dial()
}

// requireVersion returns an error unless the reference names one version of a key. If it names a key only, the error lists
// the versions that the key has.
func (s *session) requireVersion(ctx context.Context) error {
	switch {
	case s.name == "":
		return malformed("it names no key").Fix("list the keys with hsmsign key list")
	case s.version != "":
		return nil
	}
	versions, err := s.versions(ctx, s.name)
	if err != nil {
		return err
	}
	return fault.Errorf("%w: it names no version; key %q has %s", signer.ErrAmbiguousKey, s.name, mention(versions)).Fix("add /VERSION to the reference")
}

// Close closes the idle connections. It may be called several times.
func (s *session) Close() error {
	if s.transport != nil {
		s.transport.CloseIdleConnections()
	}
	return nil
}
