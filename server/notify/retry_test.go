package notify_test

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"hsmsign/ledger"
	"hsmsign/server/notify"
)

// The pauses grow, and after 72 hours a message is dropped with a log record.
func TestGivesUp(t *testing.T) {
	for tries, want := range map[int]time.Duration{0: 15 * time.Second, 1: 15 * time.Second, 2: 30 * time.Second, 3: time.Minute, 6: 8 * time.Minute, 7: 15 * time.Minute, 11: 15 * time.Minute, 1 << 30: 15 * time.Minute} {
		if got := notify.Pause(tries); got != want {
			t.Errorf("after %d tries: %v, want %v", tries, got, want)
		}
	}
	o := newOutbox(t)
	down := notify.Channels{SMTP: &notify.SMTP{Host: "127.0.0.1", Port: 1, From: "a@example.com", To: []string{"b@example.com"}}}
	counts := map[string]int{}
	n := notify.New(notify.Config{
		Ledger: o.Ledger, Channels: down, Log: slog.New(slog.NewJSONHandler(o, nil)), Now: o.now, Count: func(kind, channel, result string) { counts[kind+" "+channel+" "+result]++ },
	})
	o.post(t, ledger.MessagePending, "")
	tries := 0
	for begun := o.now(); o.now().Sub(begun) < notify.GiveUp; o.pass(5 * time.Second) {
		tries += all(t, n)
		if o.waiting(t) != 1 {
			t.Fatalf("dropped after %v", o.now().Sub(begun))
		}
		if tries > 8 {
			o.pass(notify.LongestPause - 5*time.Second)
		}
	}
	o.pass(time.Hour)
	if all(t, n); o.waiting(t) != 0 || tries < 200 || tries > 320 {
		t.Errorf("%d wait after 72 hours and %d tries", o.waiting(t), tries)
	}
	messages, _ := o.logged(t)
	if !strings.HasSuffix(messages, "a message was dropped: it could not be delivered for 72 hours") || strings.Count(messages, "not delivered; they are") < 60 || strings.Count(messages, "not delivered; they are") > 80 {
		t.Errorf("log %s", messages)
	}
	if counts["pending smtp failed"] != tries+1 || counts["pending none dropped"] != 1 {
		t.Errorf("counts %v", counts)
	}
}

// A receiver that works at every second try is logged once a minute at most.
func TestLogOfFlapping(t *testing.T) {
	o, c := newOutbox(t), newCA(t)
	mails, smtp := c.smtp(t)
	n := o.notifier(notify.Channels{SMTP: smtp})
	for i := range 10 {
		mails.Fail(failAt("", 450*(i%2), "away"))
		o.post(t, ledger.MessageMDMCert, "x")
		all(t, n)
		o.pass(time.Second)
	}
	if messages, _ := o.logged(t); strings.Count(messages, "tried again") != 1 {
		t.Errorf("log %s", messages)
	}
}
