package main

import (
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"hsmsign/fault"
	"hsmsign/internal/suggest"
)

// topics are the help pages that belong to no command.
var topics = map[string]string{
	"keys": `KEY REFERENCES
   One string names a key everywhere: in --key, $HSMSIGN_KEY and key: in the configuration. Quote it in a shell.

   file       file:vendor.key
              file:///etc/hsmsign/vendor.key?passphrase-file=/run/secrets/pass
   PKCS#11    pkcs11:token=mdm;object=vendor?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/secrets/pin
     TPM 2.0  pkcs11:token=mdm;object=vendor?module-path=/usr/lib/x86_64-linux-gnu/libtpm2_pkcs11.so.1&pin-source=prompt
     NSS      pkcs11:token=NSS%20Certificate%20DB;id=%01?module-path=/usr/lib/x86_64-linux-gnu/libsoftokn3.so&module-init=configdir='sql:/etc/hsmsign/nss'
   Vault      vault://vault.example.com/transit/keys/mdm-vendor?version=1&token-source=file:/run/secrets/vault-token
              vault://vault.example.com:8200/transit/keys/mdm-vendor?version=1&kubernetes-role=hsmsign&ca=/etc/hsmsign/ca.pem
   AWS KMS    awskms:///alias/mdm-vendor?region=eu-west-1
              awskms:///arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab
   GCP KMS    gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/1
   Azure      azurekms://VAULT.vault.azure.net/keys/mdm-vendor/78deebed173b48e48f55abf87ed4cf71
              azurekms://HSM.managedhsm.azure.net/keys/mdm-vendor/78deebed173b48e48f55abf87ed4cf71?credential=workload

   A PKCS#11 reference is a PKCS#11 URI (RFC 7512): attributes of the token and the key before the "?", separated by ";"
   (token, serial, model, manufacturer, slot-id, object, id), and how to reach them after it, separated by "&"
   (module-path or module-name, module-init, pin-source, max-sessions, mechanism, isolate). A percent sign encodes a
   byte: id=%01, object=R%26D. Every attribute that is given must match, and the match must be one key.

   Vault is also OpenBao. The version is required. The token comes from token-source, a login with AppRole (role-id,
   secret-id-source) or a Kubernetes service account (kubernetes-role, jwt-file).

   hsmsign token list --key 'pkcs11:?module-path=PATH' lists the tokens of a module.
   hsmsign key list --key REFERENCE lists what matches; an attribute that is omitted matches any value.
   hsmsign doctor --key REFERENCE checks every step from the reference to a signature.
`,
	"secrets": `SECRETS
   PINs, passphrases and tokens are never command-line arguments. A secret comes from:

   file:PATH             a file that only its owner can read (mode 0600); a last newline is not part of the secret
   env:NAME              an environment variable
   credential:NAME       a systemd credential (LoadCredential=NAME:PATH in the unit)
   exec:/PROGRAM ARG...  the output of a program; arguments are split at spaces, no shell is involved
   |/PROGRAM ARG...      the same, as RFC 7512 writes it
   prompt                the person at the terminal

   PIN of a token:        pin-source in the reference, else $HSMSIGN_PIN, else the terminal
   passphrase of a key:   passphrase-file in the reference, else $HSMSIGN_PASSPHRASE, else the terminal
   exported key file:     --export-passphrase-file, else $HSMSIGN_EXPORT_PASSPHRASE, else the terminal
   API key of a service:  --api-key-file, else $HSMSIGN_API_KEY, else the terminal
   token for --agent:     --agent-token-from, else $HSMSIGN_AGENT_TOKEN, else the terminal
   token of Vault:        token-source in the reference, else $VAULT_TOKEN, else the terminal; or secret-id-source, jwt-file
   cloud credentials:     found by the cloud's own library; nothing in a reference names them
`,
}

func (p *program) helpCommand() *cli.Command {
	return &cli.Command{
		Name: "help", Usage: "show the help of a command, or of a topic: keys, secrets", ArgsUsage: "[COMMAND...|TOPIC]",
		Description: "  hsmsign help vendor csr\n" +
			"  hsmsign help keys",
		Action: p.help,
	}
}

func (p *program) help(ctx *cli.Context) error {
	args := ctx.Args().Slice()
	if len(args) == 1 && topics[args[0]] != "" {
		p.con.Write([]byte(topics[args[0]]))
		return nil
	}
	commands := p.app("").Commands
	for _, name := range args {
		i := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(name) && !c.Hidden })
		if i < 0 {
			known := append(names(commands), "keys", "secrets")
			return fault.Usage.Errorf("no help for %q", strings.Join(args, " ")).Fix(suggest.Name(name, known, "run hsmsign --help"))
		}
		commands = commands[i].Subcommands
	}
	return p.app("").RunContext(ctx.Context, slices.Concat([]string{"hsmsign"}, args, []string{"--help"}))
}

// printHelp fills a template of the library and wraps its lines at the width of the terminal.
func (p *program) printHelp(out io.Writer, template string, data any) {
	var page strings.Builder
	cli.HelpPrinterCustom(&page, template, data, map[string]any{"wrapAt": p.con.Width})
	_, _ = io.WriteString(out, strings.TrimRight(page.String(), "\n")+"\n") // the console remembers a failure
}
