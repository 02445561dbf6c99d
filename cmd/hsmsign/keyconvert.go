package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v2"

	"hsmsign/fault"
	"hsmsign/signer/file"
)

func (p *program) keyConvertCommand() *cli.Command {
	return &cli.Command{
		Name: "convert", Usage: "write a key file in any supported form as PKCS#8, encrypted with a new passphrase", ArgsUsage: "FILE",
		Description: "It reads PKCS#8, PKCS#1, PKCS#12 and the encrypted PEM of RFC 1421, such as the keys of mdmctl. The passphrase of\n" +
			"FILE comes from --passphrase-file, $HSMSIGN_PASSPHRASE or the terminal, that of the new file from\n" +
			"--export-passphrase-file, $HSMSIGN_EXPORT_PASSPHRASE or the terminal. Nothing is ever replaced.\n\n" +
			"  hsmsign key convert -o vendor.key old.key",
		Flags: []cli.Flag{
			passphraseFileFlag(), exportPassphraseFlag(), unencryptedFlag(),
			stringFlag("output", "write to `FILE`, or - for standard output", "o"), configFlag(),
		},
		Action: p.keyConvert,
	}
}

func (p *program) keyConvert(ctx *cli.Context) error {
	s, args, err := p.start(ctx, oneFile)
	if err != nil {
		return err
	}
	output, _ := s.str("output")
	if output == "" {
		return fault.Usage.Errorf("-o is needed").Fix("hsmsign key convert -o vendor.key old.key")
	}
	if err := checkNew(output); err != nil {
		return err
	}
	private, err := p.exportKey(ctx.Context, s, args[0], "name a key file")
	if err != nil {
		return err
	}
	passphrase, err := p.exportPassphrase(ctx.Context, s, output, s.boolean("unencrypted"))
	if err != nil {
		return err
	}
	defer clear(passphrase)
	data, err := file.EncodePEM(private, passphrase)
	if err != nil {
		return err
	}
	defer clear(data)
	if err := noForce(p.emit(output, data, secretMode, false)); err != nil {
		return err
	}
	if output != "-" {
		p.con.Infof("wrote %s; check it with hsmsign key test, then delete %s", output, args[0])
	}
	return nil
}

// exportPassphrase returns the new passphrase of a file, or nil if its key is to be unencrypted.
func (p *program) exportPassphrase(ctx context.Context, s *settings, output string, unencrypted bool) ([]byte, error) {
	if unencrypted {
		p.con.Warnf("%q has no passphrase: anyone who can read it can use the key", output)
		return nil, nil
	}
	return p.newPassphrase(ctx, s, fmt.Sprintf("new passphrase of %q", output), "export-passphrase-file", envExportPassphrase)
}
