package agent

import (
	"cmp"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger/record"
	"hsmsign/lifecycle/profile"
	"hsmsign/signer"
)

// ProfileConfig says where an identity is that signs configuration profiles. Key and Certificates are required.
type ProfileConfig struct {
	// Name is the name of the identity in the configuration; empty: there is only one.
	Name string
	// Key opens the key, as keystore.Key does.
	Key interface {
		Open(ctx context.Context, opts signer.OpenOptions) (signer.Signer, error)
	}
	// Certificates loads the certificate, which is the first, and those of its issuers.
	Certificates func(ctx context.Context) ([]*x509.Certificate, error)
	// Vendors are the certificates of all vendor identities, whose keys sign requests only.
	Vendors []*x509.Certificate
	// Recorder records each signature before it is made and before it is released; nil: nothing is recorded.
	Recorder record.ProfileRecorder
	// OpenTimeout and SignTimeout are as in Config.
	OpenTimeout, SignTimeout time.Duration
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// ProfileSigner signs configuration profiles, and nothing else. Its key is opened by the first signature. Close releases it.
// Safe for concurrent use.
type ProfileSigner struct {
	cfg      ProfileConfig
	chain    []*x509.Certificate
	limiters sync.Map // the *rate.Limiter of each caller

	turn   chan struct{} // has one element while the key is opened, used for the first time, or closed
	key    signer.Signer // nil: not open. The holder of the turn may change it
	closed bool          // likewise
}

// NewProfileSigner loads the certificates. It does not open the key. The error is of kind usage if the key is that of a vendor
// certificate, and of kind vendor if the certificate cannot sign profiles now.
func NewProfileSigner(ctx context.Context, cfg ProfileConfig) (*ProfileSigner, error) {
	cfg.OpenTimeout, cfg.SignTimeout = cmp.Or(cfg.OpenTimeout, 2*time.Minute), cmp.Or(cfg.SignTimeout, time.Minute)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	certs, err := cfg.Certificates(ctx)
	if err != nil {
		return nil, err
	}
	if len(certs) == 0 {
		return nil, fault.Errorf("%w: no certificate was loaded", profile.ErrIdentity)
	}
	if err := OtherUse("the profile certificate", certs[0].PublicKey, cfg.Vendors...); err != nil {
		return nil, err
	}
	s := &ProfileSigner{cfg: cfg, turn: make(chan struct{}, 1)}
	s.chain, err = profile.NewChain(certs[0], certs[1:], cfg.Now())
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Chain returns the certificates that are included in each signature, the signer's first.
func (s *ProfileSigner) Chain() []*x509.Certificate { return s.chain }

// ProfileOrder asks for the signature of a profile.
type ProfileOrder struct {
	Profile  []byte // XML property list, for profile.Parse
	Customer string // name of the customer whose profile it is; "": nobody's
}

// SignedProfile is a signed profile.
type SignedProfile struct {
	File      []byte // DER CMS SignedData with the profile inside; verified
	Profile   *profile.Profile
	RequestID string // of the recorder; "" without one
}

// Sign signs a profile that passes every check of package profile. With a Recorder the signature is authorized and recorded
// before it is made, and its outcome before it is released. Errors are a *fault.Finding about the profile, of kind forbidden or
// limited, or those of the key and the recorder.
func (s *ProfileSigner) Sign(ctx context.Context, caller Caller, order ProfileOrder) (*SignedProfile, error) {
	p, err := profile.Parse(order.Profile)
	if err != nil {
		return nil, err
	}
	if err := profile.CheckDates(s.chain, s.cfg.Now()); err != nil {
		return nil, err
	}
	use := s.use(caller, order, p)
	if caller.Rules != nil {
		if rule, err := caller.Rules.CheckProfile(order.Customer); err != nil {
			if s.cfg.Recorder != nil {
				err = errors.Join(err, s.cfg.Recorder.RefuseProfile(ctx, use, rule))
			}
			return nil, err
		}
		if !caller.Paced {
			if err := pace(ctx, &s.limiters, caller.Rules); err != nil {
				return nil, err
			}
		}
	}
	if s.cfg.Recorder == nil {
		file, err := s.sign(ctx, p)
		return &SignedProfile{File: file, Profile: p}, err
	}
	permit, err := s.cfg.Recorder.AuthorizeProfile(ctx, use)
	if err != nil {
		return nil, err
	}
	operation := &signer.Operation{Reason: permit.Request}
	file, err := s.sign(signer.WithOperation(ctx, operation), p)
	outcome := outcomeOf(operation, err)
	outcome.File = file
	// An interruption ends the signature, not the record of it.
	concluding, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	if err := errors.Join(err, s.cfg.Recorder.ConcludeProfile(concluding, permit, outcome)); err != nil {
		return nil, err
	}
	return &SignedProfile{File: file, Profile: p, RequestID: permit.Request}, nil
}

// ProfileIdentity returns the name under which the ledger knows an identity that signs profiles, as the name of a vendor identity: no
// vendor identity has a slash in its name.
func ProfileIdentity(name string) string { return "profiles/" + name }

// use is what the recorder is told.
func (s *ProfileSigner) use(caller Caller, order ProfileOrder, p *profile.Profile) record.ProfileUse {
	u := record.ProfileUse{
		Customer: order.Customer, Actor: caller.Name, Channel: caller.Channel, Credential: caller.Credential, Identity: ProfileIdentity(s.cfg.Name),
		Profile: record.Profile{Identifier: p.Identifier, UUID: p.UUID}, Content: p.XML, Certificate: s.chain[0].Raw,
	}
	if r := caller.Rules; r != nil {
		u.Policy, u.PerDay = r.Policy, r.Role.PerDay
	}
	return u
}

// sign makes one signature. A key that is lost is opened again by the next.
func (s *ProfileSigner) sign(ctx context.Context, p *profile.Profile) ([]byte, error) {
	key, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.SignTimeout)
	defer cancel()
	file, err := profile.Sign(ctx, key, s.chain, p, s.cfg.Now())
	if lost(err) {
		s.turn <- struct{}{} // whoever has it gives it back within OpenTimeout
		if s.key == key {
			s.key = nil
			_ = key.Close() // it is given up; nobody could use the error
		}
		<-s.turn
	}
	return file, err
}

// open returns the open key, which is that of the certificate.
func (s *ProfileSigner) open(ctx context.Context) (signer.Signer, error) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: another caller is opening the key: %w", signer.ErrUnavailable, ctx.Err())
	}
	switch {
	case s.closed:
		return nil, fmt.Errorf("%w: the profile signer was closed", signer.ErrClosed)
	case s.key != nil:
		return s.key, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.OpenTimeout)
	defer cancel()
	key, err := s.cfg.Key.Open(ctx, signer.OpenOptions{PublicKey: s.chain[0].PublicKey})
	if err != nil {
		return nil, err
	}
	if pub, ok := s.chain[0].PublicKey.(*rsa.PublicKey); !ok || !pub.Equal(key.Public()) {
		return nil, errors.Join(fault.Vendor.Errorf("the key is not that of the profile certificate %q", s.chain[0].Subject.CommonName).
			Fix("name the key with which the certificate was requested"), key.Close())
	}
	s.key = key
	return key, nil
}

// Close closes the key. Signatures in flight end first; no key is opened after it.
func (s *ProfileSigner) Close() {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	s.closed = true
	if s.key != nil {
		_ = s.key.Close() // nobody could use the error
		s.key = nil
	}
}
