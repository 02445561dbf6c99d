package gcpkms

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cloud.google.com/go/kms/apiv1/kmspb"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/gcpkms/gcpkmstest"
	"hsmsign/signer/kms"
	"hsmsign/signer/signertest"
)

// TestConformance runs the suite of every backend on the double, and on Google's service itself if HSMSIGN_TEST_GCPKMS is
// a reference to a key version.
func TestConformance(t *testing.T) {
	conform := func(t *testing.T, reference string, f signertest.Fixture) {
		public := signerkit.MustOpen(t, Backend(quick()), reference, nil).Public().(*rsa.PublicKey)
		name, query, _ := strings.Cut(reference, "?")
		f.Backend, f.Ref, f.Public, f.Hashes = Backend(quick()), reference, public, []crypto.Hash{crypto.SHA256}
		f.Missing = strings.TrimSuffix(name[:strings.LastIndex(name, "/")]+"/4294967295?"+query, "?")
		signertest.Run(t, f)
		infos, err := f.Backend.List(t.Context(), signerkit.Ref(t, reference))
		if err != nil || len(infos) != 1 || !public.Equal(infos[0].Public) || infos[0].Ref != reference {
			t.Errorf("list of the version itself: %+v, %v", infos, err)
		}
	}
	if reference := os.Getenv("HSMSIGN_TEST_GCPKMS"); reference != "" {
		t.Run("service", func(t *testing.T) { conform(t, reference, signertest.Fixture{}) })
	}
	t.Run("double", func(t *testing.T) {
		server, reference := start(t, gcpkmstest.Config{})
		testkit.Value(server.Add(gcpkmstest.Key{Name: vendorTwo, Private: testkit.GoldenKey(t), Algorithm: rsaSign}))(t)
		conform(t, reference, signertest.Fixture{Ambiguous: at(server, vendor), Matches: []string{"cryptoKeyVersions/1", "cryptoKeyVersions/2"}})
	})
}

func TestWiring(t *testing.T) {
	server, reference := start(t, gcpkmstest.Config{})
	faults := signerkit.Faults[gcpkmstest.Fault]{OK: gcpkmstest.OK, Throttle: gcpkmstest.Throttle, Internal: gcpkmstest.Internal, Hang: gcpkmstest.Hang}
	signerkit.Wiring(t, server, faults, func(p kms.Policy) signer.Backend { return Backend(Options{Policy: p}) }, reference, "AsymmetricSign")
}

