package main

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"hsmsign/agent"
	"hsmsign/api"
	"hsmsign/internal/console"
)

// The exit codes of Nagios' plugins (Monitoring Plugins Development Guidelines, "Plugin Return Codes").
const (
	nagiosOK       = 0
	nagiosWarning  = 1
	nagiosCritical = 2
	nagiosUnknown  = 3
)

// nagiosLine returns one line for all identities: the word of the worst state, the state of each, and the days left of
// each as performance data ('label'=value;warn;crit).
func nagiosLine(states []*agent.Status, warn int) (line string, code int) {
	var texts, data []string
	for _, v := range states {
		text := vendorName(v) + " signs"
		switch v.State {
		case api.StateWarning:
			code = max(code, nagiosWarning)
			text = vendorName(v) + ": " + v.Next
		case api.StateCritical:
			code = nagiosCritical
			text = vendorName(v) + ": " + console.ErrorLine(v.Err)
		}
		if len(v.Certs) > 0 {
			text += fmt.Sprintf(" (%d days left)", v.DaysLeft)
			// A value outside the range alerts: "30:" is thirty and more.
			data = append(data, fmt.Sprintf("'%s'=%d;%d:;0:", vendorName(v), v.DaysLeft, warn))
		}
		texts = append(texts, text)
	}
	word := []string{"OK", "WARNING", "CRITICAL"}[code]
	line = word + ": " + nagiosText(strings.Join(texts, "; "))
	if len(data) > 0 {
		line += " | " + strings.Join(data, " ")
	}
	return line, code
}

// nagiosText replaces the character that begins the performance data.
func nagiosText(s string) string { return strings.ReplaceAll(s, "|", "/") }

// prometheusText returns metrics in the text-based exposition format, version 0.0.4. The textfile collector requires that
// they have no timestamps.
func prometheusText(states []*agent.Status, now time.Time) []byte {
	var b bytes.Buffer
	gauge := func(name, help string, each func(v *agent.Status, sample func(value int64, labels ...string))) {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s gauge\n", name, help, name)
		for _, v := range states {
			each(v, func(value int64, labels ...string) {
				labels = append([]string{"vendor", v.Vendor}, labels...)
				var pairs []string
				for i := 0; i < len(labels); i += 2 {
					pairs = append(pairs, labels[i]+`="`+labelEscaper.Replace(labels[i+1])+`"`)
				}
				fmt.Fprintf(&b, "%s{%s} %d\n", name, strings.Join(pairs, ","), value)
			})
		}
	}
	flag := func(name, help string, is func(v *agent.Status) bool) {
		gauge(name, help, func(v *agent.Status, sample func(int64, ...string)) {
			if is(v) {
				sample(1)
			} else {
				sample(0)
			}
		})
	}
	flag("hsmsign_vendor_active", "Whether the vendor identity is the active one.", func(v *agent.Status) bool { return v.Active })
	flag("hsmsign_vendor_key_signs", "Whether the key was opened and made a signature.", func(v *agent.Status) bool { return v.Signs })
	flag("hsmsign_vendor_usable", "Whether key, certificate and chain can sign requests that Apple accepts.", func(v *agent.Status) bool { return v.Err == nil })
	gauge("hsmsign_vendor_certificate_not_after_seconds", "When the certificate expires, in seconds since 1970.",
		func(v *agent.Status, sample func(int64, ...string)) {
			seen := map[string]bool{} // a series must be unique
			for i, c := range v.Certs {
				if sum := v.Certificates[i].SHA256; !seen[sum] {
					seen[sum] = true
					sample(c.NotAfter.Unix(), "certificate", strings.ToValidUTF8(c.Subject.CommonName, "?"), "sha256", sum)
				}
			}
		})
	gauge("hsmsign_vendor_checked_seconds", "When this was checked, in seconds since 1970.",
		func(_ *agent.Status, sample func(int64, ...string)) { sample(now.Unix()) })
	return b.Bytes()
}

// labelEscaper escapes the value of a label. Names in certificates are chosen by strangers.
var labelEscaper = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)
