package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/agent"
	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/internal/console"
	"hsmsign/internal/wholefile"
)

func (p *program) vendorStatusCommand() *cli.Command {
	return &cli.Command{
		Name: "status", Usage: "tell whether the vendor key signs, when each certificate expires, and what to do next",
		Description: "It checks every vendor identity of the configuration. The active one, or that of --vendor, decides the exit code;\n" +
			"problems of the others are warnings. --nagios uses the exit codes of Nagios plugins: 0 OK, 1 WARNING, 2 CRITICAL,\n" +
			"3 UNKNOWN. The file of --prometheus is for the textfile collector of node_exporter.\n" +
			probeHelp +
			"  hsmsign vendor status --key file:vendor.key --cert vendor.pem\n" +
			"  hsmsign vendor status --nagios --warn 45\n" +
			"  hsmsign vendor status --prometheus /var/lib/node_exporter/hsmsign.prom",
		Flags: slices.Concat([]cli.Flag{
			keyFlag(),
			stringFlag("warn", "warn if a certificate has fewer than `DAYS` left (default: 30)"),
			boolFlag("nagios", "print one line with performance data, and exit like a Nagios plugin"),
			stringFlag("prometheus", "write metrics to `FILE`"),
			jsonFlag(),
		}, identityFlags(), ledgerFlags()),
		Action: p.vendorStatus,
	}
}

func (p *program) vendorStatus(ctx *cli.Context) error {
	// With --nagios even a usage error has an exit code of Nagios.
	nagios := p.commandLine(ctx).boolean("nagios")
	err := p.reportStatus(ctx, nagios)
	if err == nil || !nagios || isSilent(err) {
		return err
	}
	p.con.Printf("UNKNOWN: %s", nagiosText(console.ErrorLine(err)))
	return exitStatus(nagiosUnknown)
}

// reportStatus checks every identity and prints the states. The error is that of the first identity whose state decides.
func (p *program) reportStatus(ctx *cli.Context, nagios bool) error {
	s, _, err := p.start(ctx, noFiles)
	if err != nil {
		return err
	}
	if s.json && nagios {
		return fault.Usage.Errorf("--json and --nagios together").Fix("leave one out")
	}
	warn, err := s.number("warn", 30, 1, 3650)
	if err != nil {
		return err
	}
	if _, err := s.ledgerConfig(); err != nil {
		return err
	}
	var states []*agent.Status
	for _, one := range identities(s) {
		state, err := one.check(ctx.Context, warn)
		if err != nil {
			return err
		}
		states = append(states, state)
	}
	p.recordStates(ctx.Context, s, states)
	if file, _ := s.str("prometheus"); file != "" {
		wholefile.Sweep(filepath.Dir(file)) // of a run that was killed
		if err := writeFile(file, prometheusText(states, time.Now()), requestMode, true); err != nil {
			return err
		}
	}
	if !nagios {
		return p.printStates(states, s.json)
	}
	line, code := nagiosLine(states, warn)
	p.con.Printf("%s", line)
	if code == nagiosOK {
		return nil
	}
	return exitStatus(code)
}

// identities returns the settings of each identity to check, the active one first: that of the flags, that of --vendor,
// or all of the configuration.
func identities(s *settings) []*settings {
	for _, name := range []string{"vendor", "key", "cert"} {
		if _, from := s.str(name); len(s.config.Vendors) == 0 || from != "" && from != s.origin(name) {
			return []*settings{s}
		}
	}
	var all []*settings
	if s.vendor != "" {
		all = append(all, s)
	}
	for _, name := range s.vendorNames() {
		if name != s.vendor {
			all = append(all, s.of(name))
		}
	}
	return all
}

// check checks one identity. The error is one of usage.
func (s *settings) check(ctx context.Context, warn int) (*agent.Status, error) {
	key, err := s.key("vendor key")
	if err != nil {
		return nil, err
	}
	active, _ := s.str("vendor")
	opts := agent.StatusOptions{Vendor: s.vendor, Key: key.String(), Active: active == "" || active == s.vendor, WarnDays: warn}
	cfg, err := s.vendorConfig(key)
	if err != nil {
		if opts.Active {
			return nil, err
		}
		cfg = agent.Config{Key: key, Certificates: func(context.Context) (agent.Certificates, error) {
			return agent.Certificates{}, agent.ErrNoCertificate
		}}
	}
	return agent.CheckStatus(ctx, cfg, opts), nil
}

func (p *program) printStates(states []*agent.Status, asJSON bool) error {
	var failed error
	for _, s := range states {
		if s.State == api.StateCritical && failed == nil {
			failed = exitStatus(exitCode(s.Err))
		}
		if asJSON {
			p.con.JSON(s.VendorStatus)
		} else {
			p.printVendor(s, len(states) > 1)
		}
	}
	return failed
}

// vendorName is the name of an identity in lines for people.
func vendorName(s *agent.Status) string { return orDefault(s.Vendor, "vendor") }

// printVendor shows one identity.
func (p *program) printVendor(s *agent.Status, several bool) {
	title := vendorName(s)
	if several && s.Active && s.Vendor != "" {
		title += " (active)"
	}
	level := map[string]console.Level{api.StateOK: console.Good, api.StateWarning: console.Warning, api.StateCritical: console.Bad}[s.State]
	p.con.Printf("%s: %s", title, console.Styled{Level: level, Text: s.State})
	signs := "signs"
	if !s.Signs {
		signs = "DOES NOT SIGN"
	}
	p.con.Field("key", s.Key+": "+signs)
	for _, c := range s.Certificates {
		left := fmt.Sprintf("%d days left", c.DaysLeft)
		if c.DaysLeft < 0 {
			left = "EXPIRED"
		}
		p.con.Field("certificate", fmt.Sprintf("%s, until %s: %s", c.Subject, c.NotAfter[:len(time.DateOnly)], left))
	}
	if len(s.Certs) > 0 {
		p.con.Field("first", fmt.Sprintf("%s, %d days", s.Expires[:len(time.DateOnly)], s.DaysLeft))
	}
	if s.Err != nil {
		p.con.Field("problem", s.Err.Error())
	}
	p.con.Field("next", s.Next)
}

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

// prometheusText returns the states as metrics.
func prometheusText(states []*agent.Status, now time.Time) []byte {
	var m metrics
	gauge := func(name, help string, each func(v *agent.Status, sample func(value int64, labels ...string))) {
		m.gauge(name, help, func(sample func(int64, ...string)) {
			for _, v := range states {
				each(v, func(value int64, labels ...string) { sample(value, append([]string{"vendor", v.Vendor}, labels...)...) })
			}
		})
	}
	flag := func(name, help string, is func(v *agent.Status) bool) {
		gauge(name, help, func(v *agent.Status, sample func(int64, ...string)) {
			sample(map[bool]int64{true: 1}[is(v)])
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
	return m.text.Bytes()
}
