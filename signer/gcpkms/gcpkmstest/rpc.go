package gcpkmstest

import (
	"cmp"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha256" // digests of the algorithms
	_ "crypto/sha512"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// lookup returns the entry of a name, which must have the form.
func lookup[V any](s *Server, all map[string]V, form, name string) (V, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := all[name]
	switch {
	case ok:
		return v, nil
	case !matches(form, name):
		return v, malformed(name)
	}
	return v, status.Errorf(codes.NotFound, "%s not found.", name)
}

func malformed(name string) error {
	return status.Errorf(codes.InvalidArgument, "Resource name [%s] does not match pattern.", name)
}

func exists(name string) error { return status.Errorf(codes.AlreadyExists, "%s already exists.", name) }

// enabled returns a version with a key pair that can be used now.
func (s *Server) enabled(name string) (Key, error) {
	v, err := lookup(s, s.versions, versionName, name)
	switch {
	case err != nil:
		return v, err
	case v.state() != kmspb.CryptoKeyVersion_ENABLED:
		return v, notEnabled(name, v.state())
	case v.Private == nil:
		return v, status.Errorf(codes.FailedPrecondition, "%s has algorithm %v, which has no public key.", name, v.Algorithm)
	}
	return v, nil
}

// GetPublicKey is the RPC of this name.
func (s *Server) GetPublicKey(_ context.Context, req *kmspb.GetPublicKeyRequest) (*kmspb.PublicKey, error) {
	v, err := s.enabled(req.GetName())
	if err != nil {
		return nil, err
	}
	text, err := publicPEM(v.Private)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &kmspb.PublicKey{Name: v.Name, Pem: text, PemCrc32C: checksum([]byte(text)), Algorithm: v.Algorithm, ProtectionLevel: v.Protection}, nil
}

// AsymmetricSign is the RPC of this name.
func (s *Server) AsymmetricSign(_ context.Context, req *kmspb.AsymmetricSignRequest) (*kmspb.AsymmetricSignResponse, error) {
	v, err := s.enabled(req.GetName())
	if err != nil {
		return nil, err
	}
	if purposeOf(v.Algorithm) != kmspb.CryptoKey_ASYMMETRIC_SIGN {
		return nil, status.Errorf(codes.FailedPrecondition, "%s has algorithm %v, which does not sign.", v.Name, v.Algorithm)
	}
	h, digest := digestFor(v.Algorithm, req)
	switch {
	case h == 0:
		return nil, status.Errorf(codes.InvalidArgument, "The request needs either data or a digest of the algorithm %v.", v.Algorithm)
	case len(digest) != h.Size():
		return nil, status.Errorf(codes.InvalidArgument, "The digest has %d bytes; %v has %d.", len(digest), h, h.Size())
	case !intact(req.GetDigestCrc32C(), digest):
		return nil, status.Error(codes.InvalidArgument, "The checksum in field digest_crc32c did not match the data in field digest.")
	case !intact(req.GetDataCrc32C(), req.GetData()):
		return nil, status.Error(codes.InvalidArgument, "The checksum in field data_crc32c did not match the data in field data.")
	}
	var opts crypto.SignerOpts = h
	if strings.Contains(v.Algorithm.String(), "_PSS_") {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: h}
	}
	sig, err := v.Private.Sign(rand.Reader, digest, opts)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &kmspb.AsymmetricSignResponse{
		Name: v.Name, Signature: sig, SignatureCrc32C: checksum(sig), ProtectionLevel: v.Protection,
		VerifiedDigestCrc32C: req.GetDigestCrc32C() != nil, VerifiedDataCrc32C: req.GetDataCrc32C() != nil,
	}, nil
}

// intact reports whether a checksum is absent or right.
func intact(sum *wrapperspb.Int64Value, data []byte) bool {
	return sum == nil || sum.GetValue() == checksum(data).GetValue()
}

