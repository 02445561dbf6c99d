package gcpkmstest_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha512"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"testing"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"hsmsign/internal/testkit"
	"hsmsign/signer/gcpkms/gcpkmstest"
)

// The facts of this file are those of the contract with which Google tests both the service and its own fake
// (GoogleCloudPlatform/kms-integrations, fakekms/contract).

const (
	parent     = "projects/p/locations/l"
	symmetric  = kmspb.CryptoKeyVersion_GOOGLE_SYMMETRIC_ENCRYPTION
	encrypts   = kmspb.CryptoKey_ENCRYPT_DECRYPT
	signs      = kmspb.CryptoKey_ASYMMETRIC_SIGN
	decrypts   = kmspb.CryptoKey_ASYMMETRIC_DECRYPT
	elsewhere  = parent + "/keyRings/none/cryptoKeys/none"
	noTemplate = kmspb.CryptoKeyVersion_CRYPTO_KEY_VERSION_ALGORITHM_UNSPECIFIED
)

// bare is the request for a key without a version.
func bare(parent, id string, purpose kmspb.CryptoKey_CryptoKeyPurpose, algorithm kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm, level kmspb.ProtectionLevel) *kmspb.CreateCryptoKeyRequest {
	return &kmspb.CreateCryptoKeyRequest{Parent: parent, CryptoKeyId: id, SkipInitialVersionCreation: true, CryptoKey: &kmspb.CryptoKey{
		Purpose: purpose, VersionTemplate: &kmspb.CryptoKeyVersionTemplate{Algorithm: algorithm, ProtectionLevel: level},
	}}
}

