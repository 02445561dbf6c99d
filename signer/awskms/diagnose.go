package awskms

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	api "github.com/aws/aws-sdk-go-v2/service/kms"

	"hsmsign/signer"
	"hsmsign/signer/kms"
)

// diagnosis is one call of Diagnose and what its steps have found.
type diagnosis struct {
	*session
	open   signer.OpenOptions
	keyErr error // why the service, which answered, returned no key
	key    signer.Signer
}

// diagnose implements signer.Backend.Diagnose. It always asks KMS for the public key, and compares it with that of the
// certificate.
func (o Options) diagnose(ctx context.Context, ref signer.Ref, open signer.OpenOptions, report func(signer.Step)) signer.Signer {
	o.Policy = o.Policy.Impatient()
	d := &diagnosis{session: &session{Options: o, ref: ref}, open: open}
	if signer.RunSteps(ctx, report, []signer.Check{
		{Name: "reference", Run: d.checkReference}, {Name: "credentials", Run: d.checkCredentials}, {Name: "reach", Run: d.checkReach},
		{Name: "key", Run: d.checkKey}, {Name: "protection", Run: d.checkProtection}, {Name: signer.StepSignature, Run: d.checkSignature},
	}) {
		return d.key
	}
	if d.transport != nil {
		_ = d.Close() // never fails
	}
	return nil
}

func (d *diagnosis) checkReference(ctx context.Context) signer.Step {
	err := ctx.Err()
	if err == nil {
		d.session, err = d.connect(ctx, d.ref)
	}
	if err == nil {
		err = d.requireKey()
	}
	if err != nil {
		return signer.StepFail(err)
	}
	return signer.StepOK("%s in %s", *d.clients[0].id.Load(), strings.Join(d.regions, ", "))
}

func (d *diagnosis) checkCredentials(ctx context.Context) signer.Step {
	ctx, cancel := context.WithTimeout(ctx, d.policy.WithDefaults().Timeout)
	defer cancel()
	c, err := d.credentials.Retrieve(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return signer.StepFail(fmt.Errorf("%w: no answer in time", signer.ErrUnavailable))
	case err != nil:
		return signer.StepFail(d.clients[0].classify(err))
	case c.CanExpire:
		return signer.StepOK("from %s, valid for %v", c.Source, time.Until(c.Expires).Round(time.Second))
	}
	return signer.StepOK("from %s", c.Source)
}

// checkReach reads the public key: any answer shows that the service is reachable.
func (d *diagnosis) checkReach(ctx context.Context) signer.Step {
	start := time.Now()
	d.keyErr = d.resolve(ctx)
	if errors.Is(d.keyErr, signer.ErrUnavailable) {
		return signer.StepFail(d.keyErr)
	}
	return signer.StepOK("answered in %v", time.Since(start).Round(time.Millisecond))
}

func (d *diagnosis) checkKey(context.Context) signer.Step {
	if d.keyErr != nil {
		return signer.StepFail(d.keyErr)
	}
	return signer.StepKey(fmt.Sprintf("%s for %s, ", *d.activeClient().id.Load(), algorithm), d.public, d.open)
}

// checkProtection reports the properties of the key if the credentials may read them; signing does not need that.
func (d *diagnosis) checkProtection(ctx context.Context) signer.Step {
	c := d.activeClient()
	out, err := request(ctx, c, c.api.DescribeKey, &api.DescribeKeyInput{KeyId: c.id.Load()})
	switch {
	case errors.Is(err, signer.ErrAuth):
		return signer.StepOK("unknown: needs kms:DescribeKey, which signing does not need")
	case err != nil:
		return signer.StepFail(err)
	case out.KeyMetadata == nil:
		return signer.StepFail(fmt.Errorf("%w: kms:DescribeKey returned no key", signer.ErrUnavailable))
	}
	var facts []string
	for _, p := range properties(out.KeyMetadata) {
		facts = append(facts, p.Name+" "+p.Value)
	}
	if out.KeyMetadata.Origin == "EXTERNAL" {
		return signer.StepWarn("%s", strings.Join(facts, ", ")).WithFix("the key was created outside of KMS, and copies of it may exist there")
	}
	return signer.StepOK("%s", strings.Join(facts, ", "))
}

func (d *diagnosis) checkSignature(ctx context.Context) signer.Step {
	d.key = kms.NewKey(d.ref, d.public, true, d.session)
	return signer.StepSign(ctx, d.key)
}
