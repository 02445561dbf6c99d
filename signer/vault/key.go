package vault

import (
	"context"
	"crypto/rsa"
	"crypto/sha1" // #nosec G505 -- for vendor certificates from before 2021; used only on request
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/kms"
)

// maxMentions is how many versions an error names.
const maxMentions = 20

// Open opens the version that the reference names.
func (s *session) Open(ctx context.Context, opts signer.OpenOptions) (signer.Signer, error) {
	if err := s.requireVersion(ctx); err != nil {
		return nil, err
	}
	var err error
	if s.public, err = kms.PublicKey(opts); err != nil {
		return nil, err
	}
	known := s.public != nil
	if known {
		err = s.identity.prepare(ctx) // a missing secret is reported now
	} else {
		s.public, err = s.readPublic(ctx)
	}
	if err != nil {
		return nil, err
	}
	return s.signer(!known), nil
}

// signer returns the Signer of the session.
func (s *session) signer(proven bool) signer.Signer {
	return kms.NewKey(s.ref, s.public, proven, s, s.caller).WithSHA1()
}

// Sign signs a SHA-256 or SHA-1 digest with the version of the reference.
func (s *session) Sign(ctx context.Context, digest []byte) ([]byte, error) {
	hash := "sha2-256"
	if len(digest) == sha1.Size {
		hash = "sha1"
	}
	if err := s.identity.prepare(ctx); err != nil {
		return nil, err
	}
	return kms.Do(ctx, s.caller, func(ctx context.Context) (sig []byte, err error) {
		began, id := time.Now(), ""
		defer func() { signer.OperationOf(ctx).Attempted(id, began, err) }()
		err = s.authorized(ctx, request{
			path: "/v1/" + s.mount + "/sign/" + s.name + "/" + hash,
			body: map[string]any{
				"input": digest, "prehashed": true, "key_version": s.version,
				"signature_algorithm": "pkcs1v15", // the default is PSS
			},
			decode: func(a answer) error {
				id = a.RequestID
				sig, err = s.signature(a)
				return err
			},
		})
		return sig, err
	})
}

// signature returns the signature of an answer, "vault:v1:BASE64", which the version of the reference must have made.
func (s *session) signature(a answer) ([]byte, error) {
	var data struct {
		Signature string `json:"signature"`
	}
	if err := json.Unmarshal(a.Data, &data); err != nil {
		return nil, fmt.Errorf("%w: its data: %w", errDamaged, err)
	}
	parts := strings.Split(data.Signature, ":")
	if len(parts) != 3 || parts[0] != "vault" {
		return nil, fmt.Errorf("%w: it has no signature", errDamaged)
	}
	if want := "v" + strconv.Itoa(s.version); parts[1] != want {
		return nil, fmt.Errorf("%w: version %q of the key signed, the request was for %q", signer.ErrBadKey, fault.Clip(parts[1], maxText), want)
	}
	sig, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil {
		return nil, fmt.Errorf("%w: its signature is not base64", errDamaged)
	}
	if len(sig) != s.public.Size() {
		return nil, fmt.Errorf("%w: Vault returned %d bytes, want %d", signer.ErrBadSignature, len(sig), s.public.Size())
	}
	return sig, nil
}

// keyData is what Vault shows of a key.
type keyData struct {
	Type                 string                     `json:"type"`
	LatestVersion        int                        `json:"latest_version"`
	MinEncryptionVersion int                        `json:"min_encryption_version"` // also for signatures; 0: any version
	Exportable           bool                       `json:"exportable"`
	PlaintextBackup      bool                       `json:"allow_plaintext_backup"`
	DeletionAllowed      bool                       `json:"deletion_allowed"`
	Derived              bool                       `json:"derived"`
	Imported             bool                       `json:"imported_key"`
	Keys                 map[string]json.RawMessage `json:"keys"` // by version; symmetric ones are numbers
}

