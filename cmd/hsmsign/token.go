package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"hsmsign/api"
)

func (p *program) tokenCommand() *cli.Command {
	return &cli.Command{
		Name:  "token",
		Usage: "list the tokens of a PKCS#11 module",
		Subcommands: []*cli.Command{{
			Name: "list", Usage: "list the slots of a module and the tokens in them, with their state; needs no PIN",
			Description: "Of the reference only the module counts, so a reference whose token is not found shows which tokens there are.\n\n" +
				"  hsmsign token list --key 'pkcs11:?module-path=/usr/lib/softhsm/libsofthsm2.so'",
			Flags:  []cli.Flag{keyFlag(), jsonFlag(), configFlag()},
			Action: p.tokenList,
		}},
	}
}

func (p *program) tokenList(cliCtx *cli.Context) error {
	job, _, err := p.newKeyJob(cliCtx, noFiles)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cliCtx.Context, openTimeout)
	defer cancel()
	tokens, err := job.Tokens(ctx)
	if err != nil {
		return err
	}
	var rows [][]string
	for _, t := range tokens {
		if job.json {
			p.con.JSON(api.Token(t))
			continue
		}
		rows = append(rows, []string{
			fmt.Sprintf("slot %d", t.Slot), orDefault(t.Label, "-"), orDefault(t.Serial, "-"), orDefault(t.Manufacturer, "-"), orDefault(t.Model, "-"),
			orDefault(t.Error, strings.Join(t.Flags, ", ")),
		})
	}
	p.con.Table(rows)
	if len(tokens) == 0 {
		p.con.Infof("the module has no slots")
	}
	return nil
}
