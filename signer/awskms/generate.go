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

// generate creates a key and the alias that the reference names, and opens the key.
func (s *session) generate(ctx context.Context, spec signer.KeySpec) (signer.Signer, error) {
	c := s.clients[0]
	alias := resource(*c.id.Load())
	var keySpec types.KeySpec
	for known, bits := range keySpecs() {
		if bits == spec.Bits {
			keySpec = known
		}
	}
	switch {
	case s.requireKey() != nil:
		return nil, s.requireKey()
	case keySpec == "":
		return nil, fmt.Errorf("%w: RSA of %d bits; KMS creates keys of 2048, 3072 or 4096 bits", signer.ErrUnsupported, spec.Bits)
	case !strings.HasPrefix(alias, "alias/") || strings.HasPrefix(alias, "alias/aws/"):
		return nil, malformed("KMS chooses the id of a new key: name an alias for it, \"alias/NAME\" (\"alias/aws/\" is reserved by Amazon)")
	case len(s.clients) > 1:
		return nil, fmt.Errorf("%w: a key in several regions; create it with Terraform (deploy/aws) or in the console", signer.ErrUnsupported)
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
	c.id.Store(&arn)
	c.created = true
	if err := c.createAlias(ctx, alias, arn); err != nil {
		return nil, err
	}
	if err := s.resolve(ctx); err != nil {
		return nil, err
	}
	return s.newKey(true), nil
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
		return "", fault.Errorf("%w: a key without an alias may have been created: %w", signer.ErrUnavailable, err).
			Fix("look for it with hsmsign key list before you try again; delete it with kms:ScheduleKeyDeletion")
	case err != nil:
		return "", err
	case created.KeyMetadata == nil || created.KeyMetadata.Arn == nil:
		return "", fmt.Errorf("%w: kms:CreateKey returned no key", signer.ErrUnavailable)
	}
	return *created.KeyMetadata.Arn, nil
}

// createAlias names the new key. The error names the key if it stays without an alias: nothing is ever deleted.
func (c *regionClient) createAlias(ctx context.Context, alias, arn string) error {
	_, err := request(ctx, c, c.api.CreateAlias, &api.CreateAliasInput{AliasName: &alias, TargetKeyId: &arn})
	if errors.Is(err, signer.ErrKeyExists) {
		// Created by an attempt whose answer was lost, or meanwhile by someone else.
		out, errAlias := request(ctx, c, c.api.DescribeKey, &api.DescribeKeyInput{KeyId: &alias})
		if errAlias == nil && out.KeyMetadata != nil && aws.ToString(out.KeyMetadata.Arn) == arn {
			return nil
		}
	}
	if err != nil {
		return fault.Errorf("%w: the new key %q has no alias", err, arn).Fix("create the alias (kms:CreateAlias), or delete the key (kms:ScheduleKeyDeletion)")
	}
	return nil
}
