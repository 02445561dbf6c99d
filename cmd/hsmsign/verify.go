package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/fault"
	"hsmsign/request"
)

func (p *program) verifyCommand() *cli.Command {
	return &cli.Command{
		Name:      "verify",
		Usage:     "say whether Apple's portal would take a Push Certificate Request, and why not; any tool's will do",
		ArgsUsage: "REQUEST...",
		Description: "Every defect is named with what to do about it and the portal's own words for it. Exit code 7 when there is one.\n\n" +
			"  hsmsign verify acme.req\n" +
			"  hsmsign verify --csr acme.csr acme.req      # and that it holds this CSR",
		Flags: []cli.Flag{
			stringFlag("csr", "the CSR `FILE` that the request must hold"),
			trustRootFlag(), configFlag(), jsonFlag(),
		},
		Action: p.verify,
	}
}

// verifyResult is what --json prints for one request.
type verifyResult struct {
	File     string          `json:"file"`
	OK       bool            `json:"ok"`
	Digest   string          `json:"digest,omitempty"` // of the signature; absent when it does not verify
	CSR      *csrInfo        `json:"csr,omitempty"`
	Chain    []certInfo      `json:"chain,omitempty"`
	Findings []fault.Finding `json:"findings"`
}

func (p *program) verify(ctx *cli.Context) error {
	s, args, asJSON, err := p.start(ctx)
	if err != nil {
		return err
	}
	if len(args) == 0 {
		return usage("name the Push Certificate Request, or - for standard input", "no request given")
	}
	opts := request.VerifyOptions{Now: time.Now()}
	if opts.TrustRoots, err = p.trustRoots(ctx.Context, s); err != nil {
		return err
	}
	if file, _ := s.str("csr"); file != "" {
		if len(args) > 1 {
			return usage("verify them one by one", "--csr goes with one request, not %d", len(args))
		}
		if opts.CSR, err = p.readCSR(ctx.Context, file); err != nil {
			return err
		}
	}
	var failed error
	for _, file := range args {
		data, err := p.readInput(ctx.Context, file, request.MaxRequest)
		if err != nil {
			return fault.Refused.Errorf("%s: %w", file, err).Fix("name a readable request file")
		}
		report := request.Verify(data, opts)
		p.showReport(file, report, opts.Now, asJSON)
		if !report.OK() {
			failed = errDefects
		}
	}
	return failed
}

// readCSR reads a CSR that only has to be readable: whether it is sound is a finding of the request.
func (p *program) readCSR(ctx context.Context, file string) (*request.CSR, error) {
	data, err := p.readInput(ctx, file, request.MaxCSR)
	if err != nil {
		return nil, fault.Refused.Errorf("%s: %w", file, err).Fix("name a readable CSR file")
	}
	csr, err := request.ParseCSR(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return csr, nil
}

func (p *program) showReport(file string, r *request.Report, now time.Time, asJSON bool) {
	if asJSON {
		result := verifyResult{File: file, OK: r.OK(), Digest: digestName(r), Chain: describeChain(r.Chain, now), Findings: r.Findings}
		if result.Findings == nil {
			result.Findings = []fault.Finding{}
		}
		if r.CSR != nil {
			info := describeCSR(r.CSR)
			result.CSR = &info
		}
		p.ui.json(result)
		return
	}
	verdict := "good"
	if !r.OK() {
		verdict = "DEFECTIVE"
	}
	p.ui.print("%s: %s", file, verdict)
	if r.CSR != nil {
		p.ui.field("customer", describeName(r.CSR.Subject))
	}
	if vendor := r.Vendor(); vendor != nil {
		p.ui.field("vendor", describeName(vendor.Subject))
	}
	p.ui.field("signature", digestName(r))
	p.ui.printFindings(r.Findings)
}

// printFindings shows each finding with what to do about it and what the portal would say.
func (u *ui) printFindings(findings []fault.Finding) {
	for _, f := range findings {
		u.print("  %s: %s [%s]", f.Severity, f.Message, f.ID)
		if f.Fix != "" {
			u.print("      to do:  %s", f.Fix)
		}
		if f.Portal != "" {
			u.print("      portal: %s", f.Portal)
		}
	}
}

func describeChain(certs []*x509.Certificate, now time.Time) []certInfo {
	var infos []certInfo
	for _, cert := range certs {
		infos = append(infos, describeCert(cert, now))
	}
	return infos
}
