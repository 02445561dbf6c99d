package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/lifecycle/certreq"
	"hsmsign/lifecycle/vendorcert"
	"hsmsign/signer"
)

func (p *program) vendorCommand() *cli.Command {
	return &cli.Command{
		Name:  "vendor",
		Usage: "the vendor's own certificate: its CSR, its import, its state, and the key ceremony",
		Subcommands: []*cli.Command{
			{
				Name: "csr", Usage: "make the CSR that Apple's developer portal makes the vendor certificate of",
				Description: "The key must be RSA-2048. Apple takes the CSR for its key only, and writes a subject of its own.\n\n" +
					"  hsmsign vendor csr --key file:vendor.key --organization 'Example Corp' --common-name 'Example MDM' \\\n" +
					"      --email mdm@example.com --country US -o vendor.csr",
				Flags:  append([]cli.Flag{keyFlag(), outputFlag(), forceFlag(), vendorFlag(), configFlag()}, subjectFlags()...),
				Action: p.vendorCSR,
			},
			{
				Name: "import", Usage: "prove that Apple's certificate is the key's, and make the bundle for --cert", ArgsUsage: "FILE",
				Description: "The key signs a random message, and the certificate must verify it. --fetch gets those of Apple's certificates\n" +
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
		stringFlag("country", "`CODE` of the country, two letters"),
		stringFlag("organization", "`NAME` of the organization, at most 64 characters; may be left out"),
	}
}

func importFlags() []cli.Flag {
	return []cli.Flag{
		listFlag("chain", "`FILE` with intermediate or root certificates; may be repeated"),
		trustRootFlag(),
		boolFlag("fetch", "download those of Apple's certificates that are missing"),
		stringFlag("base-url", "https `URL` of a mirror that holds Apple's files under their names"),
		boolFlag("store", "store the certificate in the token, beside the key"),
	}
}

// csrSubject is what the flags say of a CSR's subject, not checked. The country's two letters may be small ones.
func (s *settings) csrSubject() certreq.Subject {
	var subject certreq.Subject
	for name, value := range map[string]*string{
		"common-name": &subject.CommonName, "email": &subject.Email, "country": &subject.Country, "organization": &subject.Organization,
	} {
		*value, _ = s.str(name)
	}
	if len(subject.Country) == 2 { // any other length is refused, and shown as it was given
		subject.Country = strings.ToUpper(subject.Country)
	}
	return subject
}

// subject is what the flags say of the vendor, checked.
func (s *settings) subject() (certreq.Subject, error) {
	subject := s.csrSubject()
	for _, f := range []struct{ name, value string }{{"common-name", subject.CommonName}, {"email", subject.Email}, {"country", subject.Country}} {
		if f.value == "" {
			return subject, usage("give it with --"+f.name, "no %s given", f.name)
		}
	}
	return subject, subject.Check()
}

func (p *program) vendorCSR(cliCtx *cli.Context) error {
	job, _, err := p.newKeyJob(cliCtx, false)
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
	p.ui.info("upload the CSR to https://developer.apple.com/account as \"MDM CSR\"; its key has SHA-256 %s", chain.SPKISHA256(key.Public()))
	return nil
}

// output is -o and --force, checked.
func (s *settings) output(inputs ...string) (path string, force bool, err error) {
	path, _ = s.str("output")
	if force, err = s.boolean("force"); err == nil && path != "" && path != "-" {
		err = checkOutput(path, force, inputs...)
	}
	return path, force, err
}

func (p *program) vendorImport(cliCtx *cli.Context) error {
	job, args, err := p.newKeyJob(cliCtx, true)
	if err != nil {
		return err
	}
	if len(args) != 1 {
		return usage("name one file, the certificate that Apple's developer portal gave", "%d files given", len(args))
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
	c, err := in.prove(cliCtx.Context, key)
	if err != nil {
		return err
	}
	if err := in.store(cliCtx.Context, c.Leaf()); err != nil {
		return err
	}
	if err := p.emit(output, []byte(c.PEM()), requestMode, force); err != nil {
		return err
	}
	p.ui.warnings(args[0], c.Findings)
	p.ui.info("the certificate is the key's: %q, valid until %s; its bundle is for --cert", c.Leaf().Subject.CommonName, c.Leaf().NotAfter.UTC().Format(time.DateOnly))
	return nil
}

// importing is the import of one certificate: all that is read before the key is opened.
type importing struct {
	job     *keyJob
	name    string
	file    []byte
	options vendorcert.ImportOptions
	beside  bool // --store
}

func (p *program) readImport(ctx context.Context, job *keyJob, name string) (*importing, error) {
	in := &importing{job: job, name: name}
	fetch, err := job.boolean("fetch")
	if err != nil {
		return nil, err
	}
	if fetch {
		in.options.Fetch = &chain.FetchOptions{}
		in.options.Fetch.BaseURL, _ = job.str("base-url")
	}
	if in.beside, err = job.boolean("store"); err != nil {
		return nil, err
	}
	if in.beside && job.backend.Certificates == nil {
		return nil, usage("leave out --store; the bundle is the certificate's place", "%s: keys hold no certificates", job.ref.Scheme)
	}
	files, _ := job.list("chain")
	if in.options.Extra, err = p.readCerts(ctx, files...); err != nil {
		return nil, err
	}
	if in.options.TrustRoots, err = p.trustRoots(ctx, job.settings); err != nil {
		return nil, err
	}
	if in.file, err = p.readInput(ctx, name, chain.MaxFile); err != nil {
		return nil, fault.Vendor.Errorf("certificate file %q: %w", name, err).Fix("check the path")
	}
	return in, nil
}

// prove checks the certificate against the key and builds its chain.
func (in *importing) prove(ctx context.Context, key signer.Signer) (*chain.Chain, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*signTimeout) // the fetching has bounds of its own
	defer cancel()
	c, err := vendorcert.Import(ctx, key, in.file, in.options)
	switch {
	case errors.Is(err, chain.ErrFetch), errors.Is(err, chain.ErrPin):
		return nil, fetchError(err)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", in.name, err)
	}
	return c, nil
}

// store puts the certificate beside the key where --store says so.
func (in *importing) store(ctx context.Context, cert *x509.Certificate) error {
	if !in.beside {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	return in.job.backend.Certificates.Import(ctx, in.job.ref, cert)
}
