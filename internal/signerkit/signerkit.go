// Package signerkit is what the tests of several key stores share: opening a key, checking an error, and the test of a
// network store's wiring. A helper fails the test that calls it.
package signerkit

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/kms"
)

// Policy returns a policy with short delays. A slow machine must not look like a service that is down, so its breaker
// stays closed.
func Policy() kms.Policy {
	return kms.Policy{AttemptTimeout: 2 * time.Second, Timeout: 8 * time.Second, RetryDelay: 5 * time.Millisecond, BreakerThreshold: 1000}
}

// Ref parses a reference.
func Ref(tb testing.TB, text string) signer.Ref {
	tb.Helper()
	return testkit.Value(signer.ParseRef(text))(tb)
}

// Open opens a key, with the public key of a certificate unless that is nil. The key is closed at the end of the test.
func Open(tb testing.TB, backend signer.Backend, text string, public crypto.PublicKey) (signer.Signer, error) {
	tb.Helper()
	key, err := backend.Open(context.Background(), Ref(tb, text), signer.OpenOptions{PublicKey: public})
	if err == nil {
		tb.Cleanup(func() { _ = key.Close() })
	}
	return key, err
}

// MustOpen is Open for a key that must open.
func MustOpen(tb testing.TB, backend signer.Backend, text string, public crypto.PublicKey) signer.Signer {
	tb.Helper()
	key, err := Open(tb, backend, text, public)
	if err != nil {
		tb.Fatalf("open %s: %v (%s)", text, err, fault.Hint(err))
	}
	return key
}

// Sign signs a message and verifies the signature with the key's own public key.
func Sign(tb testing.TB, key signer.Signer) error {
	tb.Helper()
	_, err := signer.Sign(tb.Context(), key, []byte("message"), crypto.SHA256)
	return err
}

// MustSign is Sign for a key that must sign.
func MustSign(tb testing.TB, key signer.Signer) {
	tb.Helper()
	if err := Sign(tb, key); err != nil {
		tb.Fatalf("sign: %v (%s)", err, fault.Hint(err))
	}
}

// WantError checks the family, the text and the hint of an error, and that it is a *signer.Error on one line.
func WantError(tb testing.TB, err, family error, text, fix string) {
	tb.Helper()
	_, ok := errors.AsType[*signer.Error](err)
	switch {
	case !errors.Is(err, family) || !ok:
		tb.Errorf("%v (%T); want a *signer.Error of %q", err, err, family)
	case !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "\n"):
		tb.Errorf("%q does not contain %q, or more than one line", err, text)
	case !strings.Contains(fault.Hint(err), fix):
		tb.Errorf("hint %q does not contain %q", fault.Hint(err), fix)
	}
}

// Refused checks the family and the texts of an error, and that the outermost error is a *signer.Error.
func Refused(tb testing.TB, err, family error, says ...string) {
	tb.Helper()
	if !errors.Is(err, family) {
		tb.Errorf("error %v; want one that wraps %q", err, family)
		return
	}
	if _, ok := err.(*signer.Error); !ok { //nolint:errorlint // the outermost error is checked
		tb.Errorf("error %v is a %T; want a *signer.Error", err, err)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			tb.Errorf("error %q does not contain %q", err, s)
		}
	}
}

// Diagnose runs a diagnosis. It returns one letter for each step (ok, warn, fail, skipped) and the steps by name, and checks
// that each is complete and that the key, which is returned if no step failed, signs.
func Diagnose(t *testing.T, backend signer.Backend, text string, public crypto.PublicKey) (letters string, steps map[string]signer.Step) {
	t.Helper()
	steps = map[string]signer.Step{}
	key := backend.Diagnose(t.Context(), Ref(t, text), signer.OpenOptions{PublicKey: public}, func(s signer.Step) {
		letters += string(s.Status[0])
		steps[s.Name] = s
		if (s.Status == signer.StatusFail) != (s.Err != nil) || (s.Status == signer.StatusSkipped) != (s.Detail == "") || s.Status == signer.StatusWarn && s.Fix == "" {
			t.Errorf("an incomplete step: %+v", s)
		}
	})
	if (key == nil) != strings.Contains(letters, "f") || len(steps) != len(letters) {
		t.Errorf("key %v after %v", key, steps)
	}
	if key != nil {
		MustSign(t, key)
		testkit.OK(t, key.Close())
	}
	return letters, steps
}

// DiagnoseClosed checks that the diagnosis of a store that refuses connections ends within 3 s.
func DiagnoseClosed(t *testing.T, backend signer.Backend, text string) {
	t.Helper()
	start := time.Now()
	letters, steps := Diagnose(t, backend, text, nil)
	if err := steps["reach"].Err; !strings.HasPrefix(letters, "oof") || !strings.Contains(fmt.Sprint(err), "connection refused") {
		t.Errorf("%s, %v", letters, err)
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("it took %v", took)
	}
}

// Double is a double of a network key store for Wiring. F is its type of faults.
type Double[F ~string] interface {
	Calls(operation string) int
	Script(operation string, faults ...F) error
	Stand(operation string, fault F) error
}

// Faults are the names of the faults that Wiring needs.
type Faults[F ~string] struct{ OK, Throttle, Internal, Hang F }

