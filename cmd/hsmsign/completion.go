package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"hsmsign/fault"
)

// completionFlag is the last word of a command line that asks for completions of the word before it.
const completionFlag = "--generate-bash-completion"

// filesFollow is the completion that asks the shell for file names.
const filesFollow = ":files"

func (p *program) completionCommand() *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print the completion script of a shell: bash, zsh or fish",
		ArgsUsage: "bash|zsh|fish",
		Description: "  source <(hsmsign completion bash)                                   # in ~/.bashrc\n" +
			"  source <(hsmsign completion zsh)                                    # in ~/.zshrc\n" +
			"  hsmsign completion fish > ~/.config/fish/completions/hsmsign.fish",
		Action: p.completion,
	}
}

func (p *program) completion(ctx *cli.Context) error {
	if ctx.NArg() != 1 {
		return fault.Usage.Errorf("name one shell: bash, zsh or fish").Fix("hsmsign completion bash")
	}
	script, ok := completionScripts[ctx.Args().First()]
	if !ok {
		return fault.Usage.Errorf("unknown shell %q", ctx.Args().First()).Fix("it is bash, zsh or fish")
	}
	p.con.Write([]byte(script))
	return nil
}

// flagValues are the values of flags that have few.
var flagValues = map[string][]string{
	"format": {"base64", "plist"}, "export-format": {"p12", "pem"}, "for": {"micromdm", "nanomdm", "fleet", "windows"},
	"as": {"csv", "json"}, "approvals": {"none", "1", "2"}, "kind": {"attached", "customer", "erased", "failed", "intent", "issued", "refused", "superseded", "unknown"},
	"cert-kind": certificateKinds(), "digest": {"sha1", "sha256"}, "bits": {"2048", "3072", "4096"},
}

// complete returns what may stand for the last of the words after the program's name. The shell filters it.
func complete(app *cli.App, words []string) []string {
	last := len(words) - 1
	_, command, rest := commandOf(app, words[:last])
	flags, commands := app.Flags, app.Commands
	if command != nil {
		flags, commands = command.Flags, command.Subcommands
	}
	if last > 0 && !slices.Contains(rest, "--") && takesValue(flags, words[last-1]) {
		name := find(flags, strings.TrimLeft(words[last-1], "-")).Names()[0]
		if values := flagValues[name]; values != nil {
			return values
		}
		return []string{filesFollow}
	}
	switch {
	case strings.HasPrefix(words[last], "-") && !slices.Contains(rest, "--"):
		var all []string
		for _, flag := range flags {
			all = append(all, "--"+flag.Names()[0])
		}
		return all
	case len(rest) == 0 && len(commands) > 0:
		return names(commands)
	case command != nil && command.Name == "completion":
		return []string{"bash", "zsh", "fish"}
	case command != nil && command.Name == "help":
		return append(names(app.Commands), "keys", "secrets")
	}
	return []string{filesFollow}
}

// completionScripts ask the program what may come next.
var completionScripts = map[string]string{
	"bash": `_hsmsign() {
	local offered
	offered=$("${COMP_WORDS[@]:0:COMP_CWORD+1}" --generate-bash-completion 2>/dev/null)
	COMPREPLY=()
	if [[ $offered == :files ]]; then
		compopt -o default 2>/dev/null
	else
		mapfile -t COMPREPLY < <(compgen -W "$offered" -- "${COMP_WORDS[COMP_CWORD]}")
	fi
}
complete -F _hsmsign hsmsign
`,
	"zsh": `#compdef hsmsign
_hsmsign() {
	local -a offered
	offered=("${(@f)$("${words[@]:0:$CURRENT}" --generate-bash-completion 2>/dev/null)}")
	if [[ "${offered[1]}" == ":files" ]]; then
		_files
	else
		compadd -- "${offered[@]}"
	fi
}
compdef _hsmsign hsmsign
`,
	"fish": `function __hsmsign_complete
	set -l offered (command hsmsign (commandline -opc)[2..] (commandline -ct) --generate-bash-completion 2>/dev/null)
	if test "$offered" = ":files"
		__fish_complete_path (commandline -ct)
	else
		string join \n -- $offered
	end
end
complete -c hsmsign -f -a '(__hsmsign_complete)'
`,
}
