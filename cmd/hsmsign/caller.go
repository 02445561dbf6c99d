package main

import (
	"os"
	"os/user"
	"strconv"

	"github.com/urfave/cli/v2"

	"hsmsign/agent"
	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/keystore"
	"hsmsign/request"
)

// policy returns the policy of the configuration; nil if it has no callers.
func (s *settings) policy() (*policy.Policy, error) {
	if len(s.config.Callers) == 0 {
		if len(s.config.Roles) > 0 {
			return nil, fault.Usage.Errorf("%s: roles without callers", s.path).Fix("write who has them below callers:")
		}
		return nil, nil
	}
	if s.config.Ledger.Store == "" {
		return nil, fault.Usage.Errorf("%s: callers without a ledger", s.path).Fix("write ledger: and its reference; it counts and records what they ask for")
	}
	found, err := policy.New(s.config.Callers, s.config.Roles, s.vendorNames())
	if err != nil {
		return nil, fault.Errorf("%s: %w", s.path, err)
	}
	return found, nil
}

// caller returns the Unix user who runs the program, with its rules if the configuration has callers.
func (s *settings) caller() (agent.Caller, error) {
	uid := os.Getuid()
	c := agent.Caller{Name: "uid " + strconv.Itoa(uid), Channel: "local"}
	found, err := s.policy()
	if err != nil {
		return c, err
	}
	if found == nil {
		if u, err := user.Current(); err == nil {
			c.Name += " (" + u.Username + ")"
		}
		return c, nil
	}
	if c.Rules, err = found.UID(uid); err != nil {
		return c, err
	}
	c.Name = c.Rules.Name
	return c, nil
}

// manager returns the caller, who may change what is known of a customer.
func (s *settings) manager(customer string) (agent.Caller, error) {
	c, err := s.caller()
	if err == nil && c.Rules != nil {
		_, err = c.Rules.Manage(customer)
	}
	return c, err
}

func (p *program) policyCommand() *cli.Command {
	return &cli.Command{
		Name: "policy", Usage: "tell what the callers of the configuration may",
		Subcommands: []*cli.Command{{
			Name: "test", Usage: "say whether a caller could have a CSR signed, and why", ArgsUsage: "CSR",
			Description: "Every check of sign but those of the ledger; nothing is signed or recorded. Exit code 3 if it would be refused.\n\n" +
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
	found, err := s.policy()
	if err != nil {
		return err
	}
	if found == nil {
		return fault.Usage.Errorf("the configuration has no callers").Fix("write them below callers: and roles:; hsmsign.example.yaml shows how")
	}
	c := agent.Caller{Channel: "local"}
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
	result := api.PolicyTest{Caller: c.Rules.Name, Role: c.Rules.Role.Name, Customer: order.Customer, Allowed: err == nil, Rule: rule, Explanation: c.Rules.Role.Explain()}
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
	return nil
}
