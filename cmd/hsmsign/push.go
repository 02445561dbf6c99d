package main

import (
	"bytes"
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"hsmsign/fault"
	"hsmsign/keystore"
	"hsmsign/lifecycle/certreq"
	"hsmsign/secret"
	"hsmsign/signer"
	"hsmsign/signer/file"
)

// secretMode is the mode of files that contain a private key.
const secretMode = fs.FileMode(0o600)

const envPassphrase = "HSMSIGN_PASSPHRASE" // #nosec G101 -- the name of a variable

// The flags of the customer's key have separate names, and so separate variables: on a vendor's machine HSMSIGN_KEY and
// HSMSIGN_CERT are the vendor's.
func pushKeyFlag() cli.Flag {
	return stringFlag("push-key", "key of the push certificate: a `FILE`, or a reference as for sign", "key")
}
func passphraseFileFlag() cli.Flag {
	return stringFlag("passphrase-file", "`FILE` with the passphrase of the key file; else $"+envPassphrase+", or the terminal")
}
func customerFlags() []cli.Flag {
	return []cli.Flag{
		stringFlag("common-name", "`NAME` of the MDM server or customer, at most 64 characters", "name"),
		stringFlag("email", "email `ADDRESS` of the customer"),
		stringFlag("country", "two-letter ISO 3166 `CODE` of the customer's country"),
		stringFlag("organization", "`NAME` of the customer's organization, at most 64 characters; optional"),
		stringFlag("bits", "`SIZE` of the modulus: 2048, 3072 or 4096 (default: 2048)"),
	}
}

func (p *program) pushCommand() *cli.Command {
	return &cli.Command{
		Name:  "push",
		Usage: "the customer's side: key and CSR, push certificate, topic, renewal, file for the MDM server or of Profile Manager",
		Subcommands: []*cli.Command{
			{
				Name: "csr", Usage: "make a key, and the CSR that the MDM vendor signs",
				Description: "The key is written encrypted, with the passphrase of --passphrase-file, $HSMSIGN_PASSPHRASE or the terminal; or\n" +
					"--push-key names an existing key, which may be in a token. Nothing is ever replaced.\n\n" +
					"  hsmsign push csr --name 'Acme MDM' --email mdm@acme.example --country DE --key-out push.key -o push.csr",
				Flags: append(customerFlags(), stringFlag("key-out", "write the new key to `FILE`"), pushKeyFlag(),
					passphraseFileFlag(), outputFlag(), configFlag()),
				Action: p.pushCSR,
			},
			{
				Name: "inspect", Usage: "show a push certificate, when it expires, and whether a key matches it", ArgsUsage: "FILE",
				Description: "Exit code 7 if it has expired or the key does not match.\n\n" +
					"  hsmsign push inspect --push-key push.key MDM_Certificate.pem",
				Flags:  []cli.Flag{pushKeyFlag(), passphraseFileFlag(), jsonFlag(), configFlag()},
				Action: p.pushInspect,
			},
			{
				Name: "renew", Usage: "tell whether a renewed push certificate can replace the old one",
				Description: "It must have the same topic: with another topic every device has to enroll again. Exit code 3 if it cannot.\n\n" +
					"  hsmsign push renew --old MDM_2025.pem --new MDM_2026.pem",
				Flags:  []cli.Flag{stringFlag("old", "`FILE` of the push certificate in use"), stringFlag("new", "`FILE` of the renewed one")},
				Action: p.pushRenew,
			},
			p.pushP12Command(), p.pushImportCommand(),
			{
				Name: "topic", Usage: "print the topic of a push certificate, and nothing else", ArgsUsage: "FILE",
				Description: "  hsmsign push topic MDM_Certificate.pem",
				Action:      p.pushTopic,
			},
		},
	}
}

func (p *program) pushCSR(ctx *cli.Context) error {
	s, _, err := p.start(ctx, noFiles)
	if err != nil {
		return err
	}
	subject, err := s.customer()
	if err != nil {
		return err
	}
	bits, err := s.number("bits", 2048, 2048, 4096)
	if err != nil {
		return err
	}
	keyOut, existing, err := s.newOrExisting()
	if err != nil {
		return err
	}
	output, _ := s.str("output")
	if err := checkNew(output, keyOut); err != nil {
		return err
	}
	var key signer.Signer
	if existing != "" {
		key, err = p.openCustomerKey(ctx.Context, s, existing)
	} else {
		var passphrase []byte
		if passphrase, err = p.newPassphrase(ctx.Context, s, fmt.Sprintf("new passphrase of %q", keyOut), "passphrase-file", envPassphrase); err == nil {
			defer clear(passphrase)
			key, err = generateFileKey(ctx.Context, keyOut, passphrase, bits)
		}
	}
	if err != nil {
		return err
	}
	defer func() { _ = key.Close() }()
	if err := p.writeCSR(ctx.Context, key, subject, output); err != nil {
		if keyOut != "" {
			err = errors.Join(err, os.Remove(keyOut)) // just made: both files or none
		}
		return err
	}
	if keyOut != "" {
		p.con.Infof("wrote %s; keep it: the push certificate is useless without it", keyOut)
	}
	if output != "" && output != "-" {
		p.con.Infof("wrote %s; send it to the MDM vendor", output)
	}
	return nil
}

