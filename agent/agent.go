// Package agent is the use cases of a vendor, shared by the command line and every other front end: Prepare runs every
// check of a customer's CSR that needs no key, Issue signs what was prepared, and Status reports whether the vendor can
// sign. It is the only way to a request: nothing unchecked reaches the key, and nothing unverified is released.
//
//	vendor, err := agent.NewVendor(ctx, agent.Config{Key: key, Certificates: load})
//	prepared, err := vendor.Prepare(ctx, agent.Caller{}, agent.Order{CSR: file})
//	issued, err := vendor.Issue(ctx, prepared)
//
// A ProfileSigner signs configuration profiles with a key and certificate of its own.
//
// Probe tells whether the key works now: it signs signer.ProbeMessage, at most once a minute, and a ProbeRun collects what a
// ledger records of such signatures. OtherUse refuses a vendor key for anything else.
//
// A Vendor is safe for concurrent use. Refusals of a CSR or of the vendor's chain are *fault.Finding; other errors wrap
// one of the families of package signer.
package agent

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"hsmsign/agent/policy"
	"hsmsign/fault"
	"hsmsign/ledger/record"
	"hsmsign/request"
	"hsmsign/signer"
)

// Caller is who asks for a request.
type Caller struct {
	// Name is the name of the caller as the front end knows it; empty for the person at the command line.
	Name string
	// Channel is how the order came: policy.Local for the command line.
	Channel string
	// Credential is the name of the credential that the caller identified itself with; "" if none.
	Credential string
	// Rules are what the caller may; nil: the configuration has no callers, and everything is allowed.
	Rules *policy.Caller
	// Paced says that the front end has bounded how often the caller asks. Otherwise Issue waits.
	Paced bool
}

// Order is what a caller asks for. The zero value of a field other than CSR is its default.
type Order struct {
	CSR      []byte         // the customer's CSR: PEM, DER, or the base64 of either
	Customer string         // name of the customer; repeated in the result
	Digest   crypto.Hash    // crypto.SHA256 (default), or crypto.SHA1 for vendor certificates older than 2021
	Format   request.Format // request.Base64 (default), which Apple accepts, or request.Plist, the XML inside
}

// Prepared is an order that passed every check under one vendor identity. It is redeemed by one Issue. Another process
// rebuilds it by preparing the order again with the stored DER of the CSR.
type Prepared struct {
	CSR    *request.CSR
	Order  Order // with its defaults filled in
	Caller Caller

	vendor   string // name of the identity
	identity *identity
	redeemed atomic.Bool
}

// UseBefore returns when the first certificate of the vendor's chain expires, UTC: a request is useless from then on.
func (p *Prepared) UseBefore() time.Time { return FirstExpiry(p.identity.chain.Certs).NotAfter.UTC() }

// Issued is a signed request.
type Issued struct {
	Request   []byte // the file for the customer, in the format of the order
	CSR       []byte // DER
	Signature []byte // RSASSA-PKCS1-v1_5 over the CSR; verified
	RequestID string // of the recorder; "" without one
	Stored    bool   // the request was issued before, and comes from the recorder; it was verified again
}

// Prepare checks an order against the vendor's identity: the CSR, the key of the CSR, and the dates of the vendor's
// chain. It needs no key and no network.
func (v *Vendor) Prepare(ctx context.Context, caller Caller, order Order) (*Prepared, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	id := v.identity.Load()
	if err := id.chain.CheckDates(v.cfg.Now()); err != nil {
		return nil, err
	}
	if order.Digest == 0 {
		order.Digest = crypto.SHA256
	}
	if order.Digest != crypto.SHA256 && order.Digest != crypto.SHA1 {
		return nil, fault.Errorf("%w: digest %v", signer.ErrUnsupported, order.Digest).Fix("it is SHA-256, or SHA-1")
	}
	if order.Format == "" {
		order.Format = request.Base64
	}
	if _, err := request.ParseFormat(string(order.Format)); err != nil {
		return nil, fault.Usage.Errorf("%w", err)
	}
	csr, err := request.DecodeCSR(order.CSR)
	if err != nil {
		return nil, err
	}
	if bytes.Equal(csr.Parsed.RawSubjectPublicKeyInfo, id.chain.Leaf().RawSubjectPublicKeyInfo) {
		return nil, request.VendorCSR()
	}
	return &Prepared{CSR: csr, Order: order, Caller: caller, vendor: v.cfg.Name, identity: id}, nil
}

