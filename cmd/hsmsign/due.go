package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/api"
	"hsmsign/api/ledgerapi"
	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/internal/wholefile"
	"hsmsign/keystore"
	"hsmsign/ledger"
	"hsmsign/server/notify"
)

func (p *program) dueCommand() *cli.Command {
	return &cli.Command{
		Name: "due", Usage: "list what has to be done Open: push certificates to renew, requests that nobody redeemed, the vendor's chain",
		Description: "The vendor's chains are those of --cert, or of every identity in the configuration. What ledger watch names is\n" +
			"read too; a target that cannot be read is due. Exit code 3 when something is due, for cron.\n" +
			"--notify sends what is due to everyone in notify: of the configuration, by mail or to a webhook, and repeats it at each run until it is\n" +
			"done. The message names customers and their Apple Accounts. Exit code 0 when all have it, 6 when somebody does not.\n" +
			"The files of --ics and --prometheus contain every date, also those after --within. The file of --ics names customers and their Apple\n" +
			"Accounts, so its mode is 0600.\n\n" +
			"  hsmsign ledger due --ledger sqlite:ledger.db --within 30d\n" +
			"  hsmsign ledger due --ledger sqlite:ledger.db --ics due.ics --prometheus /var/lib/node_exporter/due.prom\n" +
			"  hsmsign ledger due --within 30d --notify",
		Flags: slices.Concat(ledgerFlags(), []cli.Flag{
			verifierFlag(), stringFlag("within", "`DAYS` to look ahead, as 30d (default: 30d)"),
			stringFlag("ics", "write a calendar (RFC 5545) to `FILE`; each event has an alarm, as many days before it as --within"),
			stringFlag("prometheus", "write metrics to `FILE`"),
			boolFlag("notify", "send what is due by the channels of notify: in the configuration"), jsonFlag(),
		}, identityFlags()),
		Action: p.ledgerDue,
	}
}

// What an item is about, besides those of the ledger.
const (
	dueVendor  = "vendor certificate"
	dueIssuer  = "issuer certificate" // of the vendor's chain
	dueWatched = "watched certificate"
	dueToken   = "server token"        // of Apple Business Manager
	dueProfile = "profile certificate" // or one of its chain
)

func (p *program) ledgerDue(ctx *cli.Context) error {
	s, _, err := p.start(ctx, noFiles)
	if err != nil {
		return err
	}
	within, from := s.str("within")
	days, err := strconv.Atoi(strings.TrimSuffix(orDefault(within, "30d"), "d"))
	if err != nil || days < 0 || days > 3650 {
		return fault.Usage.Errorf("%s is %q", from, within).Fix("it is a number of days from 0d to 3650d")
	}
	var channels notify.Channels
	tell := ctx.Bool("notify")
	if tell {
		if channels, err = s.dueChannels(); err != nil {
			return err
		}
	}
	l, done, err := p.openLedger(ctx.Context, s, false)
	if err != nil {
		return err
	}
	defer done()
	now := time.Now()
	items, err := s.dueItems(ctx.Context, l, now.AddDate(0, 0, days), now)
	if err != nil {
		return err
	}
	if err := writeDue(s, l.Origin(), items, days, now); err != nil {
		return err
	}
	open := slices.DeleteFunc(items, func(item ledgerapi.Due) bool { return !item.Open })
	p.printDue(s, open, days)
	switch {
	case len(open) == 0:
		return nil
	case !tell:
		return exitStatus(fault.Due.Exit())
	}
	sent, err := channels.SendDue(ctx.Context, notify.DueList{Origin: l.Origin(), Days: days, Items: open, At: now})
	if err == nil {
		p.con.Infof("sent to %d receivers", sent)
	}
	return err
}

// dueChannels reads notify:, in which somebody must get notices.
func (s *settings) dueChannels() (notify.Channels, error) {
	c, err := s.noticeChannels()
	if err == nil {
		err = c.CheckDue()
	}
	return c, err
}

// printDue prints what has to be done.
func (p *program) printDue(s *settings, open []ledgerapi.Due, days int) {
	var rows [][]string
	for _, item := range open {
		if s.json {
			p.con.JSON(item.LedgerDue)
		} else {
			rows = append(rows, dueRow(item))
		}
	}
	p.con.Table(rows)
	if len(open) == 0 && !s.json {
		p.con.Infof("nothing is due within %d days", days)
	}
}

