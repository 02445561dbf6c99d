package main

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/fault"
	"hsmsign/lifecycle/certreq"
	"hsmsign/lifecycle/mdmcert"
	"hsmsign/request"
	"hsmsign/secret"
	"hsmsign/signer"
)

func (p *program) mdmcertCommand() *cli.Command {
	return &cli.Command{
		Name:  "mdmcert",
		Usage: "have a CSR signed by mdmcert.download, for users without an MDM vendor",
		Subcommands: []*cli.Command{
			{
				Name: "request", Usage: "make a key and a CSR, and send the CSR to the service, which mails the answer",
				Description: "Writes push.key, push.csr, recipient.key and recipient.pem into the folder; with --csr only the last two, to which\n" +
					"the service encrypts its answer. The keys are encrypted with the passphrase of --passphrase-file,\n" +
					"$HSMSIGN_PASSPHRASE or the terminal. The API key is that of your MDM product; ask its makers or the service. Of\n" +
					"a vendor's own hsmsign serve it is a token (docs/dropin.md).\n\n" +
					"  hsmsign mdmcert request --server https://mdmcert.download --api-key-file api.key --email mdm@acme.example \\\n" +
					"      --name 'Acme MDM' --country DE --out-dir acme/",
				Flags: append(customerFlags(), stringFlag("server", "`ADDRESS` of the service: https://HOST"),
					stringFlag("api-key-file", "`FILE` with the API key; else $"+envAPIKey+", or the terminal"),
					stringFlag("csr", "send the CSR in `FILE` instead of making one"),
					stringFlag("out-dir", "`FOLDER` for the new files, made if it does not exist"),
					passphraseFileFlag()),
				Action: p.mdmcertRequest,
			},
			{
				Name: "decrypt", Usage: "decrypt the attachment of the service's mail: the Push Certificate Request", ArgsUsage: "ATTACHMENT",
				Description: "It prints the verdict of verify; exit code 7 if the request has a defect.\n\n" +
					"  hsmsign mdmcert decrypt --recipient-key acme/recipient.key --csr acme/push.csr -o acme.req mail.p7",
				Flags: []cli.Flag{
					stringFlag("recipient-key", "the `FILE` recipient.key that request made"), passphraseFileFlag(),
					stringFlag("csr", "the CSR `FILE` that the request must contain"),
					stringFlag("output", "write to `FILE`", "o"), trustRootFlag(), configFlag(), jsonFlag(),
				},
				Action: p.mdmcertDecrypt,
			},
		},
	}
}

const envAPIKey = "HSMSIGN_API_KEY" // #nosec G101 -- the name of a variable

// orderJob is one run of mdmcert request.
type orderJob struct {
	p          *program
	s          *settings
	service    mdmcert.Service
	order      mdmcert.Order
	subject    certreq.Subject
	dir        string
	bits       int
	passphrase []byte
	made       []string // in the order in which they were made
}

func (p *program) mdmcertRequest(ctx *cli.Context) error {
	s, _, err := p.startBare(ctx, noFiles)
	if err != nil {
		return err
	}
	job := &orderJob{p: p, s: s}
	if err := job.readFlags(ctx.Context); err != nil {
		return err
	}
	job.passphrase, err = p.newPassphrase(ctx.Context, job.s, fmt.Sprintf("new passphrase of the keys in %q", job.dir), "passphrase-file", envPassphrase)
	if err != nil {
		return err
	}
	defer clear(job.passphrase)
	// The files come first: an answer would be useless without its key.
	if err := job.makeFiles(ctx.Context); err != nil {
		return errors.Join(err, job.undo())
	}
	err = job.service.Send(ctx.Context, job.order)
	switch {
	case errors.Is(err, mdmcert.ErrNoAnswer):
		return fault.WithHint(err, "the files in "+job.dir+" are kept, because the service may have accepted the order; to try again, give the CSR with --csr, and another --out-dir")
	case err != nil:
		return errors.Join(err, job.undo())
	}
	p.con.Infof("the service accepted the order and will mail its answer to %s; decrypt it with --recipient-key %s", job.order.Email, job.path(recipientKeyFile))
	return nil
}

// The files of an order.
const (
	pushKeyFile       = "push.key"
	pushCSRFile       = "push.csr"
	recipientKeyFile  = "recipient.key"
	recipientCertFile = "recipient.pem"
)

func (job *orderJob) path(name string) string { return filepath.Join(job.dir, name) }

