package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/api"
	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/internal/filekind"
	"hsmsign/internal/pfx"
	"hsmsign/internal/strictder"
	"hsmsign/lifecycle/identity"
	"hsmsign/lifecycle/profile"
	"hsmsign/request"
	"hsmsign/secret"
)

func (p *program) inspectCommand() *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "show what a file contains: CSR, certificates, PKCS#12, profile, DEP profile, Push Certificate Request",
		ArgsUsage: "FILE...",
		Description: "It accepts every encoding that sign and verify accept, and gives no verdict; use verify for that. Of each certificate it\n" +
			"says who issues such a certificate, who needs it, and what happens when it expires. Of a profile it shows what brings\n" +
			"certificates to the device (SCEP, ACME, PKCS#12, roots, the MDM payload), and no secret. The passphrase of a PKCS#12 file\n" +
			"comes from --passphrase-file, $HSMSIGN_PASSPHRASE or the terminal.\n\n" +
			"  hsmsign inspect acme.csr mdm.cer acme.req\n" +
			"  hsmsign inspect --passphrase-file pass device.p12\n" +
			"  hsmsign inspect --cert-kind dep-anchor root.pem",
		Flags: []cli.Flag{
			stringFlag("cert-kind", "`KIND` of the certificates if they do not tell it: "+strings.Join(certificateKinds(), ", ")),
			passphraseFileFlag(), jsonFlag(),
		},
		Action: p.inspect,
	}
}

// certificateKinds are the values of --cert-kind.
func certificateKinds() (ids []string) {
	for _, k := range identity.Kinds() {
		ids = append(ids, k.ID)
	}
	return ids
}

// maxInspected is the size limit of a file, in bytes: that of a signed profile in base64.
const maxInspected = max(request.MaxRequest, 2*profile.MaxSize)

// inspection is one run of inspect.
type inspection struct {
	p   *program
	s   *settings
	as  string // the kind of the certificates; "": unknown
	now time.Time
}

func (p *program) inspect(ctx *cli.Context) error {
	s, args, err := p.startBare(ctx, anyFiles)
	if err != nil {
		return err
	}
	if len(args) == 0 {
		return fault.Usage.Errorf("no file given").Fix("name a file, or - for standard input")
	}
	job := &inspection{p: p, s: s, now: time.Now()}
	var from string
	if job.as, from = s.str("cert-kind"); job.as != "" {
		if _, ok := identity.Find(job.as); !ok {
			return fault.Usage.Errorf("%s: unknown kind %q", from, job.as).Fix("it is " + strings.Join(certificateKinds(), ", "))
		}
	}
	var failed error
	for _, file := range args {
		data, err := p.in.Read(ctx.Context, file, maxInspected)
		if err == nil {
			var result *api.InspectResult
			if result, err = job.read(ctx.Context, file, data); err == nil {
				result.File = file
				p.showInspected(result, s.json)
				continue
			}
		}
		if fault.KindOf(err) == fault.Interrupted {
			return err
		}
		p.con.Fail(fmt.Errorf("%s: %w", file, err))
		code := fault.Refused
		if fault.KindOf(err) == fault.Auth {
			code = fault.Auth
		}
		failed = cmp.Or[error](failed, exitStatus(code.Exit()))
	}
	return failed
}

// read returns what data is. It tries each parser in turn, the strictest first.
func (job *inspection) read(ctx context.Context, file string, data []byte) (*api.InspectResult, error) {
	now := job.now
	if req, err := request.Parse(data); err == nil {
		result := &api.InspectResult{Kind: "request"}
		if csr, err := strictder.ParseCertificateRequest(req.CSR); err == nil {
			result.CSR = api.NewCSR(csr)
		}
		for _, der := range req.Chain {
			if cert, err := strictder.ParseCertificate(der); err == nil {
				result.Certificates = append(result.Certificates, api.InspectedCertificate{Certificate: api.NewCertificate(cert, now)})
			}
		}
		return result, nil
	}
	// Before the chains: a signed profile contains certificates, too.
	if report := profile.Verify(data, profile.VerifyOptions{Now: now}); report.Profile != nil {
		content := identity.ReadProfile(ctx, report.Profile)
		return &api.InspectResult{Kind: "profile", Profile: api.NewInspectedProfile(report, content, now), Findings: content.Findings}, ctx.Err()
	}
	if certs, err := chain.Parse(data); err == nil {
		return &api.InspectResult{Kind: "certificates", Certificates: api.NewInspected(certs, job.as, now)}, nil
	}
	csr, err := request.ParseCSR(data)
	if err == nil {
		return &api.InspectResult{Kind: "csr", CSR: api.NewCSR(csr.Parsed), Findings: csr.Findings}, nil
	}
	if identity.IsDEPProfile(data) {
		return job.readDEP(data)
	}
	switch kind := filekind.Of(data); kind {
	case filekind.PKCS12:
		return job.readPKCS12(ctx, file, data)
	case filekind.PropertyList:
		_, err := profile.Parse(data)
		return nil, err
	case filekind.CSR, filekind.Request, filekind.Certificate, filekind.Bundle: // damaged
		return nil, fmt.Errorf("neither a request, a certificate nor a CSR: %w", err)
	default:
		return nil, fault.Refused.Errorf("this is %s: neither a request, a certificate nor a CSR", kind).Fix(cmp.Or(kind.Use(), "name another file"))
	}
}

