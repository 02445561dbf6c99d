package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/config"
	"hsmsign/fault"
)

// envName is the environment variable of a flag: HSMSIGN_TRUST_ROOT for --trust-root.
func envName(flag string) string {
	return "HSMSIGN_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// The flags. Their values are read through settings, which knows the environment and the configuration too: the
// library's own environment support takes an empty variable for a value and cannot say where a value came from.
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
	return stringFlag("key", "vendor key `REFERENCE`: file:PATH, pkcs11:...?module-path=..., awskms:///... or gcpkms://...")
}
func outputFlag() cli.Flag {
	return stringFlag("output", "write to `FILE` instead of standard output", "o")
}
func trustRootFlag() cli.Flag {
	return listFlag("trust-root", "trust the root certificate in `FILE` beside Apple's; may be repeated")
}

// identityFlags name the vendor's certificate and chain.
func identityFlags() []cli.Flag {
	return []cli.Flag{
		stringFlag("cert", "vendor certificate `FILE`, or the whole chain (PEM, DER, PKCS#7), or the pkcs11: reference of a certificate in a token"),
		listFlag("chain", "`FILE` with intermediate or root certificates; may be repeated"),
		trustRootFlag(), vendorFlag(), configFlag(),
	}
}

// settings resolves a flag's value: command line, then environment, then configuration file.
type settings struct {
	ctx    *cli.Context
	getenv func(string) string
	config *config.Config
	path   string // of the configuration file; "" when there is none
	// identity is the configuration's vendor identity, vendor its name; "" for the unnamed one.
	identity config.Vendor
	vendor   string
}

// bareSettings is for commands that the configuration file says nothing about.
func (p *program) bareSettings(ctx *cli.Context) *settings {
	return &settings{ctx: ctx, getenv: p.getenv, config: &config.Config{}}
}

func (p *program) settings(ctx *cli.Context) (*settings, error) {
	s := p.bareSettings(ctx)
	// --config itself comes from no configuration, and may stand before the command's name.
	explicit := ""
	for _, c := range ctx.Lineage() {
		if c.IsSet("config") && explicit == "" {
			explicit = c.String("config")
		}
	}
	path, _, err := config.Find(explicit, p.getenv, os.UserConfigDir)
	if err != nil {
		return nil, usage("name a configuration file that exists, or none", "%w", err)
	}
	if path != "" {
		s.path = path
		if s.config, err = config.Load(path); err != nil {
			return nil, err
		}
		p.modules = s.config.Modules
	}
	return s, s.choose()
}

// start is what most commands begin with: settings, file arguments, and whether results are wanted as JSON.
func (p *program) start(ctx *cli.Context) (s *settings, args []string, asJSON bool, err error) {
	if s, err = p.settings(ctx); err != nil {
		return nil, nil, false, err
	}
	if args, err = arguments(ctx); err != nil {
		return nil, nil, false, err
	}
	asJSON, err = s.boolean("json")
	return s, args, asJSON, err
}

// startOne is start for a command that reads one file.
func (p *program) startOne(ctx *cli.Context) (s *settings, name string, asJSON bool, err error) {
	if s, err = p.settings(ctx); err == nil {
		name, err = oneArgument(ctx)
	}
	if err == nil {
		asJSON, err = s.boolean("json")
	}
	return s, name, asJSON, err
}

// startNone is start for a command whose files all have flags.
func (p *program) startNone(ctx *cli.Context) (*settings, error) {
	s, err := p.settings(ctx)
	if err == nil {
		err = noArguments(ctx)
	}
	return s, err
}

// str is a flag's value and where it came from ("" for both where it is not set).
func (s *settings) str(name string) (value, origin string) {
	if s.ctx.IsSet(name) {
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

// list is the value of a flag that may be repeated; in the environment its parts are separated as in PATH.
func (s *settings) list(name string) (values []string, origin string) {
	if s.ctx.IsSet(name) {
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

func (s *settings) boolean(name string) (bool, error) {
	if s.ctx.IsSet(name) {
		return s.ctx.Bool(name), nil
	}
	v := s.getenv(envName(name))
	if v == "" {
		return false, nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, usage("set it to true or false", "%s is %q", envName(name), v)
	}
	return b, nil
}

// duration reads a time like 30s from a flag.
func (s *settings) duration(name string, standard, least, most time.Duration) (time.Duration, error) {
	value, from := s.str(name)
	if value == "" {
		return standard, nil
	}
	d, err := time.ParseDuration(value)
	if err != nil || d < least || d > most {
		return 0, usage(fmt.Sprintf("it is a time from %v to %v, as 30s", least, most), "%s is %q", from, value)
	}
	return d, nil
}

// fromConfig is the configuration's value for a flag's name.
func (s *settings) fromConfig(name string) []string {
	c := s.config
	switch name {
	case "key":
		return []string{s.identity.Key}
	case "cert":
		return []string{s.identity.Cert}
	case "chain":
		return s.identity.Chain
	case "trust-root":
		return s.identity.TrustRoot
	case "vendor":
		return []string{c.Vendor}
	case "format":
		return []string{c.Format}
	case "digest":
		return []string{c.Digest}
	case "out-dir":
		return []string{c.OutDir}
	}
	return nil
}

// usage is a refusal of the command line.
func usage(hint, format string, args ...any) error {
	return fault.Usage.Errorf(format, args...).Fix(hint)
}

// arguments gives the command's file arguments. The library takes a flag after the first argument for a file.
func arguments(ctx *cli.Context) ([]string, error) {
	args := ctx.Args().Slice()
	for _, a := range args {
		if strings.HasPrefix(a, "-") && a != "-" {
			return nil, usage("write flags first; for a file of that name write ./"+a, "flag %q stands after the file names", a)
		}
	}
	return args, nil
}

// oneArgument is for commands that read one file.
func oneArgument(ctx *cli.Context) (string, error) {
	args, err := arguments(ctx)
	if err == nil && len(args) != 1 {
		err = usage("name one file, or - for standard input", "%d files given", len(args))
	}
	if err != nil {
		return "", err
	}
	return args[0], nil
}

// noArguments is for commands whose files all have flags.
func noArguments(ctx *cli.Context) error {
	args, err := arguments(ctx)
	if err == nil && len(args) > 0 {
		return usage("its files have flags; run hsmsign "+ctx.Command.Name+" --help", "%s takes no arguments", ctx.Command.Name)
	}
	return err
}
