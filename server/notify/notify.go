// Package notify sends the messages of the ledger's outbox: by mail (SMTP), to a webhook, and into a spool folder.
//
//	n := notify.New(notify.Config{Ledger: l, Channels: notify.Channels{Link: "https://sign.example.com:8443", SMTP: smtp}, Log: log})
//	go n.Run(ctx)
//	n.Wake() // something was posted
//
// A notice (ledger.MessagePending) says that a request waits for approval. It goes to each address of SMTP and to the webhook, and
// contains a link and no personal data: no name of a customer or caller, and nothing of the CSR. One about what was decided meanwhile is
// not sent. An answer (ledger.MessageMDMCert) is
// a mail to one customer, which Config.Result makes; it goes into the spool folder if there is one, and otherwise by SMTP.
//
// # Delivery
//
// A message is delivered at least once. A process takes it with a lease, delivers it, and only then records that it was sent, so
// another process sends it again if this one dies between. Its Message-ID, its Date and the id of the webhook are made from the
// message, so that they are the same at each try and a receiver can tell. Replicas share the outbox: each message is taken by one.
//
// A try that fails is repeated after 15 seconds, and then after pauses that double, up to 15 minutes. After 72 hours of failures the message is
// dropped, and a log record says so. Each receiver of a notice is tried by itself: one that fails does not get the others a second mail. A
// channel that failed slowly rests for a minute, so that the others are not late.
//
// Everything is bounded: the time of a connection, what is read from it, and the files and bytes of the spool folder. Errors and log
// records contain no password, no secret and no path of a webhook's URL.
package notify

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

const (
	// lease is for how long one process has a message; deliverWait is shorter, so that no two processes send it at the same time.
	lease       = 2 * time.Minute
	deliverWait = 90 * time.Second
	recordWait  = 10 * time.Second // to record what became of it
	stopWait    = 10 * time.Second // for the delivery that runs when Run ends

	firstPause   = 15 * time.Second
	longestPause = 15 * time.Minute
	giveUp       = 72 * time.Hour // of failures
	notYetPause  = longestPause

	pollEvery  = 5 * time.Second
	sweepEvery = time.Hour

	slow    = 5 * time.Second // a failure that took longer makes the channel rest
	restFor = time.Minute
)

// Errors of Config.Result and Config.Waits.
var (
	// ErrNotYet means that the message waits for something: it is tried again later, or as soon as the request is issued.
	ErrNotYet = errors.New("the message cannot be sent yet")
	// ErrNever means that there is nothing to send any more: the message is dropped.
	ErrNever = errors.New("the message is not to be sent any more")
)

// Channels are the ways to people. They do not change; Notifier.Use replaces them.
type Channels struct {
	Link    string   // https://HOST:PORT of the service, for links; empty: notices have none
	SMTP    *SMTP    // nil: no mail
	Webhook *Webhook // nil: none
	Spool   string   // folder for mails to customers, instead of SMTP; empty: none
}

