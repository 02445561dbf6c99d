package awskms

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"hsmsign/signer"
	remote "hsmsign/signer/kms"
)

// The bounds of a listing.
const (
	maxKeys  = 1000
	pageSize = 100 // KMS gives up to 1,000 keys but 100 aliases a page
)

// ask makes a call with its retries.
func ask[In, Out any](ctx context.Context, s *site, call func(context.Context, *In, ...func(*kms.Options)) (*Out, error), in *In) (*Out, error) {
	return remote.Do(ctx, s.caller, classified(s, call, in))
}

// classified is a call whose errors are in their families.
func classified[In, Out any](s *site, call func(context.Context, *In, ...func(*kms.Options)) (*Out, error), in *In) func(context.Context) (*Out, error) {
	return func(ctx context.Context) (*Out, error) {
		out, err := call(ctx, in)
		if err != nil {
			return nil, s.classify(ctx, err)
		}
		return out, nil
	}
}

// generate makes a key and the alias that the reference names.
func (o Options) generate(ctx context.Context, ref signer.Ref, spec signer.KeySpec) (*key, error) {
	o.PublicKey = nil // a new key is nobody's yet
	k, err := o.dial(ctx, ref)
	if err != nil {
		return nil, err
	}
	if err := k.generate(ctx, spec); err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return k, nil
}

func (k *key) generate(ctx context.Context, spec signer.KeySpec) error {
	s := k.sites[0]
	alias := resource(*s.id.Load())
	var keySpec types.KeySpec
	for known, bits := range keySpecs() {
		if bits == spec.Bits {
			keySpec = known
		}
	}
	switch {
	case keySpec == "":
		return fmt.Errorf("%w: RSA of %d bits; 2048, 3072 or 4096 are generated", signer.ErrUnsupported, spec.Bits)
	case !strings.HasPrefix(alias, "alias/") || strings.HasPrefix(alias, "alias/aws/"):
		return malformed("KMS chooses the id of a new key: name an alias for it, \"alias/NAME\" (\"alias/aws/\" is Amazon's own)")
	case len(k.sites) > 1:
		return fmt.Errorf("%w: a key in several regions; make it with Terraform (deploy/aws) or in the console", signer.ErrUnsupported)
	}
	switch _, err := ask(ctx, s, s.client.DescribeKey, &kms.DescribeKeyInput{KeyId: s.id.Load()}); {
	case err == nil:
		return k.exists(alias)
	case !errors.Is(err, signer.ErrKeyNotFound):
		return err
	}
	// Not repeated: when an answer is lost, the key may be there, and each costs money every month.
	made, err := remote.Once(ctx, s.caller, classified(s, s.client.CreateKey, &kms.CreateKeyInput{
		KeySpec: keySpec, KeyUsage: types.KeyUsageTypeSignVerify,
		Description: aws.String("hsmsign: MDM vendor signing key " + alias),
	}))
	switch {
	case errors.Is(err, signer.ErrUnavailable) && !errors.Is(err, remote.ErrThrottled):
		return &failure{family: signer.ErrUnavailable, cause: err, text: "a key without an alias may have been made: " + err.Error(),
			fix: "look for it with hsmsign key list before you try again; delete it with kms:ScheduleKeyDeletion"}
	case err != nil:
		return err
	case made.KeyMetadata == nil || made.KeyMetadata.Arn == nil:
		return fmt.Errorf("%w: kms:CreateKey left out the key", signer.ErrUnavailable)
	}
	arn := *made.KeyMetadata.Arn
	s.id.Store(&arn)
	s.fresh = true
	if err := k.name(ctx, s, alias, arn); err != nil {
		return err
	}
	return k.resolve(ctx)
}

func (k *key) exists(alias string) error {
	return &failure{family: signer.ErrKeyExists, text: fmt.Sprintf("%q", alias), fix: "choose another alias; nothing is replaced"}
}

// name gives the new key its alias. It says so when the key stays without one, since nothing is ever deleted.
func (k *key) name(ctx context.Context, s *site, alias, arn string) error {
	_, err := ask(ctx, s, s.client.CreateAlias, &kms.CreateAliasInput{AliasName: &alias, TargetKeyId: &arn})
	if errors.Is(err, signer.ErrKeyExists) {
		// Made by an attempt whose answer was lost, or by somebody else meanwhile.
		out, errAlias := ask(ctx, s, s.client.DescribeKey, &kms.DescribeKeyInput{KeyId: &alias})
		if errAlias == nil && out.KeyMetadata != nil && aws.ToString(out.KeyMetadata.Arn) == arn {
			return nil
		}
	}
	if err != nil {
		return &failure{family: err, text: fmt.Sprintf("the new key %q has no alias", arn),
			fix: "give it one (kms:CreateAlias), or delete it (kms:ScheduleKeyDeletion)"}
	}
	return nil
}

