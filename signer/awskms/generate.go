package awskms

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	api "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/kms"
)

// Generate creates a key and the alias that the reference names, and opens the key.
func (s *session) Generate(ctx context.Context, spec signer.KeySpec) (signer.Signer, error) {
	c := s.clients[0]
	alias := resource(*c.id.Load())
	keySpec := types.KeySpec(fmt.Sprintf("RSA_%d", spec.Bits))
	switch {
	case s.requireKey() != nil:
		return nil, s.requireKey()
	case keySpecs()[keySpec] == 0:
		return nil, fmt.Errorf("%w: RSA of %d bits; KMS creates keys of 2048, 3072 or 4096 bits", signer.ErrUnsupported, spec.Bits)
	case !strings.HasPrefix(alias, "alias/") || strings.HasPrefix(alias, "alias/aws/"):
		return nil, malformed("KMS chooses the id of a new key: name an alias for it, \"alias/NAME\" (\"alias/aws/\" is reserved by Amazon)")
	case len(s.clients) > 1:
		return nil, fmt.Errorf("%w: a key in several regions; create it with Terraform (deploy/terraform/aws) or in the console", signer.ErrUnsupported)
	}
	switch _, err := request(ctx, c, c.api.DescribeKey, &api.DescribeKeyInput{KeyId: c.id.Load()}); {
	case err == nil:
		return nil, fault.Errorf("%w: %q", signer.ErrKeyExists, alias).Fix(fixReplaced)
	case !errors.Is(err, signer.ErrKeyNotFound):
		return nil, err
	}
	arn, err := c.createKey(ctx, keySpec, alias)
	if err != nil {
		return nil, err
	}
	if arnRegion(arn) != c.region {
		return nil, left(c.otherRegion(arn), arn, "has no alias")
	}
	c.id.Store(&arn)
	c.created = true
	if err := c.createAlias(ctx, alias, arn); err != nil {
		return nil, left(err, arn, "has no alias")
	}
	if err := s.resolve(ctx); err != nil {
		return nil, left(err, arn, fmt.Sprintf("has the alias %q and was not tested", alias))
	}
	return kms.NewKey(s.ref, s.public, true, s), nil
}

// createKey returns the ARN of the new key. The request is not repeated: if an answer is lost the key may exist, and
// every key costs money each month.
func (c *regionClient) createKey(ctx context.Context, spec types.KeySpec, alias string) (string, error) {
	created, err := kms.Once(ctx, c.caller, func(ctx context.Context) (*api.CreateKeyOutput, error) {
		return c.api.CreateKey(ctx, &api.CreateKeyInput{
			KeySpec: spec, KeyUsage: types.KeyUsageTypeSignVerify,
			Description: aws.String("hsmsign: MDM vendor signing key " + alias),
		})
	})
	switch {
	case errors.Is(err, signer.ErrUnavailable) && !errors.Is(err, kms.ErrThrottled):
		return "", unknown(err)
	case err != nil:
		return "", err
	case created.KeyMetadata == nil || created.KeyMetadata.Arn == nil:
		return "", unknown(fmt.Errorf("%w: kms:CreateKey returned no key", signer.ErrUnavailable))
	}
	return *created.KeyMetadata.Arn, nil
}

// unknown returns the error of a CreateKey whose answer is unknown.
func unknown(err error) error {
	return fault.Errorf("%w: a key without an alias may have been created: %w", signer.ErrUnavailable, err).
		Fix("look for it with hsmsign key list before you try again; delete it with kms:ScheduleKeyDeletion")
}

// left returns the error of a call after CreateKey. It names the new key, because nothing is ever deleted.
func left(err error, arn, state string) error {
	return fault.Errorf("%w: the new key %q %s", err, fault.Clip(arn, maxText), state).
		Fix("use the key (kms:CreateAlias gives it an alias), or delete it (kms:ScheduleKeyDeletion): it costs money each month")
}

// createAlias names the new key.
func (c *regionClient) createAlias(ctx context.Context, alias, arn string) error {
	_, err := request(ctx, c, c.api.CreateAlias, &api.CreateAliasInput{AliasName: &alias, TargetKeyId: &arn})
	if errors.Is(err, signer.ErrKeyExists) {
		// Created by an attempt whose answer was lost, or meanwhile by someone else.
		out, errAlias := request(ctx, c, c.api.DescribeKey, &api.DescribeKeyInput{KeyId: &alias})
		if errAlias == nil && out.KeyMetadata != nil && aws.ToString(out.KeyMetadata.Arn) == arn {
			return nil
		}
	}
	return err
}
