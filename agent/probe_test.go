package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/ledger/record"
	"hsmsign/signer"
)

// prober is a recorder that counts probes, and fails where it is told to.
type prober struct {
	recorder
	mu     sync.Mutex
	probes []record.Probe
	err    error
}

func (p *prober) Probe(ctx context.Context, probe record.Probe) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.probes = append(p.probes, probe)
	return p.err
}

// probeVendor returns a vendor whose clock is that of the test, on a day on which the golden chain is valid.
func probeVendor(t *testing.T, cfg Config) *Vendor {
	t.Helper()
	began := time.Now()
	valid := testkit.Value(goldenCertificates(t)(t.Context()))(t).Vendor[0].NotBefore.Add(24 * time.Hour)
	cfg.Now = func() time.Time { return valid.Add(time.Since(began)) }
	return newVendor(t, cfg)
}

// One probe a minute is made and recorded; a signature in that minute replaces it, and a failure is no success.
func TestProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, key := &prober{}, golden(t)
		v := probeVendor(t, Config{Key: key, Recorder: r})
		want := func(what string, signatures int64, probes int, wanted error) {
			t.Helper()
			if err := v.Probe(t.Context()); !errors.Is(err, wanted) || key.key.Calls.Load() != signatures || len(r.probes) != probes {
				t.Errorf("%s: %v, %d signatures, %d probes", what, err, key.key.Calls.Load(), len(r.probes))
			}
		}
		if !v.LastSignature().IsZero() {
			t.Error("a signature before the first")
		}
		want("the first", 1, 1, nil)
		if p := r.probes[0]; p.Err != nil || p.Actor != "" || len(p.Vendor) == 0 || p.Began != v.LastSignature() {
			t.Errorf("%+v", p)
		}
		time.Sleep(59 * time.Second)
		want("in the minute", 1, 1, nil)
		time.Sleep(time.Second)
		want("after it", 2, 2, nil)
		time.Sleep(59 * time.Second)
		testkit.OK(t, issue(t, v))
		time.Sleep(59 * time.Second)
		want("after a signature", 3, 2, nil)

		down := fault.Unavailable.New("the HSM is down")
		key.key.Fail = func() error { return down }
		time.Sleep(time.Second)
		last := v.LastSignature()
		want("a failure", 4, 3, down)
		if r.probes[2].Err == nil || v.LastSignature() != last {
			t.Errorf("a failure is a success: %+v", r.probes[2])
		}
		key.key.Fail = nil
		time.Sleep(59 * time.Second)
		want("a failure in the minute", 4, 3, down)
		testkit.OK(t, issue(t, v))
		want("a signature after a failure", 5, 3, nil)

		r.err = fault.Unavailable.New("the ledger is down")
		time.Sleep(time.Minute)
		want("not recorded", 6, 4, r.err)
		want("not recorded, in the minute", 6, 4, r.err)
		r.err = nil
		time.Sleep(time.Minute)
		want("recorded again", 7, 5, nil)
	})
}

// Without a recorder of probes none is recorded.
func TestProbeWithoutProber(t *testing.T) {
	for _, r := range []record.Recorder{nil, &recorder{}} {
		key := golden(t)
		v := newVendor(t, Config{Key: key, Recorder: r})
		if err := v.Probe(t.Context()); err != nil || key.key.Calls.Load() != 1 {
			t.Errorf("%v, %d signatures", err, key.key.Calls.Load())
		}
	}
}

// Callers at the same time share one probe, and its failure; one that gives up does not fail the others.
func TestProbeShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, key := &prober{}, golden(t)
		key.wait = make(chan struct{})
		v := probeVendor(t, Config{Key: key, Recorder: r})
		var all sync.WaitGroup
		var failed atomic.Int64
		leaving, leave := context.WithCancel(t.Context())
		probe := func(ctx context.Context) {
			if v.Probe(ctx) != nil {
				failed.Add(1)
			}
		}
		all.Go(func() { probe(leaving) }) // makes the probe
		synctest.Wait()
		for range 20 {
			all.Go(func() { probe(t.Context()) })
		}
		synctest.Wait()
		leave()
		synctest.Wait()
		if failed.Load() != 1 || len(r.probes) != 1 || r.probes[0].Err == nil {
			t.Errorf("%d callers failed after one left, %d probes", failed.Load(), len(r.probes))
		}
		close(key.wait)
		all.Wait() // until the minute is over
		if failed.Load() != 1 || key.key.Calls.Load() != 1 || len(r.probes) != 2 {
			t.Errorf("%d callers failed, %d signatures, %d probes", failed.Load(), key.key.Calls.Load(), len(r.probes))
		}
	})
}

// The vendors of a process share one probe a minute: the second waits for its turn, as long as its context allows.
func TestProbesOfAProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		probes, began := NewProbes(), time.Now()
		one, two := golden(t), golden(t)
		first, second := probeVendor(t, Config{Key: one, Probes: probes}), probeVendor(t, Config{Key: two, Probes: probes})
		testkit.OK(t, first.Probe(t.Context()))
		short, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := second.Probe(short); fault.KindOf(err) != fault.Limited || two.key.Calls.Load() != 0 {
			t.Errorf("in the same minute: %v", err)
		}
		testkit.OK(t, second.Probe(t.Context()))
		if waited := time.Since(began); waited != time.Minute || two.key.Calls.Load() != 1 {
			t.Errorf("after %v, %d signatures", waited, two.key.Calls.Load())
		}
		time.Sleep(50 * time.Second)
		var all sync.WaitGroup
		all.Go(func() { testkit.OK(t, first.Probe(t.Context())) }) // its turn is in 10 seconds
		synctest.Wait()
		testkit.OK(t, issue(t, first))
		all.Wait()
		if one.key.Calls.Load() != 2 {
			t.Errorf("%d signatures: a signature while a probe waits replaces it", one.key.Calls.Load())
		}
	})
}

// A run has the reason of all its signatures, and a name for each request to the key store.
func TestProbeRun(t *testing.T) {
	run := NewProbeRun(time.Unix(1, 0))
	first, second := run.Context(t.Context()), run.Context(t.Context())
	signer.OperationOf(first).Attempted("a", time.Time{}, errors.New("throttled"))
	signer.OperationOf(first).Attempted("b", time.Time{}, nil)
	signer.OperationOf(second).Attempted("", time.Time{}, nil)
	reason := signer.OperationOf(second).Reason
	p := run.Record(nil)
	if !strings.HasPrefix(reason, signer.ProbeReason) || reason != signer.OperationOf(first).Reason || p.Began != time.Unix(1, 0) || strings.Join(p.Operations, " ") != "a b "+reason {
		t.Errorf("%q, %+v", reason, p)
	}
}

// A vendor's key has no other use; another key and none have.
func TestOtherUse(t *testing.T) {
	certs := testkit.Value(goldenCertificates(t)(t.Context()))(t).Vendor
	vendor := []*x509.Certificate{{}, certs[len(certs)-1], certs[0]} // the first has a key that is not known
	const use = "the service's TLS certificate"
	if err := OtherUse(use, testkit.GoldenKey(t).Public(), vendor...); fault.KindOf(err) != fault.Usage || !strings.Contains(err.Error(), use) {
		t.Errorf("the vendor's key: %v", err)
	}
	for _, key := range []any{testkit.Key("other").Public(), nil, "no key"} {
		testkit.OK(t, OtherUse(use, key, vendor...))
	}
	testkit.OK(t, OtherUse(use, testkit.GoldenKey(t).Public()))
}
