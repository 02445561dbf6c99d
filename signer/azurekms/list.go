package azurekms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"

	"hsmsign/fault"
	"hsmsign/signer"
)

// The limits of a listing.
const (
	maxListed   = 1000 // keys, or versions
	maxMentions = 20   // versions that an error names
)

// List describes the versions of the RSA and EC keys that the reference matches.
func (s *session) List(ctx context.Context) ([]signer.KeyInfo, error) {
	if s.version != "" {
		b, err := s.getKey(ctx, s.name, s.version)
		if err != nil {
			return nil, err
		}
		return []signer.KeyInfo{s.info(s.name, s.version, b)}, nil
	}
	names := []string{s.name}
	if s.name == "" {
		var err error
		if names, err = s.names(ctx); err != nil {
			return nil, err
		}
	}
	var infos []signer.KeyInfo
	for _, name := range names {
		versions, err := s.versions(ctx, name)
		if err != nil {
			return nil, err
		}
		for _, version := range versions {
			b, err := s.getKey(ctx, name, version)
			switch {
			case errors.Is(err, signer.ErrAuth): // it may be listed and not read
				infos = append(infos, signer.KeyInfo{Ref: s.refOf(name, version), Store: s.store(), Label: name, ID: version})
			case err != nil:
				return nil, err
			case strings.HasPrefix(string(*b.Key.Kty), "oct"): // symmetric
			default:
				infos = append(infos, s.info(name, version, b))
			}
		}
		if len(infos) > maxListed {
			return nil, tooMany("versions")
		}
	}
	return infos, nil
}

// names returns the names of all keys of the vault.
func (s *session) names(ctx context.Context) ([]string, error) {
	return pages(ctx, s, "keys", func() *runtime.Pager[azkeys.ListKeyPropertiesResponse] {
		return s.client.NewListKeyPropertiesPager(nil)
	},
		func(page azkeys.ListKeyPropertiesResponse) azkeys.KeyPropertiesListResult {
			return page.KeyPropertiesListResult
		},
		func(id azkeys.ID) string { return id.Name() })
}

// versions returns the versions of a key. A key that does not exist has none: the error wraps ErrKeyNotFound.
func (s *session) versions(ctx context.Context, name string) ([]string, error) {
	all, err := pages(ctx, s, "versions", func() *runtime.Pager[azkeys.ListKeyPropertiesVersionsResponse] {
		return s.client.NewListKeyPropertiesVersionsPager(name, nil)
	}, func(page azkeys.ListKeyPropertiesVersionsResponse) azkeys.KeyPropertiesListResult {
		return page.KeyPropertiesListResult
	},
		func(id azkeys.ID) string { return id.Version() })
	if err == nil && len(all) == 0 {
		err = fault.Errorf("%w: %q has no version", signer.ErrKeyNotFound, name).Fix("check the names of the vault and the key: hsmsign key list")
	}
	return all, err
}

// pages reads all pages of a listing, and returns a part of the id of each entry.
func pages[T any](ctx context.Context, s *session, what string, create func() *runtime.Pager[T], list func(T) azkeys.KeyPropertiesListResult, part func(azkeys.ID) string) ([]string, error) {
	var all []string
	next := ""
	for n := 0; n == 0 || next != ""; n++ {
		page, err := do(ctx, s, func(ctx context.Context) (T, error) { return pageAt(ctx, create(), next) })
		if err != nil {
			return nil, err
		}
		entries := list(page)
		for _, entry := range entries.Value {
			if entry == nil || entry.KID == nil || !s.ofVault(*entry.KID) {
				return nil, fmt.Errorf("%w: the answer is damaged: an entry is not a key of the vault", signer.ErrUnavailable)
			}
			all = append(all, part(*entry.KID))
		}
		if len(all) > maxListed || n > maxListed {
			return nil, tooMany(what)
		}
		if next = ""; entries.NextLink != nil {
			next = *entries.NextLink
		}
	}
	return all, nil
}

// pageAt requests one page with a new pager: one that failed returns the same error for ever. A pager continues after a page
// that it reads from JSON and returns first.
func pageAt[T any](ctx context.Context, pager *runtime.Pager[T], next string) (T, error) {
	if next != "" {
		var zero T
		before, err := json.Marshal(map[string]string{"nextLink": next})
		if err == nil {
			err = pager.UnmarshalJSON(before)
		}
		if err == nil {
			_, err = pager.NextPage(ctx)
		}
		if err != nil {
			return zero, err
		}
	}
	return pager.NextPage(ctx)
}

// ofVault reports whether an id is that of a key, or a version, of this vault: its parts become parts of requests.
func (s *session) ofVault(id azkeys.ID) bool {
	rest, ok := strings.CutPrefix(strings.ToLower(string(id)), s.url()+"/keys/")
	name, version, hasVersion := strings.Cut(rest, "/")
	return ok && nameForm().MatchString(name) && (!hasVersion || versionForm().MatchString(version))
}

func tooMany(what string) error {
	return fault.Errorf("%w: more than %d %s", signer.ErrUnsupported, maxListed, what).Fix("name the key, or its version, in the reference")
}

// mention returns versions for an error.
func mention(versions []string) string {
	if len(versions) > maxMentions {
		return strings.Join(versions[:maxMentions], ", ") + ", ..."
	}
	return strings.Join(versions, ", ")
}

func (s *session) store() string { return s.service() + " " + s.host }

func (s *session) refOf(name, version string) string {
	ref := s.ref
	ref.Path = "//" + s.host + "/keys/" + name + "/" + version
	return ref.String()
}

func (s *session) info(name, version string, b azkeys.KeyBundle) signer.KeyInfo {
	info := signer.KeyInfo{Ref: s.refOf(name, version), Store: s.store(), Label: name, ID: version, Properties: properties(b)}
	info.Algorithm, _, _ = strings.Cut(string(*b.Key.Kty), "-")
	if public, err := publicKey(b.Key); err == nil {
		info.Public, info.Bits = public, public.N.BitLen()
	}
	return info
}

// properties returns the protection of a key, with the names of the service.
func properties(b azkeys.KeyBundle) []signer.Property {
	yesNo := func(v *bool, def bool) string {
		if v == nil {
			v = &def
		}
		return map[bool]string{true: "yes", false: "no"}[*v]
	}
	var ops []string
	for _, op := range b.Key.KeyOps {
		if op != nil {
			ops = append(ops, string(*op))
		}
	}
	a := b.Attributes
	if a == nil {
		a = &azkeys.KeyAttributes{}
	}
	all := []signer.Property{
		{Name: "kty", Value: string(*b.Key.Kty)},
		{Name: "HSM", Value: yesNo(new(isHSM(b.Key)), false)},
		{Name: "enabled", Value: yesNo(a.Enabled, true), Want: "yes"},
		{Name: "exportable", Value: yesNo(a.Exportable, false), Want: "no"},
		{Name: "key_ops", Value: strings.Join(ops, " "), Want: "sign verify"},
	}
	if a.HSMPlatform != nil {
		all = append(all, signer.Property{Name: "hsmPlatform", Value: fault.Clip(*a.HSMPlatform, maxText)})
	}
	if a.RecoveryLevel != nil {
		all = append(all, signer.Property{Name: "recoveryLevel", Value: fault.Clip(*a.RecoveryLevel, maxText)})
	}
	return all
}
