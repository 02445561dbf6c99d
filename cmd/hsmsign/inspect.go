package main

import (
	"cmp"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/api"
	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/internal/filekind"
	"hsmsign/internal/strictder"
	"hsmsign/request"
)

func (p *program) inspectCommand() *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "show what a file contains: CSR, certificate, chain, push certificate, Push Certificate Request",
		ArgsUsage: "FILE...",
		Description: "It accepts every encoding that sign and verify accept, and gives no verdict; use verify for that.\n\n" +
			"  hsmsign inspect acme.csr mdm.cer acme.req",
		Flags:  []cli.Flag{jsonFlag()},
		Action: p.inspect,
	}
}

func (p *program) inspect(ctx *cli.Context) error {
	s, args, err := p.startBare(ctx, anyFiles)
	if err != nil {
		return err
	}
	if len(args) == 0 {
		return fault.Usage.Errorf("no file given").Fix("name a file, or - for standard input")
	}
	var failed error
	for _, file := range args {
		data, err := p.in.Read(ctx.Context, file, request.MaxRequest)
		if err == nil {
			var result *api.InspectResult
			if result, err = inspectData(data, time.Now()); err == nil {
				result.File = file
				p.showInspected(result, s.json)
				continue
			}
		}
		p.con.Fail(fmt.Errorf("%s: %w", file, err))
		failed = exitStatus(fault.Refused.Exit())
	}
	return failed
}

// inspectData returns what data is. It tries each parser in turn, the strictest first.
func inspectData(data []byte, now time.Time) (*api.InspectResult, error) {
	if req, err := request.Parse(data); err == nil {
		result := &api.InspectResult{Kind: "request"}
		if csr, err := strictder.ParseCertificateRequest(req.CSR); err == nil {
			result.CSR = api.NewCSR(csr)
		}
		for _, der := range req.Chain {
			if cert, err := strictder.ParseCertificate(der); err == nil {
				result.Certificates = append(result.Certificates, api.NewCertificate(cert, now))
			}
		}
		return result, nil
	}
	if certs, err := chain.Parse(data); err == nil {
		return &api.InspectResult{Kind: "certificates", Certificates: api.NewCertificates(certs, now)}, nil
	}
	csr, err := request.ParseCSR(data)
	if err == nil {
		return &api.InspectResult{Kind: "csr", CSR: api.NewCSR(csr.Parsed), Findings: csr.Findings}, nil
	}
	switch kind := filekind.Of(data); kind {
	case filekind.CSR, filekind.Request, filekind.Certificate, filekind.Bundle: // damaged
		return nil, fmt.Errorf("neither a request, a certificate nor a CSR: %w", err)
	default:
		return nil, fault.Refused.Errorf("this is %s: neither a request, a certificate nor a CSR", kind).Fix(cmp.Or(kind.Use(), "name another file"))
	}
}

func (p *program) showInspected(r *api.InspectResult, asJSON bool) {
	if asJSON {
		p.con.JSON(r)
		return
	}
	if r.Kind == "request" {
		p.con.Printf("%s: Push Certificate Request with %d certificates", r.File, len(r.Certificates))
	}
	if r.CSR != nil {
		p.printCSR(r.File, r.CSR)
	}
	for i, cert := range r.Certificates {
		title := r.File
		if len(r.Certificates) > 1 {
			title = fmt.Sprintf("%s: certificate %d", r.File, i+1)
		}
		p.printCert(title, cert)
	}
	p.printFindings(r.Findings)
}
