package gcpkmstest

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha256" // digests of the algorithms
	_ "crypto/sha512"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// find returns a version in any state.
func (s *Server) find(name string) (Key, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.versions[name]; v != nil {
		return *v, nil
	}
	if !matches(versionName, name) {
		return Key{}, status.Errorf(codes.InvalidArgument, "Resource name [%s] does not match pattern.", name)
	}
	return Key{}, status.Errorf(codes.NotFound, "%s not found.", name)
}

// enabled returns a version with a key pair that can be used now.
func (s *Server) enabled(name string) (Key, error) {
	v, err := s.find(name)
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

// AsymmetricSign is the RPC of this name, for algorithms that sign a digest.
func (s *Server) AsymmetricSign(_ context.Context, req *kmspb.AsymmetricSignRequest) (*kmspb.AsymmetricSignResponse, error) {
	v, err := s.enabled(req.GetName())
	if err != nil {
		return nil, err
	}
	if purposeOf(v.Algorithm) != kmspb.CryptoKey_ASYMMETRIC_SIGN {
		return nil, status.Errorf(codes.FailedPrecondition, "%s has algorithm %v, which does not sign.", v.Name, v.Algorithm)
	}
	h, digest := digestFor(v.Algorithm, req.GetDigest())
	switch {
	case h == 0 || len(req.GetData()) > 0:
		return nil, status.Errorf(codes.InvalidArgument, "The digest's type does not match the algorithm %v.", v.Algorithm)
	case len(digest) != h.Size():
		return nil, status.Errorf(codes.InvalidArgument, "The digest has %d bytes; %v has %d.", len(digest), h, h.Size())
	case req.GetDigestCrc32C() != nil && req.GetDigestCrc32C().GetValue() != checksum(digest).GetValue():
		return nil, status.Error(codes.InvalidArgument, "The checksum in field digest_crc32c did not match the data in field digest.")
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
		VerifiedDigestCrc32C: req.GetDigestCrc32C() != nil,
	}, nil
}

// digestFor returns the digest if its hash is that of the algorithm, and otherwise the hash 0.
func digestFor(algorithm kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm, d *kmspb.Digest) (crypto.Hash, []byte) {
	name := algorithm.String()
	switch d := d.GetDigest().(type) {
	case *kmspb.Digest_Sha256:
		if strings.HasSuffix(name, "_SHA256") {
			return crypto.SHA256, d.Sha256
		}
	case *kmspb.Digest_Sha384:
		if strings.HasSuffix(name, "_SHA384") {
			return crypto.SHA384, d.Sha384
		}
	case *kmspb.Digest_Sha512:
		if strings.HasSuffix(name, "_SHA512") {
			return crypto.SHA512, d.Sha512
		}
	}
	return 0, nil
}

// GetCryptoKeyVersion is the RPC of this name.
func (s *Server) GetCryptoKeyVersion(_ context.Context, req *kmspb.GetCryptoKeyVersionRequest) (*kmspb.CryptoKeyVersion, error) {
	v, err := s.find(req.GetName())
	if err != nil {
		return nil, err
	}
	return v.resource(), nil
}

func (v *Key) resource() *kmspb.CryptoKeyVersion {
	return &kmspb.CryptoKeyVersion{Name: v.Name, State: v.state(), Algorithm: v.Algorithm, ProtectionLevel: v.Protection}
}

// CreateKeyRing is the RPC of this name.
func (s *Server) CreateKeyRing(_ context.Context, req *kmspb.CreateKeyRingRequest) (*kmspb.KeyRing, error) {
	name := req.GetParent() + "/keyRings/" + req.GetKeyRingId()
	if !matches(ringName, name) {
		return nil, status.Errorf(codes.InvalidArgument, "Resource name [%s] does not match pattern.", name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rings[name] {
		return nil, status.Errorf(codes.AlreadyExists, "KeyRing %s already exists.", name)
	}
	s.rings[name] = true
	return &kmspb.KeyRing{Name: name}, nil
}

// CreateCryptoKey is the RPC of this name, for keys of RSA_SIGN_PKCS1_n_SHA256. It creates version 1.
func (s *Server) CreateCryptoKey(_ context.Context, req *kmspb.CreateCryptoKeyRequest) (*kmspb.CryptoKey, error) {
	name := req.GetParent() + "/cryptoKeys/" + req.GetCryptoKeyId()
	template := req.GetCryptoKey().GetVersionTemplate()
	bits, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(template.GetAlgorithm().String(), "RSA_SIGN_PKCS1_"), "_SHA256"))
	if !matches(keyName, name) || bits == 0 || req.GetCryptoKey().GetPurpose() != kmspb.CryptoKey_ASYMMETRIC_SIGN {
		return nil, status.Errorf(codes.InvalidArgument, "The double creates keys of ASYMMETRIC_SIGN with RSA_SIGN_PKCS1_n_SHA256 only; [%s] with %v.", name, template.GetAlgorithm())
	}
	if err := s.vacant(req.GetParent(), name); err != nil {
		return nil, err
	}
	private, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	version := Key{Name: name + "/cryptoKeyVersions/1", Private: private, Algorithm: template.GetAlgorithm(), Protection: template.GetProtectionLevel(), ready: time.Now().Add(s.config.Generation)}
	if _, err := s.Add(version); err != nil {
		return nil, status.Error(codes.AlreadyExists, err.Error())
	}
	return &kmspb.CryptoKey{Name: name, Purpose: kmspb.CryptoKey_ASYMMETRIC_SIGN, VersionTemplate: template}, nil
}

// vacant returns an error unless a key can be created under this name.
func (s *Server) vacant(ring, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.rings[ring] {
		return status.Errorf(codes.NotFound, "KeyRing %s not found.", ring)
	}
	if s.keys[key] != nil {
		return status.Errorf(codes.AlreadyExists, "CryptoKey %s already exists.", key)
	}
	return nil
}

// page returns one page of the names under a parent, sorted. The token is the last name of the page before.
func page[V any](all map[string]V, prefix, token string, size int32) (names []string, next string) {
	if size <= 0 {
		size = 100 // the default of the service
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if !strings.HasPrefix(name, prefix) || name <= token {
			continue
		}
		if len(names) == int(size) {
			return names, names[len(names)-1]
		}
		names = append(names, name)
	}
	return names, ""
}

// ListKeyRings is the RPC of this name.
func (s *Server) ListKeyRings(_ context.Context, req *kmspb.ListKeyRingsRequest) (*kmspb.ListKeyRingsResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	names, next := page(s.rings, req.GetParent()+"/keyRings/", req.GetPageToken(), req.GetPageSize())
	answer := &kmspb.ListKeyRingsResponse{NextPageToken: next}
	for _, name := range names {
		answer.KeyRings = append(answer.KeyRings, &kmspb.KeyRing{Name: name})
	}
	return answer, nil
}

// ListCryptoKeys is the RPC of this name. Filters are ignored.
func (s *Server) ListCryptoKeys(_ context.Context, req *kmspb.ListCryptoKeysRequest) (*kmspb.ListCryptoKeysResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.rings[req.GetParent()] {
		return nil, status.Errorf(codes.NotFound, "KeyRing %s not found.", req.GetParent())
	}
	names, next := page(s.keys, req.GetParent()+"/cryptoKeys/", req.GetPageToken(), req.GetPageSize())
	answer := &kmspb.ListCryptoKeysResponse{NextPageToken: next}
	for _, name := range names {
		answer.CryptoKeys = append(answer.CryptoKeys, s.keys[name])
	}
	return answer, nil
}

// ListCryptoKeyVersions is the RPC of this name. Filters are ignored.
func (s *Server) ListCryptoKeyVersions(_ context.Context, req *kmspb.ListCryptoKeyVersionsRequest) (*kmspb.ListCryptoKeyVersionsResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keys[req.GetParent()] == nil {
		return nil, status.Errorf(codes.NotFound, "CryptoKey %s not found.", req.GetParent())
	}
	names, next := page(s.versions, req.GetParent()+"/cryptoKeyVersions/", req.GetPageToken(), req.GetPageSize())
	answer := &kmspb.ListCryptoKeyVersionsResponse{NextPageToken: next}
	for _, name := range names {
		answer.CryptoKeyVersions = append(answer.CryptoKeyVersions, s.versions[name].resource())
	}
	return answer, nil
}
