package gcpkms

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"

	"hsmsign/signer"
	"hsmsign/signer/kms"
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
	o.Policy = o.Policy.Impatient()
	d := &diagnosis{session: &session{Options: o, ref: ref}, open: open}
	if signer.RunSteps(ctx, report, []signer.Check{
		{Name: "reference", Run: d.checkReference}, {Name: "credentials", Run: d.checkCredentials}, {Name: "reach", Run: d.checkReach},
		{Name: "access", Run: d.checkAccess}, {Name: "key", Run: d.checkEnabled}, {Name: "algorithm", Run: d.checkAlgorithm},
		{Name: "protection", Run: d.checkLevel}, {Name: signer.StepSignature, Run: d.checkSignature},
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
	return signer.StepResult(err, "%s", d.name)
}

func (d *diagnosis) checkCredentials(ctx context.Context) signer.Step {
	found := "application default credentials found"
	if d.loopback {
		found = "none: the endpoint is a double on this machine"
	}
	return signer.StepResult(d.dial(ctx), "%s", found)
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
	return signer.StepResult(d.keyErr, "enabled")
}

func (d *diagnosis) checkAlgorithm(context.Context) signer.Step {
	var err error
	if d.public, err = checkKey(d.answer); err != nil {
		return signer.StepFail(err)
	}
	return signer.StepKey(fmt.Sprintf("%v, ", d.answer.GetAlgorithm()), d.public, d.open)
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
	d.key = kms.NewKey(d.ref, d.public, true, d.session)
	return signer.StepSign(ctx, d.key)
}
