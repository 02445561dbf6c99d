package gcpkms

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cloud.google.com/go/kms/apiv1/kmspb"

	"hsmsign/signer"
	"hsmsign/signer/gcpkms/gcpkmstest"
	"hsmsign/signer/signertest"
)

// contract is what holds for the double and for the service alike.
func contract(t *testing.T, opts Options, text string, f signertest.Fixture) {
	key := open(t, opts, text)
	public, ok := key.Public().(*rsa.PublicKey)
	if !ok {
		t.Fatalf("public key is a %T", key.Public())
	}
	name, query, _ := strings.Cut(text, "?")
	f.Backend, f.Ref, f.Public, f.Hashes = Backend(opts), text, public, []crypto.Hash{crypto.SHA256}
	f.Missing = name[:strings.LastIndex(name, "/")] + "/4294967295"
	if query != "" {
		f.Missing += "?" + query
	}
	signertest.Run(t, f)
	infos, err := f.Backend.List(t.Context(), reference(t, text))
	if err != nil || len(infos) != 1 || !public.Equal(infos[0].Public) || infos[0].Ref != text {
		t.Errorf("list of the version itself: %+v, %v", infos, err)
	}
}

func TestContractOnTheDouble(t *testing.T) {
	server := double(t, gcpkmstest.Config{})
	if err := server.AddKey(vendorTwo, vendorKey(t)); err != nil {
		t.Fatal(err)
	}
	contract(t, Options{}, at(server, vendorOne), signertest.Fixture{
		Ambiguous: at(server, vendor), Matches: []string{"cryptoKeyVersions/1", "cryptoKeyVersions/2"},
	})
}

// The same on Google's service, where HSMSIGN_TEST_GCPKMS names a key version of RSA_SIGN_PKCS1_n_SHA256.
func TestContractOnTheService(t *testing.T) {
	text := os.Getenv("HSMSIGN_TEST_GCPKMS")
	if text == "" {
		t.Skip("HSMSIGN_TEST_GCPKMS names no key; the double has passed the same")
	}
	contract(t, Options{}, text, signertest.Fixture{})
}

// RSASSA-PKCS1-v1_5 is deterministic: the signature in the golden request is what every backend must give.
func TestGoldenSignature(t *testing.T) {
	server := double(t, gcpkmstest.Config{})
	text, err := os.ReadFile("../../testdata/golden/customer.csr")
	if err != nil {
		t.Fatal(err)
	}
	if block, _ := pem.Decode(text); block != nil {
		text = block.Bytes
	}
	sig, err := signer.Sign(t.Context(), open(t, Options{}, at(server, vendorOne)), text, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	plist, err := os.ReadFile("../../testdata/golden/customer.plist")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(plist, []byte(base64.StdEncoding.EncodeToString(sig))) {
		t.Error("the golden request holds another signature")
	}
}

// Opening is one call and each signature one more; with the certificate's public key opening is none.
func TestCallsAreCounted(t *testing.T) {
	for _, c := range []struct {
		name      string
		public    crypto.PublicKey
		keys, max int
	}{
		{"without the certificate", nil, 1, 11},
		{"with the certificate", &vendorKey(t).PublicKey, 0, 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := double(t, gcpkmstest.Config{})
			key := open(t, Options{PublicKey: c.public}, at(server, vendorOne))
			for range 10 {
				if _, err := signer.Sign(t.Context(), key, []byte("message"), crypto.SHA256); err != nil {
					t.Fatal(err)
				}
			}
			if n := server.Calls(gcpkmstest.GetPublicKey); n != c.keys {
				t.Errorf("%d calls of GetPublicKey, want %d", n, c.keys)
			}
			if n := server.Calls(gcpkmstest.AsymmetricSign); n != 10 {
				t.Errorf("%d calls of AsymmetricSign for 10 signatures", n)
			}
			if n := total(server); n != c.max {
				t.Errorf("%d calls in all, want %d", n, c.max)
			}
		})
	}
}

func total(server *gcpkmstest.Server) int {
	n := 0
	for _, op := range []gcpkmstest.Operation{gcpkmstest.GetPublicKey, gcpkmstest.AsymmetricSign, gcpkmstest.GetCryptoKeyVersion,
		gcpkmstest.CreateKeyRing, gcpkmstest.CreateCryptoKey, gcpkmstest.ListKeyRings, gcpkmstest.ListCryptoKeys, gcpkmstest.ListCryptoKeyVersions} {
		n += server.Calls(op)
	}
	return n
}

// A certificate of another key is found out by the first signature, which does not get out.
func TestCertificateOfAnotherKey(t *testing.T) {
	server := double(t, gcpkmstest.Config{})
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	key := open(t, Options{PublicKey: &other.PublicKey}, at(server, vendorOne))
	for range 2 {
		digest := sha256.Sum256([]byte("message"))
		sig, err := key.SignContext(t.Context(), digest[:], crypto.SHA256)
		wants(t, err, signer.ErrBadKey, true)
		if sig != nil {
			t.Error("a signature got out")
		}
	}
}

