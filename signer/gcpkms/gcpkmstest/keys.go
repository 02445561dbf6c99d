package gcpkmstest

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"hash/crc32"
	"regexp"
	"strings"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Version is one key version of the double.
type Version struct {
	Name       string        // projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/V
	Key        crypto.Signer // nil: it has no public key, as a symmetric one
	Algorithm  kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm
	Protection kmspb.ProtectionLevel                        // HSM when left out
	State      kmspb.CryptoKeyVersion_CryptoKeyVersionState // ENABLED when left out

	ready time.Time // of a generated one: until then it is PENDING_GENERATION
}

func (v *Version) state() kmspb.CryptoKeyVersion_CryptoKeyVersionState {
	if time.Now().Before(v.ready) {
		return kmspb.CryptoKeyVersion_PENDING_GENERATION
	}
	return v.State
}

// AddKey imports an RSA key of 2048, 3072 or 4096 bits as an enabled version of RSA_SIGN_PKCS1_n_SHA256 and protection
// level HSM. Key ring and key are made with it.
func (s *Server) AddKey(name string, private *rsa.PrivateKey) error {
	algorithm, ok := kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm_value[fmt.Sprintf("RSA_SIGN_PKCS1_%d_SHA256", private.N.BitLen())]
	if !ok {
		return fmt.Errorf("add %q: Cloud KMS has no RSA keys of %d bits", name, private.N.BitLen())
	}
	return s.AddVersion(Version{Name: name, Key: private, Algorithm: kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm(algorithm)})
}

// AddVersion imports a version, in whatever state and of whatever algorithm. One of that name must not be there.
func (s *Server) AddVersion(v Version) error {
	if !matches(versionName, v.Name) {
		return fmt.Errorf("add %q: it is not the name of a key version", v.Name)
	}
	if v.Protection == kmspb.ProtectionLevel_PROTECTION_LEVEL_UNSPECIFIED {
		v.Protection = kmspb.ProtectionLevel_HSM
	}
	if v.State == kmspb.CryptoKeyVersion_CRYPTO_KEY_VERSION_STATE_UNSPECIFIED {
		v.State = kmspb.CryptoKeyVersion_ENABLED
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.versions[v.Name] != nil {
		return fmt.Errorf("add %q: it is there", v.Name)
	}
	s.versions[v.Name] = &v
	key, _, _ := strings.Cut(v.Name, "/cryptoKeyVersions/")
	ring, _, _ := strings.Cut(key, "/cryptoKeys/")
	s.rings[ring] = true
	if s.keys[key] == nil {
		s.keys[key] = &kmspb.CryptoKey{Name: key, Purpose: purposeOf(v.Algorithm)}
	}
	return nil
}

// SetState brings a version into another state.
func (s *Server) SetState(name string, state kmspb.CryptoKeyVersion_CryptoKeyVersionState) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.versions[name]
	if v == nil {
		return fmt.Errorf("set the state of %q: it is not there", name)
	}
	v.State, v.ready = state, time.Time{}
	return nil
}

func purposeOf(algorithm kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm) kmspb.CryptoKey_CryptoKeyPurpose {
	switch name := algorithm.String(); {
	case strings.Contains(name, "_SIGN_"):
		return kmspb.CryptoKey_ASYMMETRIC_SIGN
	case strings.Contains(name, "_DECRYPT_"):
		return kmspb.CryptoKey_ASYMMETRIC_DECRYPT
	}
	return kmspb.CryptoKey_ENCRYPT_DECRYPT
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

// publicPEM is the public key as GetPublicKey gives it.
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
