package notify

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"hsmsign/api"
	"hsmsign/api/ledgerapi"
	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

const (
	maxDueBytes = 48 << 10 // of the items of one message, as JSON
	maxDueField = 256      // bytes of one text of an item
)

// DueList is what SendDue tells people.
type DueList struct {
	Origin string // of the ledger
	Days   int    // how far it looks ahead
	Items  []ledgerapi.Due
	At     time.Time // of the list, and of the messages
}

// CheckDue returns an error of kind usage if there is nobody whom SendDue could tell.
func (c *Channels) CheckDue() error {
	if c.Webhook == nil && (c.SMTP == nil || len(c.SMTP.To) == 0) {
		return fault.Usage.Errorf("there is nobody to notify").
			Fix("write notify: { smtp: { host: HOST, from: ADDRESS, to: [ ADDRESS ] } } or notify: { webhook: { url: URL, secret-file: FILE } } in the configuration")
	}
	return nil
}

// SendDue sends the list to each address of SMTP and to the webhook, once and now, and returns how many got it. Unlike the other messages, this one
// names customers, their contacts and their Apple Accounts: people need them to renew. A long list is cut, and the message says so. Each
// receiver is tried, also after another one has failed. The error is one line of kind unavailable, and names the channels.
func (c *Channels) SendDue(ctx context.Context, list DueList) (sent int, err error) {
	items := list.shown()
	m := ledger.Message{ID: record.NewID(), Created: list.At}
	body, err := json.Marshal(api.DueNotice{
		Type: api.NoticeDue, Timestamp: list.At.UTC().Format(time.RFC3339),
		Data: api.DueNoticeData{Origin: list.Origin, WithinDays: list.Days, Total: len(list.Items), Due: wire(items)},
	})
	if err != nil {
		return 0, err
	}
	var failed []string
	var hint string
	receive := func(channel string, err error) {
		if err == nil {
			sent++
			return
		}
		if line := channel + ": " + err.Error(); len(failed) == 0 || failed[len(failed)-1] != line {
			failed = append(failed, line)
		}
		hint = fault.Hint(err)
	}
	if c.SMTP != nil {
		for _, address := range c.SMTP.To {
			receive(ChannelSMTP, c.SMTP.send(ctx, m, Mail{To: address, Subject: list.subject(), Text: list.text(items)}))
		}
	}
	if c.Webhook != nil {
		receive(ChannelWebhook, c.Webhook.post(ctx, m, body, time.Now()))
	}
	switch {
	case ctx.Err() != nil:
		return sent, ctx.Err()
	case len(failed) == 0:
		return sent, nil
	}
	failure := fault.Unavailable.Errorf("what is due was not sent to everyone: %s", fault.Clip(strings.Join(failed, "; "), 1024))
	if hint != "" {
		return sent, failure.Fix(hint)
	}
	return sent, failure
}

// shown returns the first items, as many as a message may have, with their texts cut.
func (l DueList) shown() (items []ledgerapi.Due) {
	size := 0
	for _, item := range l.Items {
		for _, text := range []*string{&item.Customer, &item.Contact, &item.Account, &item.Certificate, &item.Source} {
			*text = fault.Clip(*text, maxDueField)
		}
		if item.Error != nil {
			clipped := *item.Error
			clipped.Message, clipped.Fix = fault.Clip(clipped.Message, maxDueField), fault.Clip(clipped.Fix, maxDueField)
			item.Error = &clipped
		}
		encoded, err := json.Marshal(item.LedgerDue)
		if size += len(encoded); err != nil || size > maxDueBytes {
			return items
		}
		items = append(items, item)
	}
	return items
}

// wire returns the items as the webhook gets them.
func wire(items []ledgerapi.Due) []api.LedgerDue {
	all := make([]api.LedgerDue, len(items))
	for i, item := range items {
		all[i] = item.LedgerDue
	}
	return all
}

// things returns a number in words.
func things(n int) string {
	if n == 1 {
		return "1 thing is due"
	}
	return fmt.Sprintf("%d things are due", n)
}

func (l DueList) subject() string { return "hsmsign: " + things(len(l.Items)) + " (" + l.Origin + ")" }

// text returns the text of the mail.
func (l DueList) text(items []ledgerapi.Due) string {
	var b strings.Builder
	fmt.Fprintf(&b, "In the ledger %s, %s within %d days:\n", l.Origin, things(len(l.Items)), l.Days)
	for _, item := range items {
		fmt.Fprintf(&b, "\n- %s: %s\n  %s\n", item.What, item.About(), item.When())
		for _, line := range [][2]string{{"Apple Account to use", item.Account}, {"contact", item.Contact}, {"request", item.Request}} {
			if line[1] != "" {
				fmt.Fprintf(&b, "  %s: %s\n", line[0], line[1])
			}
		}
	}
	if rest := len(l.Items) - len(items); rest > 0 {
		fmt.Fprintf(&b, "\nand %d more; see them with: hsmsign ledger due --within %dd\n", rest, l.Days)
	}
	b.WriteString("\nThis message is repeated until it is done.\n")
	return b.String()
}