// readKey reads the key of the reference.
func (s *session) readKey(ctx context.Context) (keyData, error) { return s.readKeyAt(ctx, s.name) }

func (s *session) readKeyAt(ctx context.Context, name string) (keyData, error) {
	var k keyData
	err := s.call(ctx, request{path: "/v1/" + s.mount + "/keys/" + name, decode: func(a answer) error {
		k = keyData{}
		return dataInto(&k)(a)
	}})
	return k, err
}

// readPublic reads the public key of the reference and checks that the version can make Apple's signatures.
func (s *session) readPublic(ctx context.Context) (*rsa.PublicKey, error) {
	k, err := s.readKey(ctx)
	if err != nil {
		return nil, err
	}
	return k.usable(s.version)
}

// usable returns the public key of a version that can sign.
func (k *keyData) usable(version int) (*rsa.PublicKey, error) {
	if bitsOf(k.Type) == 0 {
		return nil, wrongKey("its type is %q", k.Type)
	}
	if _, ok := k.Keys[strconv.Itoa(version)]; !ok {
		return nil, fault.Errorf("%w: no version %d: the key has %s", signer.ErrKeyNotFound, version, k.list()).Fix("correct version= in the reference")
	}
	if version < k.MinEncryptionVersion {
		return nil, fault.Errorf("%w: version %d is below min_encryption_version %d, so Vault does not sign with it", signer.ErrBadKey, version, k.MinEncryptionVersion).
			Fix(fixVersion)
	}
	public, err := k.public(version)
	if err != nil {
		return nil, err
	}
	key, ok := public.(*rsa.PublicKey)
	if !ok || key.N.BitLen() != bitsOf(k.Type) {
		return nil, wrongKey("its type is %q, and its public key is another one (%T)", k.Type, public)
	}
	return key, nil
}

// public returns the public key of a version.
func (k *keyData) public(version int) (any, error) {
	var entry struct {
		PublicKey string `json:"public_key"`
	}
	if err := json.Unmarshal(k.Keys[strconv.Itoa(version)], &entry); err != nil {
		return nil, fmt.Errorf("%w: version %d: %w", errDamaged, version, err)
	}
	block, _ := pem.Decode([]byte(entry.PublicKey))
	if block == nil {
		return nil, fmt.Errorf("%w: version %d has no public key in PEM", signer.ErrBadKey, version)
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: damaged public key: %w", signer.ErrBadKey, err)
	}
	return public, nil
}

// versions returns the numbers of the versions, the oldest first.
func (k *keyData) versions() []int {
	var all []int
	for text := range maps.Keys(k.Keys) {
		if n, err := strconv.Atoi(text); err == nil && n > 0 {
			all = append(all, n)
		}
	}
	slices.Sort(all)
	return all
}

// list returns the versions for an error: "version=1, version=2".
func (k *keyData) list() string {
	all := k.versions()
	if len(all) == 0 {
		return "no versions"
	}
	var words []string
	for _, n := range all[max(0, len(all)-maxMentions):] {
		words = append(words, "version="+strconv.Itoa(n))
	}
	if len(all) > maxMentions {
		words[0] = "..., " + words[0]
	}
	return strings.Join(words, ", ")
}

// bitsOf returns the size of an RSA key of a type of Vault; 0 for any other type.
func bitsOf(keyType string) int {
	for _, bits := range []int{2048, 3072, 4096} {
		if keyType == typeOf(bits) {
			return bits
		}
	}
	return 0
}

// typeOf is the inverse of bitsOf.
func typeOf(bits int) string { return "rsa-" + strconv.Itoa(bits) }

func wrongKey(format string, args ...any) error {
	return fault.Errorf("%w: %s", signer.ErrBadKey, fault.Clip(fmt.Sprintf(format, args...), maxText)).Fix(fixKey)
}

// notFound reports whether Vault has no such key.
func notFound(err error) bool { return errors.Is(err, signer.ErrKeyNotFound) }