// TestUnusableKeys: keys that exist and cannot make the signatures, and references that name no key.
func TestUnusableKeys(t *testing.T) {
	server, _ := start(t, gcpkmstest.Config{})
	curve := testkit.Value(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	private := testkit.GoldenKey(t)
	with := func(key string, k gcpkmstest.Key) string {
		k.Name = ring + "/cryptoKeys/" + key + "/cryptoKeyVersions/1"
		return at(server, testkit.Value(server.Add(k))(t))
	}
	for _, tt := range []struct {
		name, ref string
		family    error
		text, fix string
	}{
		{"PSS", with("pss", gcpkmstest.Key{Private: private, Algorithm: kmspb.CryptoKeyVersion_RSA_SIGN_PSS_2048_SHA256}), signer.ErrBadKey, "RSA_SIGN_PSS_2048_SHA256", "RSA_SIGN_PKCS1"},
		{"SHA-512", with("sha512", gcpkmstest.Key{Private: private, Algorithm: kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_4096_SHA512}), signer.ErrBadKey, "RSA_SIGN_PKCS1_4096_SHA512", "RSA_SIGN_PKCS1"},
		{"decryption", with("oaep", gcpkmstest.Key{Private: private, Algorithm: kmspb.CryptoKeyVersion_RSA_DECRYPT_OAEP_2048_SHA256}), signer.ErrBadKey, "RSA_DECRYPT_OAEP_2048_SHA256", "RSA_SIGN_PKCS1"},
		{"EC", with("ec", gcpkmstest.Key{Private: curve, Algorithm: kmspb.CryptoKeyVersion_EC_SIGN_P256_SHA256}), signer.ErrBadKey, "EC_SIGN_P256_SHA256", "RSA_SIGN_PKCS1"},
		{"symmetric", with("aes", gcpkmstest.Key{Algorithm: kmspb.CryptoKeyVersion_GOOGLE_SYMMETRIC_ENCRYPTION}), signer.ErrBadKey, "FAILED_PRECONDITION", "ENABLED"},
		{"disabled", with("disabled", gcpkmstest.Key{Private: private, Algorithm: rsaSign, State: kmspb.CryptoKeyVersion_DISABLED}), signer.ErrBadKey, "DISABLED", "versions enable"},
		{"destroyed", with("destroyed", gcpkmstest.Key{Private: private, Algorithm: rsaSign, State: kmspb.CryptoKeyVersion_DESTROYED}), signer.ErrBadKey, "DESTROYED", "new key"},
		{"pending import", with("import", gcpkmstest.Key{Private: private, Algorithm: rsaSign, State: kmspb.CryptoKeyVersion_PENDING_IMPORT}), signer.ErrBadKey, "PENDING_IMPORT", "try again"},
		{"software, HSM required", with("software", gcpkmstest.Key{Private: private, Algorithm: rsaSign, Protection: kmspb.ProtectionLevel_SOFTWARE}) + "&require-hsm=yes", signer.ErrBadKey, "SOFTWARE", "HSM"},
		{"no such version", at(server, vendorThree), signer.ErrKeyNotFound, "not found", "gcloud"},
		{"no such key", at(server, ring+"/cryptoKeys/none/cryptoKeyVersions/1"), signer.ErrKeyNotFound, "not found", "gcloud"},
		{"no such key, no version", at(server, ring+"/cryptoKeys/none"), signer.ErrKeyNotFound, "not found", "gcloud"},
		{"another location", at(server, strings.Replace(vendorOne, "europe-west1", "europe-west3", 1)), signer.ErrKeyNotFound, "europe-west3", "gcloud"},
		{"no version is enabled", at(server, ring+"/cryptoKeys/disabled"), signer.ErrBadKey, "no version that is enabled", ""},
		{"one version, not named", at(server, vendor), signer.ErrAmbiguousKey, "cryptoKeyVersions/1", "add the version"},
		{"no key named", at(server, ring), signer.ErrReference, "no key", "key list"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := signerkit.Open(t, Backend(quick()), tt.ref, nil)
			signerkit.WantError(t, err, tt.family, tt.text, tt.fix)
		})
	}
	// With the certificate's key no request tells the protection level, but each signature does.
	public := &private.PublicKey
	err := signerkit.Sign(t, signerkit.MustOpen(t, Backend(quick()), at(server, ring+"/cryptoKeys/software/cryptoKeyVersions/1")+"&require-hsm=yes", public))
	signerkit.WantError(t, err, signer.ErrBadKey, "SOFTWARE", "HSM")
	signerkit.MustSign(t, signerkit.MustOpen(t, Backend(quick()), at(server, vendorOne)+"&require-hsm=yes", public))

	// A version that is disabled after Open is refused, and signs again once it is enabled.
	key := signerkit.MustOpen(t, Backend(quick()), at(server, vendorOne), nil)
	for _, state := range []kmspb.CryptoKeyVersion_CryptoKeyVersionState{kmspb.CryptoKeyVersion_DISABLED, kmspb.CryptoKeyVersion_ENABLED} {
		testkit.OK(t, server.SetState(vendorOne, state))
		if state == kmspb.CryptoKeyVersion_DISABLED {
			signerkit.WantError(t, signerkit.Sign(t, key), signer.ErrBadKey, "DISABLED", "versions enable")
		} else {
			signerkit.MustSign(t, key)
		}
	}
}

func TestNoCredentials(t *testing.T) {
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", filepath.Join(t.TempDir(), "none.json"))
	_, err := signerkit.Open(t, Backend(quick()), "gcpkms://"+vendorOne, nil)
	signerkit.WantError(t, err, signer.ErrAuth, "", "gcloud auth application-default login")
}
