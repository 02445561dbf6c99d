package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"hsmsign/api"
	"hsmsign/client"
	"hsmsign/fault"
	"hsmsign/internal/console"
)

// ruleShown refuses a decision about something else than what the approver was shown.
const ruleShown = "approval.shown"

func approvalFlags(more ...cli.Flag) []cli.Flag {
	return slices.Concat(more, []cli.Flag{jsonFlag(), configFlag()}, agentFlags())
}

func (p *program) pendingCommand() *cli.Command {
	return &cli.Command{
		Name: "pending", Usage: "list what waits for the approval of other people, or show one of it", ArgsUsage: "[ID]",
		Description: "Shows what the caller may approve, has asked for or may read about. With an ID it shows that request, in any state, and\n" +
			"if enough people have approved it, and it could not be signed then, the service tries again. The service is that of\n" +
			"--agent, or the first Unix socket of serve: listen in the configuration.\n\n" +
			"  hsmsign pending\n" +
			"  hsmsign pending --agent https://sign.example.com:8443 --client-cert ada.pem --client-key ada.key 0123456789abcdef0123456789abcdef",
		Flags: approvalFlags(), Action: p.pending,
	}
}

func (p *program) approveCommand() *cli.Command {
	return &cli.Command{
		Name: "approve", Usage: "approve a request of somebody else, or the end of a freeze", ArgsUsage: "ID",
		Description: "Shows what is approved and asks at the terminal. Without a terminal, repeat what is approved: --csr-sha256, or\n" +
			"--unfreeze for the end of a freeze. The last approval signs. Exit code 8 if more people must approve it, or if it could\n" +
			"not be signed now; 3 if the caller may not approve it.\n\n" +
			"  hsmsign approve 0123456789abcdef0123456789abcdef\n" +
			"  hsmsign approve --agent https://sign.example.com:8443 --client-cert ada.pem --client-key ada.key \\\n" +
			"      --csr-sha256 \"$(openssl req -in acme.csr -outform DER | sha256sum | cut -d ' ' -f 1)\" 0123456789abcdef0123456789abcdef\n" +
			"  hsmsign approve --unfreeze customer:acme 0123456789abcdef0123456789abcdef",
		Flags: approvalFlags(
			stringFlag("csr-sha256", "SHA-256 of the CSR's DER that is approved, `HASH` of 64 hexadecimal digits: nothing is asked"),
			stringFlag("unfreeze", "`FREEZE` whose end is approved, all, caller:NAME, customer:NAME or vendor:NAME: nothing is asked"),
			stringFlag("reason", "why: `TEXT` that the entry records")),
		Action: p.approve,
	}
}

func (p *program) rejectCommand() *cli.Command {
	return &cli.Command{
		Name: "reject", Usage: "reject a request of somebody else, or the end of a freeze", ArgsUsage: "ID",
		Description: "The request is not signed; the requester can ask again. The requester sees the reason.\n\n" +
			"  hsmsign reject --reason 'not a customer of ours' 0123456789abcdef0123456789abcdef",
		Flags:  approvalFlags(stringFlag("reason", "why: `TEXT` that the entry records; required")),
		Action: p.reject,
	}
}

// approvalClient returns a client of the service that knows what waits.
func (p *program) approvalClient(s *settings) (*client.Client, error) {
	url, err := s.agentURL()
	if err != nil {
		return nil, err
	}
	if url == "" {
		i := slices.IndexFunc(s.config.Serve.Listen, func(address string) bool { return strings.HasPrefix(address, "unix:") })
		if i < 0 {
			return nil, fault.Usage.Errorf("no service given").Fix("name it with --agent, or run this where the configuration has a Unix socket in serve: listen")
		}
		url = s.config.Serve.Listen[i]
	}
	return p.agentClient(s, url, signTimeout)
}

