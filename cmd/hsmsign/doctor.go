package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"hsmsign/fault"
	"hsmsign/signer"
)

func (p *program) doctorCommand() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "walk from the key reference to a verified signature, and say what is wrong on the way",
		Description: "After a failure the steps that need what failed are skipped. The PIN is sent once, and not at all to a token that\n" +
			"would lock. The exit code is that of the first failure.\n\n" +
			"  hsmsign doctor --key 'pkcs11:token=mdm;object=vendor?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:pin'\n" +
			"  hsmsign doctor --key file:vendor.key --cert vendor.pem",
		Flags:  append([]cli.Flag{keyFlag(), jsonFlag()}, identityFlags()...),
		Action: p.doctor,
	}
}

// stepResult is what doctor --json prints for one step.
type stepResult struct {
	Name   string        `json:"name"`
	Status signer.Status `json:"status"`
	Detail string        `json:"detail,omitempty"`
	Fix    string        `json:"fix,omitempty"`
	Exit   int           `json:"exit,omitempty"` // of a failure
}

func (p *program) doctor(cliCtx *cli.Context) error {
	job, _, err := p.newKeyJob(cliCtx, false)
	if err != nil {
		return err
	}
	if job.backend.Diagnose == nil {
		return usage("try hsmsign key test", "%s: keys cannot be diagnosed", job.ref.Scheme)
	}
	ctx, cancel := context.WithTimeout(cliCtx.Context, openTimeout)
	defer cancel()
	var first error
	report := func(step signer.Step) {
		if first == nil {
			first = step.Err
		}
		p.ui.printStep(step, job.json)
	}
	key := job.backend.Diagnose(ctx, job.ref, signer.OpenOptions{}, report)
	if key != nil {
		defer func() { _ = key.Close() }()
	}
	if cert, _ := job.str("cert"); cert != "" {
		report(p.checkChain(ctx, job, key))
	}
	if first == nil {
		return nil
	}
	return exitStatus(exitCode(first))
}

// checkChain is the last step: the vendor's chain is complete, and its leaf the key's.
func (p *program) checkChain(ctx context.Context, job *keyJob, key signer.Signer) signer.Step {
	step := signer.Step{Name: "chain", Status: signer.StatusSkipped}
	if key == nil {
		return step
	}
	c, err := p.vendorChain(ctx, job.settings)
	if err == nil {
		err = c.MatchKey(key.Public())
	}
	if err != nil {
		step.Status, step.Detail, step.Fix, step.Err = signer.StatusFail, err.Error(), fault.Hint(err), err
		return step
	}
	step.Status = signer.StatusOK
	step.Detail = c.Leaf().Subject.CommonName + ", valid until " + c.Leaf().NotAfter.UTC().Format("2006-01-02") + "; the key's own"
	for _, f := range c.Findings {
		if f.Severity == fault.SeverityWarning {
			step.Status, step.Detail, step.Fix = signer.StatusWarn, f.Message, f.Fix
		}
	}
	return step
}

// printStep prints one step as it ends, and below it what to do.
func (u *ui) printStep(step signer.Step, asJSON bool) {
	if asJSON {
		result := stepResult{Name: step.Name, Status: step.Status, Detail: step.Detail, Fix: step.Fix}
		if step.Err != nil {
			result.Exit = exitCode(step.Err)
		}
		u.json(result)
		return
	}
	status := string(step.Status)
	if step.Status == signer.StatusFail {
		status = "FAIL"
	}
	u.print("%s", strings.TrimRight(fmt.Sprintf("%-7s  %-14s  %s", status, step.Name, step.Detail), " "))
	if step.Fix != "" && step.Status != signer.StatusOK {
		u.print("%-7s  %-14s  -> %s", "", "", step.Fix)
	}
}