// Config is what a Notifier is made of. Ledger and Log are required.
type Config struct {
	Channels
	Ledger *ledger.Ledger
	Log    *slog.Logger
	// Waits returns ErrNever if what a ledger.MessagePending is about does not wait any more. Nil: everything waits.
	Waits func(ctx context.Context, m ledger.Message) error
	// Result makes the mail of a ledger.MessageMDMCert. It returns ErrNotYet or ErrNever if there is none. Nil: there are no
	// such messages.
	Result func(ctx context.Context, m ledger.Message) (Mail, error)
	// Count is called for each try, with the kind of the message, the channel and the result; nil: nobody counts.
	Count func(kind, channel, result string)
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Channels, as Count gets them.
const (
	ChannelSMTP    = "smtp"
	ChannelWebhook = "webhook"
	ChannelSpool   = "spool"
	ChannelNone    = "none" // of a message that is dropped
)

// Results of a try.
const (
	ResultSent    = "sent"
	ResultFailed  = "failed"
	ResultDropped = "dropped"
)

// Notifier sends messages. One a process; leases keep replicas apart. Safe for concurrent use.
type Notifier struct {
	cfg      Config
	channels atomic.Pointer[Channels]
	wake     chan struct{}

	mu      sync.Mutex
	trouble map[string]trouble   // by receiver
	rests   map[string]time.Time // when a channel is used again
}

// trouble is what was logged about a receiver.
type trouble struct {
	failing bool
	logged  time.Time
}

// New starts nothing.
func New(cfg Config) *Notifier {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Count == nil {
		cfg.Count = func(string, string, string) {}
	}
	n := &Notifier{cfg: cfg, wake: make(chan struct{}, 1)}
	n.Use(cfg.Channels)
	return n
}

// Use replaces the channels. A delivery that runs goes on with those before.
func (n *Notifier) Use(c Channels) {
	n.channels.Store(&c)
	n.mu.Lock()
	n.trouble, n.rests = map[string]trouble{}, map[string]time.Time{}
	n.mu.Unlock()
	n.Wake()
}

// Wake says that something was posted or hastened. It does not wait.
func (n *Notifier) Wake() {
	select {
	case n.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// Kinds returns the kinds of messages that can be sent.
func (n *Notifier) Kinds() (all []string) {
	c := n.channels.Load()
	if c.Webhook != nil || c.SMTP != nil && len(c.SMTP.To) > 0 {
		all = append(all, ledger.MessagePending)
	}
	if n.cfg.Result != nil && (c.Spool != "" || c.SMTP != nil) {
		all = append(all, ledger.MessageMDMCert)
	}
	return all
}

// Run sends messages until ctx ends. A delivery that runs then has ten seconds to end.
func (n *Notifier) Run(ctx context.Context) {
	poll, sweep := time.NewTicker(pollEvery), time.NewTicker(sweepEvery)
	defer poll.Stop()
	defer sweep.Stop()
	for {
		for ctx.Err() == nil && n.next(ctx) {
		}
		select {
		case <-ctx.Done():
			return
		case <-n.wake:
		case <-poll.C:
		case <-sweep.C:
			n.sweep(ctx)
		}
	}
}

// sweep deletes old messages. The first time is an hour after the start: messages that waited while no process ran are sent, and not
// given up.
func (n *Notifier) sweep(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, recordWait)
	defer cancel()
	dropped, err := n.cfg.Ledger.Sweep(ctx)
	n.outcome("ledger", err)
	if dropped > 0 {
		n.cfg.Log.Error("messages were dropped", "messages", dropped, "reason", "nobody could send them for 7 days, or they had nothing to send for 90 days", "fix", "configure notify:")
	}
}

// next takes and handles one message, and returns whether there was one.
func (n *Notifier) next(ctx context.Context) bool {
	kinds := n.Kinds()
	if len(kinds) == 0 {
		return false
	}
	taking, cancel := context.WithTimeout(ctx, recordWait)
	defer cancel()
	m, err := n.cfg.Ledger.Take(taking, lease, kinds...)
	if ctx.Err() == nil {
		n.outcome("ledger", err)
	}
	if m == nil || err != nil {
		return false
	}
	n.handle(ctx, *m)
	return true
}

// handle delivers a message and records what became of it.
func (n *Notifier) handle(ctx context.Context, m ledger.Message) {
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), deliverWait)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(stopWait, cancel) })
	err := n.deliver(work, m)
	stop()
	recording, done := context.WithTimeout(context.WithoutCancel(ctx), recordWait)
	defer done()
	// A failure to record leaves the message to the end of the lease: then it is sent again.
	n.outcome("ledger", n.record(recording, m, err))
}

// record records what became of a message.
func (n *Notifier) record(ctx context.Context, m ledger.Message, err error) error {
	about := []any{"message", m.ID.String(), "kind", m.Kind, "request", m.About.String()}
	switch {
	case err == nil:
		return n.cfg.Ledger.Sent(ctx, m.ID)
	case errors.Is(err, ErrNotYet):
		return n.cfg.Ledger.Later(ctx, m.ID, notYetPause)
	case errors.Is(err, ErrNever):
		n.cfg.Log.Info("a message is not sent", append(about, "reason", err.Error())...)
	case m.Failing >= giveUp:
		n.cfg.Log.Error("a message was dropped: it could not be delivered for 72 hours", append(about, "error", err.Error(), "fix", fault.Hint(err))...)
	default:
		return n.cfg.Ledger.Retry(ctx, m.ID, pause(m.Tries))
	}
	n.cfg.Count(m.Kind, ChannelNone, ResultDropped)
	return n.cfg.Ledger.Drop(ctx, m.ID)
}

// pause returns the pause after a number of tries.
func pause(tries int) time.Duration {
	if tries > 10 {
		return longestPause
	}
	return min(firstPause<<max(0, tries-1), longestPause)
}

// outcome logs that a receiver begins to fail or works again: once, and then once an hour.
func (n *Notifier) outcome(receiver string, err error) {
	n.mu.Lock()
	before, now := n.trouble[receiver], n.cfg.Now()
	logs := err != nil && (now.Sub(before.logged) >= time.Hour || !before.failing && now.Sub(before.logged) >= time.Minute)
	if err == nil {
		n.trouble[receiver] = trouble{false, before.logged}
	} else if logs {
		n.trouble[receiver] = trouble{true, now}
	} else {
		n.trouble[receiver] = trouble{true, before.logged}
	}
	n.mu.Unlock()
	switch {
	case logs:
		n.cfg.Log.Warn("messages are not delivered; they are tried again", "receiver", receiver, "error", err.Error(), "fix", fault.Hint(err))
	case err == nil && before.failing:
		n.cfg.Log.Info("messages are delivered again", "receiver", receiver)
	}
}

// requestLink returns the address of a request; "" without a link.
func (c *Channels) requestLink(id record.ID) string {
	if c.Link == "" {
		return ""
	}
	return c.Link + "/v1/requests/" + id.String()
}
