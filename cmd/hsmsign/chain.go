package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/api"
	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/keystore"
)

func (p *program) chainCommand() *cli.Command {
	return &cli.Command{
		Name:  "chain",
		Usage: "build, check and fetch the vendor's certificate chain",
		Subcommands: []*cli.Command{
			{
				Name:      "build",
				Usage:     "make one PEM bundle, vendor certificate first and root last, from files in any encoding and order",
				ArgsUsage: "[FILE...]",
				Description: "The bundle is for --cert of sign. FILEs are certificates as for --chain.\n\n" +
					"  hsmsign chain build --cert mdm.cer --chain AppleWWDRCAG3.cer --chain AppleIncRootCertificate.cer -o vendor.pem",
				Flags:  append([]cli.Flag{outputFlag(), forceFlag()}, identityFlags()...),
				Action: p.chainBuild,
			},
			{
				Name:      "check",
				Usage:     "explain a vendor chain: each certificate, and everything that is wrong",
				ArgsUsage: "[FILE...]",
				Description: "Exit code 4 when the chain cannot be used.\n\n" +
					"  hsmsign chain check vendor.pem",
				Flags:  append([]cli.Flag{jsonFlag()}, identityFlags()...),
				Action: p.chainCheck,
			},
			{
				Name:      "fetch",
				Usage:     "download Apple's intermediate and root certificates, each checked against its pinned SHA-256",
				ArgsUsage: "[NAME...]",
				Description: "A NAME is that of Apple's file or of the certificate; without one, all that are current. What is not the pinned\n" +
					"certificate is refused, so neither the network nor a mirror needs to be trusted.\n\n" +
					"  hsmsign chain fetch -o apple.pem\n" +
					"  hsmsign chain fetch -o apple.pem AppleWWDRCAG3.cer AppleIncRootCertificate.cer",
				Flags: []cli.Flag{
					outputFlag(), forceFlag(), jsonFlag(), configFlag(),
					stringFlag("base-url", "https `URL` of a mirror that has Apple's files under their names"),
				},
				Action: p.chainFetch,
			},
		},
	}
}

func (p *program) chainBuild(ctx *cli.Context) error {
	s, args, err := p.start(ctx, anyFiles)
	if err != nil {
		return err
	}
	certs, roots, inputs, err := p.chainParts(ctx.Context, s, args)
	if err != nil {
		return err
	}
	output, force, err := s.output(inputs...)
	if err != nil {
		return err
	}
	c, err := chain.Build(certs, nil, chain.Options{TrustRoots: roots})
	if err != nil {
		for i := range inputs {
			inputs[i] = keystore.Redact(inputs[i])
		}
		return fmt.Errorf("%s: %w", strings.Join(inputs, ", "), err)
	}
	for _, f := range c.Findings {
		p.con.Infof("%s: %s", f.Severity, f.Message)
	}
	return p.emit(output, []byte(c.PEM()), requestMode, force)
}

// chainParts reads --cert, --chain and the arguments.
func (p *program) chainParts(ctx context.Context, s *settings, args []string) (certs, roots []*x509.Certificate, files []string, err error) {
	if cert, _ := s.str("cert"); cert != "" {
		files = append(files, cert)
	}
	more, _ := s.list("chain")
	files = slices.Concat(files, more, args)
	if len(files) == 0 {
		return nil, nil, nil, fault.Usage.Errorf("no certificate given").Fix("name the vendor certificate with --cert, and the others as files or with --chain")
	}
	if certs, err = s.store.LoadCertificates(ctx, files...); err != nil {
		return nil, nil, nil, err
	}
	roots, err = s.trustRoots(ctx)
	return certs, roots, files, err
}

func (p *program) chainCheck(ctx *cli.Context) error {
	s, args, err := p.start(ctx, anyFiles)
	if err != nil {
		return err
	}
	certs, roots, _, err := p.chainParts(ctx.Context, s, args)
	if err != nil {
		return err
	}
	now := time.Now()
	opts := chain.Options{TrustRoots: roots, Now: now}
	result := api.ChainResult{Chain: api.NewCertificates(certs, now), Findings: []fault.Finding{}}
	c, err := chain.Build(certs, nil, opts)
	if err == nil {
		result.OK, result.Chain = true, api.NewCertificates(c.Certs, now)
		result.Findings = append(result.Findings, c.Findings...)
	} else {
		// Not the first error only.
		result.Findings = append(result.Findings, chain.Check(certs, opts)...)
	}
	if s.json {
		p.con.JSON(result)
	} else {
		for i, info := range result.Chain {
			p.printCert(fmt.Sprintf("certificate %d", i+1), info)
		}
		p.printFindings(result.Findings)
	}
	if err == nil {
		return nil
	}
	return exitStatus(fault.Vendor.Exit())
}

func (p *program) chainFetch(ctx *cli.Context) error {
	s, args, err := p.start(ctx, anyFiles)
	if err != nil {
		return err
	}
	output, force, err := s.output()
	if err != nil {
		return err
	}
	if s.json && (output == "" || output == "-") {
		return fault.Usage.Errorf("--json takes standard output").Fix("name the bundle's file with -o")
	}
	baseURL, _ := s.str("base-url")
	fetched, err := chain.Fetch(ctx.Context, chain.FetchOptions{BaseURL: baseURL, Names: args})
	if err != nil {
		return err
	}
	var certs []*x509.Certificate
	for _, f := range fetched {
		certs = append(certs, f.Cert)
	}
	if err := p.emit(output, []byte(chain.PEM(certs)), requestMode, force); err != nil {
		return err
	}
	for _, f := range fetched {
		if s.json {
			p.con.JSON(api.FetchResult{Name: f.Pin.Name, File: f.Pin.File, SHA256: f.Pin.SHA256, Output: output})
		} else {
			p.con.Infof("%s: SHA-256 %s, as pinned", f.Pin.Name, f.Pin.SHA256)
		}
	}
	return nil
}
