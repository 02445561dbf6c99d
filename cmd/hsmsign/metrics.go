package main

import (
	"hsmsign/api/ledgerapi"

	"bytes"
	"fmt"
	"strings"
	"time"

	"hsmsign/ledger"
)

// metrics are gauges in the text-based exposition format, version 0.0.4. The textfile collector requires that they have no
// timestamps.
type metrics struct{ text bytes.Buffer }

// gauge adds a metric; each calls sample for each series, with the names and values of its labels.
func (m *metrics) gauge(name, help string, each func(sample func(value int64, labels ...string))) {
	fmt.Fprintf(&m.text, "# HELP %s %s\n# TYPE %s gauge\n", name, help, name)
	each(func(value int64, labels ...string) {
		if len(labels) == 0 {
			fmt.Fprintf(&m.text, "%s %d\n", name, value)
			return
		}
		var pairs []string
		for i := 0; i < len(labels); i += 2 {
			pairs = append(pairs, labels[i]+`="`+labelEscaper.Replace(strings.ToValidUTF8(labels[i+1], "?"))+`"`)
		}
		fmt.Fprintf(&m.text, "%s{%s} %d\n", name, strings.Join(pairs, ","), value)
	})
}

// labelEscaper escapes the value of a label. Names in certificates are chosen by strangers.
var labelEscaper = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// dueMetrics returns what is due as metrics.
func dueMetrics(items []ledgerapi.Due, now time.Time) []byte {
	var m metrics
	m.gauge("hsmsign_due_expires_seconds", "When the certificate expires, or the request becomes useless, in seconds since 1970.", func(sample func(int64, ...string)) {
		seen := map[string]bool{} // a series must be unique
		for _, item := range items {
			if series := item.What + "\n" + item.ID; !item.Deadline.IsZero() && !seen[series] {
				seen[series] = true
				sample(item.Deadline.Unix(), "what", item.What, "customer", item.Customer, "certificate", item.Certificate, "sha256", item.SHA256,
					"source", item.Source, "request", item.Request)
			}
		}
	})
	m.gauge("hsmsign_due_soon", "How many certificates and requests are due.", func(sample func(int64, ...string)) {
		count := map[string]int64{}
		for _, item := range items {
			if item.Open {
				count[item.What]++
			}
		}
		for _, what := range []string{ledger.DuePush, ledger.DueRequest, dueVendor, dueIssuer, dueWatched} {
			sample(count[what], "what", what)
		}
	})
	m.gauge("hsmsign_due_watched_up", "Whether a watched file or endpoint was read.", func(sample func(int64, ...string)) {
		seen := map[string]bool{}
		for _, item := range items {
			if item.What == dueWatched && !seen[item.Source] {
				seen[item.Source] = true
				sample(map[bool]int64{true: 1}[item.Error == nil], "source", item.Source)
			}
		}
	})
	m.gauge("hsmsign_due_checked_seconds", "When this was checked, in seconds since 1970.", func(sample func(int64, ...string)) {
		sample(now.Unix())
	})
	return m.text.Bytes()
}