func (p *program) pending(ctx *cli.Context) error {
	s, args, err := p.start(ctx, anyFiles)
	if err != nil {
		return err
	}
	if len(args) > 1 {
		return fault.Usage.Errorf("%d ids given", len(args)).Fix("name one, or none to list what waits")
	}
	c, err := p.approvalClient(s)
	if err != nil {
		return err
	}
	defer c.Close()
	if len(args) == 1 {
		return p.pendingOne(ctx.Context, s, c, args[0])
	}
	rows := [][]string{{"ID", "EVENT", "CUSTOMER", "ASKED BY", "APPROVALS", "UNTIL"}}
	for r, err := range c.Pending(ctx.Context) {
		if err != nil {
			return err
		}
		if s.json {
			p.con.JSON(r)
		} else if a := r.Approval; a != nil {
			about := r.Customer
			if a.Freeze != nil {
				about = freezeText(a.Freeze.Scope, a.Freeze.Name)
			}
			rows = append(rows, []string{r.ID, a.Event, about, a.Requester.Caller, fmt.Sprintf("%d of %d", a.Have, a.Need), a.Until})
		}
	}
	if !s.json {
		p.con.Table(rows)
	}
	return nil
}

// pendingOne shows one request.
func (p *program) pendingOne(ctx context.Context, s *settings, c *client.Client, id string) error {
	r, err := c.Look(ctx, id)
	if r == nil {
		return err
	}
	if r.Approval == nil {
		return notAsked(id)
	}
	r.Request = "" // hsmsign sign writes it
	if s.json {
		p.con.JSON(r)
		return nil
	}
	for _, f := range askedFields(r) {
		p.con.Field(f[0], f[1])
	}
	return nil
}

func notAsked(id string) error {
	return fault.NotFound.Errorf("nothing waits for approval as %q", fault.Clip(id, 64)).Fix("hsmsign pending lists what waits")
}

// askedFields are what an approver is shown: names and values.
func askedFields(r *api.Request) [][2]string {
	a := r.Approval
	fields := [][2]string{{"id", r.ID}, {"state", r.State}, {"event", a.Event}}
	if a.Freeze != nil {
		fields = append(fields, [2]string{"would end", freezeText(a.Freeze.Scope, a.Freeze.Name)}, [2]string{"reason", a.Freeze.Reason})
	} else {
		fields = append(fields, [2]string{"customer", r.Customer}, [2]string{"vendor", a.Vendor}, [2]string{"subject", r.Subject},
			[2]string{"CSR SHA-256", r.CSRSHA256}, [2]string{"key SHA-256", r.KeySHA256})
	}
	fields = append(fields, [2]string{"asked by", requesterText(a.Requester)}, [2]string{"with", a.Requester.Credential}, [2]string{"asked", r.Begun}, [2]string{"until", a.Until},
		[2]string{"approvals", fmt.Sprintf("%d of %d", a.Have, a.Need)})
	decided := func(what string, by api.Approver) {
		text := fmt.Sprintf("%s (caller %s), %s", by.Person, by.Caller, by.Time)
		if by.Reason != "" {
			text += ": " + by.Reason
		}
		fields = append(fields, [2]string{what, text})
	}
	for _, by := range a.Given {
		decided("approved by", by)
	}
	if a.Rejected != nil {
		decided("rejected by", *a.Rejected)
	}
	if r.Problem != nil {
		fields = append(fields, [2]string{"problem", r.Problem.Detail})
	}
	return fields
}

func (p *program) approve(ctx *cli.Context) error {
	s, args, err := p.start(ctx, oneName)
	if err != nil {
		return err
	}
	return p.decide(ctx.Context, s, args[0], "approved", (*client.Client).Approve, func(r *api.Request) error { return p.confirm(ctx.Context, s, r) })
}

func (p *program) reject(ctx *cli.Context) error {
	s, args, err := p.start(ctx, oneName)
	if err != nil {
		return err
	}
	if reason, _ := s.str("reason"); strings.TrimSpace(reason) == "" {
		return fault.Usage.Errorf("no reason given").Fix("say why with --reason; the entry records it, and the requester sees it")
	}
	return p.decide(ctx.Context, s, args[0], "rejected", (*client.Client).Reject, func(*api.Request) error { return nil })
}