func (job *orderJob) readFlags(ctx context.Context) error {
	s := job.s
	job.service.Address, _ = s.str("server")
	job.order.Email, _ = s.str("email")
	job.dir, _ = s.str("out-dir")
	if job.service.Address == "" || job.order.Email == "" || job.dir == "" {
		return fault.Usage.Errorf("--server, --email and --out-dir are all needed").Fix("run hsmsign mdmcert request --help")
	}
	if err := job.service.CheckAddress(); err != nil {
		return err
	}
	outputs := []string{job.path(recipientKeyFile), job.path(recipientCertFile)}
	if csrFile, _ := s.str("csr"); csrFile != "" {
		csr, err := job.p.readCSR(ctx, csrFile)
		if err == nil {
			err = fault.First(csr.Findings)
		}
		if err != nil {
			return err
		}
		job.order.CSR = csr.DER
	} else {
		var err error
		if job.subject, err = s.customer(); err != nil {
			return err
		}
		if job.bits, err = s.number("bits", 2048, 2048, 4096); err != nil {
			return err
		}
		outputs = append(outputs, job.path(pushKeyFile), job.path(pushCSRFile))
	}
	apiKey, err := job.p.readAPIKey(ctx, s)
	if err != nil {
		return err
	}
	job.service.APIKey = apiKey
	if _, err := os.Stat(job.dir); err != nil {
		return nil
	}
	return checkNew(outputs...)
}

func (p *program) readAPIKey(ctx context.Context, s *settings) (string, error) {
	source := secret.Source{Label: "API key of the service", Env: envAPIKey}
	if path, _ := s.str("api-key-file"); path != "" {
		source.From = "file:" + path
	}
	key, err := p.secrets().Read(ctx, source)
	if err != nil {
		return "", fault.WithHint(err, "name its file with --api-key-file, or set "+envAPIKey)
	}
	return string(key), nil
}

// makeFiles makes what the order needs, and records what it made.
func (job *orderJob) makeFiles(ctx context.Context) error {
	err := os.Mkdir(job.dir, 0o700)
	switch {
	case err == nil:
		job.made = append(job.made, job.dir)
	case !errors.Is(err, fs.ErrExist):
		return fault.Usage.Errorf("%w", err).Fix("name another --out-dir")
	}
	if job.order.CSR == nil {
		key, err := job.makeKey(ctx, pushKeyFile, job.bits)
		if err != nil {
			return err
		}
		if job.order.CSR, err = certreq.Create(ctx, key, job.subject); err != nil {
			return err
		}
		if err := job.write(pushCSRFile, "CERTIFICATE REQUEST", job.order.CSR); err != nil {
			return err
		}
	}
	const recipientBits = 2048
	key, err := job.makeKey(ctx, recipientKeyFile, recipientBits)
	if err != nil {
		return err
	}
	if job.order.EncryptFor, err = mdmcert.NewRecipient(ctx, key, time.Now()); err != nil {
		return err
	}
	return job.write(recipientCertFile, "CERTIFICATE", job.order.EncryptFor)
}

func (job *orderJob) makeKey(ctx context.Context, name string, bits int) (signer.Signer, error) {
	key, err := generateFileKey(ctx, job.path(name), job.passphrase, bits)
	if err == nil {
		job.made = append(job.made, job.path(name))
	}
	return key, err
}

func (job *orderJob) write(name, label string, der []byte) error {
	err := noForce(writeFile(job.path(name), pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der}), requestMode, false))
	if err == nil {
		job.made = append(job.made, job.path(name))
	}
	return err
}

// undo removes what was made for an order that was not accepted.
func (job *orderJob) undo() error {
	var errs []error
	for _, path := range slices.Backward(job.made) {
		errs = append(errs, os.Remove(path))
	}
	return errors.Join(errs...)
}

func (p *program) mdmcertDecrypt(ctx *cli.Context) error {
	s, args, err := p.start(ctx, oneFile)
	if err != nil {
		return err
	}
	keyName, _ := s.str("recipient-key")
	output, _ := s.str("output")
	if keyName == "" || output == "" || output == "-" {
		return fault.Usage.Errorf("--recipient-key and -o FILE are both needed").Fix("hsmsign mdmcert decrypt --recipient-key recipient.key -o acme.req mail.p7")
	}
	if err := checkNew(output); err != nil {
		return err
	}
	opts := request.VerifyOptions{Now: time.Now()}
	if opts.TrustRoots, err = s.trustRoots(ctx.Context); err != nil {
		return err
	}
	if csrFile, _ := s.str("csr"); csrFile != "" {
		if opts.CSR, err = p.readCSR(ctx.Context, csrFile); err != nil {
			return err
		}
	}
	decrypted, err := p.decryptAttachment(ctx.Context, s, args[0], keyName)
	if err != nil {
		return err
	}
	report := request.Verify(decrypted, opts)
	if report.Request == nil { // whatever it is, it is not what is uploaded to Apple
		return fmt.Errorf("%s: the decrypted content is not a Push Certificate Request: %w", args[0], fault.First(report.Findings))
	}
	if err := noForce(writeFile(output, decrypted, requestMode, false)); err != nil {
		return err
	}
	p.printReport(output, report, opts.Now, s.json)
	if !report.OK() {
		return errDefects
	}
	return nil
}

func (p *program) decryptAttachment(ctx context.Context, s *settings, name, keyName string) ([]byte, error) {
	data, err := p.read(ctx, name, mdmcert.MaxAttachment, "name the mail's attachment")
	if err != nil {
		return nil, err
	}
	private, err := p.exportKey(ctx, s, keyName, "name the file recipient.key that mdmcert request made")
	if err != nil {
		return nil, err
	}
	decrypted, err := mdmcert.Decrypt(data, private)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return decrypted, nil
}
