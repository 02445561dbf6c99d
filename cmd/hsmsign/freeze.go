package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/agent"
	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/client"
	"hsmsign/fault"
	"hsmsign/ledger"
)

func freezeFlags() []cli.Flag {
	return slices.Concat(ledgerFlags(), agentFlags(), []cli.Flag{
		stringFlag("caller", "`NAME` of the caller that may not sign"), stringFlag("customer", "`NAME` of the customer for whom nothing is signed"),
		stringFlag("vendor", "`NAME` of the vendor identity that may not be used"), boolFlag("all", "all signing"),
		stringFlag("profile", "`NAME` of the identity that may not sign profiles"),
		stringFlag("reason", "why: `TEXT` that the entry records; required"), configFlag(),
	})
}

func (p *program) freezeCommand() *cli.Command {
	return &cli.Command{
		Name: "freeze", Usage: "stop signing for a caller, a customer, a vendor identity, or at all",
		Description: "The freeze is an entry of the ledger. Every process that uses the ledger refuses from then on what it covers, also\n" +
			"stored requests and signatures that are being made, until hsmsign unfreeze. The service need not run; with --agent it\n" +
			"is asked to. With callers in the configuration the caller's role must have freeze in may. hsmsign ledger status shows what is frozen.\n\n" +
			"  hsmsign freeze --ledger sqlite:ledger.db --all --reason 'the HSM is examined'\n" +
			"  hsmsign freeze --ledger sqlite:ledger.db --customer acme --reason 'the contract has ended'\n" +
			"  hsmsign freeze --agent https://sign.example.com:8443 --agent-token-from file:token --all --reason 'a laptop was stolen'",
		Flags: freezeFlags(),
		Action: func(ctx *cli.Context) error {
			return p.changeFreeze(ctx, "frozen", (*ledger.Ledger).Freeze, (*client.Client).Freeze)
		},
	}
}

func (p *program) unfreezeCommand() *cli.Command {
	return &cli.Command{
		Name: "unfreeze", Usage: "end a freeze: sign again",
		Description: "Name the same caller, customer or vendor identity as in hsmsign freeze. Other freezes remain in force. If another\n" +
			"person must approve it (unfreeze-approvals in the role), the exit code is 8, and it ends with the approval.\n\n" +
			"  hsmsign unfreeze --ledger sqlite:ledger.db --all --reason 'the HSM is intact'\n" +
			"  hsmsign unfreeze --ledger sqlite:ledger.db --caller portal --reason 'it has a new token'\n" +
			"  hsmsign unfreeze --agent unix:///run/hsmsign/agent.sock --all --reason 'the laptop was found'",
		Flags: freezeFlags(),
		Action: func(ctx *cli.Context) error {
			return p.changeFreeze(ctx, "no longer frozen", (*ledger.Ledger).Unfreeze, (*client.Client).Unfreeze)
		},
	}
}

type (
	// ledgerFreeze changes what is frozen in a ledger.
	ledgerFreeze func(l *ledger.Ledger, ctx context.Context, actor, channel string, f ledger.Freeze) error
	// serviceFreeze changes it through a service.
	serviceFreeze func(c *client.Client, ctx context.Context, order api.FreezeOrder) ([]api.Freeze, error)
)

// changeFreeze begins or ends a freeze.
func (p *program) changeFreeze(ctx *cli.Context, done string, inLedger ledgerFreeze, atService serviceFreeze) error {
	s, _, err := p.start(ctx, noFiles)
	if err != nil {
		return err
	}
	f, err := s.freeze()
	if err != nil {
		return err
	}
	service, err := s.agentURL()
	switch {
	case err != nil:
	case service != "":
		err = p.freezeAt(ctx.Context, s, service, f, atService)
	default:
		err = p.freezeIn(ctx.Context, s, f, inLedger)
	}
	if err != nil {
		return err
	}
	p.con.Infof("%s: %s", done, freezeText(f.Scope, f.Name))
	return nil
}

// freezeAt changes a freeze through a service.
func (p *program) freezeAt(ctx context.Context, s *settings, service string, f ledger.Freeze, change serviceFreeze) error {
	c, err := p.agentClient(s, service, freezeTimeout)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = change(c, ctx, api.FreezeOrder{Scope: f.Scope, Name: f.Name, Reason: f.Reason})
	if fault.KindOf(err) == fault.Unavailable {
		return fault.WithHint(err, "freeze in the ledger itself, with --ledger, on a machine that has access to it")
	}
	return err
}

// freezeTimeout bounds a freeze through a service.
const freezeTimeout = 30 * time.Second

// freezeIn changes a freeze in the ledger.
func (p *program) freezeIn(ctx context.Context, s *settings, f ledger.Freeze, change ledgerFreeze) error {
	actor, err := s.freezer(f)
	if err != nil {
		return err
	}
	if len(s.config.Callers) > 0 && f.Scope == ledger.FreezeCaller {
		if _, known := s.config.Callers[f.Name]; !known {
			p.con.Warnf("the configuration %s has no caller %q", s.path, f.Name)
		}
	}
	l, end, err := p.openLedger(ctx, s, true)
	if err != nil {
		return err
	}
	defer end()
	if actor.Rules != nil { // Unfreeze asks others if the role says so
		f.Ask = policy.Credential{Caller: actor.Rules, Name: actor.Credential}.Ask()
	}
	return change(l, ctx, actor.Name, actor.Channel, f)
}

// freezeText names what is frozen.
func freezeText(scope, name string) string {
	if name == "" {
		return "all signing"
	}
	return fmt.Sprintf("%s %q", scope, name)
}

// profileScope is the flag of an identity that signs profiles, which the ledger knows as one of a vendor.
const profileScope = "profile"

// freeze returns the freeze that the flags name: one scope, and the reason. A scope on the command line counts more than those of
// the environment; the configuration's vendor identity is not a scope.
func (s *settings) freeze() (ledger.Freeze, error) {
	names := []string{ledger.FreezeCaller, ledger.FreezeCustomer, ledger.FreezeVendor}
	scopes := append(slices.Clone(names), ledger.FreezeAll)
	var found []ledger.Freeze
	fromLine := slices.ContainsFunc(append(scopes, profileScope), s.given)
	for _, scope := range names {
		value := s.getenv(envName(scope))
		if fromLine {
			value = s.ctx.String(scope)
		}
		if value != "" || s.given(scope) {
			found = append(found, ledger.Freeze{Scope: scope, Name: value})
		}
	}
	if s.given(profileScope) { // the one of the configuration and the environment is not a scope
		found = append(found, ledger.Freeze{Scope: ledger.FreezeVendor, Name: agent.ProfileIdentity(s.ctx.String(profileScope))})
	}
	if s.boolean(ledger.FreezeAll) && (!fromLine || s.given(ledger.FreezeAll)) {
		found = append(found, ledger.Freeze{Scope: ledger.FreezeAll})
	}
	if len(found) != 1 {
		return ledger.Freeze{}, fault.Usage.Errorf("%d scopes given", len(found)).Fix("name one: --" + strings.Join(append(scopes, profileScope), ", --"))
	}
	found[0].Reason, _ = s.str("reason")
	if found[0].Reason == "" {
		return ledger.Freeze{}, fault.Usage.Errorf("no reason given").Fix("say why with --reason; the entry records it")
	}
	return found[0], nil
}

// freezer returns the caller, who may change a freeze.
func (s *settings) freezer(f ledger.Freeze) (agent.Caller, error) {
	c, err := s.caller()
	if err == nil && c.Rules != nil {
		err = c.Rules.Freezes(f.Customer())
	}
	return c, err
}
