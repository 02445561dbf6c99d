package main

import (
	"context"
	"crypto"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/fault"
	"hsmsign/keystore"
	"hsmsign/lifecycle/abm"
	"hsmsign/signer"
	"hsmsign/signer/file"
)

func (p *program) abmCommand() *cli.Command {
	const ref = "`REFERENCE` or file of the key: file:PATH or pkcs11:...; not a vendor key"
	return &cli.Command{
		Name:  "abm",
		Usage: "the server token of Apple Business Manager (automated device enrollment): its key pair, and its decryption",
		Subcommands: []*cli.Command{
			{
				Name: "keypair", Usage: "make the key and the certificate to which Apple encrypts the server token",
				Description: "Upload the certificate as the public key of the MDM server. A key in a file is encrypted with the passphrase of\n" +
					"--passphrase-file, $HSMSIGN_PASSPHRASE or the terminal. In a token the key can decrypt and sign, and cannot leave it. Nothing\n" +
					"is ever replaced.\n\n" +
					"  hsmsign abm keypair --abm-key abm.key -o abm.pem\n" +
					"  hsmsign abm keypair --abm-key 'pkcs11:token=mdm;object=abm?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:pin' -o abm.pem",
				Flags: []cli.Flag{
					stringFlag("abm-key", ref), passphraseFileFlag(), stringFlag("common-name", "`NAME` of the MDM server in the certificate (default: hsmsign abm)", "name"),
					stringFlag("output", "write the certificate to `FILE`, PEM", "o"), configFlag(),
				},
				Action: p.abmKeypair,
			},
			{
				Name: "decrypt", Usage: "decrypt the server token that Apple's portal gives: JSON with OAuth credentials", ArgsUsage: "TOKEN.p7m",
				Description: "The token is a secret. It is written to a new file of mode 0600, or to standard output with -o -. hsmsign ledger watch\n" +
					"add FILE has its expiry, after a year, reported by ledger due.\n\n" +
					"  hsmsign abm decrypt --abm-key abm.key -o token.json acme_smime.p7m",
				Flags: []cli.Flag{
					stringFlag("abm-key", ref), passphraseFileFlag(), stringFlag("output", "write to `FILE`, mode 0600; - is standard output", "o"), configFlag(),
				},
				Action: p.abmDecrypt,
			},
		},
	}
}

// abmKey returns the key of --abm-key. A key that the configuration names as a vendor's is refused.
func (s *settings) abmKey() (value string, key keystore.Key, err error) {
	value, _ = s.str("abm-key")
	if value == "" {
		return value, key, fault.Usage.Errorf("no key given").Fix("name it with --abm-key: a file, or file:PATH or pkcs11:...")
	}
	if key, err = s.pushKey(value); err != nil {
		return value, key, err
	}
	if key.Ref.Scheme != "file" && key.Ref.Scheme != "pkcs11" {
		return value, key, fault.Usage.Errorf("%s: this key store does not decrypt", key).Fix("use a key in a file or in a PKCS#11 token")
	}
	for _, vendor := range s.configuredVendors() {
		if vendor.namesKey(key) {
			return value, key, fault.Usage.Errorf("%s is the vendor's key, and a vendor key signs requests only", key).Fix("make another key with hsmsign abm keypair")
		}
	}
	return value, key, nil
}

