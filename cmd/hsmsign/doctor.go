package main

import (
	"context"
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
			"lock. The exit code is that of the first failure.\n\n" +
			"  hsmsign doctor --key 'pkcs11:token=mdm;object=vendor?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:pin'\n" +
			"  hsmsign doctor --key file:vendor.key --cert vendor.pem",
		Flags:  append([]cli.Flag{keyFlag(), jsonFlag()}, identityFlags()...),
		Action: p.doctor,
	}
}

func (p *program) doctor(cliCtx *cli.Context) error {
	job, _, err := p.newKeyJob(cliCtx, noFiles)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cliCtx.Context, openTimeout)
	defer cancel()
	var first error
	report := func(step signer.Step) {
		if first == nil {
			first = step.Err
		}
		p.printStep(step, job.json)
	}
	key := job.Diagnose(ctx, signer.OpenOptions{}, report)
	if key != nil {
		defer func() { _ = key.Close() }()
	}
	if cert, _ := job.str("cert"); cert != "" {
		step := p.checkChain(ctx, job, key)
		step.Name = "chain"
		report(step)
	}
	if first == nil {
		return nil
	}
	return exitStatus(exitCode(first))
}

// checkChain is the last step: the vendor's chain is complete, and its leaf matches the key.
func (p *program) checkChain(ctx context.Context, job *keyJob, key signer.Signer) signer.Step {
	if key == nil {
		return signer.Step{Status: signer.StatusSkipped}
	}
	cfg, err := job.vendorConfig(job.Key)
	if err != nil {
		return signer.StepFail(err)
	}
	vendor, err := agent.NewVendor(ctx, cfg)
	if err != nil {
		return signer.StepFail(err)
	}
	c := vendor.Chain()
	if err := c.MatchKey(key.Public()); err != nil {
		return signer.StepFail(err)
	}
	step := signer.StepOK("%s, valid until %s; matches the key", c.Leaf().Subject.CommonName, c.Leaf().NotAfter.UTC().Format(time.DateOnly))
	for _, f := range c.Findings {
		if f.Severity == fault.SeverityWarning {
			step = signer.StepWarn("%s", f.Message).WithFix(f.Fix)
		}
	}
	return step
}