// Issue signs what was prepared and returns the request, whose signature it has verified. A Prepared is redeemed once:
// a second call is an error, whether or not the first succeeded. The key is opened by the first Issue, and again after
// a failure. The chain must still be the one of Prepare and still be valid.
//
// With a Recorder the signature is authorized and recorded before it is made, and its outcome before it is released:
// without both records there is no request. If the caller's role says that other people must approve it first, the error is a
// *record.Waiting, of kind pending: when they have, the same order of the same caller is issued, also by another process.
func (v *Vendor) Issue(ctx context.Context, p *Prepared) (*Issued, error) {
	if p.identity != v.identity.Load() {
		return nil, fault.Conflict.Errorf("the CSR was prepared for another vendor chain").Fix("prepare it again")
	}
	if p.redeemed.Swap(true) {
		return nil, errors.New("the prepared CSR was issued already")
	}
	if err := p.identity.chain.CheckDates(v.cfg.Now()); err != nil {
		return nil, err
	}
	if rule, err := p.Allowed(); err != nil {
		if v.cfg.Recorder == nil {
			return nil, err
		}
		return nil, errors.Join(err, v.cfg.Recorder.Refuse(ctx, p.use(), rule))
	}
	if !p.Caller.Paced {
		if err := pace(ctx, &v.limiters, p.Caller.Rules); err != nil {
			return nil, err
		}
	}
	use, err := v.entitle(ctx, p)
	if err != nil {
		return nil, err
	}
	if v.cfg.Recorder == nil {
		if use.Ask != nil {
			return nil, fault.Usage.Errorf("the caller's role asks for approvals, and there is no ledger").Fix("name a ledger, which records them")
		}
		return v.issue(ctx, p)
	}
	permit, err := v.authorize(ctx, use)
	if err != nil {
		return nil, err
	}
	if permit.Stored != nil {
		if err := v.leave(ctx, permit); err != nil {
			return nil, err
		}
		return p.reissue(permit)
	}
	operation := &signer.Operation{Reason: permit.Request}
	issued, err := v.issue(signer.WithOperation(ctx, operation), p)
	outcome := outcomeOf(operation, err)
	if err == nil {
		if outcome.File = issued.Request; p.Order.Format != request.Base64 {
			outcome.File = p.identity.encoder.Encode(p.CSR.DER, issued.Signature, request.Base64)
		}
	}
	// An interruption ends the signature, not the record of it.
	concluding, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	if err := errors.Join(err, v.conclude(concluding, &permit, outcome)); err != nil {
		return nil, err
	}
	if err := v.leave(ctx, permit); err != nil {
		return nil, err
	}
	issued.RequestID = permit.Request
	return issued, nil
}

// authorize, conclude and leave ask the recorder, and report the stage.
func (v *Vendor) authorize(ctx context.Context, use record.Use) (permit record.Permit, err error) {
	err = Observe(ctx, StageAuthorize, func(ctx context.Context) (err error) {
		permit, err = v.cfg.Recorder.Authorize(ctx, use)
		return err
	})
	return permit, err
}

func (v *Vendor) conclude(ctx context.Context, permit *record.Permit, outcome record.Outcome) error {
	return Observe(ctx, StageConclude, func(ctx context.Context) error { return v.cfg.Recorder.Conclude(ctx, permit, outcome) })
}

func (v *Vendor) leave(ctx context.Context, permit record.Permit) error {
	return Observe(ctx, StageRelease, func(ctx context.Context) error { return v.cfg.Recorder.Release(ctx, permit) })
}

// Check applies every rule of Issue to what was prepared and signs and records nothing; the Prepared is not redeemed. The error
// is that of Issue. stored says that the same request was issued before.
func (v *Vendor) Check(ctx context.Context, p *Prepared) (stored bool, err error) {
	if _, err := p.Allowed(); err != nil {
		return false, err
	}
	if _, _, err := p.Entitled(ctx); err != nil {
		return false, err
	}
	if checker, ok := v.cfg.Recorder.(record.Checker); ok {
		return checker.Check(ctx, p.use())
	}
	return false, nil
}

// maxError is the length of an error of an attempt that is recorded.
const maxError = 256

// outcomeOf returns what the key store's attempts came to. The id of the last one is that of the signature, if there is one.
func outcomeOf(operation *signer.Operation, err error) record.Outcome {
	outcome := record.Outcome{Err: err}
	attempts := operation.Attempts()
	for i, a := range attempts {
		if err == nil && i == len(attempts)-1 {
			outcome.Operation = a.ID
			break
		}
		text := "the signature was not used"
		if a.Err != nil {
			text = fault.Clip(strings.ToValidUTF8(a.Err.Error(), "?"), maxError)
		}
		outcome.Attempts = append(outcome.Attempts, record.Attempt{Time: a.Time.UTC().Truncate(time.Millisecond), Operation: a.ID, Error: text})
	}
	return outcome
}

