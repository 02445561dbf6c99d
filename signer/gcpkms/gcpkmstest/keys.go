package gcpkmstest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"hash/crc32"
	"regexp"
	"strconv"
	"strings"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Key is a key version for Add.
type Key struct {
	Name       string        // projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/V
	Private    crypto.Signer // nil: it has no public key, as a symmetric key
	Algorithm  kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm
	Protection kmspb.ProtectionLevel                        // unset: HSM
	State      kmspb.CryptoKeyVersion_CryptoKeyVersionState // unset: ENABLED

	created time.Time
	ready   time.Time // when a generated version becomes ENABLED
}

func (v Key) state() kmspb.CryptoKeyVersion_CryptoKeyVersionState {
	if time.Now().Before(v.ready) {
		return kmspb.CryptoKeyVersion_PENDING_GENERATION
	}
	return v.State
}

// AddKey imports an enabled RSA signing key of 2048, 3072 or 4096 bits under a name, which is that of a key version. Its
// algorithm is RSA_SIGN_PKCS1_n_SHA256 and its protection level HSM. It returns the name.
func (s *Server) AddKey(name string, private *rsa.PrivateKey) (string, error) {
	algorithm, ok := kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm_value[fmt.Sprintf("RSA_SIGN_PKCS1_%d_SHA256", private.N.BitLen())]
	if !ok {
		return "", fmt.Errorf("add %q: Cloud KMS has no RSA keys of %d bits", name, private.N.BitLen())
	}
	return s.Add(Key{Name: name, Private: private, Algorithm: kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm(algorithm)})
}

// Add imports a key version and returns its name. The key ring and the key are created if necessary. The version must
// not exist.
func (s *Server) Add(v Key) (string, error) {
	if !matches(versionName, v.Name) {
		return "", fmt.Errorf("add %q: this is not the name of a key version", v.Name)
	}
	if v.Protection == kmspb.ProtectionLevel_PROTECTION_LEVEL_UNSPECIFIED {
		v.Protection = kmspb.ProtectionLevel_HSM
	}
	if v.State == kmspb.CryptoKeyVersion_CRYPTO_KEY_VERSION_STATE_UNSPECIFIED {
		v.State = kmspb.CryptoKeyVersion_ENABLED
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, exists := s.versions[v.Name]; exists {
		return "", fmt.Errorf("add %q: it exists", v.Name)
	}
	v.created = time.Now()
	v.ready = v.created
	s.versions[v.Name] = v
	key, _, _ := strings.Cut(v.Name, "/cryptoKeyVersions/")
	ring, _, _ := strings.Cut(key, "/cryptoKeys/")
	if s.rings[ring] == nil {
		s.rings[ring] = &kmspb.KeyRing{Name: ring, CreateTime: timestamppb.Now()}
	}
	if s.keys[key] == nil {
		s.keys[key] = newCryptoKey(key, purposeOf(v.Algorithm), v.Algorithm, v.Protection)
	}
	return v.Name, nil
}

// SetState changes the state of the key version with this name.
func (s *Server) SetState(name string, state kmspb.CryptoKeyVersion_CryptoKeyVersionState) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.versions[name]
	if !ok {
		return fmt.Errorf("set the state of %q: no such key version", name)
	}
	v.State, v.ready = state, v.created
	s.versions[name] = v
	return nil
}

func newCryptoKey(name string, purpose kmspb.CryptoKey_CryptoKeyPurpose, algorithm kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm, level kmspb.ProtectionLevel) *kmspb.CryptoKey {
	return &kmspb.CryptoKey{
		Name: name, Purpose: purpose, CreateTime: timestamppb.Now(),
		VersionTemplate:          &kmspb.CryptoKeyVersionTemplate{Algorithm: algorithm, ProtectionLevel: level},
		DestroyScheduledDuration: durationpb.New(30 * 24 * time.Hour),
	}
}

// newPrivate generates the private key of a version. It is nil for symmetric encryption.
func newPrivate(algorithm kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm) (crypto.Signer, error) {
	switch algorithm {
	case kmspb.CryptoKeyVersion_GOOGLE_SYMMETRIC_ENCRYPTION:
		return nil, nil
	case kmspb.CryptoKeyVersion_EC_SIGN_P256_SHA256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case kmspb.CryptoKeyVersion_EC_SIGN_P384_SHA384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	}
	m := regexp.MustCompile(`^RSA_(?:SIGN_PKCS1|SIGN_PSS|DECRYPT_OAEP)_([0-9]+)_SHA`).FindStringSubmatch(algorithm.String())
	if m == nil {
		return nil, status.Errorf(codes.Unimplemented, "The double creates no keys of %v.", algorithm)
	}
	bits, _ := strconv.Atoi(m[1])
	return rsa.GenerateKey(rand.Reader, bits)
}

func purposeOf(algorithm kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm) kmspb.CryptoKey_CryptoKeyPurpose {
	switch name := algorithm.String(); {
	case strings.Contains(name, "_SIGN_"):
		return kmspb.CryptoKey_ASYMMETRIC_SIGN
	case strings.Contains(name, "_DECRYPT_"):
		return kmspb.CryptoKey_ASYMMETRIC_DECRYPT
	case algorithm == kmspb.CryptoKeyVersion_GOOGLE_SYMMETRIC_ENCRYPTION:
		return kmspb.CryptoKey_ENCRYPT_DECRYPT
	}
	return kmspb.CryptoKey_CRYPTO_KEY_PURPOSE_UNSPECIFIED // of algorithms that the double does not create
}

// The forms of resource names.
const (
	locationName = `projects/[a-z0-9.:-]{1,63}/locations/[a-z0-9-]{1,63}`
	ringName     = locationName + `/keyRings/[a-zA-Z0-9_-]{1,63}`
	keyName      = ringName + `/cryptoKeys/[a-zA-Z0-9_-]{1,63}`
	versionName  = keyName + `/cryptoKeyVersions/[1-9][0-9]{0,9}`
)

func matches(form, name string) bool {
	return regexp.MustCompile("^" + form + "$").MatchString(name)
}

// publicPEM returns the public key in the form of GetPublicKey.
func publicPEM(key crypto.Signer) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), nil
}

func checksum(data []byte) *wrapperspb.Int64Value {
	return wrapperspb.Int64(int64(crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))))
}
