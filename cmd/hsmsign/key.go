package main

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/chain"
	"hsmsign/signer"
)

// generateTimeout bounds the making of a key: a smart card takes minutes for RSA-4096.
const generateTimeout = 10 * time.Minute

func (p *program) keyCommand() *cli.Command {
	certFlag := stringFlag("cert", "certificate `FILE` or reference that the key must belong to")
	return &cli.Command{
		Name:  "key",
		Usage: "generate, list, show and test keys, and store a certificate beside one",
		Subcommands: []*cli.Command{
			{
				Name: "generate", Usage: "make an RSA key where it is to stay: in a PKCS#11 token, or in a file",
				Description: "In a token the key can sign and do nothing else, and cannot leave it; what the token made of that is printed.\n" +
					"In a file it is encrypted with the passphrase of passphrase-file, $HSMSIGN_PASSPHRASE or the terminal. Nothing is\n" +
					"ever replaced: a key of that name is exit code 2.\n\n" +
					"  hsmsign key generate --key 'pkcs11:token=mdm;object=vendor?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:pin'\n" +
					"  hsmsign key generate --key 'file:vendor.key?passphrase-file=pass' --bits 3072",
				Flags:  []cli.Flag{keyFlag(), stringFlag("bits", "`SIZE` of the modulus: 2048, 3072 or 4096 (default: 2048)"), jsonFlag(), configFlag()},
				Action: p.keyGenerate,
			},
			{
				Name: "list", Usage: "list the keys that a reference matches; what it leaves out matches all",
				Description: "One PIN is never tried on several tokens, so private keys are seen once the reference names one token.\n\n" +
					"  hsmsign key list --key 'pkcs11:?module-path=/usr/lib/softhsm/libsofthsm2.so'\n" +
					"  hsmsign key list --key file:/etc/hsmsign",
				Flags:  []cli.Flag{keyFlag(), jsonFlag(), configFlag()},
				Action: p.keyList,
			},
			{
				Name: "show", Usage: "show one key: how it is protected, and its public half",
				Flags:  []cli.Flag{keyFlag(), boolFlag("pem", "print the public key only, as PEM (SubjectPublicKeyInfo)"), jsonFlag(), configFlag()},
				Action: p.keyShow,
			},
			{
				Name: "test", Usage: "sign random messages and verify them; says how fast, and whether the certificate is the key's",
				Flags:  []cli.Flag{keyFlag(), stringFlag("count", "`NUMBER` of signatures, 1 to 100000 (default: 10)"), certFlag, jsonFlag(), configFlag()},
				Action: p.keyTest,
			},
			{
				Name: "import-cert", Usage: "store a certificate in the token, beside its key", ArgsUsage: "FILE",
				Description: "The FILE may hold the whole chain; the key's own certificate is stored. It can then be named with --cert.\n\n" +
					"  hsmsign key import-cert --key 'pkcs11:token=mdm;object=vendor?module-path=...&pin-source=file:pin' vendor.cer",
				Flags:  []cli.Flag{keyFlag(), jsonFlag(), configFlag()},
				Action: p.keyImportCert,
			},
		},
	}
}

// keyInfo is what is shown of a key, as JSON too.
type keyInfo struct {
	Ref         string            `json:"ref"`
	Store       string            `json:"store"`
	Label       string            `json:"label,omitempty"`
	ID          string            `json:"id,omitempty"` // hex
	Algorithm   string            `json:"algorithm,omitempty"`
	Bits        int               `json:"bits,omitempty"`
	KeySHA256   string            `json:"key_sha256,omitempty"` // of the SubjectPublicKeyInfo
	Properties  []signer.Property `json:"properties"`
	Certificate *certInfo         `json:"certificate,omitempty"` // one that lies beside the key
}

func describeKeyInfo(k signer.KeyInfo) keyInfo {
	info := keyInfo{
		Ref: k.Ref, Store: k.Store, Label: k.Label, ID: k.ID, Algorithm: k.Algorithm, Bits: k.Bits,
		Properties: k.Properties,
	}
	if k.Public != nil {
		info.KeySHA256 = chain.SPKISHA256(k.Public)
	}
	if k.Cert != nil {
		cert := describeCert(k.Cert, time.Now())
		info.Certificate = &cert
	}
	return info
}

// keyJob is one run of a key command.
type keyJob struct {
	*settings
	ref     signer.Ref
	backend signer.Backend
	json    bool
}

func (p *program) newKeyJob(ctx *cli.Context, takesArguments bool) (*keyJob, []string, error) {
	s, args, asJSON, err := p.start(ctx)
	if err != nil {
		return nil, nil, err
	}
	if len(args) > 0 && !takesArguments {
		return nil, nil, usage("name the key with --key", "%s takes no arguments", ctx.Command.Name)
	}
	job := &keyJob{settings: s, json: asJSON}
	key, from := s.str("key")
	if key == "" {
		return nil, nil, s.missing("key", "key")
	}
	if job.ref, job.backend, err = p.backend(key, nil); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", from, err)
	}
	return job, args, nil
}

