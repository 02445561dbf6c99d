// Package gcpkms is the backend for a key in Google Cloud KMS, software or Cloud HSM.
//
//	gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/1
//	gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/1?require-hsm=yes&max-rps=40
//	gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/1?endpoint=127.0.0.1:9010
//
// The path is the resource name of one version, as the console and gcloud print it. A key without a version is
// refused with the list of its versions: a certificate belongs to one version, and the newest may be another. List
// takes any shorter name, down to projects/P/locations/L. These attributes are known:
//
//	require-hsm=yes          only a key of protection level HSM or HSM_SINGLE_TENANT signs
//	protection=software|hsm  what Generate makes; hsm when left out
//	max-rps=40               calls a second; no limit when left out, and the quota is shared by the whole project
//	max-concurrent=16        calls under way, 1 to 100; 64 when left out
//	timeout=10s              of one call with its retries, 10ms to 10m; 20s when left out
//	endpoint=HOST:PORT       another endpoint than cloudkms.googleapis.com:443
//
// Credentials are the application default credentials, which Google's library finds (environment, gcloud's file,
// metadata server); nothing in a reference names any. A loopback address as endpoint is a double: it is spoken to in
// plain text and without credentials. Every other endpoint is spoken to over TLS, and is sent the access token.
//
// A key is ASYMMETRIC_SIGN with RSA_SIGN_PKCS1_2048_SHA256, _3072_ or _4096_. One signature is one AsymmetricSign
// call; opening is one GetPublicKey call, or none where Options has the public key. Digest and signature travel with
// CRC-32C checksums, both checked. Retries, limits and the breaker are those of package remote; a damaged answer is
// asked for again twice, then refused. Nothing is ever deleted. Everything here is safe for concurrent use.
package gcpkms

import (
	"context"
	"crypto"
	"fmt"
	"log/slog"

	kms "cloud.google.com/go/kms/apiv1"
	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/googleapis/gax-go/v2"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"hsmsign/signer"
	remote "hsmsign/signer/kms"
)

// The bounds of one answer. A page of 1,000 key versions with their attestations left out is below 1 MiB.
const (
	maxAnswer  = 4 << 20
	maxHeaders = 64 << 10
)

// Options is what the backend needs from the program around it. The zero value opens keys.
type Options struct {
	// Warn is told what a person should know: a key ring made, a token sent to a host that is not Google's. nil: silent.
	Warn func(message string)
	// PublicKey is the vendor certificate's, an *rsa.PublicKey; nil when it is not at hand. With it Open makes no call
	// at all: GetPublicKey is not needed, as the first signature is verified with this key, and a signature that
	// verifies proves that the key in the KMS is its private half. One that does not wraps ErrBadKey.
	PublicKey crypto.PublicKey
	// Policy bounds the calls; the reference's max-rps, max-concurrent and timeout go before it.
	Policy remote.Policy
}

// client is what a Signer needs of Google's client.
type client interface {
	GetPublicKey(context.Context, *kmspb.GetPublicKeyRequest, ...gax.CallOption) (*kmspb.PublicKey, error)
	AsymmetricSign(context.Context, *kmspb.AsymmetricSignRequest, ...gax.CallOption) (*kmspb.AsymmetricSignResponse, error)
	Close() error
}

// adminClient is what making and listing keys needs beside that.
type adminClient interface {
	client
	GetCryptoKeyVersion(context.Context, *kmspb.GetCryptoKeyVersionRequest, ...gax.CallOption) (*kmspb.CryptoKeyVersion, error)
	CreateKeyRing(context.Context, *kmspb.CreateKeyRingRequest, ...gax.CallOption) (*kmspb.KeyRing, error)
	CreateCryptoKey(context.Context, *kmspb.CreateCryptoKeyRequest, ...gax.CallOption) (*kmspb.CryptoKey, error)
	ListKeyRings(context.Context, *kmspb.ListKeyRingsRequest, ...gax.CallOption) *kms.KeyRingIterator
	ListCryptoKeys(context.Context, *kmspb.ListCryptoKeysRequest, ...gax.CallOption) *kms.CryptoKeyIterator
	ListCryptoKeyVersions(context.Context, *kmspb.ListCryptoKeyVersionsRequest, ...gax.CallOption) *kms.CryptoKeyVersionIterator
}

