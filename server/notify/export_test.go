package notify

import (
	"context"
	"time"

	"hsmsign/ledger"
)

// Next handles one message, and returns whether there was one.
func (n *Notifier) Next(ctx context.Context) bool { return n.next(ctx) }

// Sweep is what Run does every hour.
func (n *Notifier) Sweep(ctx context.Context) { n.sweep(ctx) }

// Send sends one mail.
func (s *SMTP) Send(ctx context.Context, m ledger.Message, content Mail) error {
	return s.send(ctx, m, content)
}

// Send posts one notice.
func (w *Webhook) Send(ctx context.Context, m ledger.Message, link string) error {
	return w.send(ctx, m, link, time.Now())
}

// The times and limits that tests compare.
const (
	Lease         = lease
	GiveUp        = giveUp
	LongestPause  = longestPause
	DeliverWait   = deliverWait
	MaxSpoolFiles = maxSpoolFiles
	MaxSpoolBytes = maxSpoolBytes
	SMTPWait      = smtpWait
	WebhookWait   = webhookWait
	StopWait      = stopWait
	MaxTo         = maxTo
)

// Pause is the pause after a number of tries.
func Pause(tries int) time.Duration { return pause(tries) }
