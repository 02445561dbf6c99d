package main

import (
	"context"
	"crypto/x509"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/agent"
	"hsmsign/fault"
	"hsmsign/signer"
)

func (p *program) doctorCommand() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "check every step from the key reference to a verified signature, and explain what is wrong",
		Description: "After a failure the remaining steps are skipped. The PIN is sent once, and not at all to a token that is about to\n" +
			"lock. The exit code is that of the first failure.\n" +
			probeHelp +
			"  hsmsign doctor --key 'pkcs11:token=mdm;object=vendor?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:pin'\n" +
			"  hsmsign doctor --key file:vendor.key --cert vendor.pem",
		Flags:  slices.Concat([]cli.Flag{keyFlag(), jsonFlag()}, identityFlags(), ledgerFlags()),
		Action: p.doctor,
	}
}

func (p *program) doctor(cliCtx *cli.Context) error {
	job, _, err := p.newKeyJob(cliCtx, noFiles)
	if err != nil {
		return err
	}
	if _, err := job.ledgerConfig(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cliCtx.Context, openTimeout)
	defer cancel()
	var first error
	signed := false
	report := func(step signer.Step) {
		if first == nil {
			first = step.Err
		}
		signed = signed || step.Name == signer.StepSignature && step.Status != signer.StatusSkipped
		p.printStep(step, job.json)
	}
	run := agent.NewProbeRun(time.Now())
	key := job.Diagnose(run.Context(ctx), signer.OpenOptions{}, report)
	probe := run.Record(first)
	if key != nil {
		defer func() { _ = key.Close() }()
	}
	var certs []*x509.Certificate
	if cert, _ := job.str("cert"); cert != "" {
		var step signer.Step
		step, certs = p.checkChain(ctx, job, key)
		step.Name = "chain"
		report(step)
	}
	if signed {
		p.recordProbe(cliCtx.Context, job.settings, probe, key, certs)
	}
	if first == nil {
		return nil
	}
	return exitStatus(exitCode(first))
}

// checkChain is the last step: the vendor's chain is complete, and its leaf matches the key. It returns the chain, too.
func (p *program) checkChain(ctx context.Context, job *keyJob, key signer.Signer) (signer.Step, []*x509.Certificate) {
	if key == nil {
		return signer.Step{Status: signer.StatusSkipped}, nil
	}
	cfg, err := job.vendorConfig(job.Key)
	if err != nil {
		return signer.StepFail(err), nil
	}
	vendor, err := agent.NewVendor(ctx, cfg)
	if err != nil {
		return signer.StepFail(err), nil
	}
	c := vendor.Chain()
	if err := c.MatchKey(key.Public()); err != nil {
		return signer.StepFail(err), nil
	}
	step := signer.StepOK("%s, valid until %s; matches the key", c.Leaf().Subject.CommonName, c.Leaf().NotAfter.UTC().Format(time.DateOnly))
	for _, f := range c.Findings {
		if f.Severity == fault.SeverityWarning {
			step = signer.StepWarn("%s", f.Message).WithFix(f.Fix)
		}
	}
	return step, c.Certs
}
