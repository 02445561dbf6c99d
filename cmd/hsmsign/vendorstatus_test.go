package main

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"hsmsign/agent"
	"hsmsign/api"
)

// states are one identity of each state, with a name that could break what is printed.
func testStates() []*agent.Status {
	now := time.Unix(1_800_000_000, 0)
	cert := func(name string, days int) []*x509.Certificate {
		return []*x509.Certificate{{Subject: pkix.Name{CommonName: name}, NotAfter: now.AddDate(0, 0, days)}}
	}
	twice := cert("a \"b\" \\ c\nd", 100)
	return []*agent.Status{
		{VendorStatus: api.VendorStatus{Vendor: "new", Active: true, State: api.StateOK, Signs: true, DaysLeft: 100, Certificates: []api.Certificate{{SHA256: "aa"}, {SHA256: "aa"}}}, Certs: append(twice, twice...)},
		{VendorStatus: api.VendorStatus{Vendor: "old", State: api.StateWarning, Signs: true, DaysLeft: 9, Next: "renew | soon", Certificates: []api.Certificate{{SHA256: "bb"}}}, Certs: cert("old", 9)},
		{VendorStatus: api.VendorStatus{Vendor: "bad", Active: true, State: api.StateCritical, Certificates: []api.Certificate{}}, Err: errors.New("key not found")},
	}
}

func TestNagiosLine(t *testing.T) {
	all := testStates()
	for _, tt := range []struct {
		states []*agent.Status
		code   int
		line   string
	}{
		{all[:1], nagiosOK, "OK: new signs (100 days left) | 'new'=100;30:;0:"},
		{all[:2], nagiosWarning, "WARNING: new signs (100 days left); old: renew / soon (9 days left) | 'new'=100;30:;0: 'old'=9;30:;0:"},
		{all, nagiosCritical, "CRITICAL: new signs (100 days left); old: renew / soon (9 days left); bad: key not found | 'new'=100;30:;0: 'old'=9;30:;0:"},
		{[]*agent.Status{all[2], all[1]}, nagiosCritical, "CRITICAL: bad: key not found; old: renew / soon (9 days left) | 'old'=9;30:;0:"},
		{all[2:], nagiosCritical, "CRITICAL: bad: key not found"},
	} {
		if line, code := nagiosLine(tt.states, 30); line != tt.line || code != tt.code {
			t.Errorf("%d %q, want %d %q", code, line, tt.code, tt.line)
		}
	}
}

// Every line is one of the text format's, no series stands twice, and each has its HELP and TYPE before it.
func TestPrometheusText(t *testing.T) {
	text := string(prometheusText(testStates(), time.Unix(1_800_000_000, 0)))
	sample := regexp.MustCompile(`^([a-z_]+)\{([a-z0-9]+="([^"\\\n]|\\["\\n])*",?)+\} -?[0-9]+$`)
	typed, seen := "", map[string]bool{}
	for _, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		if name, ok := strings.CutPrefix(line, "# TYPE "); ok {
			typed = strings.TrimSuffix(name, " gauge")
			continue
		}
		if strings.HasPrefix(line, "# HELP ") {
			continue
		}
		m := sample.FindStringSubmatch(line)
		series := line[:strings.LastIndex(line, " ")]
		if m == nil || m[1] != typed || seen[series] {
			t.Errorf("%q under %q, seen %v", line, typed, seen[series])
		}
		seen[series] = true
	}
	for _, want := range []string{
		`hsmsign_vendor_active{vendor="old"} 0`, `hsmsign_vendor_key_signs{vendor="old"} 1`, `hsmsign_vendor_usable{vendor="bad"} 0`,
		`hsmsign_vendor_certificate_not_after_seconds{vendor="new",certificate="a \"b\" \\ c\nd",sha256="aa"} 1808640000`,
		`hsmsign_vendor_checked_seconds{vendor="bad"} 1800000000`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no line %s in\n%s", want, text)
		}
	}
}
