package main

import (
	"github.com/urfave/cli/v2"

	"hsmsign/ledger"
	"hsmsign/ledger/open"
)

func (p *program) migrateCommand() *cli.Command {
	return &cli.Command{
		Name: "migrate", Usage: "bring the store to the schema of this program, and let a role of PostgreSQL record requests",
		Description: "Run it as the role that owns the tables: that of ledger init. The role of --grant can record requests, and cannot\n" +
			"change or delete an entry or erase a customer.\n\n" +
			"  hsmsign ledger migrate --ledger postgres://owner@/hsmsign?host=/run/postgresql --grant signer",
		Flags:  []cli.Flag{ledgerFlags()[0], stringFlag("grant", "`ROLE` of the database that records requests"), configFlag()},
		Action: p.ledgerMigrate,
	}
}

func (p *program) ledgerMigrate(ctx *cli.Context) error {
	s, _, err := p.start(ctx, noFiles)
	if err != nil {
		return err
	}
	c, err := s.neededLedger()
	if err != nil {
		return err
	}
	store, err := open.Store(ctx.Context, c.reference, false)
	if err != nil {
		return err
	}
	defer func() { _ = store.DB.Close() }() // every transaction has ended
	role, _ := s.str("grant")
	if err := ledger.Migrate(ctx.Context, store, role); err != nil {
		return err
	}
	p.con.Infof("%s has the schema of this program", store.Name)
	if role != "" {
		p.con.Infof("the role %q may record requests", role)
	}
	return nil
}
