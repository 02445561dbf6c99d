package main

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/lifecycle/pushcert"
	"hsmsign/signer/file"
)

func (p *program) pushP12Command() *cli.Command {
	return &cli.Command{
		Name: "p12", Usage: "write push certificate and key as one file for the MDM server",
		Description: "The key must be in a file: only file keys can be exported. The passphrase of the written file comes from\n" +
			"--export-passphrase-file, $HSMSIGN_EXPORT_PASSPHRASE or the terminal, that of the key file from --passphrase-file,\n" +
			"$HSMSIGN_PASSPHRASE or the terminal.\n\n" +
			"  hsmsign push p12 --push-cert MDM_Certificate.pem --push-key push.key -o MDM_APNSCert.pfx\n" +
			"  hsmsign push p12 --for nanomdm --push-cert MDM_Certificate.pem --push-key push.key -o push.pem",
		Flags: []cli.Flag{
			stringFlag("push-cert", "the push certificate's `FILE`", "cert"), pushKeyFlag(), passphraseFileFlag(),
			exportPassphraseFlag(),
			stringFlag("for", "`PROGRAM` that reads the file: micromdm (p12 --legacy), nanomdm or fleet (pem --unencrypted), or windows (p12)"),
			stringFlag("export-format", "`FORMAT` of the file: p12, or pem (certificate, then key) (default: p12)", "format"),
			boolFlag("legacy", "encrypt the p12 with triple DES and SHA-1, for old Java and Windows importers"),
			unencryptedFlag(),
			stringFlag("output", "write to `FILE`, or - for standard output", "o"), configFlag(),
		},
		Action: p.pushP12,
	}
}

const envExportPassphrase = "HSMSIGN_EXPORT_PASSPHRASE" // #nosec G101 -- the name of a variable

func exportPassphraseFlag() cli.Flag {
	return stringFlag("export-passphrase-file", "`FILE` with the passphrase of the file that is written; else $"+envExportPassphrase+", or the terminal")
}
func unencryptedFlag() cli.Flag {
	return boolFlag("unencrypted", "write the key in PEM without a passphrase")
}

// exportForm is the form of an exported file.
type exportForm struct{ pem, legacy, unencrypted bool }

// exportForms are the values of --for. MicroMDM reads no PBES2. NanoMDM's /v1/pushcert and Fleet's settings are PEM, and
// neither asks for a passphrase. Windows reads PBES2 from Server 2019 and Windows 10 1709 on.
var exportForms = map[string]exportForm{
	"": {}, "micromdm": {legacy: true}, "nanomdm": {pem: true, unencrypted: true}, "fleet": {pem: true, unencrypted: true}, "windows": {},
}

// exportJob is one run of push p12.
type exportJob struct {
	p      *program
	s      *settings
	cert   *pushcert.Certificate
	key    string
	output string
	exportForm
}

func (p *program) pushP12(ctx *cli.Context) error {
	s, _, err := p.start(ctx, noFiles)
	if err != nil {
		return err
	}
	job := &exportJob{p: p, s: s}
	certFile, err := job.readFlags()
	if err != nil {
		return err
	}
	if err := checkNew(job.output); err != nil {
		return err
	}
	if job.cert, err = p.readPush(ctx.Context, certFile); err != nil {
		return err
	}
	findings := job.cert.Check(time.Now())
	if err := fault.First(findings); err != nil {
		return fmt.Errorf("%s: %w", certFile, err)
	}
	p.con.Warnings(certFile, findings)
	private, err := p.exportKey(ctx.Context, s, job.key,
		"let the MDM server use the key in its token, or make a key in a file with push csr and renew the certificate with it")
	if err != nil {
		return err
	}
	if err := job.cert.MatchKey(private.Public()); err != nil {
		return fmt.Errorf("%s: %w", certFile, err)
	}
	data, err := job.encode(ctx.Context, private)
	if err != nil {
		return err
	}
	defer clear(data)
	if err := noForce(p.emit(job.output, data, secretMode, false)); err != nil {
		return err
	}
	if job.output != "-" {
		p.con.Infof("wrote %s, for the topic %s, valid until %s", job.output, job.cert.Topic, job.cert.NotAfter.UTC().Format("2006-01-02"))
	}
	return nil
}

func (job *exportJob) readFlags() (certFile string, err error) {
	certFile, _ = job.s.str("push-cert")
	job.key, _ = job.s.str("push-key")
	job.output, _ = job.s.str("output")
	if certFile == "" || job.key == "" || job.output == "" {
		return "", fault.Usage.Errorf("--push-cert, --push-key and -o are all needed").Fix("hsmsign push p12 --push-cert MDM_Certificate.pem --push-key push.key -o MDM_APNSCert.pfx")
	}
	target, fromTarget := job.s.str("for")
	format, from := job.s.str("export-format")
	var known bool
	if job.exportForm, known = exportForms[target]; !known {
		return "", fault.Usage.Errorf("%s: unknown program %q", fromTarget, target).Fix("it is micromdm, nanomdm, fleet or windows; for others use --format")
	}
	switch {
	case format != "" && format != "p12" && format != "pem":
		return "", fault.Usage.Errorf("%s: unknown format %q", from, format).Fix("it is p12 or pem")
	case format != "" && target != "" && job.pem != (format == "pem"):
		return "", fault.Usage.Errorf("%s does not read %s", target, format).Fix("leave out " + from)
	}
	job.pem = job.pem || format == "pem"
	job.legacy, job.unencrypted = job.legacy || job.s.boolean("legacy"), job.unencrypted || job.s.boolean("unencrypted")
	switch {
	case job.legacy && job.pem:
		return "", fault.Usage.Errorf("--legacy is for p12").Fix("leave it out")
	case job.unencrypted && !job.pem:
		return "", fault.Usage.Errorf("--unencrypted is for pem: importers want a p12 with a passphrase").Fix("add --format pem, or leave it out")
	}
	return certFile, nil
}

func (job *exportJob) encode(ctx context.Context, private *rsa.PrivateKey) ([]byte, error) {
	passphrase, err := job.p.exportPassphrase(ctx, job.s, job.output, job.unencrypted)
	if err != nil {
		return nil, err
	}
	defer clear(passphrase)
	if job.pem {
		key, err := file.EncodePEM(private, passphrase)
		return append([]byte(chain.PEM([]*x509.Certificate{job.cert.Certificate})), key...), err
	}
	encryption := pushcert.Modern
	if job.legacy {
		encryption = pushcert.Legacy
		job.p.con.Warnf("legacy form: triple DES and SHA-1 are weak; choose a long passphrase")
	}
	return pushcert.EncodePKCS12(job.cert, private, passphrase, encryption)
}
