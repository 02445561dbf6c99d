package main

import (
	"github.com/urfave/cli/v2"

	"hsmsign/agent"
	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/keystore"
	"hsmsign/request"
)

func (p *program) policyCommand() *cli.Command {
	return &cli.Command{
		Name: "policy", Usage: "tell what the callers of the configuration may",
		Subcommands: []*cli.Command{{
			Name: "test", Usage: "say whether a caller could have a CSR signed, and why", ArgsUsage: "CSR",
			Description: "Every check of sign but those of the ledger; nothing is signed or recorded. If the role has an entitlement\n" +
				"program, it is run. Exit code 3 if the CSR would be refused, 6 if the program does not answer.\n\n" +
				"  hsmsign policy test --as portal --customer acme acme.csr",
			Flags: append([]cli.Flag{stringFlag("as", "`NAME` of the caller (default: that of the Unix user)"), stringFlag("customer", "`NAME` of the customer"), jsonFlag()},
				identityFlags()...),
			Action: p.policyTest,
		}},
	}
}

func (p *program) policyTest(ctx *cli.Context) error {
	s, args, err := p.start(ctx, oneFile)
	if err != nil {
		return err
	}
	found, err := s.neededPolicy()
	if err != nil {
		return err
	}
	c := agent.Caller{Channel: policy.Local}
	if name, _ := s.str("as"); name != "" {
		c.Rules, err = found.Caller(name)
	} else {
		c, err = s.caller()
	}
	if err != nil {
		return err
	}
	cfg, err := s.vendorConfig(keystore.Key{})
	if err != nil {
		return err
	}
	vendor, err := agent.NewVendor(ctx.Context, cfg)
	if err != nil {
		return err
	}
	defer vendor.Close()
	order := agent.Order{}
	order.Customer, _ = s.str("customer")
	order.Customer = orDefault(order.Customer, c.Rules.Customer)
	if order.CSR, err = p.read(ctx.Context, args[0], request.MaxCSR, "name a readable CSR file"); err != nil {
		return err
	}
	prepared, err := vendor.Prepare(ctx.Context, c, order)
	if err != nil {
		return err
	}
	p.con.Warnings(args[0], prepared.CSR.Findings)
	rule, err := prepared.Allowed()
	var answer *api.Entitlement
	if err == nil {
		answer, rule, err = prepared.Entitled(ctx.Context)
	}
	if err != nil && rule == "" {
		return err // the program did not answer
	}
	result := api.PolicyTest{Caller: c.Rules.Name, Role: c.Rules.Role.Name, Customer: order.Customer, Allowed: err == nil, Rule: rule, Explanation: c.Rules.Role.Explain(), Entitlement: answer}
	if s.json {
		p.con.JSON(result)
		if err != nil {
			return exitStatus(fault.Forbidden.Exit())
		}
		return nil
	}
	if err != nil {
		return err
	}
	p.con.Printf("allowed: %s has the role %s, which %s", result.Caller, result.Role, result.Explanation)
	if answer != nil {
		p.con.Printf("the entitlement program was run and allows it: %s", orDefault(answer.Line, "it printed nothing"))
	}
	return nil
}
