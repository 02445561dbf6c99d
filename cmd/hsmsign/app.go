package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"hsmsign/fault"
	"hsmsign/internal/console"
	"hsmsign/internal/input"
	"hsmsign/internal/suggest"
	"hsmsign/keystore"
	"hsmsign/secret"
)

// program is what the commands share: the world outside, passed in.
type program struct {
	con    *console.Console
	in     input.Reader
	getenv func(string) string
	// prompt asks the person at the terminal for a secret; nil: there is no terminal.
	prompt func(ctx context.Context, label string) ([]byte, error)
	json   bool         // a failure is printed as JSON too
	log    *slog.Logger // of a service: warnings are records of it; nil: they are lines on standard error
}

// secrets reads PINs and passphrases.
func (p *program) secrets() secret.Reader {
	return secret.Reader{Getenv: p.getenv, Prompt: p.prompt}
}

// warn reports something that works and should not stay so.
func (p *program) warn(message string) {
	if p.log != nil {
		p.log.Warn(message)
		return
	}
	p.con.Warnf("%s", message)
}

// keystore returns the key stores, which may load the given PKCS#11 modules; nil: any. A service loads them in processes of
// their own unless a reference says isolate=no.
func (p *program) keystore(modules []string) *keystore.Store {
	return keystore.New(keystore.Options{
		Secrets: p.secrets(), Warn: p.warn, AllowedModules: modules, Worker: worker(), Isolate: p.log != nil, ReadFile: p.in.Read,
	})
}

// read reads an input file; an error refuses the input.
func (p *program) read(ctx context.Context, name string, limit int64, fix string) ([]byte, error) {
	data, err := p.in.Read(ctx, name, limit)
	if err != nil {
		return nil, fault.Refused.Errorf("%s: %w", keystore.Redact(name), err).Fix(fix)
	}
	return data, nil
}

// commands are the commands by name.
func (p *program) commands() []command {
	return []command{
		{"sign", p.signCommand}, {"verify", p.verifyCommand}, {"inspect", p.inspectCommand}, {"chain", p.chainCommand}, {"key", p.keyCommand}, {"token", p.tokenCommand},
		{"vendor", p.vendorCommand}, {"doctor", p.doctorCommand}, {"check-config", p.checkConfigCommand}, {"push", p.pushCommand}, {"mdmcert", p.mdmcertCommand}, {"profile", p.profileCommand}, {"abm", p.abmCommand},
		{"setup", p.setupCommand}, {"serve", p.serveCommand}, {"console", p.consoleCommand}, {"ledger", p.ledgerCommand}, {"caller", p.callerCommand}, {"policy", p.policyCommand}, {"freeze", p.freezeCommand}, {"unfreeze", p.unfreezeCommand},
		{"pending", p.pendingCommand}, {"approve", p.approveCommand}, {"reject", p.rejectCommand}, {"testpki", p.testpkiCommand}, {"version", p.versionCommand}, {"completion", p.completionCommand},
		{"help", p.helpCommand}, {workerCommand, p.workerCommand}, {"man", p.manCommand},
	}
}

// command is a command and the function that describes it.
type command struct {
	name  string
	build func() *cli.Command
}

// app returns the program's commands; only, if it is the name of one, is the one that is needed: describing all takes longer
// than running most.
func (p *program) app(only string) *cli.App {
	all := p.commands()
	if i := slices.IndexFunc(all, func(c command) bool { return c.name == only }); i >= 0 {
		all = all[i : i+1]
	}
	commands := make([]*cli.Command, len(all))
	for i, c := range all {
		commands[i] = c.build()
	}
	app := &cli.App{
		Name:  "hsmsign",
		Usage: "sign customers' CSRs for Apple push certificates, with the MDM vendor's key in an HSM, a KMS or a file",
		Description: "A customer's CSR comes in, Apple's Push Certificate Request comes out, and the vendor's key never leaves its store.\n\n" +
			"Results go to standard output, everything else to standard error. Every flag has an environment variable; those of\n" +
			"sign, chain and verify can also be in the configuration file. Exit codes: 0 done, 1 fault, 2 usage or\n" +
			"configuration, 3 input refused, 4 vendor key or certificate, 5 authentication, 6 backend unavailable,\n" +
			"7 verification found defects, 8 waiting for approval.",
		Version:   readVersion().Version,
		Flags:     []cli.Flag{configFlag(), cli.HelpFlag},
		Commands:  commands,
		Writer:    writerFunc(func(b []byte) (int, error) { p.con.Write(b); return len(b), nil }),
		ErrWriter: io.Discard, // run prints the error, once
		// Key references contain commas.
		DisableSliceFlagSeparator: true,
		// The library would exit by itself.
		ExitErrHandler: func(*cli.Context, error) {},
		Action: func(ctx *cli.Context) error {
			if name := ctx.Args().First(); name != "" {
				return unknownCommand(ctx, name)
			}
			return fault.Usage.Errorf("no command given").Fix("run hsmsign --help")
		},
	}
	strict(app.Commands)
	app.OnUsageError = usageError
	return app
}