// digestFor returns the digest of a request, or that of its data, with the hash of the algorithm. The hash is 0 if the
// request has both, neither, or a digest of another hash.
func digestFor(algorithm kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm, req *kmspb.AsymmetricSignRequest) (crypto.Hash, []byte) {
	for h, given := range map[crypto.Hash][]byte{
		crypto.SHA256: req.GetDigest().GetSha256(), crypto.SHA384: req.GetDigest().GetSha384(), crypto.SHA512: req.GetDigest().GetSha512(),
	} {
		switch {
		case !strings.HasSuffix(algorithm.String(), fmt.Sprintf("_SHA%d", 8*h.Size())):
		case len(given) > 0 && len(req.GetData()) == 0:
			return h, given
		case req.GetDigest() == nil && len(req.GetData()) > 0:
			sum := h.New()
			sum.Write(req.GetData())
			return h, sum.Sum(nil)
		}
	}
	return 0, nil
}

// GetKeyRing is the RPC of this name.
func (s *Server) GetKeyRing(_ context.Context, req *kmspb.GetKeyRingRequest) (*kmspb.KeyRing, error) {
	return lookup(s, s.rings, ringName, req.GetName())
}

// GetCryptoKey is the RPC of this name.
func (s *Server) GetCryptoKey(_ context.Context, req *kmspb.GetCryptoKeyRequest) (*kmspb.CryptoKey, error) {
	return lookup(s, s.keys, keyName, req.GetName())
}

// GetCryptoKeyVersion is the RPC of this name.
func (s *Server) GetCryptoKeyVersion(_ context.Context, req *kmspb.GetCryptoKeyVersionRequest) (*kmspb.CryptoKeyVersion, error) {
	v, err := lookup(s, s.versions, versionName, req.GetName())
	if err != nil {
		return nil, err
	}
	return v.resource(), nil
}

func (v Key) resource() *kmspb.CryptoKeyVersion {
	answer := &kmspb.CryptoKeyVersion{
		Name: v.Name, State: v.state(), Algorithm: v.Algorithm, ProtectionLevel: v.Protection, CreateTime: timestamppb.New(v.created),
	}
	if answer.State != kmspb.CryptoKeyVersion_PENDING_GENERATION {
		answer.GenerateTime = timestamppb.New(v.ready)
	}
	return answer
}