// newOrExisting returns the file of the key to generate, or the existing key.
func (s *settings) newOrExisting() (keyOut, existing string, err error) {
	keyOut, _ = s.str("key-out")
	existing, _ = s.str("push-key")
	switch made, named := s.given("key-out"), s.given("push-key"); { // the command line beats the environment
	case made && !named:
		existing = ""
	case named && !made:
		keyOut = ""
	}
	if (keyOut == "") == (existing == "") {
		err = fault.Usage.Errorf("one of --key-out and --push-key is needed").Fix("--key-out makes a key, --push-key names an existing one")
	}
	return keyOut, existing, err
}

func (p *program) writeCSR(ctx context.Context, key signer.Signer, subject certreq.Subject, output string) error {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	der, err := certreq.Create(ctx, key, subject)
	if err != nil {
		return err
	}
	if err := noForce(p.emit(output, certreq.EncodePEM(der), requestMode, false)); err != nil {
		return err
	}
	return p.con.Flush() // standard output may be a full disk
}

// customer returns the customer's subject that the flags give, checked.
func (s *settings) customer() (certreq.Subject, error) {
	subject := s.csrSubject()
	if subject.CommonName == "" || subject.Email == "" || subject.Country == "" {
		return subject, fault.Usage.Errorf("--name, --email and --country are all needed").Fix("the CSR contains them: --name 'Acme MDM' --email mdm@acme.example --country DE")
	}
	return subject, subject.Check()
}

// checkNew refuses outputs that exist, that are the same file, or whose folder does not exist. Nothing is ever
// overwritten here: if a key is lost, a whole fleet has to enroll again.
func checkNew(paths ...string) error {
	seen := map[string]bool{}
	for _, path := range paths {
		if path == "" || path == "-" {
			continue
		}
		if seen[filepath.Clean(path)] {
			return fault.Usage.Errorf("two outputs are to be %q", path).Fix("name two files")
		}
		seen[filepath.Clean(path)] = true
		if err := checkOutput(path, false); err != nil {
			return noForce(err)
		}
	}
	return nil
}

// noForce replaces the hint about an existing output for commands without --force.
func noForce(err error) error {
	if errors.Is(err, errExists) {
		return fault.Usage.Errorf("%w", err).Fix("name another file; nothing is replaced")
	}
	return err
}

// openPushKey opens a key that is named by its file or by a reference.
func (p *program) openPushKey(ctx context.Context, s *settings, value string) (signer.Signer, error) {
	key, err := s.pushKey(value)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	opened, err := key.Open(ctx, signer.OpenOptions{})
	if errors.Is(err, signer.ErrAuth) && !s.store.IsReference(value) {
		// The backend's hint is about a reference.
		err = fault.WithHint(err, "name the file of its passphrase with --passphrase-file, or set "+envPassphrase)
	}
	return opened, err
}

// exportKey returns the private key itself; only file keys can be exported. The key is not opened if it cannot be
// exported, so no PIN is asked for.
func (p *program) exportKey(ctx context.Context, s *settings, value, hint string) (*rsa.PrivateKey, error) {
	key, err := s.pushKey(value)
	if err != nil {
		return nil, err
	}
	if key.Ref.Scheme != "file" {
		return nil, fault.Usage.Errorf("%s: a key in a token or service cannot be exported", key).Fix(hint)
	}
	opened, err := p.openCustomerKey(ctx, s, value)
	if err != nil {
		return nil, err
	}
	return file.Export(opened)
}

// pushKey returns the key that is named by its file or by a reference.
func (s *settings) pushKey(value string) (keystore.Key, error) {
	passphraseFile, from := s.str("passphrase-file")
	if !s.store.IsReference(value) {
		return s.store.Parse(fileRef(value, passphraseFile))
	}
	if from == "--passphrase-file" {
		return keystore.Key{}, fault.Usage.Errorf("--passphrase-file goes with the name of a key file, not with a reference").
			Fix("write ?passphrase-file=PATH after a file: reference")
	}
	return s.store.Parse(value)
}

// fileRef returns the reference of a key file.
func fileRef(path, passphraseFile string) string {
	ref := "file:" + strings.ReplaceAll((&url.URL{Path: filepath.Clean(path)}).EscapedPath(), "=", "%3D")
	if passphraseFile != "" {
		ref += "?passphrase-file=" + strings.ReplaceAll(url.QueryEscape(passphraseFile), "+", "%20")
	}
	return ref
}

// newPassphrase returns the passphrase for a file that will be written: from the file that the flag names, from the
// environment, or from the person at the terminal, who is asked twice.
func (p *program) newPassphrase(ctx context.Context, s *settings, label, flag, env string) ([]byte, error) {
	secrets := p.secrets()
	source := secret.Source{Label: label, Env: env}
	path, _ := s.str(flag)
	if path != "" {
		source.From = "file:" + path
	}
	if path != "" || p.getenv(env) != "" {
		return secrets.Read(ctx, source)
	}
	passphrase, err := secrets.ReadNew(ctx, label)
	if err != nil && secrets.Prompt == nil {
		err = fault.WithHint(err, "name its file with --"+flag+", or set "+env)
	}
	return passphrase, err
}

// generateFileKey generates a key in an encrypted file, which must not exist.
func generateFileKey(ctx context.Context, path string, passphrase []byte, bits int) (signer.Signer, error) {
	ref, err := signer.ParseRef(fileRef(path, ""))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, generateTimeout)
	defer cancel()
	given := func(context.Context, string) ([]byte, error) { return bytes.Clone(passphrase), nil }
	return file.Backend(file.Options{Secrets: secret.Reader{Prompt: given}}).Generate(ctx, ref, signer.KeySpec{Bits: bits})
}
