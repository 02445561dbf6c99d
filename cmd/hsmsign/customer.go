package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/agent"
	"hsmsign/api/ledgerapi"
	"hsmsign/fault"
	"hsmsign/internal/console"
	"hsmsign/ledger"
)

func (p *program) customerCommand() *cli.Command {
	about := []cli.Flag{
		stringFlag("contact", "how to reach the customer: an `ADDRESS`"),
		stringFlag("account", "the Apple `ACCOUNT` that must renew the customer's push certificate"),
		stringFlag("notes", "`TEXT` about the customer"),
	}
	writing := append(ledgerFlags(), configFlag())
	reading := append(ledgerFlags(), verifierFlag(), jsonFlag(), configFlag())
	return &cli.Command{
		Name:  "customer",
		Usage: "add, list, show and change the customers; each change is an entry",
		Subcommands: []*cli.Command{
			{
				Name: "add", Usage: "add a customer", ArgsUsage: "NAME",
				Description: "  hsmsign ledger customer add --ledger sqlite:ledger.db --contact it@acme.example --account mdm@acme.example acme",
				Flags:       slices.Concat(writing, about), Action: p.customerAdd,
			},
			{
				Name: "edit", Usage: "change what is known of a customer; a value that is not given stays", ArgsUsage: "NAME",
				Description: "  hsmsign ledger customer edit --ledger sqlite:ledger.db --rename acme-eu --contact it@acme.example acme",
				Flags:       slices.Concat(writing, about, []cli.Flag{stringFlag("rename", "new `NAME` of the customer")}), Action: p.customerEdit,
			},
			{
				Name: "erase", Usage: "delete what is known of a customer; the entries remain, with random ids and hashes", ArgsUsage: "NAME",
				Description: "Copies of the store, such as backups, still have the data. It asks first (--yes: it does not ask).\n\n" +
					"  hsmsign ledger customer erase --ledger sqlite:ledger.db acme",
				Flags: slices.Concat(writing, []cli.Flag{boolFlag("yes", "erase without asking for confirmation")}), Action: p.customerErase,
			},
			p.reassignCommand(),
			{
				Name: "list", Usage: "list the customers",
				Description: "  hsmsign ledger customer list --ledger sqlite:ledger.db",
				Flags:       reading, Action: p.customerList,
			},
			{
				Name: "show", Usage: "show what is known of one customer", ArgsUsage: "NAME",
				Description: "  hsmsign ledger customer show --ledger sqlite:ledger.db acme",
				Flags:       reading, Action: p.customerShow,
			},
		},
	}
}

// customerJob opens the ledger to write, and returns the function that ends it, the customer that the flags describe, and who
// asks.
func (p *program) customerJob(ctx *cli.Context) (c ledger.Customer, actor agent.Caller, l *ledger.Ledger, done func(), err error) {
	s, args, err := p.start(ctx, oneName)
	if err != nil {
		return c, actor, nil, nil, err
	}
	for _, name := range []string{args[0], orDefault(ctx.String("rename"), args[0])} {
		if actor, err = s.manager(name); err != nil {
			return c, actor, nil, nil, err
		}
	}
	c.Name = args[0]
	c.Contact, _ = s.str("contact")
	c.Account, _ = s.str("account")
	c.Notes, _ = s.str("notes")
	l, done, err = p.openLedger(ctx.Context, s, true)
	return c, actor, l, done, err
}

func (p *program) customerAdd(ctx *cli.Context) error {
	c, actor, l, done, err := p.customerJob(ctx)
	if err != nil {
		return err
	}
	defer done()
	return l.AddCustomer(ctx.Context, actor.Name, actor.Channel, c)
}

func (p *program) customerEdit(ctx *cli.Context) error {
	given, actor, l, done, err := p.customerJob(ctx)
	if err != nil {
		return err
	}
	defer done()
	rename := ctx.String("rename")
	return l.EditCustomer(ctx.Context, actor.Name, actor.Channel, given.Name, func(c ledger.Customer) ledger.Customer {
		return ledger.Customer{
			Name: orDefault(rename, c.Name), Contact: orDefault(given.Contact, c.Contact), Account: orDefault(given.Account, c.Account),
			Notes: orDefault(given.Notes, c.Notes),
		}
	})
}

func (p *program) customerErase(ctx *cli.Context) error {
	c, actor, l, done, err := p.customerJob(ctx)
	if err != nil {
		return err
	}
	defer done()
	if !p.commandLine(ctx).boolean("yes") {
		yes, err := console.Confirm(ctx.Context, fmt.Sprintf("hsmsign: erase what is known of %q? [y/N] ", c.Name))
		if err != nil {
			return err
		}
		if !yes {
			return fault.Usage.Errorf("the erasure was not confirmed, and nothing was erased").Fix("--yes confirms it in scripts")
		}
	}
	return l.EraseCustomer(ctx.Context, actor.Name, actor.Channel, c.Name)
}

func (p *program) customerList(ctx *cli.Context) error {
	s, _, l, done, err := p.reader(ctx, noFiles)
	if err != nil {
		return err
	}
	defer done()
	customers, err := l.Customers(ctx.Context, "")
	if err != nil {
		return err
	}
	rows := [][]string{{"CUSTOMER", "CONTACT", "APPLE ACCOUNT", "CHANGED"}}
	for _, c := range customers {
		if s.json {
			p.con.JSON(ledgerapi.NewCustomer(c))
		}
		rows = append(rows, []string{c.Name, orDefault(c.Contact, "-"), orDefault(c.Account, "-"), c.Changed.Format(time.DateOnly)})
	}
	if !s.json {
		p.con.Table(rows)
	}
	return nil
}

func (p *program) customerShow(ctx *cli.Context) error {
	s, args, l, done, err := p.reader(ctx, oneName)
	if err != nil {
		return err
	}
	defer done()
	customers, err := l.Customers(ctx.Context, args[0])
	if err != nil {
		return err
	}
	c := ledgerapi.NewCustomer(customers[0])
	if s.json {
		p.con.JSON(c)
		return nil
	}
	for _, f := range [][2]string{
		{"name", c.Name}, {"contact", c.Contact}, {"apple account", c.Account}, {"notes", c.Notes}, {"id", c.ID}, {"changed", c.Changed},
	} {
		p.con.Field(f[0], f[1])
	}
	return nil
}
