package gcpkmstest_test

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"hash/crc32"
	"testing"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"hsmsign/internal/testkit"
	"hsmsign/signer/gcpkms/gcpkmstest"
)

const (
	ring = "projects/p/locations/l/keyRings/r"
	name = ring + "/cryptoKeys/k/cryptoKeyVersions/1"
)

// start starts a double with the golden key, and returns a plain gRPC client.
func start(t *testing.T, config gcpkmstest.Config) (*gcpkmstest.Server, kmspb.KeyManagementServiceClient) {
	t.Helper()
	server := testkit.Value(gcpkmstest.NewServer(config))(t)
	t.Cleanup(func() { _ = server.Close() })
	if full, err := server.AddKey(name, testkit.GoldenKey(t)); err != nil || full != name {
		t.Fatal(err)
	}
	conn := testkit.Value(grpc.NewClient("passthrough:///"+server.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials())))(t)
	t.Cleanup(func() { _ = conn.Close() })
	return server, kmspb.NewKeyManagementServiceClient(conn)
}

func routed(t *testing.T, pairs ...string) context.Context {
	t.Helper()
	return metadata.AppendToOutgoingContext(t.Context(), append(pairs, "x-goog-request-params", "name=x")...)
}

func sha(text string) *kmspb.Digest {
	digest := sha256.Sum256([]byte(text))
	return &kmspb.Digest{Digest: &kmspb.Digest_Sha256{Sha256: digest[:]}}
}

func crc(data []byte) int64 { return int64(crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))) }

func TestSignature(t *testing.T) {
	server, client := start(t, gcpkmstest.Config{})
	digest := sha256.Sum256([]byte("message"))
	answer := testkit.Value(client.AsymmetricSign(routed(t), &kmspb.AsymmetricSignRequest{Name: name, Digest: sha("message"), DigestCrc32C: wrapperspb.Int64(crc(digest[:]))}))(t)
	testkit.OK(t, rsa.VerifyPKCS1v15(&testkit.GoldenKey(t).PublicKey, crypto.SHA256, digest[:], answer.GetSignature()))
	if answer.GetName() != name || !answer.GetVerifiedDigestCrc32C() || answer.GetSignatureCrc32C().GetValue() != crc(answer.GetSignature()) || answer.GetProtectionLevel() != kmspb.ProtectionLevel_HSM {
		t.Errorf("%v", answer)
	}
	// Without digest_crc32c nothing has been verified, and the answer must not say so.
	answer, err := client.AsymmetricSign(routed(t), &kmspb.AsymmetricSignRequest{Name: name, Digest: sha("message")})
	if err != nil || answer.GetVerifiedDigestCrc32C() {
		t.Errorf("%v, %v", answer, err)
	}
	if n := server.Calls("AsymmetricSign"); n != 2 {
		t.Errorf("%d calls", n)
	}
}