// Backend opens keys in Cloud KMS. Errors are *signer.Error: ErrReference for a reference it cannot read,
// ErrAmbiguousKey for a key without a version, ErrKeyNotFound where there is none, ErrAuth for missing or expired
// credentials and denied permissions, ErrBadKey for a key that is disabled, destroyed or of another algorithm, and
// ErrUnavailable where the service does not answer, which has been retried.
func Backend(opts Options) signer.Backend {
	return signer.Backend{
		Open: func(ctx context.Context, ref signer.Ref, open signer.OpenOptions) (signer.Signer, error) {
			opts := opts
			opts.PublicKey = open.PublicKey
			return use(ctx, opts, "open", ref, (*session).open)
		},
		Generate: func(ctx context.Context, ref signer.Ref, spec signer.KeySpec) (signer.Signer, error) {
			opts.PublicKey = nil // no certificate can be there before the key
			return use(ctx, opts, "generate", ref, func(s *session, ctx context.Context) (signer.Signer, error) {
				return s.generate(ctx, spec)
			})
		},
		List: func(ctx context.Context, ref signer.Ref) ([]signer.KeyInfo, error) {
			return use(ctx, opts, "list", ref, func(s *session, ctx context.Context) ([]signer.KeyInfo, error) {
				defer func() { _ = s.client.Close() }()
				return s.list(ctx)
			})
		},
		Diagnose: opts.diagnose,
		InFlight: func(ref signer.Ref) int {
			s, _ := parse(ref, opts.Policy) // what is wrong with it Open says
			return s.policy.InFlight()
		},
	}
}

// session is one call of a Backend's function: the reference, and the client to speak through.
type session struct {
	Options
	settings
	ref    signer.Ref
	client adminClient
	caller *remote.Caller
}

// use reads the reference, connects and does the work. The client is closed when that fails.
func use[T any](ctx context.Context, opts Options, op string, ref signer.Ref, work func(*session, context.Context) (T, error)) (T, error) {
	var zero T
	s := &session{Options: opts, ref: ref}
	if err := ctx.Err(); err != nil {
		return zero, fail(op, ref, err)
	}
	if err := s.read(); err != nil {
		return zero, fail(op, ref, err)
	}
	if err := s.connect(ctx); err != nil {
		return zero, fail(op, ref, err)
	}
	value, err := work(s, ctx)
	if err != nil {
		_ = s.client.Close()
		return zero, fail(op, ref, err)
	}
	return value, nil
}

func fail(op string, ref signer.Ref, err error) error {
	return &signer.Error{Op: op, Ref: ref, Err: err}
}

// read reads the reference.
func (s *session) read() error {
	var err error
	s.settings, err = parse(s.ref, s.Policy)
	return err
}

// connect makes the client. Nothing is sent yet: gRPC connects with the first call.
func (s *session) connect(ctx context.Context) error {
	opts := []option.ClientOption{
		option.WithUserAgent("hsmsign"),
		option.WithTelemetryDisabled(),
		// GOOGLE_SDK_GO_LOGGING_LEVEL=debug would print every answer, that of the metadata server with the token too.
		option.WithLogger(slog.New(slog.DiscardHandler)),
		option.WithGRPCDialOption(grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer))),
		option.WithGRPCDialOption(grpc.WithMaxHeaderListSize(maxHeaders)),
	}
	if s.endpoint != "" {
		opts = append(opts, option.WithEndpoint(s.endpoint))
	}
	if s.loopback {
		opts = append(opts, option.WithoutAuthentication(), option.WithGRPCDialOption(grpc.WithNoProxy()),
			option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())))
	} else if s.endpoint != "" && !s.google && s.Warn != nil {
		s.Warn(fmt.Sprintf("endpoint %q is none of Google's names; it is sent the access token", s.endpoint))
	}
	// The client outlives this call, so it must not end with its context.
	c, err := kms.NewKeyManagementClient(context.WithoutCancel(ctx), opts...)
	if err != nil {
		return &faultError{fmt.Errorf("%w: %s", signer.ErrAuth, oneLine(err.Error())), fixCredentials}
	}
	c.CallOptions = &kms.KeyManagementCallOptions{} // no retries of its own: package remote decides
	s.client, s.caller = c, remote.New(s.policy)
	return nil
}
