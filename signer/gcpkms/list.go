package gcpkms

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/googleapis/gax-go/v2"
	"google.golang.org/api/iterator"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/kms"
)

// The limits of a listing. Read requests have the lowest quota, hundreds per minute, and every key costs one.
const (
	maxListed   = 1000 // key rings, keys or versions, each
	maxMentions = 20   // versions that an error names
)

// pager is an iterator of the service's client.
type pager[T any] interface {
	iterator.Pageable
	Next() (T, error)
}

// pages returns all entries of a List method, with one call for each page: pages(ctx, s, s.client.ListKeyRings, in). The
// service chooses the size of the pages.
func pages[T, In any, It pager[T]](ctx context.Context, s *session, list func(context.Context, *In, ...gax.CallOption) It, in *In) ([]T, error) {
	var all []T
	for token := ""; ; {
		page, err := kms.Do(ctx, s.caller, func(ctx context.Context) ([]T, error) {
			var page []T
			it := list(ctx, in)
			info := it.PageInfo()
			for info.Token = token; ; {
				entry, err := it.Next()
				done := errors.Is(err, iterator.Done)
				switch {
				case err == nil:
					page = append(page, entry)
				case !done:
					return nil, err
				}
				if done || info.Remaining() == 0 {
					token = info.Token
					return page, nil
				}
			}
		})
		if err != nil {
			return nil, err
		}
		if all = append(all, page...); len(all) > maxListed {
			return nil, tooMany("entries")
		}
		if token == "" {
			return all, nil
		}
	}
}

func tooMany(what string) error {
	return fault.Errorf("%w: more than %d %s", signer.ErrUnsupported, maxListed, what).Fix("name the key ring or the key in the reference")
}

// List describes the key versions that the reference matches. The public key is included only if the reference names
// one version: each key would cost one more call.
func (s *session) List(ctx context.Context) ([]signer.KeyInfo, error) {
	if s.name.version != "" {
		info, err := s.describe(ctx)
		return []signer.KeyInfo{info}, err
	}
	keys, err := s.keys(ctx)
	if err != nil {
		return nil, err
	}
	var infos []signer.KeyInfo
	for _, key := range keys {
		versions, err := s.versions(ctx, key)
		if err != nil {
			return nil, err
		}
		for _, v := range versions {
			infos = append(infos, s.info(v.GetName(), v.GetAlgorithm(), v.GetProtectionLevel(), v.GetState().String()))
		}
		if len(infos) > maxListed {
			return nil, tooMany("key versions")
		}
	}
	return infos, nil
}

// describe describes the version that the reference names. GetPublicKey returns all of it and needs no permission
// beyond those for signing; GetCryptoKeyVersion does.
func (s *session) describe(ctx context.Context) (signer.KeyInfo, error) {
	answer, err := s.publicKey(ctx)
	if err != nil {
		return signer.KeyInfo{}, err
	}
	info := s.info(s.name.String(), answer.GetAlgorithm(), answer.GetProtectionLevel(), kmspb.CryptoKeyVersion_ENABLED.String())
	if block, _ := pem.Decode([]byte(answer.GetPem())); block != nil {
		if info.Public, err = x509.ParsePKIXPublicKey(block.Bytes); err != nil {
			return info, fmt.Errorf("%w: damaged public key: %w", signer.ErrBadKey, err)
		}
	}
	return info, nil
}

// keys returns the names of the signing keys that the reference matches.
func (s *session) keys(ctx context.Context) ([]string, error) {
	if s.name.key != "" {
		return []string{s.name.String()}, nil
	}
	rings := []string{s.name.parentOfKeys()}
	if s.name.ring == "" {
		found, err := pages(ctx, s, s.client.ListKeyRings, &kmspb.ListKeyRingsRequest{Parent: s.name.parentOfRings()})
		if err != nil {
			return nil, err
		}
		rings = nil
		for _, r := range found {
			rings = append(rings, r.GetName())
		}
	}
	var names []string
	for _, ring := range rings {
		found, err := pages(ctx, s, s.client.ListCryptoKeys, &kmspb.ListCryptoKeysRequest{Parent: ring})
		if err != nil {
			return nil, err
		}
		for _, k := range found {
			if k.GetPurpose() == kmspb.CryptoKey_ASYMMETRIC_SIGN {
				names = append(names, k.GetName())
			}
		}
	}
	return names, nil
}

func (s *session) versions(ctx context.Context, key string) ([]*kmspb.CryptoKeyVersion, error) {
	return pages(ctx, s, s.client.ListCryptoKeyVersions, &kmspb.ListCryptoKeyVersionsRequest{Parent: key})
}

func (s *session) info(name string, algorithm kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm, level kmspb.ProtectionLevel, state string) signer.KeyInfo {
	store, rest, _ := strings.Cut(name, "/cryptoKeys/")
	label, version, _ := strings.Cut(rest, "/cryptoKeyVersions/")
	ref := s.ref.Without("protection") // which is for Generate only
	ref.Path = "//" + name
	info := signer.KeyInfo{Ref: ref.String(), Store: store, Label: label, ID: version, Bits: bitsOf(algorithm), Properties: []signer.Property{
		{Name: "algorithm", Value: algorithm.String()}, {Name: "protection", Value: level.String(), Want: s.protection.String()}, {Name: "state", Value: state},
	}}
	if kind, _, _ := strings.Cut(algorithm.String(), "_"); kind == "RSA" || kind == "EC" {
		info.Algorithm = kind
	}
	return info
}

// requireVersion returns an error that lists the versions of the key if the reference names none. It does not choose,
// even if there is only one version today: tomorrow there may be two, and a certificate belongs to one.
func (s *session) requireVersion(ctx context.Context) error {
	if s.name.version != "" {
		return nil
	}
	if s.name.key == "" {
		return errNoKey()
	}
	versions, err := s.versions(ctx, s.name.String())
	if err != nil {
		return fmt.Errorf("the reference names no version, and the versions cannot be listed: %w", err)
	}
	var enabled []string
	for _, v := range versions {
		if v.GetState() == kmspb.CryptoKeyVersion_ENABLED {
			enabled = append(enabled, v.GetName()[strings.LastIndex(v.GetName(), "cryptoKeyVersions/"):])
		}
	}
	if len(enabled) == 0 {
		return fmt.Errorf("%w: key %q has no version that is enabled", signer.ErrBadKey, s.name.key)
	}
	if len(enabled) > maxMentions {
		enabled = append(enabled[:maxMentions], "...")
	}
	return fault.Errorf("%w: it names no version of key %q; these are enabled: %s", signer.ErrAmbiguousKey, s.name.key, strings.Join(enabled, ", ")).
		Fix("add the version that the vendor certificate was issued for: /cryptoKeyVersions/NUMBER")
}

func errNoKey() error {
	return fault.Errorf("%w: it names no key", signer.ErrReference).Fix("list the keys: hsmsign key list with this reference")
}
