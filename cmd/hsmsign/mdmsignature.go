package main

import (
	"context"
	"crypto/x509"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/api"
	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/internal/console"
	"hsmsign/lifecycle/identity"
)

// verifyMessage is verify --mdm-signature.
func (p *program) verifyMessage(ctx *cli.Context, s *settings, args []string) error {
	header, _ := s.str("mdm-signature")
	body, _ := s.str("body")
	headerFile, inFile := strings.CutPrefix(header, "@")
	csr, _ := s.str("csr")
	switch {
	case header == "" || body == "":
		return fault.Usage.Errorf("--mdm-signature and --body go together").Fix("hsmsign verify --mdm-signature @header.txt --body message.plist --trust-root device-ca.pem")
	case len(args) > 0:
		return fault.Usage.Errorf("--mdm-signature goes without requests, but %q was given", args[0]).Fix("verify the request in another run")
	case csr != "":
		return fault.Usage.Errorf("--csr is for a Push Certificate Request, not for --mdm-signature").Fix("leave it out")
	case inFile && headerFile == "-" && body == "-":
		return fault.Usage.Errorf("header and body are both to be standard input").Fix("name a file for one of them")
	}
	opts := identity.MessageOptions{Now: time.Now()}
	var err error
	if opts.Roots, opts.Intermediates, err = p.deviceAuthorities(ctx.Context, s); err != nil {
		return err
	}
	if inFile {
		data, err := p.read(ctx.Context, headerFile, identity.MaxHeader, "name a readable file with the value of the header")
		if err != nil {
			return err
		}
		header = string(data)
	}
	data, err := p.read(ctx.Context, body, identity.MaxBody, "name a readable file with the body of the message")
	if err != nil {
		return err
	}
	report := identity.VerifyMessage(header, data, opts)
	p.printMessage(body, report, opts.Now, s.json)
	if !report.OK() {
		return errDefects
	}
	return nil
}

// deviceAuthorities returns the trusted CAs of devices and further issuers. Those in the configuration are the vendor's, and
// do not count.
func (p *program) deviceAuthorities(ctx context.Context, s *settings) (roots, others []*x509.Certificate, err error) {
	for name, list := range map[string]*[]*x509.Certificate{"trust-root": &roots, "chain": &others} {
		files, from := s.list(name)
		if from != "--"+name && from != "$"+envName(name) {
			continue
		}
		for _, file := range files {
			data, err := p.read(ctx, file, chain.MaxFile, "name a readable certificate file")
			if err != nil {
				return nil, nil, err
			}
			certs, err := chain.Parse(data)
			if err != nil {
				return nil, nil, fault.Refused.Errorf("%s: %w", file, err).Fix("name the certificate of the devices' CA, or of an issuer")
			}
			*list = append(*list, certs...)
		}
	}
	return roots, others, nil
}

func (p *program) printMessage(file string, report *identity.MessageReport, now time.Time, asJSON bool) {
	r := api.NewMessageResult(file, report, now)
	if asJSON {
		p.con.JSON(r)
		return
	}
	verdict := console.Styled{Level: console.Good, Text: "good"}
	switch {
	case !r.OK:
		verdict = console.Styled{Level: console.Bad, Text: "DEFECTIVE"}
	case !r.Trusted:
		verdict = console.Styled{Level: console.Warning, Text: "signed by a device that is not known to be trusted"}
	}
	p.con.Printf("%s: %s", file, verdict)
	if len(r.Chain) > 0 {
		p.con.Field("device", r.Chain[0].Subject)
		p.con.Field("issuer", r.Chain[0].Issuer)
		p.con.Field("serial", r.Chain[0].Serial)
		p.con.Field("valid", r.Chain[0].NotBefore+" to "+r.Chain[0].NotAfter)
		p.con.Field("SHA-256", r.Chain[0].SHA256)
	}
	p.con.Field("signature", r.Digest)
	p.con.Field("signed at", r.SigningTime)
	p.con.Field("UDID", r.UDID)
	p.con.Field("enrollment", r.EnrollmentID)
	p.con.Field("topic", r.Topic)
	p.con.Field("message", r.MessageType)
	p.con.Field("status", r.Status)
	p.printFindings(r.Findings)
}