// runCommand runs a command line; args[0] is the program.
func (p *program) runCommand(ctx context.Context, args []string) error {
	cli.HelpPrinter = p.printHelp // a variable of the library; one program runs in a process
	only := ""
	if len(args) > 1 && args[1] != "help" && args[1] != "completion" {
		only = args[1]
	}
	app := p.app(only)
	if last := len(args) - 1; last > 1 && args[last] == completionFlag {
		p.con.Write([]byte(strings.Join(complete(app, args[1:last]), "\n") + "\n"))
		return nil
	}
	args, err := arrange(app, args)
	if err != nil {
		return err
	}
	return app.RunContext(ctx, args)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// strict makes a usage error of any command one line on standard error, and makes a command that only has subcommands
// refuse an unknown one. The library does neither.
func strict(commands []*cli.Command) {
	for _, c := range commands {
		c.OnUsageError = usageError
		c.HideHelpCommand = true
		strict(c.Subcommands)
		if len(c.Subcommands) > 0 && c.Action == nil {
			c.Action = func(ctx *cli.Context) error {
				if name := ctx.Args().First(); name != "" {
					return unknownCommand(ctx, name)
				}
				return fault.Usage.Errorf("%s: name one of %s", ctx.Command.Name, strings.Join(names(ctx.Command.Subcommands), ", ")).
					Fix("run hsmsign " + ctx.Command.Name + " --help")
			}
		}
	}
}

func usageError(ctx *cli.Context, err error, _ bool) error {
	hint := "run " + ctx.Command.HelpName + " --help"
	if name, unknown := strings.CutPrefix(err.Error(), "flag provided but not defined: -"); unknown { // package flag's words
		name = strings.TrimPrefix(name, "-")
		var known []string
		for _, f := range ctx.Command.Flags {
			known = append(known, "--"+f.Names()[0])
		}
		return fault.Usage.Errorf("unknown flag --%s", name).Fix(suggest.Name("--"+name, known, hint))
	}
	return fault.Usage.Errorf("%w", err).Fix(hint)
}

func unknownCommand(ctx *cli.Context, name string) error {
	commands := ctx.App.Commands
	if len(ctx.Command.Subcommands) > 0 {
		commands = ctx.Command.Subcommands
	}
	known := names(commands)
	return fault.Usage.Errorf("unknown command %q", name).Fix(suggest.Name(name, known, "the commands are "+strings.Join(known, ", ")))
}

func names(commands []*cli.Command) []string {
	var list []string
	for _, c := range commands {
		if !c.Hidden && c.Name != "help" {
			list = append(list, c.Name)
		}
	}
	return list
}

const workerCommand = "pkcs11-worker"

// workerCommand is what the program runs to keep a PKCS#11 module in a separate process.
func (p *program) workerCommand() *cli.Command {
	return &cli.Command{
		Name: workerCommand, Usage: "serve one PKCS#11 key to the hsmsign that started this (isolate=yes)", Hidden: true,
		Action: func(ctx *cli.Context) error {
			// systemd sends SIGTERM to the workers of a service too, which still needs them to finish its work.
			err := keystore.RunWorker(context.WithoutCancel(ctx.Context), ctx.Args().Slice())
			if fault.KindOf(err) == fault.Usage {
				return fault.Usage.Errorf("%s is run by hsmsign itself", workerCommand).Fix("use isolate=yes in a key reference")
			}
			return err
		},
	}
}

// worker returns the command line that starts this program as a worker; nil if the program cannot find its own file.
func worker() []string {
	path, err := os.Executable()
	if err != nil || !filepath.IsAbs(path) {
		return nil
	}
	return []string{path, workerCommand}
}

// arrange returns a command line with the flags of the command before its file names, as the library requires; "--" ends
// the flags. It refuses a flag that is given twice, unless it may be repeated. Args[0] is the program.
func arrange(app *cli.App, args []string) ([]string, error) {
	if len(args) < 2 {
		return args, nil
	}
	head, command, rest := commandOf(app, args[1:])
	if command == nil || len(command.Subcommands) > 0 && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		return args, nil // an unknown command, which the library reports
	}
	var given, names []string
	seen := map[string]bool{}
	for i := 0; i < len(rest); i++ {
		arg := rest[i]
		if arg == "--" {
			names = append(names, rest[i+1:]...)
			break
		}
		if !strings.HasPrefix(arg, "-") || arg == "-" {
			names = append(names, arg)
			continue
		}
		given = append(given, arg)
		name, _, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		flag := find(command.Flags, name)
		if flag == nil {
			continue // the library reports it
		}
		if _, list := flag.(*cli.StringSliceFlag); !list {
			if first := flag.Names()[0]; seen[first] {
				return nil, fault.Usage.Errorf("--%s is given twice", first).Fix("leave one out")
			}
			seen[flag.Names()[0]] = true
		}
		if _, boolean := flag.(*cli.BoolFlag); !boolean && !hasValue && i+1 < len(rest) {
			i++
			given = append(given, rest[i])
		}
	}
	arranged := slices.Concat(args[:1], head, given)
	if len(names) > 0 {
		arranged = append(append(arranged, "--"), names...)
	}
	return arranged, nil
}

// commandOf splits arguments into those up to the name of the command, with the program's own flags, and the rest. The
// command is nil if there is none.
func commandOf(app *cli.App, args []string) (head []string, command *cli.Command, rest []string) {
	commands := app.Commands
	for i := 0; i < len(args); i++ {
		if strings.HasPrefix(args[i], "-") {
			if command != nil || !takesValue(app.Flags, args[i]) {
				return args[:i], command, args[i:]
			}
			i++ // --config FILE
			continue
		}
		next := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(args[i]) })
		if next < 0 {
			return args[:i], command, args[i:]
		}
		command, commands = commands[next], commands[next].Subcommands
	}
	return args, command, nil
}

// takesValue returns whether a flag is followed by its value.
func takesValue(flags []cli.Flag, arg string) bool {
	flag := find(flags, strings.TrimLeft(arg, "-"))
	_, boolean := flag.(*cli.BoolFlag)
	return flag != nil && !boolean
}

func find(flags []cli.Flag, name string) cli.Flag {
	i := slices.IndexFunc(flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), name) })
	if i < 0 {
		return nil
	}
	return flags[i]
}
