package notify

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger"
)

// receiver is one of those that a message goes to.
type receiver struct {
	name    string // a word, the same at each try, without personal data
	channel string
	send    func(ctx context.Context) error
}

// deliver delivers a message to the receivers that do not have it yet. The error joins those of the receivers that failed.
func (n *Notifier) deliver(ctx context.Context, m ledger.Message) error {
	to, err := n.receivers(ctx, m)
	if err != nil {
		return err
	}
	var failed []error
	for _, r := range to {
		if m.HasDelivered(r.name) {
			continue
		}
		if err := n.try(ctx, m, r); err != nil {
			failed = append(failed, err)
			continue
		}
		if len(to) > 1 {
			// After a failure to record it gets the message again.
			n.outcome("ledger", n.cfg.Ledger.Delivered(ctx, m.ID, r.name))
		}
	}
	return errors.Join(failed...)
}

// receivers returns who a message goes to.
func (n *Notifier) receivers(ctx context.Context, m ledger.Message) (all []receiver, err error) {
	c := n.channels.Load()
	switch m.Kind {
	case ledger.MessagePending:
		if err := n.waits(ctx, m); err != nil {
			return nil, err
		}
		if c.SMTP != nil {
			for _, address := range c.SMTP.To {
				all = append(all, receiver{mailName(address), ChannelSMTP, func(ctx context.Context) error { return c.SMTP.send(ctx, m, c.notice(m, address)) }})
			}
		}
		if c.Webhook != nil {
			all = append(all, receiver{ChannelWebhook, ChannelWebhook, func(ctx context.Context) error { return c.Webhook.send(ctx, m, c.requestLink(m.About), n.cfg.Now()) }})
		}
		return all, nil
	case ledger.MessageMDMCert:
		mail, err := n.result(ctx, m)
		if err != nil {
			return nil, err
		}
		if c.Spool != "" {
			return []receiver{{ChannelSpool, ChannelSpool, func(context.Context) error { return spoolMail(c, m, mail) }}}, nil
		}
		if c.SMTP != nil {
			return []receiver{{"customers", ChannelSMTP, func(ctx context.Context) error { return c.SMTP.send(ctx, m, mail) }}}, nil
		}
	}
	return nil, fault.Unavailable.Errorf("there is no channel for messages of the kind %q", m.Kind) // it was removed just now
}

// result makes the mail of a message to a customer.
func (n *Notifier) result(ctx context.Context, m ledger.Message) (Mail, error) {
	mail, err := n.cfg.Result(ctx, m)
	if err == nil || errors.Is(err, ErrNotYet) || errors.Is(err, ErrNever) {
		n.outcome("results", nil)
		return mail, err
	}
	n.outcome("results", err)
	return mail, err
}

// waits returns nil if a notice is still to be sent.
func (n *Notifier) waits(ctx context.Context, m ledger.Message) error {
	if n.cfg.Waits == nil {
		return nil
	}
	err := n.cfg.Waits(ctx, m)
	if errors.Is(err, ErrNever) {
		n.outcome("notices", nil)
	} else {
		n.outcome("notices", err)
	}
	return err
}

// mailName is the name of an address as a receiver.
func mailName(address string) string {
	sum := sha256.Sum256([]byte(address))
	return ChannelSMTP + ":" + hex.EncodeToString(sum[:8])
}

// try sends a message to one receiver.
func (n *Notifier) try(ctx context.Context, m ledger.Message, r receiver) error {
	begun := time.Now()
	n.mu.Lock()
	until := n.rests[r.channel]
	n.mu.Unlock()
	if begun.Before(until) {
		return fmt.Errorf("%s rests after a failure", r.channel)
	}
	err := r.send(ctx)
	if err != nil {
		if time.Since(begun) > slow {
			n.mu.Lock()
			n.rests[r.channel] = time.Now().Add(restFor)
			n.mu.Unlock()
		}
		err = fmt.Errorf("%s: %w", r.channel, err)
	}
	n.outcome(r.name, err)
	n.cfg.Count(m.Kind, r.channel, map[bool]string{true: ResultSent, false: ResultFailed}[err == nil])
	return err
}

// spoolMail writes a mail into the spool folder.
func spoolMail(c *Channels, m ledger.Message, mail Mail) error {
	from := ""
	if c.SMTP != nil {
		from = c.SMTP.From
	}
	message, err := compose(m, from, mail)
	if err != nil {
		return err
	}
	var data bytes.Buffer
	if _, err := message.WriteTo(&data); err != nil {
		return err
	}
	return spool(c.Spool).write(m.About.String()+"-"+m.ID.String()+".eml", data.Bytes())
}
