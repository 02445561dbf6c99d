package gcpkms

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"

	"hsmsign/signer"
)

// diagnosis is one call of Diagnose and what its steps have found.
type diagnosis struct {
	*session
	open   signer.OpenOptions
	answer *kmspb.PublicKey
	keyErr error // why there is no answer
	key    signer.Signer
}

// diagnose implements signer.Backend.Diagnose. It always asks the service for the public key, and compares it with that
// of the certificate.
func (o Options) diagnose(ctx context.Context, ref signer.Ref, open signer.OpenOptions, report func(signer.Step)) signer.Signer {
	d := &diagnosis{session: &session{Options: o, ref: ref}, open: open}
	if signer.RunSteps(ctx, report, []signer.Check{
		{Name: "reference", Run: d.checkReference}, {Name: "credentials", Run: d.checkCredentials}, {Name: "reach", Run: d.checkReach},
		{Name: "access", Run: d.checkAccess}, {Name: "key", Run: d.checkEnabled}, {Name: "algorithm", Run: d.checkAlgorithm},
		{Name: "protection", Run: d.checkLevel}, {Name: "signature", Run: d.checkSignature},
	}) {
		return d.key
	}
	if d.client != nil {
		_ = d.Close() // never fails
	}
	return nil
}

func (d *diagnosis) checkReference(ctx context.Context) signer.Step {
	err := ctx.Err()
	if err == nil {
		d.reference, err = parseReference(d.ref, d.Policy)
	}
	if err == nil && d.name.key == "" {
		err = errNoKey()
	}
	if err != nil {
		return signer.StepFail(err)
	}
	return signer.StepOK("%s", d.name)
}

func (d *diagnosis) checkCredentials(ctx context.Context) signer.Step {
	if err := d.dial(ctx); err != nil {
		return signer.StepFail(err)
	}
	if d.loopback {
		return signer.StepOK("none: the endpoint is a double on this machine")
	}
	return signer.StepOK("application default credentials found")
}

// checkReach makes the call whose answer the next steps evaluate: any answer shows that the service is reachable.
func (d *diagnosis) checkReach(ctx context.Context) signer.Step {
	start := time.Now()
	if d.keyErr = d.requireVersion(ctx); d.keyErr == nil {
		d.answer, d.keyErr = d.publicKey(ctx)
	}
	if errors.Is(d.keyErr, signer.ErrUnavailable) {
		return signer.StepFail(d.keyErr)
	}
	return signer.StepOK("%s answered in %v", cmp.Or(d.endpoint, "cloudkms.googleapis.com:443"), time.Since(start).Round(time.Millisecond))
}

func (d *diagnosis) checkAccess(context.Context) signer.Step {
	if errors.Is(d.keyErr, signer.ErrAuth) {
		return signer.StepFail(d.keyErr)
	}
	return signer.StepOK("allowed")
}

func (d *diagnosis) checkEnabled(context.Context) signer.Step {
	if d.keyErr != nil {
		return signer.StepFail(d.keyErr)
	}
	return signer.StepOK("enabled")
}

func (d *diagnosis) checkAlgorithm(context.Context) signer.Step {
	var err error
	if d.public, err = checkKey(d.answer); err != nil {
		return signer.StepFail(err)
	}
	if d.open.PublicKey != nil && !d.public.Equal(d.open.PublicKey) {
		return signer.StepFail(fmt.Errorf("%w: it is not the key of the vendor's certificate", signer.ErrBadKey))
	}
	described, err := signer.DescribeKey(d.public)
	if err != nil {
		return signer.StepFail(err)
	}
	return signer.StepOK("%v, %s", d.answer.GetAlgorithm(), described)
}

func (d *diagnosis) checkLevel(context.Context) signer.Step {
	level := d.answer.GetProtectionLevel()
	if err := d.checkProtection(level); err != nil {
		return signer.StepFail(err)
	}
	if !isHSM(level) {
		return signer.StepWarn("%v", level).WithFix("use a key of protection level HSM, which never leaves Cloud HSM, and require-hsm=yes in the reference")
	}
	return signer.StepOK("%v", level)
}

func (d *diagnosis) checkSignature(ctx context.Context) signer.Step {
	d.key = d.newKey(true)
	return signer.StepSign(ctx, d.key)
}
