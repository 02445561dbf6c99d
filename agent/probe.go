package agent

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"golang.org/x/time/rate"

	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/ledger/record"
	"hsmsign/signer"
)

// probeInterval is how old a signature may be that shows that a key works, and the least time between two probes.
const probeInterval = time.Minute

// NewProbes returns a value for Config.Probes: it allows one probe a minute.
func NewProbes() *rate.Limiter { return rate.NewLimiter(rate.Every(probeInterval), 1) }

// probing is one run of Probe. Callers that wait for it share its result.
type probing struct {
	done      chan struct{} // closed at the end
	err       error         // readable after done
	abandoned bool          // the caller that made the probe gave up, so its failure says nothing; as err
}

// probed is the result of the last probe that was not abandoned.
type probed struct {
	at  time.Time // zero: there was none
	err error
}

// forgetSignatures forgets what is known of a key that Reload has replaced.
func (v *Vendor) forgetSignatures() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.signed.Store(nil)
	v.probed = probed{}
}

// LastSignature returns when a signature of this vendor succeeded last, a probe included; zero: never.
func (v *Vendor) LastSignature() time.Time {
	if at := v.signed.Load(); at != nil {
		return *at
	}
	return time.Time{}
}

// Probe returns nil if the key works: it made a verified signature less than a minute ago, or it signs signer.ProbeMessage
// now. The key is opened if it is not open. A recorder that is a record.Prober records the probe, and the error of that is
// the error of Probe: the vendor could not issue a request either.
//
// At most one probe a minute is made: a call in the minute after one that failed returns the same error, unless the key has
// signed since. With a shared Config.Probes the call waits until the minute after another vendor's probe is over; the error
// is of kind limited if ctx ends before. Calls at the same time share one probe.
func (v *Vendor) Probe(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		v.mu.Lock()
		if known, err := v.recent(); known {
			v.mu.Unlock()
			return err
		}
		run := v.probing
		if run == nil {
			run = &probing{done: make(chan struct{})}
			v.probing = run
			v.mu.Unlock()
			return v.probe(ctx, run)
		}
		v.mu.Unlock()
		select {
		case <-run.done:
		case <-ctx.Done():
			return fmt.Errorf("%w: another caller is probing the key: %w", signer.ErrUnavailable, ctx.Err())
		}
		if !run.abandoned {
			return run.err
		}
	}
}

// recent returns whether the last minute says if the key works, and why not. The caller holds v.mu.
func (v *Vendor) recent() (known bool, err error) {
	signed, now := v.LastSignature(), v.cfg.Now()
	if v.probed.err != nil && !v.probed.at.Before(signed) {
		return now.Sub(v.probed.at) < probeInterval, v.probed.err
	}
	return !signed.IsZero() && now.Sub(signed) < probeInterval, nil
}

// probe makes a probe when it may be made, and tells those who wait for it how it ended.
func (v *Vendor) probe(ctx context.Context, run *probing) error {
	signed, err := v.awaitProbe(ctx)
	refused := err != nil
	if !refused && !signed {
		err = v.recordedProbe(ctx)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.probing = nil
	run.err, run.abandoned = err, refused || ctx.Err() != nil
	if !run.abandoned {
		v.probed = probed{v.cfg.Now(), err}
	}
	close(run.done)
	return err
}

// awaitProbe waits until a probe may be made. It returns whether the key has signed meanwhile, so that none is needed.
func (v *Vendor) awaitProbe(ctx context.Context) (signed bool, err error) {
	now := v.cfg.Now()
	turn := v.cfg.Probes.ReserveN(now, 1)
	wait := turn.DelayFrom(now)
	if wait == 0 {
		return false, nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		v.mu.Lock()
		defer v.mu.Unlock()
		known, err := v.recent()
		return known && err == nil, nil
	case <-ctx.Done():
		turn.CancelAt(v.cfg.Now())
		return false, fault.Limited.Errorf("the last probe was less than a minute ago: %w", ctx.Err()).Fix("wait a minute")
	}
}

// recordedProbe makes one probe and records it.
func (v *Vendor) recordedProbe(ctx context.Context) error {
	id := v.identity.Load()
	run := NewProbeRun(v.cfg.Now())
	_, err := v.sign(run.Context(ctx), id, []byte(signer.ProbeMessage), crypto.SHA256)
	prober, ok := v.cfg.Recorder.(record.Prober)
	if !ok {
		return err
	}
	probe := run.Record(err)
	probe.Vendor = id.chain.Leaf().Raw
	// An interruption ends the signature, not the record of it.
	recording, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	return errors.Join(err, prober.Probe(recording, probe))
}

// ProbeRun is one run of a program that probes a key, with one or more signatures. Not safe for concurrent use.
type ProbeRun struct {
	began      time.Time
	reason     string
	operations []*signer.Operation
}

// NewProbeRun returns a run that begins at a time.
func NewProbeRun(began time.Time) *ProbeRun {
	return &ProbeRun{began: began, reason: signer.ProbeReason + record.NewID().String()}
}

// Context returns the context for one signature. The key store reports its requests to the run, and gets a random reason for
// its log.
func (r *ProbeRun) Context(ctx context.Context) context.Context {
	operation := &signer.Operation{Reason: r.reason}
	r.operations = append(r.operations, operation)
	return signer.WithOperation(ctx, operation)
}

// Record returns what a ledger records of the run, which ended with err, without the vendor, the key and who asked.
func (r *ProbeRun) Record(err error) record.Probe {
	probe := record.Probe{Began: r.began, Err: err}
	for _, operation := range r.operations {
		probe.Operations = append(probe.Operations, operation.Names()...)
	}
	return probe
}

// publicKeyInfo returns the DER of a key's SubjectPublicKeyInfo; nil if it has none.
func publicKeyInfo(key signer.Signer) []byte {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil
	}
	return der
}

// OtherUse returns an error, of kind usage, if a key is that of one of the vendor certificates. A vendor key signs customers'
// CSRs, the vendor's own CSR and signer.ProbeMessage, and nothing else: whoever can have it sign a text of another use, as a
// TLS handshake, could have it sign a CSR that nobody checked. use names the other use: "the service's TLS certificate".
func OtherUse(use string, key crypto.PublicKey, vendors ...*x509.Certificate) error {
	sum := chain.SPKISHA256(key)
	for _, cert := range vendors {
		if sum != "" && sum == chain.SPKISHA256(cert.PublicKey) {
			return fault.Usage.Errorf("%s: the key is that of the vendor certificate %q, and a vendor key signs requests only", use, cert.Subject.CommonName).
				Fix("generate a separate key")
		}
	}
	return nil
}