// number reads a whole number from a flag.
func (s *settings) number(name string, standard, least, most int) (int, error) {
	value, from := s.str(name)
	if value == "" {
		return standard, nil
	}
	n, err := strconv.Atoi(value)
	if err != nil || n < least || n > most {
		return 0, usage(fmt.Sprintf("it is a number from %d to %d", least, most), "%s is %q", from, value)
	}
	return n, nil
}

func (job *keyJob) open(ctx context.Context) (signer.Signer, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	return job.backend.Open(ctx, job.ref, signer.OpenOptions{})
}

// describe is the backend's description of the opened key.
func (job *keyJob) describe(ctx context.Context, key signer.Signer) (signer.KeyInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	infos, err := job.backend.List(ctx, job.ref)
	if err != nil {
		return signer.KeyInfo{}, err
	}
	opened, ok := key.Public().(*rsa.PublicKey)
	for _, info := range infos {
		switch {
		case ok && info.Public == nil && len(infos) == 1: // an encrypted file
			info.Public, info.Algorithm, info.Bits = opened, "RSA", opened.N.BitLen()
			return info, nil
		case ok && opened.Equal(info.Public):
			return info, nil
		}
	}
	return signer.KeyInfo{}, fmt.Errorf("%w: %s: it was opened, and is not among the keys listed", signer.ErrKeyNotFound, job.ref)
}

func (p *program) keyGenerate(cliCtx *cli.Context) error {
	job, _, err := p.newKeyJob(cliCtx, false)
	if err != nil {
		return err
	}
	bits, err := job.number("bits", 2048, 2048, 4096)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cliCtx.Context, generateTimeout)
	defer cancel()
	key, err := job.backend.Generate(ctx, job.ref, signer.KeySpec{Bits: bits})
	if err != nil {
		return err
	}
	defer func() { _ = key.Close() }()
	info, err := job.describe(cliCtx.Context, key)
	if err != nil {
		return fmt.Errorf("the key was made, but: %w", err)
	}
	p.ui.printKey(info, job.json)
	return nil
}

func (p *program) keyList(cliCtx *cli.Context) error {
	job, _, err := p.newKeyJob(cliCtx, false)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cliCtx.Context, openTimeout)
	defer cancel()
	infos, err := job.backend.List(ctx, job.ref)
	if err != nil {
		return err
	}
	if job.json {
		for _, info := range infos {
			p.ui.json(describeKeyInfo(info))
		}
		return nil
	}
	var rows [][]string
	for _, info := range infos {
		rows = append(rows, keyRow(info))
	}
	p.ui.table(rows)
	if len(rows) == 0 {
		p.ui.info("no key matches")
	}
	return nil
}

// keyRow is a key in one line.
func keyRow(k signer.KeyInfo) []string {
	size, extractable, cert := k.Algorithm, "", "no certificate"
	if k.Bits > 0 {
		size += fmt.Sprintf(" %d", k.Bits)
	}
	for _, p := range k.Properties {
		switch p.Name + " " + p.Value {
		case "CKA_EXTRACTABLE no":
			extractable = "not extractable"
		case "CKA_EXTRACTABLE yes":
			extractable = "extractable"
		case "encrypted yes":
			extractable = "encrypted"
		case "encrypted no":
			extractable = "not encrypted"
		}
	}
	if k.Cert != nil {
		cert = "certificate"
	}
	return []string{k.Store, orDefault(k.Label, "-"), orDefault(k.ID, "-"), orDefault(size, "-"), orDefault(extractable, "-"), cert}
}

func (p *program) keyShow(cliCtx *cli.Context) error {
	job, _, err := p.newKeyJob(cliCtx, false)
	if err != nil {
		return err
	}
	asPEM, err := job.boolean("pem")
	if err != nil {
		return err
	}
	if asPEM && job.json {
		return usage("leave one out", "--pem and --json together")
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
	p.ui.printKey(info, job.json)
	return nil
}

func (p *program) printPublicKey(pub crypto.PublicKey) error {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return err
	}
	p.ui.write(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	return nil
}

// printKey shows one key in full. The first line is its reference.
func (u *ui) printKey(k signer.KeyInfo, asJSON bool) {
	info := describeKeyInfo(k)
	if asJSON {
		u.json(info)
		return
	}
	u.print("%s", info.Ref)
	var rows [][]string
	add := func(name, value string) {
		if value != "" {
			rows = append(rows, []string{"", name, value})
		}
	}
	add("store", info.Store)
	add("label", info.Label)
	add("id", info.ID)
	add("key", fmt.Sprintf("%s %d bits", info.Algorithm, info.Bits))
	add("key SHA-256", info.KeySHA256)
	for _, property := range info.Properties {
		add(property.Name, property.Value)
	}
	if info.Certificate != nil {
		add("certificate", info.Certificate.Subject)
		add("valid until", info.Certificate.NotAfter)
	}
	u.table(rows)
}

// table prints rows of one length, in columns as wide as they need to be.
func (u *ui) table(rows [][]string) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], len([]rune(printable(cell))))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			fmt.Fprintf(&line, "%-*s  ", widths[i], printable(cell))
		}
		u.print("%s", strings.TrimRight(line.String(), " "))
	}
}
