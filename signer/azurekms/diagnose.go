package azurekms

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"

	"hsmsign/signer"
	"hsmsign/signer/kms"
)

// diagnosis is one call of Diagnose and what its steps have found.
type diagnosis struct {
	*session
	open   signer.OpenOptions
	bundle azkeys.KeyBundle
	keyErr error // why the service, which answered, returned no key
	key    signer.Signer
}

// diagnose implements signer.Backend.Diagnose. It always reads the public key, and compares it with that of the
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
	_ = d.Close() // never fails
	return nil
}

func (d *diagnosis) checkReference(ctx context.Context) signer.Step {
	err := ctx.Err()
	if err == nil {
		d.reference, err = parseReference(d.ref, d.Policy)
	}
	if err == nil && d.name == "" {
		err = d.requireVersion(ctx)
	}
	return signer.StepResult(err, "version %s of key %q in %s", d.version, d.name, d.store())
}

// checkCredentials looks for a credential. The service says for what the token must be, so none is requested yet.
func (d *diagnosis) checkCredentials(ctx context.Context) signer.Step {
	var err error
	if d.session, err = d.connect(ctx, d.ref); err != nil {
		return signer.StepFail(err)
	}
	return signer.StepOK("%s", d.source)
}

// checkReach reads the key: any answer shows that the service is reachable.
func (d *diagnosis) checkReach(ctx context.Context) signer.Step {
	start := time.Now()
	if d.keyErr = d.requireVersion(ctx); d.keyErr == nil {
		d.bundle, d.keyErr = d.getKey(ctx, d.name, d.version)
	}
	if errors.Is(d.keyErr, signer.ErrUnavailable) {
		return signer.StepFail(d.keyErr)
	}
	return signer.StepOK("answered in %v", time.Since(start).Round(time.Millisecond))
}

func (d *diagnosis) checkKey(context.Context) signer.Step {
	if d.keyErr == nil {
		d.public, d.keyErr = d.usable(d.bundle)
	}
	if d.keyErr != nil {
		return signer.StepFail(d.keyErr)
	}
	return signer.StepKey(fmt.Sprintf("%s for %s, ", d.name, algorithm), d.public, d.open)
}

func (d *diagnosis) checkProtection(context.Context) signer.Step {
	var facts []string
	all := properties(d.bundle)
	for _, p := range all {
		facts = append(facts, p.Name+" "+p.Value)
	}
	if wrong := (&signer.KeyInfo{Properties: all}).Unprotected(); len(wrong) > 0 {
		return signer.StepWarn("%s", strings.Join(facts, ", ")).WithFix("the key is not as hsmsign makes it: " + strings.Join(wrong, ", "))
	}
	return signer.StepOK("%s", strings.Join(facts, ", "))
}

func (d *diagnosis) checkSignature(ctx context.Context) signer.Step {
	d.key = kms.NewKey(d.ref, d.public, true, d.session, d.caller)
	return signer.StepSign(ctx, d.key)
}
