package awskms

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	api "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"hsmsign/fault"
	"hsmsign/signer"
)

// The limits of a listing.
const (
	maxListed = 1000 // keys or aliases
	pageSize  = 100  // the most aliases that KMS returns on a page
)

// list describes the asymmetric keys of the first region that the reference matches.
func (s *session) list(ctx context.Context) ([]signer.KeyInfo, error) {
	l := listing{regionClient: s.clients[0], query: queryWithoutRegions(s.ref)}
	if s.id == "" {
		return l.all(ctx)
	}
	info, err := l.describe(ctx, *l.id.Load())
	if err != nil || info == nil {
		return nil, err
	}
	return []signer.KeyInfo{*info}, nil
}

func queryWithoutRegions(ref signer.Ref) string {
	_, query, _ := strings.Cut(ref.String(), "?")
	kept := slices.DeleteFunc(strings.Split(query, "&"), func(attr string) bool {
		return attr == "" || strings.HasPrefix(attr, "region=") || strings.HasPrefix(attr, "regions=")
	})
	return strings.Join(kept, "&")
}

// listing is one call of List.
type listing struct {
	*regionClient
	query   string
	aliases map[string][]string // by key id; nil if they are not known
}

func (l *listing) all(ctx context.Context) ([]signer.KeyInfo, error) {
	if err := l.readAliases(ctx); err != nil && !errors.Is(err, signer.ErrAuth) {
		return nil, err
	}
	var infos []signer.KeyInfo
	var marker *string
	err := pages("keys", func() (int, bool, error) {
		page, err := request(ctx, l.regionClient, l.api.ListKeys, &api.ListKeysInput{Limit: aws.Int32(pageSize), Marker: marker})
		if err != nil {
			return 0, false, err
		}
		marker = page.NextMarker
		for _, entry := range page.Keys {
			info, err := l.describe(ctx, aws.ToString(entry.KeyArn))
			if err != nil {
				return 0, false, err
			}
			if info != nil {
				infos = append(infos, *info)
			}
		}
		return len(page.Keys), page.Truncated, nil
	})
	return infos, err
}

func (l *listing) readAliases(ctx context.Context) error {
	l.aliases = map[string][]string{}
	var marker *string
	return pages("aliases", func() (int, bool, error) {
		page, err := request(ctx, l.regionClient, l.api.ListAliases, &api.ListAliasesInput{Limit: aws.Int32(pageSize), Marker: marker})
		if err != nil {
			return 0, false, err
		}
		marker = page.NextMarker
		for _, a := range page.Aliases {
			id := aws.ToString(a.TargetKeyId)
			l.aliases[id] = append(l.aliases[id], aws.ToString(a.AliasName))
		}
		return len(page.Aliases), page.Truncated, nil
	})
}

// pages calls read, which returns the number of entries and whether more follow, until the last page.
func pages(what string, read func() (entries int, more bool, err error)) error {
	for seen := 0; ; {
		entries, more, err := read()
		if err != nil {
			return err
		}
		if seen += entries; seen > maxListed || more && entries == 0 {
			return fault.Errorf("%w: more than %d %s", signer.ErrUnsupported, maxListed, what).Fix("name the key or its alias in the reference")
		}
		if !more {
			return nil
		}
	}
}

// describe describes one key; nil for a symmetric key. Facts that the credentials may not read stay zero.
func (l *listing) describe(ctx context.Context, id string) (*signer.KeyInfo, error) {
	info := signer.KeyInfo{Ref: l.reference(id), Store: "AWS KMS " + l.region}
	out, err := request(ctx, l.regionClient, l.api.DescribeKey, &api.DescribeKeyInput{KeyId: &id})
	switch {
	case err == nil && out.KeyMetadata != nil:
		m := out.KeyMetadata
		if !strings.HasPrefix(string(m.KeySpec), "RSA_") && !strings.HasPrefix(string(m.KeySpec), "ECC_") {
			return nil, nil
		}
		id = aws.ToString(m.Arn)
		info.Properties = properties(m)
		info.Algorithm, info.Bits = algorithmOf(m.KeySpec)
	case err != nil && !errors.Is(err, signer.ErrAuth):
		return nil, err
	}
	public, err := request(ctx, l.regionClient, l.api.GetPublicKey, &api.GetPublicKeyInput{KeyId: &id})
	switch {
	case err == nil:
		id = aws.ToString(public.KeyId)
		info.Algorithm, info.Bits = algorithmOf(public.KeySpec)
		if rsa, err := checkKey(public); err == nil {
			info.Public = rsa
		}
	case errors.Is(err, signer.ErrUnavailable) || ctx.Err() != nil:
		return nil, err
	case errors.Is(err, signer.ErrBadKey) && info.Algorithm == "":
		return nil, nil // a symmetric key has no public key
	}
	info.Ref, info.ID = l.reference(id), strings.TrimPrefix(resource(id), "key/")
	info.Label = strings.Join(l.aliases[info.ID], ", ")
	return &info, nil
}

// reference returns a reference to a key in this region.
func (l *listing) reference(id string) string {
	query := l.query
	if arnRegion(id) == "" {
		query = strings.Trim("region="+l.region+"&"+query, "&")
	}
	if query == "" {
		return "awskms:///" + id
	}
	return "awskms:///" + id + "?" + query
}

func algorithmOf(spec types.KeySpec) (string, int) {
	if bits, ok := keySpecs()[spec]; ok {
		return "RSA", bits
	}
	name, _, _ := strings.Cut(string(spec), "_")
	return strings.Replace(name, "ECC", "EC", 1), 0
}

func properties(m *types.KeyMetadata) []signer.Property {
	multi := "no"
	if aws.ToBool(m.MultiRegion) {
		multi = "yes"
	}
	return []signer.Property{
		{Name: "KeyState", Value: string(m.KeyState)}, {Name: "KeyUsage", Value: string(m.KeyUsage)},
		{Name: "KeySpec", Value: string(m.KeySpec)}, {Name: "Origin", Value: string(m.Origin)},
		{Name: "MultiRegion", Value: multi},
	}
}
