package agent

import (
	"cmp"
	"context"
	"crypto/x509"
	"slices"
	"time"

	"hsmsign/api"
	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/ledger/record"
	"hsmsign/lifecycle/vendorcert"
	"hsmsign/signer"
)

// StatusOptions say how CheckStatus reports.
type StatusOptions struct {
	Vendor   string // name of the identity; empty for the unnamed one
	Key      string // the key's reference, without secrets
	Active   bool   // the identity signs by default
	WarnDays int    // warn this many days before a certificate expires; zero: 30
}

// Status is the state of one vendor identity.
type Status struct {
	api.VendorStatus
	Err   error               // why it cannot sign requests that Apple accepts; nil if it can
	Certs []*x509.Certificate // the chain in order if it is complete, else as given
	Probe *record.Probe       // what the key was asked to sign, without who asked; nil: it was not opened
}

// CheckStatus opens the key, has it sign signer.ProbeMessage, and checks the chain as signing does. It records nothing: the
// caller does, with Status.Probe.
func CheckStatus(ctx context.Context, cfg Config, opts StatusOptions) *Status {
	cfg = cfg.withDefaults()
	opts.WarnDays = cmp.Or(opts.WarnDays, 30)
	s := &Status{VendorStatus: api.VendorStatus{
		Vendor: opts.Vendor, Active: opts.Active, Key: opts.Key, State: api.StateOK, Findings: []fault.Finding{},
	}}
	built, chainErr := s.load(ctx, cfg, opts.WarnDays)
	keyErr := cfg.prove(ctx, s, built, &chainErr)
	s.Signs = keyErr == nil
	s.Err = cmp.Or(keyErr, chainErr)
	s.Certificates = api.NewCertificates(s.Certs, cfg.Now())
	s.evaluate(cfg.Now(), opts.WarnDays)
	return s
}

// load builds the chain; a chain that is not complete leaves the certificates in the status.
func (s *Status) load(ctx context.Context, cfg Config, warnDays int) (*chain.Chain, error) {
	certs, err := cfg.Certificates(ctx)
	if err != nil {
		return nil, err
	}
	s.Certs = slices.Concat(certs.Vendor, certs.Extra)
	built, err := certs.build(cfg.Now(), warnDays)
	if err != nil {
		return nil, err
	}
	s.Certs = built.Certs
	s.Findings = append(s.Findings, built.Findings...)
	return built, nil
}

// prove opens the key and has it sign. If there is a chain, the key must match it, or chainErr is set.
func (cfg Config) prove(ctx context.Context, s *Status, built *chain.Chain, chainErr *error) (err error) {
	opening, cancel := context.WithTimeout(ctx, cfg.OpenTimeout)
	defer cancel()
	key, err := cfg.Key.Open(opening, signer.OpenOptions{})
	if err != nil {
		return err
	}
	defer func() { _ = key.Close() }()
	ctx, cancel = context.WithTimeout(ctx, cfg.SignTimeout)
	defer cancel()
	run := NewProbeRun(cfg.Now())
	ctx = run.Context(ctx)
	var vendor []byte // nil: the key is not that of the certificate
	defer func() {
		probe := run.Record(err)
		probe.Vendor, probe.SPKI, s.Probe = vendor, publicKeyInfo(key), &probe
	}()
	if built != nil {
		if *chainErr = built.MatchKey(key.Public()); *chainErr == nil {
			vendor = built.Leaf().Raw
			return vendorcert.Prove(ctx, key, built.Leaf())
		}
	}
	return signer.Probe(ctx, key)
}

// evaluate sets the state, the first expiry, and what to do next.
func (s *Status) evaluate(now time.Time, warnDays int) {
	s.Next = "nothing to do"
	if len(s.Certs) > 0 {
		first := FirstExpiry(s.Certs)
		s.DaysLeft, s.Expires = api.NewCertificate(first, now).DaysLeft, first.NotAfter.UTC().Format(time.RFC3339)
		s.Next += " until " + first.NotAfter.AddDate(0, 0, -warnDays).UTC().Format(time.DateOnly)
	}
	for _, f := range s.Findings {
		if f.Severity == fault.SeverityWarning {
			s.State, s.Next = api.StateWarning, f.Message+"; "+f.Fix
		}
	}
	if s.Err == nil {
		return
	}
	s.State, s.Error = api.StateCritical, api.NewError(s.Err)
	s.Next = cmp.Or(fault.Hint(s.Err), "run hsmsign doctor, which says more")
	if !s.Active {
		s.State = api.StateWarning
		s.Next += "; or remove it from the configuration if it is no longer used"
	}
}

// FirstExpiry returns the certificate that expires first, of at least one.
func FirstExpiry(certs []*x509.Certificate) *x509.Certificate {
	return chain.FirstExpiry(certs)
}

// ErrNoCertificate means that a vendor identity has a key and no certificate yet. Config.Certificates may return it.
var ErrNoCertificate = fault.WithHint(fault.Vendor.New("it has no certificate yet"),
	"make its CSR with hsmsign vendor csr, and import Apple's certificate with hsmsign vendor import")
