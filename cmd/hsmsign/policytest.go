package main

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/agent"
	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/keystore"
	"hsmsign/request"
	"hsmsign/server/authn/oidc"
)

func (p *program) policyCommand() *cli.Command {
	return &cli.Command{
		Name: "policy", Usage: "tell what the callers of the configuration may",
		Subcommands: []*cli.Command{{
			Name: "test", Usage: "say whether a caller could have a CSR signed, and why", ArgsUsage: "CSR",
			Description: "Every check of sign but those of the ledger; nothing is signed or recorded. If the role has an entitlement\n" +
				"program, it is run. With --claims the caller is the one that an OIDC token with these claims is; its signature and times are\n" +
				"not checked. Exit code 3 if the CSR would be refused, 5 if the claims are those of nobody, 6 if the program does not answer.\n\n" +
				"  hsmsign policy test --as portal --customer acme acme.csr\n" +
				"  hsmsign policy test --claims payload.json --customer acme acme.csr",
			Flags: append([]cli.Flag{
				stringFlag("as", "`NAME` of the caller (default: that of the Unix user)"), stringFlag("claims", "`FILE` with the payload of an OIDC token, JSON"),
				stringFlag("customer", "`NAME` of the customer"), jsonFlag(),
			}, identityFlags()...),
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
	c, credentials, err := p.testedCaller(ctx.Context, s, found)
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
	result := api.PolicyTest{Caller: c.Rules.Name, Role: c.Rules.Role.Name, Customer: order.Customer, Allowed: err == nil, Rule: rule, Explanation: c.Rules.Role.Explain(), Credentials: credentials, Approvals: c.Rules.Role.Need(), Entitlement: answer}
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
	p.con.Printf("%s is known by: %s", result.Caller, strings.Join(credentials, "; "))
	for _, event := range slices.Sorted(maps.Keys(result.Approvals)) {
		p.con.Printf("other people must approve it first if it is a %s: %d", event, result.Approvals[event])
	}
	if answer != nil {
		p.con.Printf("the entitlement program was run and allows it: %s", orDefault(answer.Line, "it printed nothing"))
	}
	return nil
}

// testedCaller returns the caller that is tested, and its credentials in words.
func (p *program) testedCaller(ctx context.Context, s *settings, found *policy.Policy) (agent.Caller, []string, error) {
	c := agent.Caller{Channel: policy.Local}
	name, _ := s.str("as")
	file, _ := s.str("claims")
	var err error
	switch {
	case name != "" && file != "":
		return c, nil, fault.Usage.Errorf("--as and --claims together").Fix("remove one: the claims name a caller")
	case file != "":
		credential, err := p.claimed(ctx, s, found, file)
		if err != nil {
			return c, nil, err
		}
		c.Rules, c.Credential = credential.Caller, credential.Name
	case name != "":
		c.Rules, err = found.Caller(name)
	default:
		c, err = s.caller()
	}
	if err != nil {
		return c, nil, err
	}
	credentials := []string{}
	for _, one := range c.Rules.Credentials(time.Now()) {
		if file == "" || one.Name == c.Credential {
			credentials = append(credentials, one.Describe())
		}
	}
	return c, credentials, nil
}

// claimed returns the credential that the claims of a file are.
func (p *program) claimed(ctx context.Context, s *settings, found *policy.Policy, file string) (policy.Credential, error) {
	data, err := p.read(ctx, file, oidc.MaxToken, "name a readable file with the claims of a token, as JSON")
	if err != nil {
		return policy.Credential{}, err
	}
	claims, err := oidc.Claims(data)
	if err != nil {
		return policy.Credential{}, fault.Refused.Errorf("%s: %w", file, err).Fix("it is the part of a token between the two dots, decoded from base64url")
	}
	issuers, err := s.oidc(nil, nil)
	if err != nil {
		return policy.Credential{}, err
	}
	issuer, err := issuers.Issuer(claims)
	if err != nil {
		return policy.Credential{}, fault.Unauthenticated.Errorf("%s: %w", file, err).Fix("compare the claims with oidc: of the configuration")
	}
	return found.OIDC(issuer, claims)
}