func (job *inspection) readDEP(data []byte) (*api.InspectResult, error) {
	dep, err := identity.ReadDEPProfile(data)
	if err != nil {
		return nil, err
	}
	return &api.InspectResult{
		Kind: "dep-profile", DEP: &api.InspectedDEP{Name: dep.Name, URL: dep.URL}, Certificates: api.NewInspected(dep.Anchors, identity.DEPAnchor, job.now),
	}, nil
}

// readPKCS12 opens a PKCS#12 file. Its key is not shown.
func (job *inspection) readPKCS12(ctx context.Context, file string, data []byte) (*api.InspectResult, error) {
	content, err := job.p.openPKCS12(ctx, job.s, file, data)
	if err != nil {
		return nil, err
	}
	kind, findings := identity.DetectPKCS12(content)
	result := &api.InspectResult{Kind: "pkcs12", Certificates: api.NewInspected(content.Certificates(), "", job.now), Findings: findings}
	if kind = cmp.Or(job.as, kind); kind != "" {
		result.Certificates[0].Purpose = api.NewPurpose(kind)
	}
	return result, nil
}

// openPKCS12 reads a PKCS#12 file with the passphrase of --passphrase-file, the environment or the terminal.
func (p *program) openPKCS12(ctx context.Context, s *settings, file string, data []byte) (*pfx.File, error) {
	if err := pfx.Check(data); err != nil {
		return nil, fault.Refused.Errorf("not a usable PKCS#12 file: %w", err).Fix("export it again")
	}
	source := secret.Source{Label: fmt.Sprintf("passphrase of %q", file), Env: envPassphrase}
	path, _ := s.str("passphrase-file")
	if path != "" {
		source.From = "file:" + path
	}
	secrets := p.secrets()
	if path == "" && p.getenv(envPassphrase) == "" && secrets.Prompt == nil {
		return nil, fault.Auth.Errorf("this is a PKCS#12 file, and no passphrase was given").
			Fix("name the file of its passphrase with --passphrase-file, or set " + envPassphrase)
	}
	passphrase, err := secrets.Read(ctx, source)
	if err != nil {
		return nil, err
	}
	defer clear(passphrase)
	content, err := pfx.Decode(ctx, data, passphrase)
	switch {
	case err == nil || ctx.Err() != nil:
		return content, err
	case errors.Is(err, pfx.ErrPassphrase):
		return nil, fault.Auth.Errorf("%w", err).Fix("give the passphrase with which it was exported")
	}
	return nil, fault.Refused.Errorf("not a usable PKCS#12 file: %s", fault.Clip(err.Error(), 160)).
		Fix("it needs one key and its certificate, in DER; openssl pkcs12 can write it again")
}

func (p *program) showInspected(r *api.InspectResult, asJSON bool) {
	if asJSON {
		p.con.JSON(r)
		return
	}
	switch r.Kind {
	case "request":
		p.con.Printf("%s: Push Certificate Request with %d certificates", r.File, len(r.Certificates))
	case "pkcs12":
		p.con.Printf("%s: PKCS#12 with a private key, certificates: %d", r.File, len(r.Certificates))
	case "dep-profile":
		p.con.Printf("%s: DEP profile, anchor certificates: %d", r.File, len(r.Certificates))
		p.con.Field("name", r.DEP.Name)
		p.con.Field("server", r.DEP.URL)
	case "profile":
		p.showInspectedProfile(r)
	}
	if r.CSR != nil {
		p.printCSR(r.File, r.CSR)
	}
	for i, cert := range r.Certificates {
		title := r.File
		if len(r.Certificates) > 1 {
			title = fmt.Sprintf("%s: certificate %d", r.File, i+1)
		}
		p.printCert(title, cert.Certificate)
		p.printPurpose(cert.Purpose)
	}
	p.printFindings(r.Findings)
}

func (p *program) showInspectedProfile(r *api.InspectResult) {
	found := r.Profile
	signed := "that is not signed"
	if found.Signer != nil {
		signed = "signed by " + found.Signer.Subject
	}
	p.con.Printf("%s: profile %s", r.File, signed)
	p.con.Field("identifier", found.Identifier)
	p.con.Field("name", found.Name)
	p.con.Field("organization", found.Organization)
	p.con.Field("replace", map[bool]string{true: "before " + found.ReplaceBefore + ", when the first certificate in it expires"}[found.ReplaceBefore != ""])
	if found.Encrypted {
		p.con.Field("payloads", "encrypted: only devices can read them")
	}
	for i, one := range found.Payloads {
		title := fmt.Sprintf("%s: payload %d: %s", r.File, i+1, one.Type)
		p.con.Printf("%s", title)
		p.con.Field("name", one.Name)
		p.con.Field("UUID", one.UUID)
		for _, s := range one.Settings {
			p.con.Field(s.Name, s.Value)
		}
		p.printPurpose(one.Purpose)
		for _, cert := range one.Certificates {
			p.printCert(title, cert)
		}
	}
}

// printPurpose shows what is known of a kind of certificate.
func (p *program) printPurpose(purpose *api.Purpose) {
	if purpose == nil {
		return
	}
	p.con.Field("kind", purpose.Name)
	p.con.Field("issued by", purpose.IssuedBy)
	p.con.Field("needed by", purpose.NeededBy)
	p.con.Field("on expiry", purpose.OnExpiry)
}