func TestKeysThatCannotSign(t *testing.T) {
	server := double(t, gcpkmstest.Config{})
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private := vendorKey(t)
	add := func(key string, v gcpkmstest.Version) string {
		v.Name = ring + "/cryptoKeys/" + key + "/cryptoKeyVersions/1"
		if err := server.AddVersion(v); err != nil {
			t.Fatal(err)
		}
		return at(server, v.Name)
	}
	for _, c := range []struct {
		name, ref string
		family    error
		says      string
	}{
		{"PSS", add("pss", gcpkmstest.Version{Key: private, Algorithm: kmspb.CryptoKeyVersion_RSA_SIGN_PSS_2048_SHA256}), signer.ErrBadKey, "RSA_SIGN_PSS_2048_SHA256"},
		{"SHA-512", add("sha512", gcpkmstest.Version{Key: private, Algorithm: kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_4096_SHA512}), signer.ErrBadKey, "RSA_SIGN_PKCS1_4096_SHA512"},
		{"for decryption", add("oaep", gcpkmstest.Version{Key: private, Algorithm: kmspb.CryptoKeyVersion_RSA_DECRYPT_OAEP_2048_SHA256}), signer.ErrBadKey, "RSA_DECRYPT_OAEP_2048_SHA256"},
		{"EC", add("ec", gcpkmstest.Version{Key: curve, Algorithm: kmspb.CryptoKeyVersion_EC_SIGN_P256_SHA256}), signer.ErrBadKey, "EC_SIGN_P256_SHA256"},
		{"symmetric", add("aes", gcpkmstest.Version{Algorithm: kmspb.CryptoKeyVersion_GOOGLE_SYMMETRIC_ENCRYPTION}), signer.ErrBadKey, "FAILED_PRECONDITION"},
		{"disabled", add("disabled", gcpkmstest.Version{Key: private, Algorithm: kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256, State: kmspb.CryptoKeyVersion_DISABLED}), signer.ErrBadKey, "DISABLED"},
		{"destroyed", add("destroyed", gcpkmstest.Version{Key: private, Algorithm: kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256, State: kmspb.CryptoKeyVersion_DESTROYED}), signer.ErrBadKey, "DESTROYED"},
		{"pending import", add("import", gcpkmstest.Version{Key: private, Algorithm: kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256, State: kmspb.CryptoKeyVersion_PENDING_IMPORT}), signer.ErrBadKey, "PENDING_IMPORT"},
		{"software where an HSM is required", add("software", gcpkmstest.Version{Key: private, Algorithm: kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256, Protection: kmspb.ProtectionLevel_SOFTWARE}) + "&require-hsm=yes", signer.ErrBadKey, "SOFTWARE"},
		{"no such version", at(server, vendorThree), signer.ErrKeyNotFound, "not found"},
		{"no such key", at(server, ring+"/cryptoKeys/none/cryptoKeyVersions/1"), signer.ErrKeyNotFound, "not found"},
		{"no such key, no version", at(server, ring+"/cryptoKeys/none"), signer.ErrKeyNotFound, "not found"},
		{"wrong location", at(server, strings.Replace(vendorOne, "europe-west1", "europe-west3", 1)), signer.ErrKeyNotFound, "europe-west3"},
		{"no version that is enabled", at(server, ring+"/cryptoKeys/disabled"), signer.ErrBadKey, "no version that is enabled"},
		{"one version, not named", at(server, vendor), signer.ErrAmbiguousKey, "cryptoKeyVersions/1"},
		{"no key named", at(server, ring), signer.ErrReference, "no key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Backend(Options{Policy: brisk()}).Open(t.Context(), reference(t, c.ref), signer.OpenOptions{})
			wants(t, err, c.family, c.name != "no version that is enabled")
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v: it does not say %q", err, c.says)
			}
		})
	}
}

// With the certificate's public key there is no GetPublicKey to tell the protection level; each signature does.
func TestRequireHSMWithoutGetPublicKey(t *testing.T) {
	server := double(t, gcpkmstest.Config{})
	name := ring + "/cryptoKeys/soft/cryptoKeyVersions/1"
	if err := server.AddVersion(gcpkmstest.Version{Name: name, Key: vendorKey(t), Algorithm: kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256, Protection: kmspb.ProtectionLevel_SOFTWARE}); err != nil {
		t.Fatal(err)
	}
	opts := Options{PublicKey: &vendorKey(t).PublicKey}
	_, err := signer.Sign(t.Context(), open(t, opts, at(server, name)+"&require-hsm=yes"), []byte("m"), crypto.SHA256)
	wants(t, err, signer.ErrBadKey, true)
	if _, err := signer.Sign(t.Context(), open(t, opts, at(server, vendorOne)+"&require-hsm=yes"), []byte("m"), crypto.SHA256); err != nil {
		t.Error(err)
	}
}

func TestNoCredentials(t *testing.T) {
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", filepath.Join(t.TempDir(), "none.json"))
	_, err := Backend(Options{}).Open(t.Context(), reference(t, "gcpkms://"+vendorOne), signer.OpenOptions{})
	wants(t, err, signer.ErrAuth, true)
}

// Cloud KMS has no PKCS#1 key with SHA-1, so the service is not even asked.
func TestNoSHA1(t *testing.T) {
	server := double(t, gcpkmstest.Config{})
	digest := sha1.Sum([]byte("message"))
	_, err := open(t, Options{}, at(server, vendorOne)).SignContext(t.Context(), digest[:], crypto.SHA1)
	wants(t, err, signer.ErrUnsupported, false)
	if n := server.Calls(gcpkmstest.AsymmetricSign); n != 0 {
		t.Errorf("%d calls", n)
	}
}
