package main

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/api"
	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/internal/pfx"
	"hsmsign/lifecycle/pushcert"
	"hsmsign/secret"
	"hsmsign/signer/file"
)

func (p *program) pushImportCommand() *cli.Command {
	return &cli.Command{
		Name: "import", Usage: "split the .p12 of Profile Manager into push certificate and key", ArgsUsage: "FILE.p12",
		Description: "The key must be that of the certificate, and the certificate a valid push certificate for MDM. The key is written\n" +
			"encrypted. The passphrase of FILE.p12 comes from --passphrase-file, $HSMSIGN_PASSPHRASE or the terminal, that of the new\n" +
			"key from --export-passphrase-file, $HSMSIGN_EXPORT_PASSPHRASE or the terminal. With --customer the certificate is\n" +
			"recorded in the ledger as by ledger attach: another topic than before is refused. Nothing is ever replaced.\n\n" +
			"  hsmsign push import --cert-out push.pem --key-out push.key server.p12\n" +
			"  hsmsign push import --cert-out push.pem --key-out push.key --ledger sqlite:ledger.db --customer acme server.p12",
		Flags: append([]cli.Flag{
			stringFlag("cert-out", "write the push certificate to `FILE`"), stringFlag("key-out", "write the new key to `FILE`"),
			passphraseFileFlag(), exportPassphraseFlag(), unencryptedFlag(),
			stringFlag("customer", "`NAME` of the customer to whom the ledger attaches the certificate"), jsonFlag(), configFlag(),
		}, ledgerFlags()...),
		Action: p.pushImport,
	}
}

// importJob is one run of push import.
type importJob struct {
	p                         *program
	s                         *settings
	input                     string
	certOut, keyOut, customer string
	cert                      *pushcert.Certificate
	key                       *rsa.PrivateKey
	findings                  []fault.Finding
}

func (p *program) pushImport(ctx *cli.Context) error {
	s, args, err := p.start(ctx, oneFile)
	if err != nil {
		return err
	}
	job := &importJob{p: p, s: s, input: args[0]}
	if err := job.readFlags(); err != nil {
		return err
	}
	if err := job.readP12(ctx.Context); err != nil {
		return fmt.Errorf("%s: %w", job.input, err)
	}
	passphrase, err := p.exportPassphrase(ctx.Context, s, job.keyOut, s.boolean("unencrypted"))
	if err != nil {
		return err
	}
	defer clear(passphrase)
	if err := job.write(passphrase); err != nil {
		return err
	}
	if job.customer != "" {
		if err := p.attach(ctx.Context, s, job.customer, job.cert); err != nil {
			return errors.Join(err, os.Remove(job.certOut), os.Remove(job.keyOut)) // just made: both files and the entry, or none
		}
	}
	if s.json {
		p.con.JSON(api.PushImportResult{
			File: job.input, CertOutput: job.certOut, KeyOutput: job.keyOut, Certificate: api.NewCertificate(job.cert.Certificate, time.Now()),
			Customer: job.customer, Findings: append([]fault.Finding{}, job.findings...),
		})
		return nil
	}
	p.con.Warnings(job.input, job.findings)
	p.con.Infof("wrote %s, for the topic %s, valid until %s", job.certOut, job.cert.Topic, job.cert.NotAfter.UTC().Format(time.DateOnly))
	p.con.Infof("wrote %s; keep it: the push certificate is useless without it", job.keyOut)
	return nil
}

func (job *importJob) readFlags() error {
	s := job.s
	job.certOut, _ = s.str("cert-out")
	job.keyOut, _ = s.str("key-out")
	job.customer, _ = s.str("customer")
	store, from := s.str("ledger")
	switch {
	case job.certOut == "" || job.keyOut == "":
		return fault.Usage.Errorf("--cert-out and --key-out are both needed").Fix("hsmsign push import --cert-out push.pem --key-out push.key server.p12")
	case job.certOut == "-" || job.keyOut == "-":
		return fault.Usage.Errorf("certificate and key are written to files, not to standard output").Fix("name two files")
	case job.customer != "" && store == "":
		return s.missing("ledger", "ledger")
	case job.customer == "" && (from == "--ledger"):
		return fault.Usage.Errorf("--ledger goes with --customer").Fix("name the customer, or leave out --ledger")
	}
	return checkNew(job.certOut, job.keyOut)
}

// readP12 reads the file, and checks key, certificate and dates.
func (job *importJob) readP12(ctx context.Context) error {
	data, err := secret.ReadFile(job.input, pfx.MaxSize, false)
	if err != nil {
		if path, ok := errors.AsType[*fs.PathError](err); ok {
			err = path.Err
		}
		return fault.Refused.Errorf("%w", err).Fix("name the .p12 file, which only its owner may read: chmod 600")
	}
	content, err := job.p.openPKCS12(ctx, job.s, job.input, data)
	if err != nil {
		return err
	}
	var certs []*x509.Certificate
	if content.Certificate != nil {
		certs = []*x509.Certificate{content.Certificate}
	} else {
		certs = content.Others
	}
	// The push certificate is that of the key, if there is one; otherwise the errors below say what the file contains.
	if job.cert, err = pushcert.ParseCertificate([]byte(chain.PEM(certs))); err != nil {
		return err
	}
	if err := job.cert.MatchKey(content.Key.Public()); err != nil {
		return err
	}
	job.key, _ = content.Key.(*rsa.PrivateKey) // MatchKey accepts no other
	if err := job.cert.CheckIssuer(content.Others); err != nil {
		return err
	}
	job.findings = job.cert.Check(time.Now())
	return fault.First(job.findings)
}

// write writes both files or none.
func (job *importJob) write(passphrase []byte) error {
	text, err := file.EncodePEM(job.key, passphrase)
	if err != nil {
		return err
	}
	defer clear(text)
	if err := noForce(writeFile(job.keyOut, text, secretMode, false)); err != nil {
		return err
	}
	err = noForce(writeFile(job.certOut, []byte(chain.PEM([]*x509.Certificate{job.cert.Certificate})), requestMode, false))
	if err != nil {
		err = errors.Join(err, os.Remove(job.keyOut))
	}
	return err
}
