package gcpkms

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/api/iterator"

	"hsmsign/signer"
)

// The bounds of a listing. Read requests have the lowest quota, hundreds a minute, and every key costs one.
const (
	pageSize    = 500
	maxListed   = 1000 // key rings, keys or versions, each
	maxMentions = 20   // versions named in an error
)

// pages gives all that a List method gives, one call a page.
func pages[T any](ctx context.Context, s *session, list func(ctx context.Context) iterator.Pageable) ([]T, error) {
	type page struct {
		items []T
		next  string
	}
	var all []T
	for token := ""; ; {
		p, err := call(ctx, s.caller, func(ctx context.Context) (page, error) {
			var p page
			var err error
			p.next, err = iterator.NewPager(list(ctx), pageSize, token).NextPage(&p.items)
			return p, err
		})
		if err != nil {
			return nil, err
		}
		if all = append(all, p.items...); len(all) > maxListed {
			return nil, &faultError{fmt.Errorf("%w: more than %d entries", signer.ErrUnsupported, maxListed), "name the key ring or the key"}
		}
		if p.next == "" {
			return all, nil
		}
		token = p.next
	}
}

// list describes the versions under the reference's name. Their public keys are left out but where one version is
// named: each would cost one more call.
func (s *session) list(ctx context.Context) ([]signer.KeyInfo, error) {
	if s.name.version != "" {
		info, err := s.describe(ctx)
		if err != nil {
			return nil, err
		}
		return []signer.KeyInfo{info}, nil
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
			return nil, &faultError{fmt.Errorf("%w: more than %d key versions", signer.ErrUnsupported, maxListed), "name the key ring or the key"}
		}
	}
	return infos, nil
}

// describe is the one version that the reference names. GetPublicKey tells all of it, and whoever may sign may
// call it; GetCryptoKeyVersion takes a further permission.
func (s *session) describe(ctx context.Context) (signer.KeyInfo, error) {
	answer, err := s.publicKey(ctx)
	if err != nil {
		return signer.KeyInfo{}, err
	}
	info := s.info(s.name.String(), answer.GetAlgorithm(), answer.GetProtectionLevel(), kmspb.CryptoKeyVersion_ENABLED.String())
	if block, _ := pem.Decode([]byte(answer.GetPem())); block != nil {
		if info.Public, err = x509.ParsePKIXPublicKey(block.Bytes); err != nil {
			return info, fmt.Errorf("%w: its public key cannot be read: %w", signer.ErrBadKey, err)
		}
	}
	return info, nil
}

// keys gives the names of the signing keys under the reference's name.
func (s *session) keys(ctx context.Context) ([]string, error) {
	if s.name.key != "" {
		return []string{s.name.String()}, nil
	}
	rings := []string{s.name.parentOfKeys()}
	if s.name.ring == "" {
		found, err := pages[*kmspb.KeyRing](ctx, s, func(ctx context.Context) iterator.Pageable {
			return s.client.ListKeyRings(ctx, &kmspb.ListKeyRingsRequest{Parent: s.name.parentOfRings()})
		})
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
		found, err := pages[*kmspb.CryptoKey](ctx, s, func(ctx context.Context) iterator.Pageable {
			return s.client.ListCryptoKeys(ctx, &kmspb.ListCryptoKeysRequest{Parent: ring})
		})
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
	return pages[*kmspb.CryptoKeyVersion](ctx, s, func(ctx context.Context) iterator.Pageable {
		return s.client.ListCryptoKeyVersions(ctx, &kmspb.ListCryptoKeyVersionsRequest{Parent: key})
	})
}

func (s *session) info(name string, algorithm kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm, level kmspb.ProtectionLevel, state string) signer.KeyInfo {
	store, rest, _ := strings.Cut(name, "/cryptoKeys/")
	label, version, _ := strings.Cut(rest, "/cryptoKeyVersions/")
	info := signer.KeyInfo{Ref: s.exact(name), Store: store, Label: label, ID: version, Bits: bitsOf(algorithm), Properties: []signer.Property{
		{Name: "algorithm", Value: algorithm.String()}, {Name: "protection", Value: level.String()}, {Name: "state", Value: state},
	}}
	switch text := algorithm.String(); {
	case strings.HasPrefix(text, "RSA_"):
		info.Algorithm = "RSA"
	case strings.HasPrefix(text, "EC_"):
		info.Algorithm = "EC"
	}
	return info
}

// exact is a reference that names this version and speaks to it as the session does.
func (s *session) exact(name string) string {
	text := s.ref.Scheme + "://" + name
	_, query, _ := strings.Cut(s.ref.String(), "?")
	sep := "?"
	for _, attr := range strings.Split(query, "&") {
		if attr != "" && !strings.HasPrefix(attr, "protection=") { // that is for Generate only
			text += sep + attr
			sep = "&"
		}
	}
	return text
}

// refuseUnversioned lists what the reference may have meant. It does not choose, even where there is only one
// version today: tomorrow there may be two, and a certificate belongs to one.
func (s *session) refuseUnversioned(ctx context.Context) error {
	if s.name.key == "" {
		return &faultError{fmt.Errorf("%w: it names no key", signer.ErrReference), "hsmsign key list with this reference shows the keys"}
	}
	versions, err := s.versions(ctx, s.name.String())
	if err != nil {
		return fmt.Errorf("the reference names no version, and they cannot be listed: %w", err)
	}
	var enabled []string
	more := ""
	for _, v := range versions {
		if v.GetState() != kmspb.CryptoKeyVersion_ENABLED {
			continue
		}
		if len(enabled) == maxMentions {
			more = ", ..."
			break
		}
		enabled = append(enabled, v.GetName()[strings.LastIndex(v.GetName(), "cryptoKeyVersions/"):])
	}
	if len(enabled) == 0 {
		return fmt.Errorf("%w: key %q has no version that is enabled", signer.ErrBadKey, s.name.key)
	}
	return &faultError{fmt.Errorf("%w: it names no version of key %q; enabled are %s%s", signer.ErrAmbiguousKey, s.name.key, strings.Join(enabled, ", "), more),
		"add the version that the vendor certificate was made for: /cryptoKeyVersions/NUMBER"}
}
