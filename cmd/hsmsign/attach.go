package main

import (
	"context"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/api"
	"hsmsign/chain"
	"hsmsign/ledger"
	"hsmsign/lifecycle/pushcert"
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
	return p.attach(ctx.Context, s, customer, cert)
}

// attach records the push certificate of a customer in the ledger.
func (p *program) attach(ctx context.Context, s *settings, customer string, cert *pushcert.Certificate) error {
	actor, err := s.manager(customer)
	if err != nil {
		return err
	}
	l, done, err := p.openLedger(ctx, s, true)
	if err != nil {
		return err
	}
	defer done()
	err = l.Attach(ctx, actor.Name, actor.Channel, customer, ledger.Push{
		Topic: cert.Topic, NotAfter: cert.NotAfter.UTC(), SHA256: api.SHA256(cert.Raw), SPKI: chain.SPKISHA256(cert.PublicKey),
	})
	if err == nil {
		p.con.Infof("recorded %s, valid until %s, for %q", cert.Topic, cert.NotAfter.UTC().Format(time.DateOnly), customer)
	}
	return err
}
