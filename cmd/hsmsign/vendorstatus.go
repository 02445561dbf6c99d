package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/lifecycle/vendorcert"
	"hsmsign/signer"
)

func (p *program) vendorStatusCommand() *cli.Command {
	return &cli.Command{
		Name: "status", Usage: "say whether the vendor key signs, how long each certificate lasts, and what to do next",
		Description: "Every vendor identity of the configuration is looked at; the active one, or that of --vendor, decides the exit code,\n" +
			"and what is wrong with another one is a warning. --nagios has Nagios' exit codes: 0 OK, 1 WARNING, 2 CRITICAL,\n" +
			"3 UNKNOWN. The file of --prometheus is for the textfile collector of node_exporter.\n\n" +
			"  hsmsign vendor status --key file:vendor.key --cert vendor.pem\n" +
			"  hsmsign vendor status --nagios --warn 45\n" +
			"  hsmsign vendor status --prometheus /var/lib/node_exporter/hsmsign.prom",
		Flags: append([]cli.Flag{
			keyFlag(),
			stringFlag("warn", "warn when a certificate has fewer than `DAYS` left (default: 30)"),
			boolFlag("nagios", "print one line with performance data, and exit as Nagios' plugins do"),
			stringFlag("prometheus", "write metrics to `FILE`"),
			jsonFlag(),
		}, identityFlags()...),
		Action: p.vendorStatus,
	}
}

// The states of a vendor identity.
const (
	stateOK       = "ok"
	stateWarning  = "warning"  // works, and something is to be done
	stateCritical = "critical" // cannot sign requests that Apple takes
)

// vendorState is what vendor status --json prints for one vendor identity.
type vendorState struct {
	Vendor       string          `json:"vendor"` // "" for the unnamed one
	Active       bool            `json:"active"` // its state decides the exit code
	State        string          `json:"state"`
	Key          string          `json:"key"`
	Signs        bool            `json:"signs"` // the key was opened and made a signature
	Certificates []certInfo      `json:"certificates"`
	DaysLeft     int             `json:"days_left"`         // of the certificate that expires first
	Expires      string          `json:"expires,omitempty"` // its not_after
	Findings     []fault.Finding `json:"findings"`
	Next         string          `json:"next"` // what to do
	Error        *jsonError      `json:"error,omitempty"`

	err   error
	certs []*x509.Certificate
}

// name is how lines call it.
func (v *vendorState) name() string { return orDefault(v.Vendor, "vendor") }

// statusJob is one run of vendor status.
type statusJob struct {
	p            *program
	warn         int
	nagios, json bool
	prometheus   string
	now          time.Time
}

func (p *program) vendorStatus(ctx *cli.Context) error {
	job := &statusJob{p: p, now: time.Now()}
	// The exit code belongs to Nagios from the first moment.
	var err error
	if job.nagios, err = p.bareSettings(ctx).boolean("nagios"); err == nil {
		err = job.run(ctx)
	}
	if err == nil || !job.nagios || isSilent(err) {
		return err
	}
	p.ui.print("UNKNOWN: %s", nagiosText(describeError(err)))
	return exitStatus(nagiosUnknown)
}

func (job *statusJob) run(ctx *cli.Context) error {
	s, err := job.p.startNone(ctx)
	if err != nil {
		return err
	}
	if job.json, err = s.boolean("json"); err != nil {
		return err
	}
	if job.json && job.nagios {
		return usage("leave one out", "--json and --nagios together")
	}
	if job.warn, err = s.number("warn", 30, 1, 3650); err != nil {
		return err
	}
	job.prometheus, _ = s.str("prometheus")
	var states []*vendorState
	for _, one := range job.identities(s) {
		v, err := job.look(ctx.Context, one)
		if err != nil {
			return err
		}
		states = append(states, v)
	}
	return job.report(states)
}