func (p *program) abmKeypair(ctx *cli.Context) error {
	s, _, err := p.start(ctx, noFiles)
	if err != nil {
		return err
	}
	value, key, err := s.abmKey()
	if err != nil {
		return err
	}
	output, _ := s.str("output")
	if output == "" || output == "-" {
		return fault.Usage.Errorf("no file for the certificate given").Fix("name it with -o FILE")
	}
	if err := checkNew(output); err != nil {
		return err
	}
	made, err := p.makeABMKey(ctx.Context, s, value, key)
	if err != nil {
		return err
	}
	defer func() { _ = made.Close() }()
	signing, cancel := context.WithTimeout(ctx.Context, signTimeout)
	defer cancel()
	name, _ := s.str("common-name")
	der, err := abm.NewCertificate(signing, made, orDefault(name, "hsmsign abm"), time.Now())
	if err == nil {
		err = noForce(writeFile(output, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), requestMode, false))
	}
	if err != nil {
		return fmt.Errorf("the key %s was made, and its certificate was not: %w", key, err)
	}
	p.con.Infof("wrote %s; upload it as the public key of the MDM server at https://business.apple.com, and download the server token", output)
	return nil
}

// makeABMKey generates the key. One in a file is encrypted.
func (p *program) makeABMKey(ctx context.Context, s *settings, value string, key keystore.Key) (signer.Signer, error) {
	const bits = 2048
	if key.Ref.Scheme == "file" && !s.store.IsReference(value) {
		passphrase, err := p.newPassphrase(ctx, s, fmt.Sprintf("new passphrase of %q", value), "passphrase-file", envPassphrase)
		if err != nil {
			return nil, err
		}
		defer clear(passphrase)
		return generateFileKey(ctx, value, passphrase, bits)
	}
	ctx, cancel := context.WithTimeout(ctx, generateTimeout)
	defer cancel()
	return key.Generate(ctx, signer.KeySpec{Bits: bits, Decrypt: true})
}

func (p *program) abmDecrypt(ctx *cli.Context) error {
	s, args, err := p.start(ctx, oneFile)
	if err != nil {
		return err
	}
	output, _ := s.str("output")
	if output == "" {
		return fault.Usage.Errorf("no output given, and the token is a secret").Fix("name a new file with -o, or - for standard output")
	}
	if output != "-" {
		if err := checkNew(output); err != nil {
			return err
		}
	}
	value, _, err := s.abmKey()
	if err != nil {
		return err
	}
	data, err := p.read(ctx.Context, args[0], abm.MaxFile, "name the file that Apple's portal gave")
	if err != nil {
		return err
	}
	opened, err := p.openCustomerKey(ctx.Context, s, value)
	if err != nil {
		return err
	}
	defer func() { _ = opened.Close() }()
	decrypting, cancel := context.WithTimeout(ctx.Context, signTimeout)
	defer cancel()
	decrypter, err := decrypterOf(decrypting, opened)
	if err != nil {
		return err
	}
	token, err := abm.Decrypt(decrypting, data, decrypter)
	if err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	text := append(token.JSON, '\n')
	defer clear(text)
	if err := noForce(p.emit(output, text, 0o600, false)); err != nil {
		return err
	}
	if time.Now().After(token.Expiry) {
		p.con.Warnf("the token expired on %s; download a new one", token.Expiry.Format(time.DateOnly))
		return nil
	}
	p.con.Infof("the token is valid until %s", token.Expiry.Format(time.DateOnly))
	return nil
}

// decrypterOf returns a key that decrypts until ctx ends. A key in a file can, and one in a token if it was made so.
func decrypterOf(ctx context.Context, key signer.Signer) (crypto.Decrypter, error) {
	if d, ok := key.(signer.Decrypter); ok {
		return tokenDecrypter{ctx, key, d}, nil
	}
	private, err := file.Export(key)
	if errors.Is(err, signer.ErrUnsupported) {
		return nil, fault.WithHint(err, "decryption needs the PKCS#11 module in this process: write isolate=no in the reference")
	}
	return private, err
}

// tokenDecrypter is a key in a token as a crypto.Decrypter.
type tokenDecrypter struct {
	ctx context.Context
	signer.Signer
	key signer.Decrypter
}

func (d tokenDecrypter) Decrypt(_ io.Reader, ciphertext []byte, _ crypto.DecrypterOpts) ([]byte, error) {
	return d.key.DecryptContext(d.ctx, ciphertext)
}
