package main

import (
	"context"

	"github.com/urfave/cli/v2"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

func (p *program) reassignCommand() *cli.Command {
	return &cli.Command{
		Name: "reassign", Usage: "move a customer's key to another customer", ArgsUsage: "[KEY-SHA256]",
		Description: "The rule ledger.foreign-key refuses a key of another customer. This moves it on purpose, as when a customer was\n" +
			"entered twice. Requests that were issued remain those of the first customer. The key is named by the SHA-256 of\n" +
			"its SubjectPublicKeyInfo (key_sha256 of ledger list --json), or by a CSR.\n\n" +
			"  hsmsign ledger customer reassign --ledger sqlite:ledger.db --from acme --to acme-eu --csr acme.csr\n" +
			"  hsmsign ledger customer reassign --ledger sqlite:ledger.db --from acme --to acme-eu 5f70bf18a0860...",
		Flags: append(ledgerFlags(), stringFlag("from", "`NAME` of the customer that the key belongs to"), stringFlag("to", "`NAME` of the customer that it will belong to"),
			stringFlag("csr", "`FILE` with a CSR of the key"), configFlag()),
		Action: p.customerReassign,
	}
}

func (p *program) customerReassign(ctx *cli.Context) error {
	s, args, err := p.start(ctx, anyFiles)
	if err != nil {
		return err
	}
	from, _ := s.str("from")
	to, _ := s.str("to")
	switch {
	case from == "":
		return fault.Usage.Errorf("no customer given that the key belongs to").Fix("name it with --from")
	case to == "":
		return fault.Usage.Errorf("no customer given that the key will belong to").Fix("name it with --to")
	}
	key, err := p.keyHash(ctx.Context, s, args)
	if err != nil {
		return err
	}
	actor, err := s.manager(from)
	if err == nil {
		_, err = s.manager(to)
	}
	if err != nil {
		return err
	}
	l, done, err := p.openLedger(ctx.Context, s, true)
	if err != nil {
		return err
	}
	defer done()
	if err := l.Reassign(ctx.Context, actor.Name, actor.Channel, key, from, to); err != nil {
		return err
	}
	p.con.Infof("the key %s belongs to %q now, and no longer to %q", key, to, from)
	return nil
}

// keyHash returns the SHA-256 of the key that the argument or --csr names.
func (p *program) keyHash(ctx context.Context, s *settings, args []string) (record.Hash, error) {
	file, _ := s.str("csr")
	if len(args) > 1 || (len(args) == 1) == (file != "") {
		return record.Hash{}, fault.Usage.Errorf("%d keys given, and the CSR %q", len(args), file).Fix("name one key by its SHA-256, or one CSR with --csr")
	}
	if file == "" {
		return record.ParseHash(args[0])
	}
	csr, err := p.readCSR(ctx, file)
	if err != nil {
		return record.Hash{}, err
	}
	return record.SHA256(csr.Parsed.RawSubjectPublicKeyInfo), nil
}