// Wiring tests that a backend uses package kms, which has its own tests, and that nothing else repeats a request.
// reference names the golden key on the double, and operation is the one that signs.
func Wiring[F ~string](t *testing.T, double Double[F], faults Faults[F], backend func(kms.Policy) signer.Backend, reference, operation string) {
	t.Helper()
	public := &testkit.GoldenKey(t).PublicKey
	quick, standard := backend(Policy()), backend(kms.Policy{})
	requests := func(want int, what string) {
		t.Helper()
		if n := double.Calls("*"); n != want {
			t.Errorf("%s: %d requests in total, want %d", what, n, want)
		}
	}
	key := MustOpen(t, quick, reference, nil)
	requests(1, "open")
	for range 3 {
		MustSign(t, key)
	}
	requests(4, "three signatures")
	key = MustOpen(t, quick, reference, public)
	requests(4, "open with the certificate's key")
	MustSign(t, key)
	requests(5, "its first signature")

	// Throttling is an ErrThrottled, or this breaker would open. Other failures open it.
	fragile := Policy()
	fragile.BreakerThreshold = 1
	key = MustOpen(t, backend(fragile), reference, public)
	testkit.OK(t, double.Script(operation, faults.Throttle, faults.Throttle, faults.OK, faults.Internal))
	MustSign(t, key)
	requests(8, "throttled twice")
	WantError(t, Sign(t, key), signer.ErrUnavailable, "no request is sent", "")
	requests(9, "breaker open")

	testkit.OK(t, double.Stand(operation, faults.Throttle))
	WantError(t, Sign(t, MustOpen(t, standard, reference+"&timeout=1s", public)), kms.ErrThrottled, "", "max-rps")
	testkit.OK(t, double.Stand(operation, faults.Hang))
	began := time.Now()
	err := Sign(t, MustOpen(t, standard, reference+"&timeout=1s", public))
	WantError(t, err, signer.ErrUnavailable, "", "")
	if took := time.Since(began); took > 3*time.Second || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("timeout=1s: %v after %v", err, took)
	}
	testkit.OK(t, double.Stand(operation, faults.OK))
	WantError(t, Sign(t, MustOpen(t, standard, reference+"&max-rps=0.01", nil)), signer.ErrUnavailable, "0.01 calls per second", "")
	WantError(t, Sign(t, MustOpen(t, quick, reference, &testkit.Key("other").PublicKey)), signer.ErrBadKey, "do not belong together", "certificate")
	_, err = Open(t, quick, reference, "no key")
	WantError(t, err, signer.ErrUnsupported, "string", "")
	for query, want := range map[string]int{"": 64, "&max-concurrent=3": 3, "&max-rps=1": 10, "&max-rps=1&timeout=10s": 5} {
		if n := standard.InFlight(Ref(t, reference+query)); n != want {
			t.Errorf("%q: %d in flight, want %d", query, n, want)
		}
	}
}

// BenchmarkSign makes one signature after the other. Its allocations include those of the double, which runs in this
// process.
func BenchmarkSign[F ~string](b *testing.B, double Double[F], key signer.Signer) {
	opened := double.Calls("*")
	b.ReportAllocs()
	for b.Loop() {
		testkit.OK(b, Sign(b, key))
	}
	b.ReportMetric(float64(double.Calls("*")-opened)/float64(b.N), "requests/op")
}

// OtherAnswer is a server that is not the store, and the error of a backend that opens a key there.
type OtherAnswer struct {
	Name   string
	Answer http.HandlerFunc
	Family error
	Text   string // in the error
}

// OtherAnswers tests that a call ends in time whatever answers, with an error of one line, and that the backend reads at
// most limit bytes. reference is that of a key on the server; its timeout is below one second.
func OtherAnswers(t *testing.T, backend signer.Backend, limit int64, reference func(*httptest.Server) string, answers ...OtherAnswer) {
	t.Helper()
	for _, a := range answers {
		t.Run(a.Name, func(t *testing.T) {
			var sent atomic.Int64
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				// When an answer begins, a client may close the body of its request, and net/http hangs up if it has not sent
				// all of it by then. No service answers as fast as this one.
				if r.ContentLength > 0 {
					_, _ = io.Copy(io.Discard, r.Body)
					time.Sleep(10 * time.Millisecond)
				}
				a.Answer(counted{w, &sent}, r)
			}))
			server.Config.Protocols = new(http.Protocols)
			server.Config.Protocols.SetHTTP1(true)
			server.Config.Protocols.SetUnencryptedHTTP2(true)
			server.Start()
			defer server.Close()
			began := time.Now()
			_, err := Open(t, backend, reference(server), nil)
			WantError(t, err, a.Family, a.Text, "")
			if errors.Is(err, kms.ErrThrottled) {
				t.Errorf("%v: the service does not throttle", err)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
			if n := sent.Load(); n > limit {
				t.Errorf("%d bytes were read", n)
			}
		})
	}
}

// Endless writes text repeatedly until the client leaves.
func Endless(w http.ResponseWriter, r *http.Request, text string, pause time.Duration) {
	for r.Context().Err() == nil {
		if _, err := io.WriteString(w, text); err != nil {
			return
		}
		_ = http.NewResponseController(w).Flush()
		time.Sleep(pause)
	}
}

// counted counts the bytes of an answer.
type counted struct {
	http.ResponseWriter
	sent *atomic.Int64
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.sent.Add(int64(n))
	return n, err
}

func (c counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }
