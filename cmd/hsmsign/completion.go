package main

import (
	"github.com/urfave/cli/v2"

	"hsmsign/fault"
)

func (p *program) completionCommand() *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print the completion script of a shell: bash, zsh or fish",
		ArgsUsage: "bash|zsh|fish",
		Description: "  source <(hsmsign completion bash)                                   # in ~/.bashrc\n" +
			"  source <(hsmsign completion zsh)                                    # in ~/.zshrc\n" +
			"  hsmsign completion fish > ~/.config/fish/completions/hsmsign.fish",
		Action: p.completion,
		BashComplete: func(*cli.Context) {
			p.con.Write([]byte("bash\nzsh\nfish\n"))
		},
	}
}

func (p *program) completion(ctx *cli.Context) error {
	args := ctx.Args().Slice()
	if len(args) != 1 {
		return fault.Usage.Errorf("name one shell: bash, zsh or fish").Fix("hsmsign completion bash")
	}
	switch args[0] {
	case "bash":
		p.con.Write([]byte(bashCompletion))
	case "zsh":
		p.con.Write([]byte(zshCompletion))
	case "fish":
		script, err := ctx.App.ToFishCompletion()
		if err != nil {
			return err
		}
		p.con.Write([]byte(script))
	default:
		return fault.Usage.Errorf("unknown shell %q", args[0]).Fix("there are bash, zsh and fish")
	}
	return nil
}

// The scripts ask the program itself what may come next; where it knows nothing (after FILE flags), the shell
// offers files.
const bashCompletion = `_hsmsign() {
	local cur words
	cur="${COMP_WORDS[COMP_CWORD]}"
	words=("${COMP_WORDS[@]:0:COMP_CWORD}")
	case "$cur" in
	-*) words+=("$cur") ;;
	esac
	mapfile -t COMPREPLY < <(compgen -W "$("${words[@]}" --generate-bash-completion 2>/dev/null)" -- "$cur")
}
complete -o bashdefault -o default -F _hsmsign hsmsign
`

const zshCompletion = `#compdef hsmsign
_hsmsign() {
	local -a options
	local cur="${words[CURRENT]}"
	if [[ "$cur" == -* ]]; then
		options=("${(@f)$("${words[@]:0:$CURRENT}" --generate-bash-completion 2>/dev/null)}")
	else
		options=("${(@f)$("${words[@]:0:$((CURRENT-1))}" --generate-bash-completion 2>/dev/null)}")
	fi
	[[ -n "${options[1]}" ]] && compadd -- "${options[@]%%:*}"
	_files
}
compdef _hsmsign hsmsign
`