// TestContractRefusals: the status of each request that the service refuses.
func TestContractRefusals(t *testing.T) {
	_, client := start(t, gcpkmstest.Config{})
	for _, tt := range []struct {
		name string
		call func() error
		want codes.Code
	}{
		{"CreateKeyRing, malformed parent", refusal(t, client.CreateKeyRing, &kmspb.CreateKeyRingRequest{Parent: "locations/foo", KeyRingId: "bar"}), codes.InvalidArgument},
		{"CreateKeyRing, malformed id", refusal(t, client.CreateKeyRing, &kmspb.CreateKeyRingRequest{Parent: parent, KeyRingId: "&bar"}), codes.InvalidArgument},
		{"CreateKeyRing, exists", refusal(t, client.CreateKeyRing, &kmspb.CreateKeyRingRequest{Parent: parent, KeyRingId: "r"}), codes.AlreadyExists},
		{"GetKeyRing, malformed", refusal(t, client.GetKeyRing, &kmspb.GetKeyRingRequest{Name: "malformed name"}), codes.InvalidArgument},
		{"GetKeyRing, none", refusal(t, client.GetKeyRing, &kmspb.GetKeyRingRequest{Name: parent + "/keyRings/none"}), codes.NotFound},
		{"ListKeyRings, malformed", refusal(t, client.ListKeyRings, &kmspb.ListKeyRingsRequest{Parent: "locations/foo"}), codes.InvalidArgument},
		{"CreateCryptoKey, malformed parent", refusal(t, client.CreateCryptoKey, bare("locations/foo", "bar", encrypts, symmetric, 0)), codes.InvalidArgument},
		{"CreateCryptoKey, malformed id", refusal(t, client.CreateCryptoKey, bare(ring, "&bar", encrypts, symmetric, 0)), codes.InvalidArgument},
		{"CreateCryptoKey, exists", refusal(t, client.CreateCryptoKey, bare(ring, "k", encrypts, symmetric, 0)), codes.AlreadyExists},
		{"CreateCryptoKey, no ring", refusal(t, client.CreateCryptoKey, bare(parent+"/keyRings/none", "bar", encrypts, symmetric, 0)), codes.NotFound},
		{"CreateCryptoKey, no purpose", refusal(t, client.CreateCryptoKey, bare(ring, "bar", 0, symmetric, 0)), codes.InvalidArgument},
		{"CreateCryptoKey, no algorithm to sign", refusal(t, client.CreateCryptoKey, bare(ring, "bar", signs, noTemplate, 0)), codes.InvalidArgument},
		{"CreateCryptoKey, no algorithm to decrypt", refusal(t, client.CreateCryptoKey, bare(ring, "bar", decrypts, noTemplate, 0)), codes.InvalidArgument},
		{"CreateCryptoKey, another purpose", refusal(t, client.CreateCryptoKey, bare(ring, "bar", decrypts, kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256, 0)), codes.InvalidArgument},
		{"GetCryptoKey, malformed", refusal(t, client.GetCryptoKey, &kmspb.GetCryptoKeyRequest{Name: "malformed name"}), codes.InvalidArgument},
		{"GetCryptoKey, none", refusal(t, client.GetCryptoKey, &kmspb.GetCryptoKeyRequest{Name: elsewhere}), codes.NotFound},
		{"ListCryptoKeys, malformed", refusal(t, client.ListCryptoKeys, &kmspb.ListCryptoKeysRequest{Parent: "locations/foo"}), codes.InvalidArgument},
		{"ListCryptoKeys, none", refusal(t, client.ListCryptoKeys, &kmspb.ListCryptoKeysRequest{Parent: parent + "/keyRings/none"}), codes.NotFound},
		{"CreateCryptoKeyVersion, malformed", refusal(t, client.CreateCryptoKeyVersion, &kmspb.CreateCryptoKeyVersionRequest{Parent: "locations/foo"}), codes.InvalidArgument},
		{"CreateCryptoKeyVersion, none", refusal(t, client.CreateCryptoKeyVersion, &kmspb.CreateCryptoKeyVersionRequest{Parent: elsewhere}), codes.NotFound},
		{"GetCryptoKeyVersion, malformed", refusal(t, client.GetCryptoKeyVersion, &kmspb.GetCryptoKeyVersionRequest{Name: "malformed name"}), codes.InvalidArgument},
		{"GetCryptoKeyVersion, none", refusal(t, client.GetCryptoKeyVersion, &kmspb.GetCryptoKeyVersionRequest{Name: elsewhere + "/cryptoKeyVersions/1"}), codes.NotFound},
		{"ListCryptoKeyVersions, malformed", refusal(t, client.ListCryptoKeyVersions, &kmspb.ListCryptoKeyVersionsRequest{Parent: "locations/foo"}), codes.InvalidArgument},
		{"ListCryptoKeyVersions, none", refusal(t, client.ListCryptoKeyVersions, &kmspb.ListCryptoKeyVersionsRequest{Parent: elsewhere}), codes.NotFound},
		{"AsymmetricSign, no digest, none", refusal(t, client.AsymmetricSign, &kmspb.AsymmetricSignRequest{Name: elsewhere + "/cryptoKeyVersions/1"}), codes.NotFound},
		// The double refuses an algorithm that it cannot generate.
		{"an algorithm of the service alone", refusal(t, client.CreateCryptoKey, &kmspb.CreateCryptoKeyRequest{Parent: ring, CryptoKeyId: "raw", CryptoKey: bare("", "", signs, kmspb.CryptoKeyVersion_RSA_SIGN_RAW_PKCS1_2048, 0).CryptoKey}), codes.Unimplemented},
	} {
		if err := tt.call(); status.Code(err) != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}

// refusal returns a function that makes a call and returns its error.
func refusal[In, Out any](t *testing.T, call func(context.Context, *In, ...grpc.CallOption) (*Out, error), in *In) func() error {
	t.Helper()
	return func() error {
		_, err := call(routed(t), in)
		return err
	}
}

// TestContractKeys: each algorithm goes from a key without a version to a version that is generated, and every lookup
// answers what Create did.
func TestContractKeys(t *testing.T) {
	_, client := start(t, gcpkmstest.Config{})
	made := testkit.Value(client.CreateKeyRing(routed(t), &kmspb.CreateKeyRingRequest{Parent: parent, KeyRingId: "contract"}))(t)
	same(t, made, testkit.Value(client.GetKeyRing(routed(t), &kmspb.GetKeyRingRequest{Name: made.GetName()}))(t))
	if age := time.Since(made.GetCreateTime().AsTime()); age < 0 || age > time.Minute {
		t.Errorf("create_time is %v ago", age)
	}
	for i, tt := range []struct {
		purpose   kmspb.CryptoKey_CryptoKeyPurpose
		algorithm kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm
		level     kmspb.ProtectionLevel
	}{
		{encrypts, symmetric, kmspb.ProtectionLevel_SOFTWARE},
		{encrypts, noTemplate, 0}, // the defaults
		{signs, kmspb.CryptoKeyVersion_EC_SIGN_P256_SHA256, kmspb.ProtectionLevel_HSM},
		{signs, kmspb.CryptoKeyVersion_EC_SIGN_P384_SHA384, kmspb.ProtectionLevel_SOFTWARE},
		{signs, kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_3072_SHA256, kmspb.ProtectionLevel_SOFTWARE},
		{signs, kmspb.CryptoKeyVersion_RSA_SIGN_PSS_2048_SHA256, kmspb.ProtectionLevel_HSM},
		{decrypts, kmspb.CryptoKeyVersion_RSA_DECRYPT_OAEP_2048_SHA256, kmspb.ProtectionLevel_HSM},
	} {
		key := testkit.Value(client.CreateCryptoKey(routed(t), bare(made.GetName(), fmt.Sprint("key-", i), tt.purpose, tt.algorithm, tt.level)))(t)
		want := &kmspb.CryptoKey{
			Name: fmt.Sprintf("%s/cryptoKeys/key-%d", made.GetName(), i), Purpose: tt.purpose, CreateTime: key.GetCreateTime(), DestroyScheduledDuration: key.GetDestroyScheduledDuration(),
			VersionTemplate: &kmspb.CryptoKeyVersionTemplate{Algorithm: max(tt.algorithm, symmetric), ProtectionLevel: max(tt.level, kmspb.ProtectionLevel_SOFTWARE)},
		}
		same(t, want, key)
		if key.GetCreateTime() == nil || key.GetDestroyScheduledDuration().AsDuration() != 30*24*time.Hour {
			t.Errorf("%v", key)
		}
		same(t, key, testkit.Value(client.GetCryptoKey(routed(t), &kmspb.GetCryptoKeyRequest{Name: key.GetName()}))(t))
		for n := 1; n <= 2; n++ {
			first := testkit.Value(client.CreateCryptoKeyVersion(routed(t), &kmspb.CreateCryptoKeyVersionRequest{Parent: key.GetName()}))(t)
			wantState := kmspb.CryptoKeyVersion_PENDING_GENERATION
			if tt.purpose == encrypts {
				wantState = kmspb.CryptoKeyVersion_ENABLED
			}
			if first.GetName() != fmt.Sprintf("%s/cryptoKeyVersions/%d", key.GetName(), n) || first.GetState() != wantState || (first.GetGenerateTime() == nil) != (tt.purpose != encrypts) {
				t.Errorf("%v", first)
			}
			then := testkit.Value(client.GetCryptoKeyVersion(routed(t), &kmspb.GetCryptoKeyVersionRequest{Name: first.GetName()}))(t)
			if then.GetGenerateTime() == nil {
				t.Errorf("%v", then)
			}
			first.State, first.GenerateTime = kmspb.CryptoKeyVersion_ENABLED, then.GetGenerateTime()
			same(t, first, then)
		}
		versions := testkit.Value(client.ListCryptoKeyVersions(routed(t), &kmspb.ListCryptoKeyVersionsRequest{Parent: key.GetName()}))(t)
		if got := versions.GetCryptoKeyVersions(); len(got) != 2 || got[0].GetName() >= got[1].GetName() {
			t.Errorf("versions %v", got)
		}
	}
	keys := testkit.Value(client.ListCryptoKeys(routed(t), &kmspb.ListCryptoKeysRequest{Parent: made.GetName()}))(t).GetCryptoKeys()
	if len(keys) != 7 || keys[0].GetName() >= keys[1].GetName() {
		t.Errorf("keys %v", keys)
	}
	// A key for encryption has a primary version, if it has a version.
	request := bare(made.GetName(), "primary", encrypts, symmetric, 0)
	request.SkipInitialVersionCreation = false
	primary := testkit.Value(client.CreateCryptoKey(routed(t), request))(t).GetPrimary()
	same(t, primary, testkit.Value(client.GetCryptoKeyVersion(routed(t), &kmspb.GetCryptoKeyVersionRequest{Name: made.GetName() + "/cryptoKeys/primary/cryptoKeyVersions/1"}))(t))
}

func same[M any](t *testing.T, want, got M) {
	t.Helper()
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestContractData: the service also hashes the data itself.
func TestContractData(t *testing.T) {
	_, client := start(t, gcpkmstest.Config{})
	request := bare(ring, "ec", signs, kmspb.CryptoKeyVersion_EC_SIGN_P384_SHA384, kmspb.ProtectionLevel_HSM)
	request.SkipInitialVersionCreation = false
	version := testkit.Value(client.CreateCryptoKey(routed(t), request))(t).GetName() + "/cryptoKeyVersions/1"
	public := testkit.Value(client.GetPublicKey(routed(t), &kmspb.GetPublicKeyRequest{Name: version}))(t)
	block, _ := pem.Decode([]byte(public.GetPem()))
	key := testkit.Value(x509.ParsePKIXPublicKey(block.Bytes))(t).(*ecdsa.PublicKey)
	answer := testkit.Value(client.AsymmetricSign(routed(t), &kmspb.AsymmetricSignRequest{Name: version, Data: []byte("data")}))(t)
	if digest := sha512.Sum384([]byte("data")); !ecdsa.VerifyASN1(key, digest[:], answer.GetSignature()) || answer.GetVerifiedDataCrc32C() {
		t.Errorf("%v", answer)
	}
	for sum, want := range map[int64]codes.Code{crc([]byte("data")): codes.OK, 1: codes.InvalidArgument} {
		answer, err := client.AsymmetricSign(routed(t), &kmspb.AsymmetricSignRequest{Name: version, Data: []byte("data"), DataCrc32C: wrapperspb.Int64(sum)})
		if status.Code(err) != want || answer.GetVerifiedDataCrc32C() != (err == nil) {
			t.Errorf("%v, %v", answer, err)
		}
	}
}