// identities are the settings of each identity to look at, the active one first: that of the flags, that of --vendor,
// or all of the configuration.
func (job *statusJob) identities(s *settings) []*settings {
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

// look opens the key of one identity, signs with it, and checks its chain. The error is one of usage.
func (job *statusJob) look(ctx context.Context, s *settings) (*vendorState, error) {
	active, _ := s.str("vendor")
	v := &vendorState{Vendor: s.vendor, Active: active == "" || active == s.vendor, Certificates: []certInfo{}, Findings: []fault.Finding{}}
	reference, from := s.str("key")
	if reference == "" {
		return nil, s.missing("key", "vendor key")
	}
	ref, err := signer.ParseRef(reference)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	v.Key = ref.String()
	if cert, _ := s.str("cert"); cert == "" && v.Active {
		return nil, s.missing("cert", "vendor certificate")
	}
	key, keyErr := job.p.openKey(ctx, reference, nil)
	if keyErr == nil {
		defer func() { _ = key.Close() }()
	}
	c, chainErr := job.chain(ctx, s, v)
	if keyErr == nil {
		ctx, cancel := context.WithTimeout(ctx, signTimeout)
		defer cancel()
		if chainErr == nil {
			chainErr = c.MatchKey(key.Public())
		}
		if chainErr == nil {
			keyErr = vendorcert.Prove(ctx, key, c.Leaf())
		} else {
			keyErr = signOnce(ctx, key, []byte("hsmsign vendor status"))
		}
	}
	v.Signs = keyErr == nil
	if keyErr == nil {
		keyErr = chainErr
	}
	job.judge(v, keyErr)
	return v, nil
}

// chain reads and checks the certificates of one identity, as sign does.
func (job *statusJob) chain(ctx context.Context, s *settings, v *vendorState) (*chain.Chain, error) {
	name, _ := s.str("cert")
	if name == "" {
		return nil, fault.Vendor.Errorf("it has no certificate yet").Fix("make its CSR with hsmsign vendor csr, and import Apple's certificate with hsmsign vendor import")
	}
	files, _ := s.list("chain")
	cert, err := job.p.readCerts(ctx, name)
	if err != nil {
		return nil, err
	}
	extra, err := job.p.readCerts(ctx, files...)
	if err != nil {
		return nil, err
	}
	roots, err := job.p.trustRoots(ctx, s)
	if err != nil {
		return nil, err
	}
	v.certs = slices.Concat(cert, extra)
	c, err := chain.Build(cert, extra, chain.Options{TrustRoots: roots, Now: job.now, WarnDays: job.warn})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", certName(name), err)
	}
	v.certs = c.Certs
	v.Findings = append(v.Findings, c.Findings...)
	return c, nil
}

// judge says how it stands and what is to be done.
func (job *statusJob) judge(v *vendorState, err error) {
	v.Certificates = describeChain(v.certs, job.now)
	v.State, v.Next = stateOK, "nothing to do"
	if len(v.certs) > 0 {
		soonest := soonestExpiry(v.certs)
		v.DaysLeft, v.Expires = describeCert(soonest, job.now).DaysLeft, soonest.NotAfter.UTC().Format(time.RFC3339)
		v.Next += " until " + soonest.NotAfter.AddDate(0, 0, -job.warn).UTC().Format(time.DateOnly)
	}
	for _, f := range v.Findings {
		if f.Severity == fault.SeverityWarning {
			v.State, v.Next = stateWarning, f.Message+"; "+f.Fix
		}
	}
	if err == nil {
		return
	}
	v.State, v.err, v.Error, v.Next = stateCritical, err, newJSONError(err), orDefault(fault.Hint(err), "run hsmsign doctor, which says more")
	if !v.Active {
		v.State = stateWarning
		v.Next += "; or take it out of the configuration if it has had its time"
	}
}

// soonestExpiry is the certificate that expires first.
func soonestExpiry(certs []*x509.Certificate) *x509.Certificate {
	return slices.MinFunc(certs, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
}

// report prints what was seen. The error is that of the first identity whose state decides.
func (job *statusJob) report(states []*vendorState) error {
	if job.prometheus != "" {
		if err := writeFile(job.prometheus, prometheusText(states, job.now), requestMode, true); err != nil {
			return err
		}
	}
	if job.nagios {
		line, code := nagiosLine(states, job.warn)
		job.p.ui.print("%s", line)
		if code == nagiosOK {
			return nil
		}
		return exitStatus(code)
	}
	var failed error
	for _, v := range states {
		if v.State == stateCritical && failed == nil {
			failed = exitStatus(exitCode(v.err))
		}
		if job.json {
			job.p.ui.json(v)
		} else {
			job.p.ui.printVendor(v, len(states) > 1)
		}
	}
	return failed
}

// printVendor shows one identity.
func (u *ui) printVendor(v *vendorState, several bool) {
	title := v.name()
	if several && v.Active && v.Vendor != "" {
		title += " (active)"
	}
	u.print("%s: %s", title, v.State)
	signs := "signs"
	if !v.Signs {
		signs = "DOES NOT SIGN"
	}
	u.field("key", v.Key+": "+signs)
	for _, c := range v.Certificates {
		left := fmt.Sprintf("%d days left", c.DaysLeft)
		if c.DaysLeft < 0 {
			left = "EXPIRED"
		}
		u.field("certificate", fmt.Sprintf("%s, until %s: %s", c.Subject, c.NotAfter[:len(time.DateOnly)], left))
	}
	if len(v.certs) > 0 {
		u.field("soonest", fmt.Sprintf("%s, %d days", v.Expires[:len(time.DateOnly)], v.DaysLeft))
	}
	if v.err != nil {
		u.field("wrong", v.err.Error())
	}
	u.field("next", v.Next)
}
