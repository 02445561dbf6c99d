package main

import (
	"bytes"
	"fmt"
	"strings"
	"time"
)

// The exit codes of Nagios' plugins (Monitoring Plugins Development Guidelines, "Plugin Return Codes").
const (
	nagiosOK       = 0
	nagiosWarning  = 1
	nagiosCritical = 2
	nagiosUnknown  = 3
)

// nagiosLine is one line for all identities: the word of the worst, how each stands, and the days left of each as
// performance data ('label'=value;warn;crit).
func nagiosLine(states []*vendorState, warn int) (line string, code int) {
	var texts, data []string
	for _, v := range states {
		text := v.name() + " signs"
		switch v.State {
		case stateWarning:
			code = max(code, nagiosWarning)
			text = v.name() + ": " + v.Next
		case stateCritical:
			code = nagiosCritical
			text = v.name() + ": " + describeError(v.err)
		}
		if len(v.certs) > 0 {
			text += fmt.Sprintf(" (%d days left)", v.DaysLeft)
			// A value below the range alerts: "30:" is thirty and more.
			data = append(data, fmt.Sprintf("'%s'=%d;%d:;0:", v.name(), v.DaysLeft, warn))
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

// nagiosText is a text without the character that begins the performance data.
func nagiosText(s string) string { return strings.ReplaceAll(s, "|", "/") }

// prometheusText is the text-based exposition format, version 0.0.4, for the textfile collector, which wants no
// timestamps.
func prometheusText(states []*vendorState, now time.Time) []byte {
	var b bytes.Buffer
	gauge := func(name, help string, each func(v *vendorState, sample func(value int64, labels ...string))) {
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
	flag := func(name, help string, is func(v *vendorState) bool) {
		gauge(name, help, func(v *vendorState, sample func(int64, ...string)) {
			if is(v) {
				sample(1)
			} else {
				sample(0)
			}
		})
	}
	flag("hsmsign_vendor_active", "Whether the vendor identity is the active one.", func(v *vendorState) bool { return v.Active })
	flag("hsmsign_vendor_key_signs", "Whether the key was opened and made a signature.", func(v *vendorState) bool { return v.Signs })
	flag("hsmsign_vendor_usable", "Whether key, certificate and chain are fit to sign requests.", func(v *vendorState) bool { return v.err == nil })
	gauge("hsmsign_vendor_certificate_not_after_seconds", "When the certificate expires, in seconds since 1970.",
		func(v *vendorState, sample func(int64, ...string)) {
			seen := map[string]bool{} // a series must not stand twice
			for i, c := range v.certs {
				if sum := v.Certificates[i].SHA256; !seen[sum] {
					seen[sum] = true
					sample(c.NotAfter.Unix(), "certificate", strings.ToValidUTF8(c.Subject.CommonName, "?"), "sha256", sum)
				}
			}
		})
	gauge("hsmsign_vendor_checked_seconds", "When this was looked at, in seconds since 1970.",
		func(_ *vendorState, sample func(int64, ...string)) { sample(now.Unix()) })
	return b.Bytes()
}

// labelEscaper escapes a label's value. Names in certificates are a stranger's.
var labelEscaper = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)
