package main

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/config"
	"hsmsign/fault"
	"hsmsign/keystore"
)

// envName is the environment variable of a flag: HSMSIGN_TRUST_ROOT for --trust-root.
func envName(flag string) string {
	return "HSMSIGN_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// The flags. Their values are read through settings, which also reads the environment and the configuration: the
// library's own support of the environment accepts an empty variable as a value and cannot say where a value came from.
func stringFlag(name, usage string, aliases ...string) cli.Flag {
	return &cli.StringFlag{Name: name, Aliases: aliases, Usage: withEnv(name, usage)}
}

func listFlag(name, usage string) cli.Flag {
	return &cli.StringSliceFlag{Name: name, Usage: withEnv(name, usage)}
}

func boolFlag(name, usage string) cli.Flag {
	return &cli.BoolFlag{Name: name, Usage: withEnv(name, usage)}
}

func withEnv(name, usage string) string { return usage + " [$" + envName(name) + "]" }

func configFlag() cli.Flag {
	return stringFlag("config", "configuration `FILE` (default: hsmsign/hsmsign.yaml in the user's configuration folder, then /etc/hsmsign/hsmsign.yaml)")
}
func jsonFlag() cli.Flag  { return boolFlag("json", "print results as JSON, one object a line") }
func forceFlag() cli.Flag { return boolFlag("force", "overwrite existing output files") }
func keyFlag() cli.Flag {
	return stringFlag("key", "vendor key `REFERENCE`: file:PATH, pkcs11:...?module-path=..., vault://..., awskms:///..., gcpkms://... or azurekms://...")
}
func outputFlag() cli.Flag {
	return stringFlag("output", "write to `FILE` instead of standard output", "o")
}
func trustRootFlag() cli.Flag {
	return listFlag("trust-root", "trust the root certificate in `FILE` in addition to Apple's; may be repeated")
}

// identityFlags name the vendor's certificate and chain.
func identityFlags() []cli.Flag {
	return []cli.Flag{
		stringFlag("cert", "vendor certificate `FILE`, or the whole chain (PEM, DER, PKCS#7), or the pkcs11: reference of a certificate in a token"),
		listFlag("chain", "`FILE` with intermediate or root certificates; may be repeated"),
		trustRootFlag(), vendorFlag(), configFlag(),
	}
}

// settings resolves the value of a flag: command line, then environment, then configuration file.
type settings struct {
	ctx    *cli.Context
	flags  []string // on the command line; Context.IsSet searches them each time
	getenv func(string) string
	config *config.Config
	path   string // of the configuration file; "" if there is none
	json   bool
	store  *keystore.Store
	// identity is the configuration's vendor identity, vendor its name; "" for the unnamed one.
	identity config.Vendor
	vendor   string
}

// commandLine returns the settings of command line and environment.
func (p *program) commandLine(ctx *cli.Context) *settings {
	return &settings{ctx: ctx, flags: ctx.FlagNames(), getenv: p.getenv, config: &config.Config{}}
}

// bareSettings are for commands that read nothing from the configuration file.
func (p *program) bareSettings(ctx *cli.Context) (*settings, error) {
	s := p.commandLine(ctx)
	s.store = p.keystore(nil)
	for _, flag := range ctx.Command.Flags {
		boolean, ok := flag.(*cli.BoolFlag)
		if !ok || s.getenv(envName(boolean.Name)) == "" {
			continue
		}
		name := envName(boolean.Name)
		if _, err := strconv.ParseBool(s.getenv(name)); err != nil {
			return nil, fault.Usage.Errorf("%s is %q", name, s.getenv(name)).Fix("set it to true or false")
		}
	}
	s.json = s.boolean("json")
	p.json = s.json
	return s, nil
}

func (p *program) settings(ctx *cli.Context) (*settings, error) {
	s, err := p.bareSettings(ctx)
	if err != nil {
		return nil, err
	}
	path, _, err := config.Find(explicitConfig(ctx), p.getenv, os.UserConfigDir)
	if err != nil {
		return nil, fault.Usage.Errorf("%w", err).Fix("name a configuration file that exists, or none")
	}
	if path != "" {
		s.path = path
		if s.config, err = config.Load(path); err != nil {
			return nil, err
		}
		s.store = p.keystore(s.config.Modules)
	}
	return s, s.choose()
}

// explicitConfig returns the value of --config, which is not in the configuration, and may come before the name of the command.
func explicitConfig(ctx *cli.Context) string {
	for _, c := range ctx.Lineage() {
		if c.IsSet("config") {
			return c.String("config")
		}
	}
	return ""
}

// start returns the settings and the file arguments of a command.
func (p *program) start(ctx *cli.Context, want files) (*settings, []string, error) {
	return withArguments(ctx, want, p.settings)
}

// startBare is start for a command that reads nothing from the configuration file.
func (p *program) startBare(ctx *cli.Context, want files) (*settings, []string, error) {
	return withArguments(ctx, want, p.bareSettings)
}

func withArguments(ctx *cli.Context, want files, read func(*cli.Context) (*settings, error)) (*settings, []string, error) {
	s, err := read(ctx)
	if err != nil {
		return nil, nil, err
	}
	args, err := arguments(ctx, want)
	return s, args, err
}

// files is how many file arguments a command has.
type files int

const (
	noFiles files = iota // its files have flags
	oneFile
	oneName // of something that is not a file
	anyFiles
)

// given returns whether a flag is on the command line.
func (s *settings) given(name string) bool { return slices.Contains(s.flags, name) }

// str returns the value of a flag and its origin; both are "" if it is not set.
func (s *settings) str(name string) (value, origin string) {
	if s.given(name) {
		return s.ctx.String(name), "--" + name
	}
	if v := s.getenv(envName(name)); v != "" {
		return v, "$" + envName(name)
	}
	if v := s.fromConfig(name); len(v) > 0 && v[0] != "" {
		return v[0], s.origin(name)
	}
	return "", ""
}

// list returns the values of a flag that may be repeated; in the environment they are separated as in PATH.
func (s *settings) list(name string) (values []string, origin string) {
	if s.given(name) {
		return s.ctx.StringSlice(name), "--" + name
	}
	if v := s.getenv(envName(name)); v != "" {
		return filepath.SplitList(v), "$" + envName(name)
	}
	if v := s.fromConfig(name); len(v) > 0 {
		return v, s.origin(name)
	}
	return nil, ""
}

// boolean returns the value of a flag. Its variable was checked by bareSettings.
func (s *settings) boolean(name string) bool {
	if s.given(name) {
		return s.ctx.Bool(name)
	}
	b, _ := strconv.ParseBool(s.getenv(envName(name)))
	return b
}

// duration returns the time that a flag sets, as 30s.
func (s *settings) duration(name string, def, lo, hi time.Duration) (time.Duration, error) {
	return bounded(s, name, time.ParseDuration, def, lo, hi, fmt.Sprintf("it is a time from %v to %v, as 30s", lo, hi))
}

// number returns the whole number that a flag sets.
func (s *settings) number(name string, def, lo, hi int) (int, error) {
	return bounded(s, name, strconv.Atoi, def, lo, hi, fmt.Sprintf("it is a number from %d to %d", lo, hi))
}

func bounded[T cmp.Ordered](s *settings, name string, parse func(string) (T, error), def, lo, hi T, fix string) (T, error) {
	text, from := s.str(name)
	if text == "" {
		return def, nil
	}
	value, err := parse(text)
	if err != nil || value < lo || value > hi {
		return def, fault.Usage.Errorf("%s is %q", from, text).Fix(fix)
	}
	return value, nil
}

// key returns the key that --key names; what is its name in an error.
func (s *settings) key(what string) (keystore.Key, error) {
	reference, from := s.str("key")
	if reference == "" {
		return keystore.Key{}, s.missing("key", what)
	}
	key, err := s.store.Parse(reference)
	if err != nil {
		return keystore.Key{}, fmt.Errorf("%s: %w", from, err)
	}
	return key, nil
}

// fromConfig returns the configuration's value for a flag.
func (s *settings) fromConfig(name string) []string {
	return map[string][]string{
		"key": {s.identity.Key}, "cert": {s.identity.Cert}, "chain": s.identity.Chain, "trust-root": s.identity.TrustRoot,
		"vendor": {s.config.Vendor}, "format": {s.config.Format}, "digest": {s.config.Digest}, "out-dir": {s.config.OutDir},
		"ledger": {s.config.Ledger.Store}, "origin": {s.config.Ledger.Origin}, "verifier-key": {s.config.Ledger.VerifierKey},
		"checkpoint-key": {s.config.Ledger.CheckpointKey}, "last-checkpoint": {s.config.Ledger.LastCheckpoint},
		"required": {requiredText(s.config.Ledger.Required)},
		"profile":  {s.config.Profile},
		"agent":    {s.config.Agent.URL}, "client-cert": {s.config.Agent.ClientCert}, "client-key": {s.config.Agent.ClientKey},
		"agent-ca": {s.config.Agent.CA}, "agent-token-from": {s.config.Agent.TokenFrom}, "agent-aws": {map[bool]string{true: "true"}[s.config.Agent.AWS]},
	}[name]
}

// arguments returns the file arguments of the command.
func arguments(ctx *cli.Context, want files) ([]string, error) {
	args := ctx.Args().Slice()
	switch {
	case want == oneFile && len(args) != 1:
		return nil, fault.Usage.Errorf("%d files given", len(args)).Fix("name one file, or - for standard input")
	case want == oneName && len(args) != 1:
		return nil, fault.Usage.Errorf("%d names given", len(args)).Fix("name one; run " + ctx.Command.HelpName + " --help")
	case want == noFiles && len(args) > 0:
		return nil, fault.Usage.Errorf("%s accepts no file names, but %q was given", ctx.Command.Name, args[0]).
			Fix("its files have flags; run " + ctx.Command.HelpName + " --help")
	}
	return args, nil
}

func vendorFlag() cli.Flag {
	return stringFlag("vendor", "`NAME` of the vendor identity in the configuration (default: its active one)")
}

// choose selects the vendor identity that --vendor or the configuration names, or the configuration's unnamed one.
func (s *settings) choose() error {
	c := s.config
	s.vendor, s.identity = "", config.Vendor{Key: c.Key, Cert: c.Cert, Chain: c.Chain, TrustRoot: c.TrustRoot}
	if service, err := s.agentURL(); service != "" || err != nil {
		return err // --vendor names an identity of the service
	}
	name, from := s.str("vendor")
	if name == "" {
		return nil
	}
	if _, ok := c.Vendors[name]; !ok {
		return fault.Usage.Errorf("%s: there is no vendor %q", from, name).Fix(config.SuggestVendor(name, s.vendorNames()))
	}
	*s = *s.of(name)
	return nil
}

// of returns the settings with one of the configuration's vendor identities.
func (s *settings) of(name string) *settings {
	chosen := *s
	chosen.vendor, chosen.identity = name, s.config.Vendors[name]
	if len(chosen.identity.TrustRoot) == 0 {
		chosen.identity.TrustRoot = s.config.TrustRoot
	}
	return &chosen
}

// vendorNames returns the sorted names of the configuration's vendor identities.
func (s *settings) vendorNames() []string {
	return slices.Sorted(maps.Keys(s.config.Vendors))
}

// origin returns where in the configuration a setting is.
func (s *settings) origin(name string) string {
	if s.vendor != "" && slices.Contains([]string{"key", "cert", "chain", "trust-root"}, name) {
		return s.path + ", vendors: " + s.vendor
	}
	return s.path
}

// missing is the error for a setting of the vendor identity that is needed and not set.
func (s *settings) missing(name, what string) error {
	hint := fmt.Sprintf("name it with --%s, $%s or %s: in the configuration", name, envName(name), name)
	if len(s.config.Vendors) > 0 && s.vendor == "" {
		hint = "choose with --vendor, $HSMSIGN_VENDOR or vendor: in the configuration; there are " + strings.Join(s.vendorNames(), ", ")
	}
	return fault.Usage.Errorf("no %s given", what).Fix(hint)
}