// writeDue writes the files that the flags name.
func writeDue(s *settings, origin string, items []ledgerapi.Due, days int, now time.Time) error {
	if file, _ := s.str("ics"); file != "" {
		wholefile.Sweep(filepath.Dir(file)) // of a run that was killed
		if err := writeFile(file, ledgerapi.Calendar(origin, items, days, now), 0o600, true); err != nil {
			return err
		}
	}
	file, _ := s.str("prometheus")
	if file == "" {
		return nil
	}
	wholefile.Sweep(filepath.Dir(file))
	return writeFile(file, dueMetrics(items, now), requestMode, true)
}

// dueItems returns everything with a date, the soonest first. What is due before a time is open, and a request that was not redeemed always.
func (s *settings) dueItems(ctx context.Context, l *ledger.Ledger, before, now time.Time) ([]ledgerapi.Due, error) {
	list, err := l.Due(ctx)
	if err != nil {
		return nil, err
	}
	var items []ledgerapi.Due
	for _, d := range list {
		items = append(items, ledgerapi.Due{
			LedgerDue: api.LedgerDue{
				What: d.What, Customer: d.Customer.Name, Contact: d.Customer.Contact, Account: d.Customer.Account, At: api.Time(d.At),
				Request: d.Request, UseBefore: api.Time(d.UseBefore),
			},
			Deadline: d.Deadline(), Open: d.What == ledger.DueRequest, ID: cmp.Or(d.Request, d.CustomerID.String()),
		})
	}
	for _, one := range identities(s) {
		certs, err := one.vendorCerts(ctx, now)
		if err != nil {
			return nil, err
		}
		for i, c := range certs {
			items = append(items, certItem(map[bool]string{true: dueVendor, false: dueIssuer}[i == 0], one.vendor, c))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.config.Profiles)) {
		i := s.config.Profiles[name]
		certs, err := s.store.LoadCertificates(ctx, append([]string{i.Cert}, i.Chain...)...)
		if err != nil {
			return nil, fmt.Errorf("profile certificate: %w", err)
		}
		for _, c := range certs {
			items = append(items, certItem(dueProfile, name, c))
		}
	}
	watched, err := s.watchItems(ctx, l, now)
	if err != nil {
		return nil, err
	}
	items = append(items, watched...)
	for i := range items {
		items[i].Open = items[i].Open || !items[i].Deadline.IsZero() && items[i].Deadline.Before(before)
	}
	slices.SortStableFunc(items, func(a, b ledgerapi.Due) int { return a.Deadline.Compare(b.Deadline) })
	return items, nil
}

// certItem returns the item of a certificate. The source is a vendor identity, or what is watched.
func certItem(what, source string, c *x509.Certificate) ledgerapi.Due {
	return ledgerapi.Due{
		LedgerDue: api.LedgerDue{What: what, Certificate: api.Name(c.Subject), SHA256: api.SHA256(c.Raw), Source: source, At: api.Time(c.NotAfter)},
		Deadline:  c.NotAfter, ID: source + " " + api.SHA256(c.Raw),
	}
}

// vendorCerts returns the chain of the identity, or its certificates as given if they are not a valid chain: an expired one
// is due too.
func (s *settings) vendorCerts(ctx context.Context, now time.Time) ([]*x509.Certificate, error) {
	if cert, _ := s.str("cert"); cert == "" {
		return nil, nil
	}
	cfg, err := s.vendorConfig(keystore.Key{})
	if err != nil {
		return nil, err
	}
	given, err := cfg.Certificates(ctx)
	if err != nil {
		return nil, fmt.Errorf("vendor certificate: %w", err)
	}
	built, err := chain.Build(given.Vendor, given.Extra, chain.Options{TrustRoots: given.TrustRoots, Now: now})
	if err != nil {
		return slices.Concat(given.Vendor, given.Extra), nil
	}
	return built.Certs, nil
}

// dueRow returns the item as a line for people.
func dueRow(item ledgerapi.Due) []string {
	return []string{item.When(), item.What, item.About(), orDefault(item.Account, "-"), orDefault(item.Contact, "-")}
}