// TestRefusals: the codes are those that Cloud KMS is known to answer with.
func TestRefusals(t *testing.T) {
	server, client := start(t, gcpkmstest.Config{})
	version := func(key string, algorithm kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm, signs bool, state kmspb.CryptoKeyVersion_CryptoKeyVersionState) string {
		v := gcpkmstest.Key{Name: ring + "/cryptoKeys/" + key + "/cryptoKeyVersions/1", Algorithm: algorithm, State: state}
		if signs {
			v.Private = testkit.GoldenKey(t)
		}
		testkit.Value(server.Add(v))(t)
		return v.Name
	}
	const pkcs1 = kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256
	disabled := version("disabled", pkcs1, true, kmspb.CryptoKeyVersion_DISABLED)
	symmetric := version("symmetric", kmspb.CryptoKeyVersion_GOOGLE_SYMMETRIC_ENCRYPTION, false, 0)
	decrypt := version("decrypt", kmspb.CryptoKeyVersion_RSA_DECRYPT_OAEP_2048_SHA256, true, 0)
	for _, c := range []struct {
		name string
		req  *kmspb.AsymmetricSignRequest
		want codes.Code
	}{
		{"malformed name", &kmspb.AsymmetricSignRequest{Name: "malformed name", Digest: sha("m")}, codes.InvalidArgument},
		{"unknown key", &kmspb.AsymmetricSignRequest{Name: ring + "/cryptoKeys/none/cryptoKeyVersions/1", Digest: sha("m")}, codes.NotFound},
		{"unknown version", &kmspb.AsymmetricSignRequest{Name: name + "0", Digest: sha("m")}, codes.NotFound},
		{"no digest", &kmspb.AsymmetricSignRequest{Name: name}, codes.InvalidArgument},
		{"short digest", &kmspb.AsymmetricSignRequest{Name: name, Digest: &kmspb.Digest{Digest: &kmspb.Digest_Sha256{Sha256: make([]byte, 31)}}}, codes.InvalidArgument},
		{"digest of another hash", &kmspb.AsymmetricSignRequest{Name: name, Digest: &kmspb.Digest{Digest: &kmspb.Digest_Sha384{Sha384: make([]byte, 48)}}}, codes.InvalidArgument},
		{"digest and data", &kmspb.AsymmetricSignRequest{Name: name, Digest: sha("m"), Data: []byte("m")}, codes.InvalidArgument},
		{"wrong checksum", &kmspb.AsymmetricSignRequest{Name: name, Digest: sha("m"), DigestCrc32C: wrapperspb.Int64(1)}, codes.InvalidArgument},
		{"disabled", &kmspb.AsymmetricSignRequest{Name: disabled, Digest: sha("m")}, codes.FailedPrecondition},
		{"symmetric", &kmspb.AsymmetricSignRequest{Name: symmetric, Digest: sha("m")}, codes.FailedPrecondition},
		{"decryption", &kmspb.AsymmetricSignRequest{Name: decrypt, Digest: sha("m")}, codes.FailedPrecondition},
	} {
		if _, err := client.AsymmetricSign(routed(t), c.req); status.Code(err) != c.want {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
	for name, want := range map[string]codes.Code{"malformed name": codes.InvalidArgument, disabled: codes.FailedPrecondition, symmetric: codes.FailedPrecondition, decrypt: codes.OK} {
		if _, err := client.GetPublicKey(routed(t), &kmspb.GetPublicKeyRequest{Name: name}); status.Code(err) != want {
			t.Errorf("public key of %q: got %v, want %v", name, err, want)
		}
	}
	if _, err := client.GetPublicKey(t.Context(), &kmspb.GetPublicKeyRequest{Name: name}); status.Code(err) != codes.NotFound {
		t.Errorf("without the routing header: %v", err)
	}
	if _, err := client.DestroyCryptoKeyVersion(routed(t), &kmspb.DestroyCryptoKeyVersionRequest{Name: name}); status.Code(err) != codes.Unimplemented {
		t.Errorf("destruction: %v", err)
	}
}

func TestToken(t *testing.T) {
	_, client := start(t, gcpkmstest.Config{Token: "secret"})
	for header, want := range map[string]codes.Code{"": codes.Unauthenticated, "Bearer other": codes.Unauthenticated, "secret": codes.Unauthenticated, "Bearer secret": codes.OK} {
		_, err := client.GetPublicKey(routed(t, "authorization", header), &kmspb.GetPublicKeyRequest{Name: name})
		if status.Code(err) != want {
			t.Errorf("authorization %q: %v", header, err)
		}
	}
}

// TestClose: Close ends a request that hangs.
func TestClose(t *testing.T) {
	server, client := start(t, gcpkmstest.Config{})
	testkit.OK(t, server.Stand("*", gcpkmstest.Hang))
	ended := make(chan error, 1)
	before := server.Calls("AsymmetricSign")
	go func() {
		_, err := client.AsymmetricSign(routed(t), &kmspb.AsymmetricSignRequest{Name: name, Digest: sha("m")}, grpc.WaitForReady(true))
		ended <- err
	}()
	testkit.Until(t, "the request arrives", func() bool { return server.Calls("AsymmetricSign") > before })
	for range 2 {
		testkit.OK(t, server.Close())
	}
	if err := <-ended; err == nil {
		t.Error("a request that hangs is answered by Close")
	}
}

func TestNewServerRefuses(t *testing.T) {
	for _, listen := range []string{"0.0.0.0:0", "[::]:0", ":0", "nonsense"} {
		if server, err := gcpkmstest.NewServer(gcpkmstest.Config{Listen: listen}); err == nil {
			_ = server.Close()
			t.Errorf("it listens on %q in plain text", listen)
		}
	}
}

func TestAddKeyRefuses(t *testing.T) {
	server, _ := start(t, gcpkmstest.Config{})
	private := testkit.GoldenKey(t)
	small := testkit.KeyOf(1024, "small")
	for key, private := range map[string]*rsa.PrivateKey{name: private, ring + "/cryptoKeys/k": private, name + "/x": private, name + "5": small} {
		if _, err := server.AddKey(key, private); err == nil {
			t.Errorf("%q is accepted", key)
		}
	}
	if err := server.SetState(name+"9", kmspb.CryptoKeyVersion_DISABLED); err == nil {
		t.Error("the state of an unknown version is set")
	}
}
