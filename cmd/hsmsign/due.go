package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/agent"
	"hsmsign/api"
	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/keystore"
	"hsmsign/ledger"
)

func (p *program) attachCommand() *cli.Command {
	return &cli.Command{
		Name: "attach", Usage: "record the push certificate that Apple issued for a customer", ArgsUsage: "FILE",
		Description: "A certificate with another topic than before is refused: every device would have to enroll again.\n\n" +
			"  hsmsign ledger attach --ledger sqlite:ledger.db --customer acme MDM_Acme_Certificate.pem",
		Flags:  append(ledgerFlags(), stringFlag("customer", "`NAME` of the customer"), configFlag()),
		Action: p.ledgerAttach,
	}
}

func (p *program) ledgerAttach(ctx *cli.Context) error {
	s, args, err := p.start(ctx, oneFile)
	if err != nil {
		return err
	}
	customer, _ := s.str("customer")
	if customer == "" {
		return s.missing("customer", "customer")
	}
	cert, err := p.readPush(ctx.Context, args[0])
	if err != nil {
		return err
	}
	l, done, err := p.openLedger(ctx.Context, s, true)
	if err != nil {
		return err
	}
	defer done()
	actor := localCaller()
	err = l.Attach(ctx.Context, actor.Name, actor.Channel, customer, ledger.Push{
		Topic: cert.Topic, NotAfter: cert.NotAfter.UTC(), SHA256: api.SHA256(cert.Raw), SPKI: chain.SPKISHA256(cert.PublicKey),
	})
	if err == nil {
		p.con.Infof("recorded %s, valid until %s, for %q", cert.Topic, cert.NotAfter.UTC().Format(time.DateOnly), customer)
	}
	return err
}

func (p *program) dueCommand() *cli.Command {
	return &cli.Command{
		Name: "due", Usage: "list what has to be done soon: push certificates to renew, requests that nobody redeemed, the vendor certificate",
		Description: "The vendor certificate is that of --cert or of the configuration. Exit code 3 when something is due, for cron.\n\n" +
			"  hsmsign ledger due --ledger sqlite:ledger.db --within 30d",
		Flags:  slices.Concat(ledgerFlags(), []cli.Flag{verifierFlag(), stringFlag("within", "`DAYS` to look ahead, as 30d (default: 30d)"), jsonFlag()}, identityFlags()),
		Action: p.ledgerDue,
	}
}

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
	before := time.Now().AddDate(0, 0, days)
	l, done, err := p.openLedger(ctx.Context, s, false)
	if err != nil {
		return err
	}
	defer done()
	list, err := l.Due(ctx.Context, before)
	if err != nil {
		return err
	}
	if cert, _ := s.str("cert"); cert != "" {
		expiry, err := s.vendorExpiry(ctx)
		if err != nil {
			return err
		}
		if expiry.Before(before) {
			list = append(list, ledger.Due{What: "vendor certificate", At: expiry})
		}
	}
	slices.SortStableFunc(list, func(a, b ledger.Due) int { return a.At.Compare(b.At) })
	var rows [][]string
	for _, d := range list {
		if s.json {
			p.con.JSON(api.LedgerDue{What: d.What, Customer: d.Customer.Name, Contact: d.Customer.Contact, Account: d.Customer.Account, At: d.At.Format(time.RFC3339), Request: d.Request})
			continue
		}
		when := "expires " + d.At.Format(time.DateOnly)
		if d.Request != "" {
			when = "issued " + d.At.Format(time.DateOnly) + ", not redeemed"
		}
		rows = append(rows, []string{when, d.What, orDefault(d.Customer.Name, "-"), orDefault(d.Customer.Account, "-"), orDefault(d.Customer.Contact, "-")})
	}
	p.con.Table(rows)
	if len(list) > 0 {
		return exitStatus(fault.Due.Exit())
	}
	if !s.json {
		p.con.Infof("nothing is due within %d days", days)
	}
	return nil
}

// vendorExpiry returns when the first certificate of the vendor's chain expires.
func (s *settings) vendorExpiry(ctx *cli.Context) (time.Time, error) {
	cfg, err := s.vendorConfig(keystore.Key{})
	if err != nil {
		return time.Time{}, err
	}
	vendor, err := agent.NewVendor(ctx.Context, cfg)
	if err != nil {
		return time.Time{}, fmt.Errorf("vendor certificate: %w", err)
	}
	defer vendor.Close()
	return agent.FirstExpiry(vendor.Chain().Certs).NotAfter.UTC(), nil
}
