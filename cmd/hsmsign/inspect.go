package main

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/request"
)

func (p *program) inspectCommand() *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "show what a file is: CSR, certificate, chain, push certificate, Push Certificate Request",
		ArgsUsage: "FILE...",
		Description: "Every encoding is taken that sign and verify take. Nothing is judged but what the file is; see verify for that.\n\n" +
			"  hsmsign inspect acme.csr mdm.cer acme.req",
		Flags:  []cli.Flag{jsonFlag()},
		Action: p.inspect,
	}
}

// inspectResult is what --json prints for one file.
type inspectResult struct {
	File         string          `json:"file"`
	Kind         string          `json:"kind"` // csr, certificates, request
	CSR          *csrInfo        `json:"csr,omitempty"`
	Certificates []certInfo      `json:"certificates,omitempty"`
	Findings     []fault.Finding `json:"findings,omitempty"` // what is wrong with a CSR
}

func (p *program) inspect(ctx *cli.Context) error {
	s := p.bareSettings(ctx)
	args, err := arguments(ctx)
	if err != nil {
		return err
	}
	if len(args) == 0 {
		return usage("name a file, or - for standard input", "no file given")
	}
	asJSON, err := s.boolean("json")
	if err != nil {
		return err
	}
	var failed error
	for _, file := range args {
		data, err := p.readInput(ctx.Context, file, request.MaxRequest)
		if err == nil {
			var result *inspectResult
			if result, err = inspectData(data, time.Now()); err == nil {
				result.File = file
				p.showInspected(result, asJSON)
				continue
			}
		}
		p.ui.fail(fmt.Errorf("%s: %w", file, err))
		failed = exitStatus(fault.Refused.Exit())
	}
	return failed
}

// inspectData finds out what data is. Each reader is asked in turn, the one with the narrowest form first.
func inspectData(data []byte, now time.Time) (*inspectResult, error) {
	if req, err := request.Parse(data); err == nil {
		result := &inspectResult{Kind: "request"}
		if csr, err := x509.ParseCertificateRequest(req.CSR); err == nil {
			info := describeCSR(csr)
			result.CSR = &info
		}
		for _, der := range req.Chain {
			if cert, err := x509.ParseCertificate(der); err == nil {
				result.Certificates = append(result.Certificates, describeCert(cert, now))
			}
		}
		return result, nil
	}
	if certs, err := chain.Parse(data); err == nil {
		return &inspectResult{Kind: "certificates", Certificates: describeChain(certs, now)}, nil
	}
	csr, err := request.ParseCSR(data)
	if err == nil {
		info := describeCSR(csr.Parsed)
		return &inspectResult{Kind: "csr", CSR: &info, Findings: csr.Findings}, nil
	}
	if bytes.Contains(data, []byte("PRIVATE KEY-----")) {
		return nil, usage("inspect shows public things only", "this is a private key")
	}
	return nil, fmt.Errorf("neither a request, a certificate nor a CSR: %w", err)
}

func (p *program) showInspected(r *inspectResult, asJSON bool) {
	if asJSON {
		p.ui.json(r)
		return
	}
	if r.Kind == "request" {
		p.ui.print("%s: Push Certificate Request with %d certificates", r.File, len(r.Certificates))
	}
	if r.CSR != nil {
		p.ui.printCSR(r.File, *r.CSR)
	}
	for i, cert := range r.Certificates {
		title := r.File
		if len(r.Certificates) > 1 {
			title = fmt.Sprintf("%s: certificate %d", r.File, i+1)
		}
		p.ui.printCert(title, cert)
	}
	p.ui.printFindings(r.Findings)
}
