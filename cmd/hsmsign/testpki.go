package main

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/api"
	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/lifecycle/pushcert"
	"hsmsign/request"
	"hsmsign/testpki"
)

func (p *program) testpkiCommand() *cli.Command {
	return &cli.Command{
		Name:  "testpki",
		Usage: "replace Apple in tests: issue a vendor certificate under an Apple-shaped test root",
		Description: "Writes root.pem, wwdr.pem, integration.pem, vendor.pem (the whole chain, for --cert) and the test authority's keys into the folder.\n" +
			"If the folder already contains a test authority, the same root issues again. Apple never accepts these certificates.\n\n" +
			"  hsmsign testpki --csr vendor.csr --out-dir pki/\n" +
			"  hsmsign sign --key file:vendor.key --cert pki/vendor.pem --trust-root pki/root.pem -o acme.req acme.csr",
		Flags: []cli.Flag{
			stringFlag("csr", "the vendor's CSR `FILE`"),
			stringFlag("out-dir", "`FOLDER` for the test certificates, made if it does not exist"),
			forceFlag(), jsonFlag(),
		},
		Subcommands: []*cli.Command{p.issuePushCommand(), p.testIdentitiesCommand()},
		Action:      p.testpki,
	}
}

func (p *program) testpki(ctx *cli.Context) error {
	s, _, err := p.startBare(ctx, noFiles)
	if err != nil {
		return err
	}
	csrFile, _ := s.str("csr")
	dir, _ := s.str("out-dir")
	if csrFile == "" || dir == "" {
		return fault.Usage.Errorf("--csr and --out-dir are both needed").Fix("hsmsign testpki --csr vendor.csr --out-dir pki/")
	}
	force := s.boolean("force")
	csr, err := p.readCSR(ctx.Context, csrFile)
	if err != nil {
		return err
	}
	authority, err := loadAuthority(dir)
	if err != nil {
		return err
	}
	vendorFile := filepath.Join(dir, "vendor.pem")
	if err := checkOutput(vendorFile, force, csrFile); err != nil {
		return err
	}
	vendor, err := authority.IssueVendor(csr.Parsed, testpki.VendorOptions{})
	if err != nil {
		return fault.Refused.Errorf("%s: %w", csrFile, err).Fix("make the CSR again")
	}
	certs := []*x509.Certificate{vendor, authority.WWDR, authority.Root}
	if err := writeFile(vendorFile, []byte(chain.PEM(certs)), requestMode, force); err != nil {
		return err
	}
	if s.json {
		p.con.JSON(api.TestPKIResult{Output: vendorFile, Root: filepath.Join(dir, "root.pem"), Chain: api.NewCertificates(certs, time.Now())})
		return nil
	}
	p.con.Infof("wrote %s, a TEST chain for %q; trust it with --trust-root %s", vendorFile, vendor.Subject.CommonName, filepath.Join(dir, "root.pem"))
	return nil
}

// loadAuthority returns the folder's test authority, and makes one if there is none.
func loadAuthority(dir string) (*testpki.Authority, error) {
	authority, err := testpki.Load(dir)
	made := errors.Is(err, fs.ErrNotExist)
	if made {
		if authority, err = testpki.New(time.Now()); err == nil {
			err = authority.Save(dir)
		}
	}
	// A wrong folder is the user's mistake, a full disk is not.
	if err != nil && (!made || errors.Is(err, fs.ErrExist)) {
		err = fault.Usage.Errorf("%w", err).Fix("name another --out-dir")
	}
	return authority, err
}

func (p *program) issuePushCommand() *cli.Command {
	return &cli.Command{
		Name: "issue-push", Usage: "replace Apple's portal in tests: issue a push certificate for a Push Certificate Request",
		Description: "The request is verified as by verify, with the folder's test root; exit code 7 and the portal's error if it has a\n" +
			"defect. Apple's push service never accepts such a certificate.\n\n" +
			"  hsmsign testpki issue-push --request acme.req --out-dir pki/ -o MDM_Acme_Certificate.pem",
		Flags: []cli.Flag{
			stringFlag("request", "the Push Certificate Request `FILE`"),
			stringFlag("out-dir", "`FOLDER` of the test authority, as testpki made it"),
			stringFlag("renew", "`FILE` of the push certificate to renew: its topic is kept"),
			outputFlag(),
		},
		Action: p.issuePush,
	}
}

func (p *program) issuePush(ctx *cli.Context) error {
	s, _, err := p.startBare(ctx, noFiles)
	if err != nil {
		return err
	}
	requestFile, _ := s.str("request")
	dir, _ := s.str("out-dir")
	if requestFile == "" || dir == "" {
		return fault.Usage.Errorf("--request and --out-dir are both needed").Fix("hsmsign testpki issue-push --request acme.req --out-dir pki/ -o push.pem")
	}
	output, _ := s.str("output")
	if err := checkNew(output); err != nil {
		return err
	}
	authority, err := testpki.Load(dir)
	if err != nil {
		return fault.Usage.Errorf("%w", err).Fix("name the folder of a test authority; hsmsign testpki --csr vendor.csr --out-dir FOLDER makes one")
	}
	data, err := p.read(ctx.Context, requestFile, request.MaxRequest, "name a readable request file")
	if err != nil {
		return err
	}
	opts := request.VerifyOptions{TrustRoots: []*x509.Certificate{authority.Root}, Now: time.Now()}
	report := request.Verify(data, opts)
	if !report.OK() {
		p.printReport(requestFile, report, opts.Now, false)
		return errDefects
	}
	var issue testpki.PushOptions
	if old, _ := s.str("renew"); old != "" {
		if issue.Topic, err = p.renewedTopic(ctx, authority, old); err != nil {
			return err
		}
	}
	cert, err := authority.IssuePush(report.CSR, issue)
	if err != nil {
		return err
	}
	if err := noForce(p.emit(output, []byte(chain.PEM([]*x509.Certificate{cert})), requestMode, false)); err != nil {
		return err
	}
	if output != "" && output != "-" {
		p.con.Infof("wrote %s, a TEST push certificate for the topic %s", output, pushcert.Topic(cert))
	}
	return nil
}

// renewedTopic returns the topic of the old push certificate, which the authority must have issued.
func (p *program) renewedTopic(ctx *cli.Context, authority *testpki.Authority, name string) (string, error) {
	old, err := p.readPush(ctx.Context, name)
	if err != nil {
		return "", err
	}
	if err := old.CheckSignatureFrom(authority.Integration); err != nil {
		return "", fault.Refused.Errorf("%s: not issued by this test authority: %w", name, err).Fix("name a push certificate from issue-push with the same --out-dir")
	}
	return old.Topic, nil
}
