package main

import (
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/api"
	"hsmsign/api/ledgerapi"
	"hsmsign/fault"
	"hsmsign/internal/console"
	"hsmsign/ledger"
	"hsmsign/ledger/watch"
)

func (p *program) watchCommand() *cli.Command {
	writing := append(ledgerFlags(), configFlag())
	return &cli.Command{
		Name:  "watch",
		Usage: "name files and TLS endpoints whose certificates ledger due reports; each change is an entry",
		Subcommands: []*cli.Command{
			{
				Name: "add", Usage: "watch the certificates of a file, or of a TLS endpoint", ArgsUsage: "FILE|HOST:PORT|https://HOST",
				Description: "A chain is read and not verified: an expired one is reported too. Link-local, multicast and unspecified\n" +
					"addresses and the metadata services of clouds are refused, also if a name resolves to them. The configuration can\n" +
					"name more (ledger: { watch: [ ... ] }).\n\n" +
					"  hsmsign ledger watch add --ledger sqlite:ledger.db mdm.example.com:443\n" +
					"  hsmsign ledger watch add --ledger sqlite:ledger.db /etc/nanomdm/push.pem",
				Flags: writing, Action: p.watchAdd,
			},
			{
				Name: "list", Usage: "list what is watched; reads none of it",
				Description: "  hsmsign ledger watch list --ledger sqlite:ledger.db",
				Flags:       slices.Concat(ledgerFlags(), []cli.Flag{verifierFlag(), jsonFlag(), configFlag()}), Action: p.watchList,
			},
			{
				Name: "remove", Usage: "watch a file or an endpoint no longer", ArgsUsage: "FILE|HOST:PORT|https://HOST",
				Description: "  hsmsign ledger watch remove --ledger sqlite:ledger.db mdm.example.com:443",
				Flags:       writing, Action: p.watchRemove,
			},
		},
	}
}

// watchChange changes what is watched.
func (p *program) watchChange(ctx *cli.Context, change func(l *ledger.Ledger, actor, channel string, target watch.Target) error) error {
	s, args, err := p.start(ctx, oneName)
	if err != nil {
		return err
	}
	target, err := watch.Parse(args[0])
	if err != nil {
		return err
	}
	actor, err := s.caller()
	if err != nil {
		return err
	}
	l, done, err := p.openLedger(ctx.Context, s, true)
	if err != nil {
		return err
	}
	defer done()
	return change(l, actor.Name, actor.Channel, target)
}

func (p *program) watchAdd(ctx *cli.Context) error {
	return p.watchChange(ctx, func(l *ledger.Ledger, actor, channel string, target watch.Target) error {
		if err := l.Watch(ctx.Context, actor, channel, target.String()); err != nil {
			return err
		}
		result := watch.Read(ctx.Context, []watch.Target{target})[0]
		if result.Err != nil {
			p.con.Warnf("%s is watched, and cannot be read now: %s", target, console.ErrorLine(result.Err))
			return nil
		}
		if !result.Token.IsZero() {
			p.con.Infof("%s is watched: a server token, until %s", target, result.Token.Format(time.DateOnly))
			return nil
		}
		first := result.Certs[0]
		p.con.Infof("%s is watched: %s, until %s", target, api.Name(first.Subject), first.NotAfter.UTC().Format(time.DateOnly))
		return nil
	})
}

func (p *program) watchRemove(ctx *cli.Context) error {
	return p.watchChange(ctx, func(l *ledger.Ledger, actor, channel string, target watch.Target) error {
		return l.Unwatch(ctx.Context, actor, channel, target.String())
	})
}

func (p *program) watchList(ctx *cli.Context) error {
	s, _, l, done, err := p.reader(ctx, noFiles)
	if err != nil {
		return err
	}
	defer done()
	all, err := s.watched(ctx.Context, l)
	if err != nil {
		return err
	}
	rows := [][]string{{"TARGET", "SINCE", "ENTRY", "ORIGIN"}}
	for _, w := range all {
		if s.json {
			p.con.JSON(w)
			continue
		}
		since, entry := "-", "-"
		if w.Entry != nil {
			since, entry = w.Since[:len(time.DateOnly)], strconv.FormatInt(*w.Entry, 10)
		}
		rows = append(rows, []string{w.Target, since, entry, w.Origin})
	}
	if !s.json {
		p.con.Table(rows)
	}
	return nil
}

// watched returns what the ledger and the configuration watch.
func (s *settings) watched(ctx context.Context, l *ledger.Ledger) ([]api.LedgerWatch, error) {
	recorded, err := l.Watched(ctx)
	if err != nil {
		return nil, err
	}
	var all []api.LedgerWatch
	for _, w := range recorded {
		all = append(all, api.LedgerWatch{Target: w.Target, Origin: "ledger", Entry: &w.Entry, Since: api.Time(w.Since)})
	}
	for _, text := range s.config.Ledger.Watch {
		target, err := watch.Parse(text)
		if err != nil {
			return nil, fault.Errorf("%s: watch: %w", s.path, err).Fix(fault.Hint(err))
		}
		if !slices.ContainsFunc(all, func(w api.LedgerWatch) bool { return w.Target == target.String() }) {
			all = append(all, api.LedgerWatch{Target: target.String(), Origin: s.path})
		}
	}
	if len(all) > watch.MaxTargets {
		return nil, fault.Usage.Errorf("%d targets are watched; at most %d can be", len(all), watch.MaxTargets).Fix("remove some from the configuration")
	}
	return all, nil
}

// watchItems reads what is watched. A target that cannot be read is due.
func (s *settings) watchItems(ctx context.Context, l *ledger.Ledger, now time.Time) ([]ledgerapi.Due, error) {
	all, err := s.watched(ctx, l)
	if err != nil {
		return nil, err
	}
	targets := make([]watch.Target, len(all))
	for i, w := range all {
		// A path is absolute, so it is read as the same target again, also if it ends like a port.
		if targets[i], err = watch.Parse(w.Target); err != nil {
			return nil, err
		}
	}
	var items []ledgerapi.Due
	for i, result := range watch.Read(ctx, targets) {
		for _, c := range result.Certs {
			items = append(items, certItem(dueWatched, all[i].Target, c))
		}
		if !result.Token.IsZero() {
			items = append(items, ledgerapi.Due{
				LedgerDue: api.LedgerDue{What: dueToken, Source: all[i].Target, At: api.Time(result.Token)}, Deadline: result.Token, ID: all[i].Target,
			})
		}
		if result.Err != nil {
			items = append(items, ledgerapi.Due{
				LedgerDue: api.LedgerDue{What: dueWatched, Source: all[i].Target, At: api.Time(now), Error: api.NewError(result.Err)}, Open: true, ID: all[i].Target,
			})
		}
	}
	return items, ctx.Err()
}
