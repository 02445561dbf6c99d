package main

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/internal/console"
)

func (p *program) callerCommand() *cli.Command {
	return &cli.Command{
		Name: "caller", Usage: "list the callers of the configuration, and make tokens for them",
		Subcommands: []*cli.Command{
			{
				Name: "token", Usage: "make a token, and its entry for the configuration",
				Description: "The token is a secret for the caller, who sends it as a bearer token or as the password of HTTP Basic. The entry is\n" +
					"not: it goes below tokens: of the caller in the configuration. The token is printed once and is stored nowhere.\n\n" +
					"  hsmsign caller token --expires 90d\n" +
					"  hsmsign caller token --expires 24h --json",
				Flags:  []cli.Flag{stringFlag("expires", "`TIME` for which it is accepted, from 1m to 366d, as 90d or 24h; required"), jsonFlag()},
				Action: p.callerToken,
			},
			{
				Name: "list", Usage: "list the callers of the configuration with their credentials",
				Description: "The last use is that of the ledger, as far as it is known; tokens are listed with their expiry.\n\n" +
					"  hsmsign caller list\n" +
					"  hsmsign --config /etc/hsmsign/hsmsign.yaml caller list --json",
				Flags:  []cli.Flag{jsonFlag(), configFlag()},
				Action: p.callerList,
			},
		},
	}
}

func (p *program) callerToken(ctx *cli.Context) error {
	s, _, err := p.startBare(ctx, noFiles)
	if err != nil {
		return err
	}
	text, from := s.str("expires")
	if text == "" {
		return fault.Usage.Errorf("a token needs an expiry").Fix("write how long it is accepted, as --expires 90d")
	}
	valid, err := tokenTime(text)
	if err != nil {
		return fault.Usage.Errorf("%s is %q", from, fault.Clip(text, 64)).Fix("it is a time from 1m to " + strconv.Itoa(policy.MaxTokenDays) + "d, as 24h or 90d")
	}
	secret, entry := policy.NewToken(time.Now().Add(valid))
	if s.json {
		p.con.JSON(api.CallerToken{Token: secret, Entry: entry})
		return nil
	}
	p.con.Printf("token: %s", secret)
	p.con.Printf("entry: %s", entry)
	p.con.Infof("give the token to the caller, who keeps it secret; write the entry, in quotes, below tokens: of the caller in the configuration")
	return nil
}

// tokenTime reads the validity of a token: days as 90d, or another time as 24h.
func tokenTime(text string) (time.Duration, error) {
	valid, err := time.ParseDuration(text)
	if days, ok := strings.CutSuffix(text, "d"); ok {
		var n int
		n, err = strconv.Atoi(days)
		valid = time.Duration(max(0, min(n, policy.MaxTokenDays+1))) * 24 * time.Hour
	}
	if err == nil && (valid < time.Minute || valid > policy.MaxTokenDays*24*time.Hour) {
		err = strconv.ErrRange
	}
	return valid, err
}

func (p *program) callerList(ctx *cli.Context) error {
	s, _, err := p.start(ctx, noFiles)
	if err != nil {
		return err
	}
	found, err := s.neededPolicy()
	if err != nil {
		return err
	}
	uses := p.lastUses(ctx.Context, s)
	rows := [][]string{{"CALLER", "ROLE", "OF", "CREDENTIAL", "VALIDITY", "LAST USE"}}
	now := time.Now()
	for _, name := range found.Names() {
		c, err := found.Caller(name)
		if err != nil {
			return err
		}
		if s.json {
			p.con.JSON(newCaller(c, now, uses))
			continue
		}
		for _, credential := range c.Credentials(now) {
			last := "-"
			if used, ok := uses[credential.Name]; ok {
				last = used.UTC().Format(time.DateTime)
			}
			rows = append(rows, []string{name, c.Role.Name, orDefault(c.Person, strings.Join(c.Owners, ",")), credential.Describe(), orDefault(credential.Validity(), "-"), last})
		}
	}
	if !s.json {
		p.con.Table(rows)
	}
	return nil
}

// lastUses returns when the credentials were last used, by name, as the ledger knows it. Without the ledger the rest of the list
// is still true.
func (p *program) lastUses(ctx context.Context, s *settings) map[string]time.Time {
	l, done, err := p.openLedger(ctx, s, false)
	if err == nil {
		defer done()
		var uses map[string]time.Time
		if uses, err = l.Uses(ctx); err == nil {
			return uses
		}
	}
	p.con.Warnf("the last uses are not known: %s", console.ErrorLine(err))
	return nil
}

// newCaller returns the shape of a caller.
func newCaller(c *policy.Caller, now time.Time, uses map[string]time.Time) api.Caller {
	shape := api.Caller{Name: c.Name, Role: c.Role.Name, Person: c.Person, Owners: c.Owners, Customer: c.Customer, From: c.Networks(), Credentials: []api.Credential{}}
	for _, credential := range c.Credentials(now) {
		one := api.Credential{Name: credential.Name, State: credential.State, Claims: credential.Claims}
		if !credential.Expires.IsZero() {
			one.Expires = api.Time(credential.Expires)
		}
		if used, ok := uses[credential.Name]; ok {
			one.LastUse = api.Time(used)
		}
		shape.Credentials = append(shape.Credentials, one)
	}
	return shape
}
