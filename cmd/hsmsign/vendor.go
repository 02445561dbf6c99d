package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/lifecycle/ceremony"
	"hsmsign/lifecycle/certreq"
	"hsmsign/lifecycle/vendorcert"
)

func (p *program) vendorCommand() *cli.Command {
	return &cli.Command{
		Name:  "vendor",
		Usage: "the vendor's certificate: its CSR, its import, its status, and the key ceremony",
		Subcommands: []*cli.Command{
			{
				Name: "csr", Usage: "make the CSR for Apple's developer portal, which issues the vendor certificate",
				Description: "The key must be RSA-2048. Apple uses only the key of the CSR, and writes another subject.\n\n" +
					"  hsmsign vendor csr --key file:vendor.key --organization 'Example Corp' --common-name 'Example MDM' \\\n" +
					"      --email mdm@example.com --country US -o vendor.csr",
				Flags:  append([]cli.Flag{keyFlag(), outputFlag(), forceFlag(), vendorFlag(), configFlag()}, subjectFlags()...),
				Action: p.vendorCSR,
			},
			{
				Name: "import", Usage: "check that the certificate matches the key, and make the bundle for --cert", ArgsUsage: "FILE",
				Description: "The key signs the probe message, and the certificate must verify it. --fetch gets those of Apple's certificates\n" +
					"that are missing, each held to its pinned SHA-256.\n\n" +
					"  hsmsign vendor import --key file:vendor.key --fetch -o vendor.pem mdm.cer\n" +
					"  hsmsign vendor import --key file:vendor.key --chain apple.pem -o vendor.pem mdm.cer",
				Flags:  append([]cli.Flag{keyFlag(), outputFlag(), forceFlag(), vendorFlag(), configFlag()}, importFlags()...),
				Action: p.vendorImport,
			},
			p.vendorStatusCommand(), p.ceremonyCommand(),
		},
	}
}

func subjectFlags() []cli.Flag {
	return []cli.Flag{
		stringFlag("common-name", "`NAME` of the vendor, at most 64 characters"),
		stringFlag("email", "email `ADDRESS` of the vendor"),
		stringFlag("country", "two-letter ISO 3166 `CODE` of the country"),
		stringFlag("organization", "`NAME` of the organization, at most 64 characters; optional"),
	}
}

func importFlags() []cli.Flag {
	return []cli.Flag{
		listFlag("chain", "`FILE` with intermediate or root certificates; may be repeated"),
		trustRootFlag(),
		boolFlag("fetch", "download those of Apple's certificates that are missing"),
		stringFlag("base-url", "https `URL` of a mirror that has Apple's files under their names"),
		boolFlag("store", "store the certificate in the token, with the key"),
	}
}

// csrSubject returns the subject that the flags give, not checked. The country code may be in any case.
func (s *settings) csrSubject() certreq.Subject {
	var subject certreq.Subject
	for name, value := range map[string]*string{
		"common-name": &subject.CommonName, "email": &subject.Email, "country": &subject.Country, "organization": &subject.Organization,
	} {
		*value, _ = s.str(name)
	}
	if len(subject.Country) == 2 { // any other length is refused, and shown as given
		subject.Country = strings.ToUpper(subject.Country)
	}
	return subject
}

func (p *program) vendorCSR(cliCtx *cli.Context) error {
	job, _, err := p.newKeyJob(cliCtx, noFiles)
	if err != nil {
		return err
	}
	subject, err := job.subject()
	if err != nil {
		return err
	}
	output, force, err := job.output()
	if err != nil {
		return err
	}
	key, err := job.open(cliCtx.Context)
	if err != nil {
		return err
	}
	defer func() { _ = key.Close() }()
	ctx, cancel := context.WithTimeout(cliCtx.Context, signTimeout)
	defer cancel()
	der, err := vendorcert.CreateCSR(ctx, key, subject)
	if err != nil {
		return err
	}
	if err := p.emit(output, certreq.EncodePEM(der), requestMode, force); err != nil {
		return err
	}
	p.con.Infof("upload the CSR to https://developer.apple.com/account as \"MDM CSR\"; its key has SHA-256 %s", chain.SPKISHA256(key.Public()))
	return nil
}

// output returns -o and --force, checked.
func (s *settings) output(inputs ...string) (path string, force bool, err error) {
	path, _ = s.str("output")
	if force = s.boolean("force"); path != "" && path != "-" {
		err = checkOutput(path, force, inputs...)
	}
	return path, force, err
}

func (p *program) vendorImport(cliCtx *cli.Context) error {
	job, args, err := p.newKeyJob(cliCtx, oneFile)
	if err != nil {
		return err
	}
	output, force, err := job.output(args[0])
	if err != nil {
		return err
	}
	in, err := p.readImport(cliCtx.Context, job, args[0])
	if err != nil {
		return err
	}
	key, err := job.open(cliCtx.Context)
	if err != nil {
		return err
	}
	defer func() { _ = key.Close() }()
	ctx, cancel := context.WithTimeout(cliCtx.Context, 2*signTimeout) // downloads have time limits of their own
	defer cancel()
	c, err := vendorcert.Import(ctx, key, in.File, in.Options)
	if err != nil {
		return fmt.Errorf("%s: %w", in.Name, err)
	}
	if in.Store {
		if err := job.ImportCertificate(ctx, c.Leaf()); err != nil {
			return err
		}
	}
	if err := p.emit(output, []byte(c.PEM()), requestMode, force); err != nil {
		return err
	}
	p.con.Warnings(args[0], c.Findings)
	p.con.Infof("the certificate matches the key: %q, valid until %s; use the bundle with --cert", c.Leaf().Subject.CommonName, c.Leaf().NotAfter.UTC().Format(time.DateOnly))
	return nil
}

// readImport reads everything about an imported certificate that can be read before the key is opened.
func (p *program) readImport(ctx context.Context, job *keyJob, name string) (ceremony.Import, error) {
	in := ceremony.Import{Name: name}
	if job.boolean("fetch") {
		in.Options.Fetch = &chain.FetchOptions{}
		in.Options.Fetch.BaseURL, _ = job.str("base-url")
	}
	if in.Store = job.boolean("store"); in.Store {
		if err := job.StoresCertificates(); err != nil {
			return in, err
		}
	}
	files, _ := job.list("chain")
	var err error
	if in.Options.Extra, err = job.store.LoadCertificates(ctx, files...); err != nil {
		return in, err
	}
	if in.Options.TrustRoots, err = job.trustRoots(ctx); err != nil {
		return in, err
	}
	if in.File, err = p.in.Read(ctx, name, chain.MaxFile); err != nil {
		return in, fault.Vendor.Errorf("certificate file %q: %w", name, err).Fix("check the path")
	}
	return in, nil
}

// trustRoots loads the certificates of --trust-root.
func (s *settings) trustRoots(ctx context.Context) ([]*x509.Certificate, error) {
	files, _ := s.list("trust-root")
	return s.store.LoadCertificates(ctx, files...)
}