// CreateKeyRing is the RPC of this name.
func (s *Server) CreateKeyRing(_ context.Context, req *kmspb.CreateKeyRingRequest) (*kmspb.KeyRing, error) {
	name := req.GetParent() + "/keyRings/" + req.GetKeyRingId()
	if !matches(ringName, name) {
		return nil, malformed(name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rings[name] != nil {
		return nil, exists(name)
	}
	s.rings[name] = &kmspb.KeyRing{Name: name, CreateTime: timestamppb.Now()}
	return s.rings[name], nil
}

// CreateCryptoKey is the RPC of this name. Without an algorithm the key is for symmetric encryption, without a protection
// level it is SOFTWARE.
func (s *Server) CreateCryptoKey(_ context.Context, req *kmspb.CreateCryptoKeyRequest) (*kmspb.CryptoKey, error) {
	name, purpose := req.GetParent()+"/cryptoKeys/"+req.GetCryptoKeyId(), req.GetCryptoKey().GetPurpose()
	algorithm := cmp.Or(req.GetCryptoKey().GetVersionTemplate().GetAlgorithm(), kmspb.CryptoKeyVersion_GOOGLE_SYMMETRIC_ENCRYPTION)
	level := cmp.Or(req.GetCryptoKey().GetVersionTemplate().GetProtectionLevel(), kmspb.ProtectionLevel_SOFTWARE)
	switch {
	case !matches(keyName, name):
		return nil, malformed(name)
	case purpose == 0 || purpose != purposeOf(algorithm):
		return nil, status.Errorf(codes.InvalidArgument, "The algorithm %v is not valid for the purpose %v.", algorithm, purpose)
	}
	if err := s.vacant(req.GetParent(), name); err != nil {
		return nil, err
	}
	key := newCryptoKey(name, purpose, algorithm, level)
	var first Key
	if !req.GetSkipInitialVersionCreation() {
		var err error
		if first, err = s.newVersion(key); err != nil {
			return nil, err
		}
		first.Name = name + "/cryptoKeyVersions/1"
		if purpose == kmspb.CryptoKey_ENCRYPT_DECRYPT {
			key.Primary = first.resource()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keys[name] != nil { // created meanwhile
		return nil, exists(name)
	}
	s.keys[name] = key
	if first.Name != "" {
		s.versions[first.Name] = first
	}
	return key, nil
}

// CreateCryptoKeyVersion is the RPC of this name. An asymmetric version is PENDING_GENERATION in the answer.
func (s *Server) CreateCryptoKeyVersion(_ context.Context, req *kmspb.CreateCryptoKeyVersionRequest) (*kmspb.CryptoKeyVersion, error) {
	key, err := lookup(s, s.keys, keyName, req.GetParent())
	if err != nil {
		return nil, err
	}
	v, err := s.newVersion(key)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	number := 1
	for v.Name == "" || s.versions[v.Name].Name != "" {
		v.Name = fmt.Sprintf("%s/cryptoKeyVersions/%d", key.GetName(), number)
		number++
	}
	s.versions[v.Name] = v
	answer := v.resource()
	if v.Private != nil {
		answer.State, answer.GenerateTime = kmspb.CryptoKeyVersion_PENDING_GENERATION, nil
	}
	return answer, nil
}

// newVersion returns a version of a key, without a name.
func (s *Server) newVersion(key *kmspb.CryptoKey) (Key, error) {
	template := key.GetVersionTemplate()
	private, err := newPrivate(template.GetAlgorithm())
	if err != nil {
		return Key{}, err
	}
	v := Key{Private: private, Algorithm: template.GetAlgorithm(), Protection: template.GetProtectionLevel(), State: kmspb.CryptoKeyVersion_ENABLED, created: time.Now()}
	v.ready = v.created
	if private != nil {
		v.ready = v.created.Add(s.config.Generation)
	}
	return v, nil
}

// vacant returns an error unless a key can be created under this name.
func (s *Server) vacant(ring, key string) error {
	if _, err := lookup(s, s.rings, ringName, ring); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keys[key] != nil {
		return exists(key)
	}
	return nil
}

// page returns one page of the entries under a parent, sorted by name. The token is the last name of the page before.
func page[V any](s *Server, all map[string]V, prefix, token string, size int32) (entries []V, next string) {
	if size <= 0 {
		size = 100 // the default of the service
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if !strings.HasPrefix(name, prefix) || name <= token {
			continue
		}
		if len(entries) == int(size) {
			return entries, next
		}
		entries, next = append(entries, all[name]), name
	}
	return entries, ""
}

// ListKeyRings is the RPC of this name.
func (s *Server) ListKeyRings(_ context.Context, req *kmspb.ListKeyRingsRequest) (*kmspb.ListKeyRingsResponse, error) {
	if !matches(locationName, req.GetParent()) {
		return nil, malformed(req.GetParent())
	}
	rings, next := page(s, s.rings, req.GetParent()+"/keyRings/", req.GetPageToken(), req.GetPageSize())
	return &kmspb.ListKeyRingsResponse{KeyRings: rings, NextPageToken: next}, nil
}

// ListCryptoKeys is the RPC of this name. Filters are ignored.
func (s *Server) ListCryptoKeys(_ context.Context, req *kmspb.ListCryptoKeysRequest) (*kmspb.ListCryptoKeysResponse, error) {
	if _, err := lookup(s, s.rings, ringName, req.GetParent()); err != nil {
		return nil, err
	}
	keys, next := page(s, s.keys, req.GetParent()+"/cryptoKeys/", req.GetPageToken(), req.GetPageSize())
	return &kmspb.ListCryptoKeysResponse{CryptoKeys: keys, NextPageToken: next}, nil
}

// ListCryptoKeyVersions is the RPC of this name. Filters are ignored.
func (s *Server) ListCryptoKeyVersions(_ context.Context, req *kmspb.ListCryptoKeyVersionsRequest) (*kmspb.ListCryptoKeyVersionsResponse, error) {
	if _, err := lookup(s, s.keys, keyName, req.GetParent()); err != nil {
		return nil, err
	}
	versions, next := page(s, s.versions, req.GetParent()+"/cryptoKeyVersions/", req.GetPageToken(), req.GetPageSize())
	answer := &kmspb.ListCryptoKeyVersionsResponse{NextPageToken: next}
	for _, v := range versions {
		answer.CryptoKeyVersions = append(answer.CryptoKeyVersions, v.resource())
	}
	return answer, nil
}
