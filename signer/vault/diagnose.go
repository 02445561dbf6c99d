package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/kms"
)

// diagnosis is one call of Diagnose and what its steps have found.
type diagnosis struct {
	*session
	open signer.OpenOptions
	data keyData
	key  signer.Signer
}

// diagnose implements signer.Backend.Diagnose. It always reads the public key, and compares it with that of the
// certificate.
func (o Options) diagnose(ctx context.Context, ref signer.Ref, open signer.OpenOptions, report func(signer.Step)) signer.Signer {
	o.Policy = o.Policy.Impatient()
	d := &diagnosis{session: &session{Options: o, ref: ref}, open: open}
	if signer.RunSteps(ctx, report, []signer.Check{
		{Name: "reference", Run: d.checkReference}, {Name: "credentials", Run: d.checkCredentials}, {Name: "reach", Run: d.checkReach},
		{Name: "token", Run: d.checkToken}, {Name: "key", Run: d.checkKey}, {Name: "protection", Run: d.checkProtection},
		{Name: signer.StepSignature, Run: d.checkSignature},
	}) {
		return d.key
	}
	_ = d.Close() // never fails
	return nil
}

func (d *diagnosis) checkReference(ctx context.Context) signer.Step {
	err := ctx.Err()
	if err == nil {
		d.session, err = d.connect(ctx, d.ref)
	}
	if err == nil && d.name == "" {
		err = d.checkComplete()
	}
	return signer.StepResult(err, "version %d of %s/keys/%s at %s", d.version, d.mount, d.name, d.host)
}

func (d *diagnosis) checkCredentials(ctx context.Context) signer.Step {
	what := map[string]string{withToken: "a token", withAppRole: "a secret id for AppRole", withKubernetes: "a token of the service account"}
	return signer.StepResult(d.identity.prepare(ctx), "%s was read", what[d.login.method])
}

// checkReach asks for the health of the server, which needs no token. Some servers and proxies do not answer it; any answer
// shows that the server is reachable.
func (d *diagnosis) checkReach(ctx context.Context) signer.Step {
	var health struct {
		Initialized, Sealed, Standby bool
		Version                      string
	}
	start := time.Now()
	_, err := kms.Do(ctx, d.caller, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, d.send(ctx, request{
			path: "/v1/sys/health", query: "standbyok=true&perfstandbyok=true&sealedcode=200&uninitcode=200", root: true,
			decode: func(a answer) error { return json.Unmarshal(a.raw, &health) },
		})
	})
	took := time.Since(start).Round(time.Millisecond)
	switch {
	case errors.Is(err, signer.ErrUnavailable):
		return signer.StepFail(err)
	case err != nil:
		return signer.StepOK("answered in %v, without its health", took)
	case !health.Initialized:
		return signer.StepFail(fault.Errorf("%w: the server is not initialized", signer.ErrUnavailable).Fix("initialize it: vault operator init"))
	case health.Sealed:
		return signer.StepFail(fault.Errorf("%w: the server is sealed", signer.ErrUnavailable).Fix("unseal it: vault operator unseal"))
	}
	role := "active"
	if health.Standby {
		role = "standby"
	}
	return signer.StepOK("version %s, %s, answered in %v", fault.Clip(health.Version, maxText), role, took)
}

// checkToken logs in if necessary, and asks what the server knows of the token.
func (d *diagnosis) checkToken(ctx context.Context) signer.Step {
	var info tokenInfo
	err := d.call(ctx, request{path: "/v1/auth/token/lookup-self", decode: func(a answer) error {
		info = tokenInfo{}
		return dataInto(&info)(a)
	}})
	if errors.Is(err, signer.ErrAuth) && d.identity.current.Load() != nil { // its policies may not allow this request; the next step tells
		return signer.StepWarn("the server does not describe the token").WithFix("provide a valid token whose policies allow \"read auth/token/lookup-self\", as the default policy does")
	}
	if err != nil {
		return signer.StepFail(err)
	}
	detail := fmt.Sprintf("accepted, policies %s", fault.Clip(strings.Join(info.Policies, ", "), maxText))
	if info.TTL <= 0 {
		return signer.StepWarn("%s, does not expire", detail).WithFix("use a token that expires and is renewed, or a login method")
	}
	detail += fmt.Sprintf(", valid for %v", seconds(info.TTL))
	if !info.Renewable && d.login.method == withToken {
		return signer.StepWarn("%s, cannot be renewed", detail).WithFix("a service needs a periodic token, or a login method (role-id, kubernetes-role)")
	}
	return signer.StepOK("%s", detail)
}

func (d *diagnosis) checkKey(ctx context.Context) signer.Step {
	err := d.requireVersion(ctx)
	if err == nil {
		d.data, err = d.readKey(ctx)
	}
	if err == nil {
		d.public, err = d.data.usable(d.version)
	}
	if err != nil {
		return signer.StepFail(err)
	}
	return signer.StepKey(fmt.Sprintf("version %d of %q, ", d.version, d.name), d.public, d.open)
}

func (d *diagnosis) checkProtection(context.Context) signer.Step {
	var facts []string
	properties := d.data.properties()
	for _, p := range properties {
		facts = append(facts, p.Name+" "+p.Value)
	}
	if wrong := (&signer.KeyInfo{Properties: properties}).Unprotected(); len(wrong) > 0 {
		return signer.StepWarn("%s", strings.Join(facts, ", ")).WithFix("the key is not as hsmsign makes it: " + strings.Join(wrong, ", "))
	}
	return signer.StepOK("%s", strings.Join(facts, ", "))
}

func (d *diagnosis) checkSignature(ctx context.Context) signer.Step {
	d.key = d.signer(true)
	return signer.StepSign(ctx, d.key)
}