// list describes the asymmetric keys of the first region that the reference matches.
func (o Options) list(ctx context.Context, ref signer.Ref) ([]signer.KeyInfo, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r, err := parseReference(ref, o.Policy)
	if err != nil {
		return nil, err
	}
	c, err := connect(ctx, r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }() // never fails
	s := c.sites[0]
	l := listing{site: s, query: settings(ref)}
	if r.id != "" {
		info, err := l.describe(ctx, *s.id.Load())
		if err != nil || info == nil {
			return nil, err
		}
		return []signer.KeyInfo{*info}, nil
	}
	return l.all(ctx)
}

// settings is the query of the reference without the regions.
func settings(ref signer.Ref) string {
	_, query, _ := strings.Cut(ref.String(), "?")
	kept := slices.DeleteFunc(strings.Split(query, "&"), func(attr string) bool {
		return attr == "" || strings.HasPrefix(attr, "region=") || strings.HasPrefix(attr, "regions=")
	})
	return strings.Join(kept, "&")
}

// listing is one call of List.
type listing struct {
	*site
	query   string
	aliases map[string][]string // of a key id; nil: not asked for
}

func (l *listing) all(ctx context.Context) ([]signer.KeyInfo, error) {
	if err := l.readAliases(ctx); err != nil && !errors.Is(err, signer.ErrAuth) {
		return nil, err
	}
	var infos []signer.KeyInfo
	in := &kms.ListKeysInput{Limit: aws.Int32(pageSize)}
	for seen := 0; ; {
		page, err := ask(ctx, l.site, l.client.ListKeys, in)
		if err != nil {
			return nil, err
		}
		if seen += len(page.Keys); seen > maxKeys || page.Truncated && len(page.Keys) == 0 {
			return nil, tooMany("keys")
		}
		for _, entry := range page.Keys {
			info, err := l.describe(ctx, aws.ToString(entry.KeyArn))
			if err != nil {
				return nil, err
			}
			if info != nil {
				infos = append(infos, *info)
			}
		}
		if !page.Truncated {
			return infos, nil
		}
		in.Marker = page.NextMarker
	}
}

func tooMany(what string) error {
	return &failure{family: signer.ErrUnsupported, text: fmt.Sprintf("more than %d %s; they are not all looked at", maxKeys, what), fix: "name the key or its alias in the reference"}
}

func (l *listing) readAliases(ctx context.Context) error {
	l.aliases = map[string][]string{}
	in := &kms.ListAliasesInput{Limit: aws.Int32(pageSize)}
	for seen := 0; ; {
		page, err := ask(ctx, l.site, l.client.ListAliases, in)
		if err != nil {
			return err
		}
		if seen += len(page.Aliases); seen > maxKeys || page.Truncated && len(page.Aliases) == 0 {
			return tooMany("aliases")
		}
		for _, a := range page.Aliases {
			id := aws.ToString(a.TargetKeyId)
			l.aliases[id] = append(l.aliases[id], aws.ToString(a.AliasName))
		}
		if !page.Truncated {
			return nil
		}
		in.Marker = page.NextMarker
	}
}

// describe asks for one key; nil for one that is symmetric. What may not be asked stays zero.
func (l *listing) describe(ctx context.Context, id string) (*signer.KeyInfo, error) {
	info := signer.KeyInfo{Ref: l.refTo(id), Store: "AWS KMS " + l.region}
	out, err := ask(ctx, l.site, l.client.DescribeKey, &kms.DescribeKeyInput{KeyId: &id})
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
	public, err := ask(ctx, l.site, l.client.GetPublicKey, &kms.GetPublicKeyInput{KeyId: &id})
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
		return nil, nil // symmetric: it has no public key
	}
	info.Ref, info.ID = l.refTo(id), strings.TrimPrefix(resource(id), "key/")
	info.Label = strings.Join(l.aliases[info.ID], ", ")
	return &info, nil
}

// refTo names a key in this region.
func (l *listing) refTo(id string) string {
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
