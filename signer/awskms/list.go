package awskms

import (
	"context"
	"errors"
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

// List describes the asymmetric keys of the first region that the reference matches.
func (s *session) List(ctx context.Context) ([]signer.KeyInfo, error) {
	l := listing{regionClient: s.clients[0], ref: s.ref.Without("region", "regions")}
	if s.id == "" {
		err := l.addAll(ctx)
		return l.infos, err
	}
	err := l.add(ctx, *l.id.Load())
	return l.infos, err
}

// listing is one call of List.
type listing struct {
	*regionClient
	ref     signer.Ref          // without regions
	aliases map[string][]string // by key id
	infos   []signer.KeyInfo
}

func (l *listing) addAll(ctx context.Context) error {
	l.aliases = map[string][]string{}
	err := pages("aliases", func(marker *string) (int, *string, error) {
		page, err := request(ctx, l.regionClient, l.api.ListAliases, &api.ListAliasesInput{Limit: aws.Int32(pageSize), Marker: marker})
		if err != nil {
			return 0, nil, err
		}
		for _, a := range page.Aliases {
			id := aws.ToString(a.TargetKeyId)
			l.aliases[id] = append(l.aliases[id], aws.ToString(a.AliasName))
		}
		return len(page.Aliases), page.NextMarker, nil
	})
	if err != nil && !errors.Is(err, signer.ErrAuth) {
		return err
	}
	return pages("keys", func(marker *string) (int, *string, error) {
		page, err := request(ctx, l.regionClient, l.api.ListKeys, &api.ListKeysInput{Limit: aws.Int32(pageSize), Marker: marker})
		if err != nil {
			return 0, nil, err
		}
		for _, entry := range page.Keys {
			if err := l.add(ctx, aws.ToString(entry.KeyArn)); err != nil {
				return 0, nil, err
			}
		}
		return len(page.Keys), page.NextMarker, nil
	})
}

// pages reads all pages of a listing. read returns the number of entries on a page, and the marker of the next one.
func pages(what string, read func(marker *string) (entries int, next *string, err error)) error {
	var marker *string
	for seen := 0; ; {
		entries, next, err := read(marker)
		if err != nil {
			return err
		}
		if seen += entries; seen > maxListed || next != nil && entries == 0 {
			return fault.Errorf("%w: more than %d %s", signer.ErrUnsupported, maxListed, what).Fix("name the key or its alias in the reference")
		}
		if next == nil {
			return nil
		}
		marker = next
	}
}

// add describes one key, unless it is symmetric. Facts that the credentials may not read stay zero.
func (l *listing) add(ctx context.Context, id string) error {
	info := signer.KeyInfo{Store: "AWS KMS " + l.region}
	out, err := request(ctx, l.regionClient, l.api.DescribeKey, &api.DescribeKeyInput{KeyId: &id})
	switch {
	case err == nil && out.KeyMetadata != nil:
		m := out.KeyMetadata
		if !strings.HasPrefix(string(m.KeySpec), "RSA_") && !strings.HasPrefix(string(m.KeySpec), "ECC_") {
			return nil
		}
		id = aws.ToString(m.Arn)
		info.Properties = properties(m)
		info.Algorithm, info.Bits = algorithmOf(m.KeySpec)
	case err != nil && !errors.Is(err, signer.ErrAuth):
		return err
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
		return err
	case errors.Is(err, signer.ErrBadKey) && info.Algorithm == "":
		return nil // a symmetric key has no public key
	}
	ref := l.ref
	ref.Path = "///" + id
	if arnRegion(id) == "" {
		ref = ref.With("region", l.region)
	}
	info.Ref, info.ID = ref.String(), strings.TrimPrefix(resource(id), "key/")
	info.Label = strings.Join(l.aliases[info.ID], ", ")
	l.infos = append(l.infos, info)
	return nil
}

func algorithmOf(spec types.KeySpec) (string, int) {
	name, _, _ := strings.Cut(string(spec), "_")
	return strings.Replace(name, "ECC", "EC", 1), keySpecs()[spec]
}

func properties(m *types.KeyMetadata) []signer.Property {
	yesNo := map[bool]string{true: "yes", false: "no"}
	return []signer.Property{
		{Name: "KeyState", Value: string(m.KeyState)}, {Name: "KeyUsage", Value: string(m.KeyUsage), Want: string(types.KeyUsageTypeSignVerify)},
		{Name: "KeySpec", Value: string(m.KeySpec)}, {Name: "Origin", Value: string(m.Origin), Want: string(types.OriginTypeAwsKms)},
		{Name: "MultiRegion", Value: yesNo[aws.ToBool(m.MultiRegion)]},
	}
}
