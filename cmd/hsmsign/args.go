package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"hsmsign/fault"
)

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