// Allowed returns nil if the caller may have the order signed. Otherwise rule is what refuses it, and the error is of kind
// forbidden. Issue checks it, too.
func (p *Prepared) Allowed() (rule string, err error) {
	if p.Caller.Rules == nil {
		return "", nil
	}
	return p.Caller.Rules.Check(policy.Order{
		Customer: p.Order.Customer, Vendor: p.vendor, Subject: p.CSR.Parsed.Subject, Channel: p.Caller.Channel, SHA1: p.Order.Digest == crypto.SHA1,
	})
}

// pace waits until the caller may ask again: its role says how often a second.
func pace(ctx context.Context, limiters *sync.Map, rules *policy.Caller) error {
	if rules == nil {
		return nil
	}
	type key struct {
		caller string
		limit  int // another policy may have another one
	}
	n := rules.Role.PerSecond
	limiter, _ := limiters.LoadOrStore(key{rules.Name, n}, rate.NewLimiter(rate.Limit(n), n))
	if err := limiter.(*rate.Limiter).Wait(ctx); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fault.Limited.Errorf("caller %s may ask for %d requests a second", rules.Name, n).Fix("ask less often")
	}
	return nil
}

// recordTimeout bounds recording an outcome.
const recordTimeout = time.Minute

// issue signs what was prepared.
func (v *Vendor) issue(ctx context.Context, p *Prepared) (*Issued, error) {
	signature, err := v.sign(ctx, p.identity, p.CSR.DER, p.Order.Digest)
	if err != nil {
		return nil, err
	}
	return &Issued{
		Request: p.identity.encoder.Encode(p.CSR.DER, signature, p.Order.Format), CSR: p.CSR.DER, Signature: signature,
	}, nil
}

// use is what the recorder is told.
func (p *Prepared) use() record.Use {
	u := record.Use{
		Customer: p.Order.Customer, Actor: p.Caller.Name, Channel: p.Caller.Channel, CSR: p.CSR.DER, SPKI: p.CSR.Parsed.RawSubjectPublicKeyInfo,
		Vendor: p.identity.chain.Leaf().Raw, Chain: p.identity.certificates, Digest: p.Order.Digest.String(),
		Credential: p.Caller.Credential, Identity: p.vendor,
	}
	if r := p.Caller.Rules; r != nil {
		u.Policy, u.MustExist, u.PerDay = r.Policy, r.Role.MustExist, r.Role.PerDay
		u.Ask = policy.Credential{Caller: r, Name: p.Caller.Credential}.Ask()
	}
	return u
}

// reissue returns the stored request of a permit in the format of the order, verified again: the recorder is not trusted.
func (p *Prepared) reissue(permit record.Permit) (*Issued, error) {
	found, err := request.Parse(permit.Stored)
	if err != nil {
		return nil, fault.Defects.Errorf("the stored request %s is not readable: %w", permit.Request, err)
	}
	file := p.identity.encoder.Encode(p.CSR.DER, found.Signature, p.Order.Format)
	if !p.Matches(file) {
		return nil, fault.Defects.Errorf("the stored request %s is not one for this CSR", permit.Request).Fix("verify the ledger")
	}
	return &Issued{Request: file, CSR: p.CSR.DER, Signature: found.Signature, RequestID: permit.Request, Stored: true}, nil
}

// Matches returns whether data is the very request that Issue would return. RSASSA-PKCS1-v1_5 is deterministic: a
// signature that verifies is the signature. A batch that was interrupted uses it to skip what it has written.
func (p *Prepared) Matches(data []byte) bool {
	found, err := request.Parse(data)
	if err != nil || !bytes.Equal(found.CSR, p.CSR.DER) {
		return false
	}
	pub, ok := p.identity.chain.Leaf().PublicKey.(*rsa.PublicKey)
	if !ok {
		return false
	}
	hash := p.Order.Digest.New()
	hash.Write(found.CSR)
	return rsa.VerifyPKCS1v15(pub, p.Order.Digest, hash.Sum(nil), found.Signature) == nil &&
		bytes.Equal(p.identity.encoder.Encode(found.CSR, found.Signature, p.Order.Format), data)
}
