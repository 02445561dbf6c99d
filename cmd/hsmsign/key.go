package main

import (
	"context"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/keystore"
	"hsmsign/lifecycle/vendorcert"
	"hsmsign/signer"
)

// generateTimeout bounds generating a key: a smart card takes minutes for RSA-4096.
const generateTimeout = 10 * time.Minute

func (p *program) keyCommand() *cli.Command {
	certFlag := stringFlag("cert", "certificate `FILE` or reference that the key must belong to")
	return &cli.Command{
		Name:  "key",
		Usage: "generate, list, show, test and convert keys, and store a certificate with a key",
		Subcommands: []*cli.Command{
			{
				Name: "generate", Usage: "make an RSA key in a PKCS#11 token, Vault, a KMS or a file",
				Description: "In a token the key can sign and do nothing else, and cannot leave it; what the token made of that is printed.\n" +
					"In a file it is encrypted with the passphrase of passphrase-file, $HSMSIGN_PASSPHRASE or the terminal. Nothing is\n" +
					"ever replaced: a key of that name is exit code 2.\n\n" +
					"  hsmsign key generate --key 'pkcs11:token=mdm;object=vendor?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:pin'\n" +
					"  hsmsign key generate --key 'file:vendor.key?passphrase-file=pass'",
				Flags:  []cli.Flag{keyFlag(), stringFlag("bits", "`SIZE` of the modulus: 2048, 3072 or 4096 (default: 2048)"), jsonFlag(), configFlag()},
				Action: p.keyGenerate,
			},
			{
				Name: "list", Usage: "list the keys that a reference matches; an attribute that it omits matches any value",
				Description: "Of a token, public keys and certificates without a visible private key are listed too. Private keys need a PIN,\n" +
					"which is not asked for unless the reference says so (pin-source=prompt), and is never tried on several tokens.\n\n" +
					"  hsmsign key list --key 'pkcs11:?module-path=/usr/lib/softhsm/libsofthsm2.so'\n" +
					"  hsmsign key list --key file:/etc/hsmsign",
				Flags:  []cli.Flag{keyFlag(), jsonFlag(), configFlag()},
				Action: p.keyList,
			},
			{
				Name: "show", Usage: "show one key: its protection and its public key",
				Description: "  hsmsign key show --key file:vendor.key\n" +
					"  hsmsign key show --key file:vendor.key --pem",
				Flags:  []cli.Flag{keyFlag(), boolFlag("pem", "print the public key only, as PEM (SubjectPublicKeyInfo)"), jsonFlag(), configFlag()},
				Action: p.keyShow,
			},
			{
				Name: "test", Usage: "sign the probe message, verify the signatures, measure the speed, and check that the certificate matches the key",
				Description: probeHelp +
					"  hsmsign key test --key file:vendor.key --cert vendor.pem --count 100",
				Flags:  append([]cli.Flag{keyFlag(), stringFlag("count", "`NUMBER` of signatures, 1 to 100000 (default: 10)"), certFlag, jsonFlag(), configFlag()}, ledgerFlags()...),
				Action: p.keyTest,
			},
			{
				Name: "import-cert", Usage: "store a certificate in the token, with its key", ArgsUsage: "FILE",
				Description: "The FILE may contain the whole chain; the certificate of the key is stored. --cert accepts it from then on.\n\n" +
					"  hsmsign key import-cert --key 'pkcs11:token=mdm;object=vendor?module-path=...&pin-source=file:pin' vendor.cer",
				Flags:  []cli.Flag{keyFlag(), jsonFlag(), configFlag()},
				Action: p.keyImportCert,
			},
			p.keyConvertCommand(),
		},
	}
}

// keyJob is one run of a command that uses one key.
type keyJob struct {
	*settings
	keystore.Key
}

func (p *program) newKeyJob(ctx *cli.Context, want files) (*keyJob, []string, error) {
	s, args, err := p.start(ctx, want)
	if err != nil {
		return nil, nil, err
	}
	key, err := s.key("key")
	return &keyJob{s, key}, args, err
}

// open opens the key within the time limit.
func (job *keyJob) open(ctx context.Context) (signer.Signer, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	return job.Open(ctx, signer.OpenOptions{})
}

// describe returns the backend's description of the opened key.
func (job *keyJob) describe(ctx context.Context, key signer.Signer) (signer.KeyInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	return job.Describe(ctx, key)
}

func (p *program) keyGenerate(cliCtx *cli.Context) error {
	job, _, err := p.newKeyJob(cliCtx, noFiles)
	if err != nil {
		return err
	}
	bits, err := job.number("bits", 2048, 2048, 4096)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cliCtx.Context, generateTimeout)
	defer cancel()
	key, err := job.Generate(ctx, signer.KeySpec{Bits: bits})
	if err != nil {
		return err
	}
	defer func() { _ = key.Close() }()
	if bits != vendorcert.KeyBits {
		p.con.Warnf("Apple issues vendor certificates for RSA of %d bits only, and vendor csr refuses this key", vendorcert.KeyBits)
	}
	info, err := job.describe(cliCtx.Context, key)
	if err != nil {
		return fmt.Errorf("the key was made, but: %w", err)
	}
	p.printKey(info, job.json)
	return nil
}

func (p *program) keyList(cliCtx *cli.Context) error {
	job, _, err := p.newKeyJob(cliCtx, noFiles)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cliCtx.Context, openTimeout)
	defer cancel()
	infos, err := job.List(ctx)
	if err != nil {
		return err
	}
	if job.json {
		for _, info := range infos {
			p.con.JSON(api.NewKey(info, time.Now()))
		}
		return nil
	}
	var rows [][]string
	for _, info := range infos {
		rows = append(rows, keyRow(info))
	}
	p.con.Table(rows)
	if len(rows) == 0 {
		p.con.Infof("no key matches")
	}
	return nil
}

func (p *program) keyShow(cliCtx *cli.Context) error {
	job, _, err := p.newKeyJob(cliCtx, noFiles)
	if err != nil {
		return err
	}
	asPEM := job.boolean("pem")
	if asPEM && job.json {
		return fault.Usage.Errorf("--pem and --json together").Fix("leave one out")
	}
	key, err := job.open(cliCtx.Context)
	if err != nil {
		return err
	}
	defer func() { _ = key.Close() }()
	if asPEM {
		return p.printPublicKey(key.Public())
	}
	info, err := job.describe(cliCtx.Context, key)
	if err != nil {
		return err
	}
	p.printKey(info, job.json)
	return nil
}
