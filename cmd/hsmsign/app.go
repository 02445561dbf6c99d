package main

import (
	"context"
	"io"
	"strings"

	"hsmsign/internal/suggest"

	"github.com/urfave/cli/v2"
)

// program is what the commands share: the world outside, passed in.
type program struct {
	ui     *ui
	stdin  io.Reader
	getenv func(string) string
	// prompt asks the person at the terminal for a secret; nil where there is none.
	prompt func(ctx context.Context, label string) ([]byte, error)
	// modules are the PKCS#11 modules that the configuration allows; nil: any.
	modules []string
}

func (p *program) app() *cli.App {
	app := &cli.App{
		Name:  "hsmsign",
		Usage: "sign customers' CSRs for Apple push certificates, with the MDM vendor's key in an HSM, a KMS or a file",
		Description: "A customer's CSR comes in, Apple's Push Certificate Request goes out; the vendor's key stays where it is.\n\n" +
			"Results go to standard output, all else to standard error. Every flag has an environment variable; those of\n" +
			"sign, chain and verify can also stand in the configuration file. Exit codes: 0 done, 1 fault, 2 usage or\n" +
			"configuration, 3 input refused, 4 vendor key or certificate, 5 authentication, 6 backend unavailable,\n" +
			"7 verification found defects.",
		Version:              versionString(),
		HideVersion:          true, // the command "version" says more
		EnableBashCompletion: true,
		Flags:                []cli.Flag{configFlag()},
		Commands: []*cli.Command{
			p.signCommand(), p.verifyCommand(), p.inspectCommand(), p.chainCommand(),
			p.keyCommand(), p.vendorCommand(), p.doctorCommand(), p.checkConfigCommand(), p.pushCommand(), p.mdmcertCommand(), p.testpkiCommand(), p.versionCommand(), p.completionCommand(), p.workerCommand(),
		},
		Writer:    writerFunc(func(b []byte) (int, error) { p.ui.write(b); return len(b), nil }),
		ErrWriter: io.Discard, // ui says it, once
		// Key references hold commas.
		DisableSliceFlagSeparator: true,
		// The library would exit itself.
		ExitErrHandler: func(*cli.Context, error) {},
		Action: func(ctx *cli.Context) error {
			if name := ctx.Args().First(); name != "" {
				return unknownCommand(ctx, name)
			}
			return usage("run hsmsign --help", "no command given")
		},
	}
	strict(app.Commands)
	app.OnUsageError = usageError
	return app
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// strict gives every command what the library gives none: a usage error is one line on standard error, and a
// command that only holds others refuses an unknown one.
func strict(commands []*cli.Command) {
	for _, c := range commands {
		c.OnUsageError = usageError
		c.HideHelpCommand = true
		if len(c.Subcommands) > 0 {
			strict(c.Subcommands)
		}
		if len(c.Subcommands) > 0 && c.Action == nil {
			c.Action = func(ctx *cli.Context) error {
				if name := ctx.Args().First(); name != "" {
					return unknownCommand(ctx, name)
				}
				return usage("run hsmsign "+ctx.Command.Name+" --help", "%s: name one of %s", ctx.Command.Name, strings.Join(names(ctx.Command.Subcommands), ", "))
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
		return usage(suggest.Name("--"+name, known, hint), "unknown flag --%s", name)
	}
	return usage(hint, "%w", err)
}

func unknownCommand(ctx *cli.Context, name string) error {
	commands := ctx.App.Commands
	if len(ctx.Command.Subcommands) > 0 {
		commands = ctx.Command.Subcommands
	}
	known := names(commands)
	return usage(suggest.Name(name, known, "the commands are "+strings.Join(known, ", ")), "unknown command %q", name)
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