// decide sends a decision about what the service shows, if confirm agrees.
func (p *program) decide(
	ctx context.Context, s *settings, id, done string, send func(c *client.Client, ctx context.Context, id string, d api.Decision) (*api.Request, error), confirm func(r *api.Request) error,
) error {
	c, err := p.approvalClient(s)
	if err != nil {
		return err
	}
	defer c.Close()
	r, err := c.Request(ctx, id)
	if err != nil {
		return err
	}
	if r.ID != id || r.Approval == nil {
		return notAsked(id)
	}
	if err := confirm(r); err != nil {
		return err
	}
	shown := api.Decision{Customer: r.Customer, CSRSHA256: r.CSRSHA256, Vendor: r.Approval.Vendor}
	shown.Reason, _ = s.str("reason")
	if about := r.Approval.Freeze; about != nil {
		shown.Scope, shown.Name = about.Scope, about.Name
	}
	r, err = send(c, ctx, id, shown)
	if r == nil {
		return err
	}
	r.Request = ""
	if s.json {
		p.con.JSON(r)
	}
	switch {
	case done == "rejected" && err != nil && !isWaiting(err): // the outcome is what was asked
		err = nil
	case err != nil:
		p.con.Infof("%s: %s", done, r.ID)
		p.con.Fail(err)
		return exitStatus(fault.KindOf(err).Exit())
	case r.State == "issued":
		done += " and issued"
	case r.State == "unfrozen":
		done += ", and no longer frozen"
	}
	p.con.Infof("%s: %s", done, r.ID)
	return err
}

// confirm makes sure that the approver approves what the service shows: by the hash or the freeze that the command line repeats, or
// by a question at the terminal.
func (p *program) confirm(ctx context.Context, s *settings, r *api.Request) error {
	hash, _ := s.str("csr-sha256")
	unfreeze, _ := s.str("unfreeze")
	is, flag, want, asked := r.CSRSHA256, "--csr-sha256", hash, fmt.Sprintf("the CSR %s of the customer %q", r.CSRSHA256, r.Customer)
	if about := r.Approval.Freeze; about != nil {
		is, flag, want = about.Scope, "--unfreeze", unfreeze
		if about.Name != "" {
			is += ":" + about.Name
		}
		asked = "that this is no longer frozen: " + freezeText(about.Scope, about.Name)
	}
	switch {
	case hash != "" && unfreeze != "":
		return fault.Usage.Errorf("--csr-sha256 and --unfreeze together").Fix("leave one out")
	case hash != "" && !isHash(hash):
		return fault.Usage.Errorf("--csr-sha256 is %q", fault.Clip(hash, 80)).Fix("write the whole SHA-256 of the CSR's DER, 64 hexadecimal digits")
	case hash+unfreeze != "" && !strings.EqualFold(want, is) || want != "" && flag == "--unfreeze" && want != is:
		return fault.Conflict.Errorf("%s is about something else than what the command line names: %s", r.ID, asked).Rule(ruleShown).Fix("hsmsign pending " + r.ID + " shows it")
	case want != "":
		return nil
	}
	for _, f := range askedFields(r) {
		if f[1] != "" {
			p.con.Infof("%-12s %s", f[0], f[1])
		}
	}
	yes, err := console.Confirm(ctx, fmt.Sprintf("hsmsign: approve %s? [y/N] ", asked))
	switch {
	case fault.KindOf(err) == fault.Usage:
		return fault.WithHint(err, "repeat what is approved with "+flag)
	case err == nil && !yes:
		return fault.Usage.Errorf("the approval was not confirmed, and nothing was approved").Fix("answer y to approve it, or use hsmsign reject")
	}
	return err
}

// printApproval prints what an entry says about what other people must approve.
func (p *program) printApproval(e api.LedgerEntry) {
	if a := e.Asked; a != nil {
		p.con.Field("asked", fmt.Sprintf("%s: %d of other people, until %s", a.Event, a.Need, api.Time(a.Until)))
		p.con.Field("asked by", requesterText(api.Requester{Caller: a.Caller, Person: a.Person, Owners: a.Owners}))
		p.con.Field("vendor", a.Vendor)
	}
	if d := e.Decided; d != nil {
		p.con.Field("person", d.Person)
		p.con.Field("credential", d.Credential)
		p.con.Field("reason", d.Reason)
	}
}

// requesterText names who asked.
func requesterText(r api.Requester) string {
	switch {
	case r.Person != "":
		return r.Caller + " (person " + r.Person + ")"
	case len(r.Owners) > 0:
		return r.Caller + " (a machine of " + strings.Join(r.Owners, ", ") + ")"
	}
	return r.Caller
}

// isHash returns whether a text is a SHA-256 in hex.
func isHash(text string) bool {
	return len(text) == 64 && strings.Trim(strings.ToLower(text), "0123456789abcdef") == ""
}
