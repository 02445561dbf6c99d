package gcpkms

import (
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/gcpkms/gcpkmstest"
	remote "hsmsign/signer/kms"
)

func sign(ctx context.Context, key signer.Signer, message string) error {
	_, err := signer.Sign(ctx, key, []byte(message), crypto.SHA256)
	return err
}

// What passes is retried, and costs one call a fault.
func TestFaultsThatPass(t *testing.T) {
	for _, script := range [][]gcpkmstest.Fault{
		{gcpkmstest.Throttle, gcpkmstest.Throttle, gcpkmstest.Throttle},
		{gcpkmstest.Unavailable}, {gcpkmstest.Internal}, {gcpkmstest.Reset},
		{gcpkmstest.Delay(600 * time.Millisecond)}, // past the attempt's deadline
		{gcpkmstest.CorruptSignatureCRC}, {gcpkmstest.NoSignatureCRC}, {gcpkmstest.CorruptDigestFlag}, {gcpkmstest.WrongName}, {gcpkmstest.CorruptDigest},
		{gcpkmstest.CorruptSignatureCRC, gcpkmstest.WrongName},
	} {
		t.Run(fmt.Sprint(script), func(t *testing.T) {
			server := double(t, gcpkmstest.Config{})
			key := open(t, Options{Policy: brisk()}, at(server, vendorOne))
			server.Script(gcpkmstest.AsymmetricSign, script...)
			if err := sign(t.Context(), key, "message"); err != nil {
				t.Fatal(err)
			}
			if n := server.Calls(gcpkmstest.AsymmetricSign); n != len(script)+1 {
				t.Errorf("%d calls, want %d", n, len(script)+1)
			}
		})
	}
}

// What does not pass is refused after as many calls as make sense.
func TestFaultsThatStay(t *testing.T) {
	for _, c := range []struct {
		op     gcpkmstest.Operation
		fault  gcpkmstest.Fault
		family error
		calls  int // 0: as many as there is time for, but more than one
		hint   string
	}{
		{gcpkmstest.AsymmetricSign, gcpkmstest.CorruptSignatureCRC, signer.ErrBadSignature, 3, ""},
		{gcpkmstest.AsymmetricSign, gcpkmstest.NoSignatureCRC, signer.ErrBadSignature, 3, ""},
		{gcpkmstest.AsymmetricSign, gcpkmstest.CorruptDigestFlag, signer.ErrBadSignature, 3, ""},
		{gcpkmstest.AsymmetricSign, gcpkmstest.CorruptDigest, signer.ErrBadSignature, 3, ""},
		{gcpkmstest.AsymmetricSign, gcpkmstest.WrongName, signer.ErrBadSignature, 3, ""},
		{gcpkmstest.AsymmetricSign, gcpkmstest.PermissionDenied, signer.ErrAuth, 1, "roles/cloudkms.signer"},
		{gcpkmstest.AsymmetricSign, gcpkmstest.ServiceDisabled, signer.ErrAuth, 1, "gcloud services enable"},
		{gcpkmstest.AsymmetricSign, gcpkmstest.Unauthenticated, signer.ErrAuth, 1, "credentials"},
		{gcpkmstest.AsymmetricSign, gcpkmstest.Disabled, signer.ErrBadKey, 1, "versions enable"},
		{gcpkmstest.AsymmetricSign, gcpkmstest.Throttle, signer.ErrUnavailable, 0, "max-rps"},
		{gcpkmstest.AsymmetricSign, gcpkmstest.Internal, signer.ErrUnavailable, 0, ""},
		{gcpkmstest.AsymmetricSign, gcpkmstest.Delay(time.Minute), signer.ErrUnavailable, 0, ""},
		{gcpkmstest.GetPublicKey, gcpkmstest.CorruptPEMCRC, signer.ErrBadKey, 3, ""},
		{gcpkmstest.GetPublicKey, gcpkmstest.NoPEMCRC, signer.ErrBadKey, 3, ""},
		{gcpkmstest.GetPublicKey, gcpkmstest.WrongName, signer.ErrBadKey, 3, ""},
		{gcpkmstest.GetPublicKey, gcpkmstest.PermissionDenied, signer.ErrAuth, 1, "roles/cloudkms.publicKeyViewer"},
		{gcpkmstest.GetPublicKey, gcpkmstest.Unavailable, signer.ErrUnavailable, 0, ""},
	} {
		t.Run(string(c.op)+" "+string(c.fault), func(t *testing.T) {
			server := double(t, gcpkmstest.Config{})
			server.Standing(c.op, c.fault)
			policy := brisk()
			policy.Total = time.Second
			start := time.Now()
			key, err := Backend(Options{Policy: policy}).Open(t.Context(), reference(t, at(server, vendorOne)), signer.OpenOptions{})
			if err == nil {
				defer func() { _ = key.Close() }()
				err = sign(t.Context(), key, "message")
			}
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("it took %v with one second in all", took)
			}
			wants(t, err, c.family, c.hint != "")
			if !strings.Contains(fault.Hint(err), c.hint) {
				t.Errorf("fix is %q, want %q in it", fault.Hint(err), c.hint)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
			if n := server.Calls(c.op); n != c.calls && c.calls > 0 || n < 2 && c.calls == 0 {
				t.Errorf("%d calls, want %d", n, c.calls)
			}
		})
	}
}

// The permission that is missing stands in the error even where the text of the status does not name it.
func TestPermissionIsNamed(t *testing.T) {
	server := double(t, gcpkmstest.Config{})
	server.Standing(gcpkmstest.AsymmetricSign, gcpkmstest.PermissionDenied)
	err := sign(t.Context(), open(t, Options{}, at(server, vendorOne)), "message")
	if err == nil || !strings.Contains(err.Error(), "cloudkms.cryptoKeyVersions.useToSign") {
		t.Errorf("%v", err)
	}
}

// A signature that is wrong under a checksum that fits is caught by signer.Sign.
func TestCorruptSignature(t *testing.T) {
	server := double(t, gcpkmstest.Config{})
	key := open(t, Options{}, at(server, vendorOne))
	server.Script(gcpkmstest.AsymmetricSign, gcpkmstest.CorruptSignature)
	if err := sign(t.Context(), key, "message"); !errors.Is(err, signer.ErrBadSignature) {
		t.Errorf("got %v", err)
	}
}

// A token that expires in mid batch fails what comes after it, at once and without a retry.
func TestTokenExpiresInMidBatch(t *testing.T) {
	server := double(t, gcpkmstest.Config{})
	key := open(t, Options{}, at(server, vendorOne))
	server.Script(gcpkmstest.AsymmetricSign, gcpkmstest.OK, gcpkmstest.OK, gcpkmstest.OK)
	server.Standing(gcpkmstest.AsymmetricSign, gcpkmstest.Unauthenticated)
	for i := range 6 {
		err := sign(t.Context(), key, fmt.Sprint(i))
		if i < 3 && err != nil {
			t.Fatal(err)
		}
		if i >= 3 {
			wants(t, err, signer.ErrAuth, true)
		}
	}
	if n := server.Calls(gcpkmstest.AsymmetricSign); n != 6 {
		t.Errorf("%d calls for 6 signatures", n)
	}
}

// A key that is disabled in mid batch is refused without a retry, and signs again once it is enabled.
func TestDisabledInMidBatch(t *testing.T) {
	server := double(t, gcpkmstest.Config{})
	key := open(t, Options{}, at(server, vendorOne))
	for i, state := range []kmspb.CryptoKeyVersion_CryptoKeyVersionState{kmspb.CryptoKeyVersion_ENABLED, kmspb.CryptoKeyVersion_DISABLED, kmspb.CryptoKeyVersion_ENABLED} {
		if err := server.SetState(vendorOne, state); err != nil {
			t.Fatal(err)
		}
		err := sign(t.Context(), key, "message")
		if i == 1 {
			wants(t, err, signer.ErrBadKey, true)
		} else if err != nil {
			t.Error(err)
		}
	}
}

// batch makes n signatures with 64 in flight. Whatever comes out without an error has been verified.
func batch(t *testing.T, key signer.Signer, n int) (failed int, first error) {
	t.Helper()
	var next, bad atomic.Int64
	var once sync.Once
	var workers sync.WaitGroup
	for range 64 {
		workers.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				if err := sign(t.Context(), key, fmt.Sprint(i)); err != nil {
					bad.Add(1)
					once.Do(func() { first = err })
					if !errors.Is(err, signer.ErrUnavailable) {
						t.Errorf("signature %d: %v", i, err)
					}
				}
			}
		})
	}
	workers.Wait()
	return int(bad.Load()), first
}

// Throttled for a while, a batch waits and loses nothing.
func TestThrottledBatch(t *testing.T) {
	server := double(t, gcpkmstest.Config{})
	policy := brisk()
	policy.Attempt, policy.Total = 10*time.Second, 30*time.Second
	key := open(t, Options{Policy: policy}, at(server, vendorOne))
	server.Standing(gcpkmstest.AsymmetricSign, gcpkmstest.Throttle)
	time.AfterFunc(300*time.Millisecond, func() { server.Standing(gcpkmstest.AsymmetricSign, gcpkmstest.OK) })
	if failed, err := batch(t, key, 200); failed > 0 {
		t.Errorf("%d of 200 failed: %v", failed, err)
	}
}

// The connection breaks again and again under 1,000 signatures: none is wrong, and none is lost.
func TestResetsUnderLoad(t *testing.T) {
	server := double(t, gcpkmstest.Config{Delay: time.Millisecond})
	policy := brisk()
	policy.Attempt, policy.Total = 10*time.Second, 30*time.Second // a slow machine is not what this is about
	key := open(t, Options{Policy: policy}, at(server, vendorOne))
	for range 5 {
		for range 150 {
			server.Script(gcpkmstest.AsymmetricSign, gcpkmstest.OK)
		}
		server.Script(gcpkmstest.AsymmetricSign, gcpkmstest.Reset)
	}
	if failed, err := batch(t, key, 1000); failed > 0 {
		t.Errorf("%d of 1000 failed: %v", failed, err)
	}
	if n := server.Calls(gcpkmstest.AsymmetricSign); n < 1006 {
		t.Errorf("%d calls: the connection was never reset", n)
	}
}

// The reference's max-concurrent and max-rps are kept, also by the calls that a broken connection has cut off and that
// are made again.
func TestLimits(t *testing.T) {
	const delay, perSecond = 100 * time.Millisecond, 100
	server := double(t, gcpkmstest.Config{Delay: delay})
	opts := Options{PublicKey: &vendorKey(t).PublicKey, Policy: brisk()}
	opts.Policy.Attempt, opts.Policy.Total = 10*time.Second, 30*time.Second
	start := time.Now()
	if failed, err := batch(t, open(t, opts, at(server, vendorOne)+"&max-concurrent=2"), 6); failed > 0 || time.Since(start) < 3*delay {
		t.Errorf("two at a time, 6 took %v; %d failed: %v", time.Since(start), failed, err)
	}
	for range 5 {
		server.Script(gcpkmstest.AsymmetricSign, gcpkmstest.OK, gcpkmstest.OK, gcpkmstest.OK, gcpkmstest.OK, gcpkmstest.OK, gcpkmstest.Reset)
	}
	before := server.Calls(gcpkmstest.AsymmetricSign)
	start = time.Now()
	if failed, err := batch(t, open(t, opts, at(server, vendorOne)+fmt.Sprintf("&max-rps=%d", perSecond)), 40); failed > 0 {
		t.Errorf("%d of 40 failed: %v", failed, err)
	}
	// A tenth of a second's calls may come at once.
	n, most := server.Calls(gcpkmstest.AsymmetricSign)-before, perSecond/10+int(perSecond*time.Since(start).Seconds())
	if n < 46 || n > most {
		t.Errorf("%d calls in %v, at most %d; and more than the 5 that break the connection must be made again", n, time.Since(start), most)
	}
}

// With the service down the first calls fail within their time, then the breaker answers in milliseconds, and once
// the service is back the key recovers by itself.
func TestServiceDown(t *testing.T) {
	server := double(t, gcpkmstest.Config{})
	policy := brisk()
	policy.Total = 200 * time.Millisecond
	policy.Recover = time.Second
	key := open(t, Options{Policy: policy}, at(server, vendorOne))
	server.Standing(gcpkmstest.AsymmetricSign, gcpkmstest.Internal)
	start := time.Now()
	if failed, _ := batch(t, key, 64); failed != 64 {
		t.Errorf("%d of 64 failed", failed)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("the first calls took %v", took)
	}
	start = time.Now()
	wants(t, sign(t.Context(), key, "open"), signer.ErrUnavailable, false)
	if took := time.Since(start); took > 20*time.Millisecond {
		t.Errorf("with the breaker open it took %v", took)
	}
	server.Standing(gcpkmstest.AsymmetricSign, gcpkmstest.OK)
	for start = time.Now(); sign(t.Context(), key, "again") != nil; time.Sleep(20 * time.Millisecond) {
		if time.Since(start) > 5*time.Second {
			t.Fatal("it did not recover")
		}
	}
}

// Nobody listens: the error is there within the time, and says so.
func TestNobodyListens(t *testing.T) {
	server := double(t, gcpkmstest.Config{})
	text := at(server, vendorOne) + "&timeout=500ms"
	server.Close()
	start := time.Now()
	_, err := Backend(Options{}).Open(t.Context(), reference(t, text), signer.OpenOptions{})
	wants(t, err, signer.ErrUnavailable, false)
	if took := time.Since(start); took > time.Second {
		t.Errorf("it took %v", took)
	}
}

// A caller's own deadline ends the call.
func TestDeadlineOfTheCaller(t *testing.T) {
	server := double(t, gcpkmstest.Config{Delay: time.Second})
	key := open(t, Options{PublicKey: &vendorKey(t).PublicKey}, at(server, vendorOne))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	digest := sha256.Sum256(nil)
	_, err := key.SignContext(ctx, digest[:], crypto.SHA256)
	wants(t, err, context.DeadlineExceeded, false)
}

// Close ends a call that waits for its next attempt, too.
func TestCloseEndsRetries(t *testing.T) {
	server := double(t, gcpkmstest.Config{})
	policy := brisk()
	policy.Wait, policy.Total = 5*time.Second, 20*time.Second
	key := open(t, Options{Policy: policy}, at(server, vendorOne))
	server.Standing(gcpkmstest.AsymmetricSign, gcpkmstest.Throttle)
	start := time.Now()
	time.AfterFunc(100*time.Millisecond, func() { _ = key.Close() })
	wants(t, sign(t.Context(), key, "message"), signer.ErrClosed, false)
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
}

// Whatever answers in the place of Cloud KMS, the call ends in time, with one line that says what it was, and no more is
// read than the bounds let through.
func TestOtherAnswers(t *testing.T) {
	message := func(length uint32, body string) func(w http.ResponseWriter, _ *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/grpc")
			w.Header().Set("Trailer", "Grpc-Status")
			_, _ = w.Write(append(binary.BigEndian.AppendUint32([]byte{0}, length), body...)) // gRPC over HTTP/2, "Length-Prefixed-Message"
			w.Header().Set("Grpc-Status", "0")
		}
	}
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
		family error
		says   string
	}{
		{"a page", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html></html>") }, signer.ErrUnavailable, "content-type"},
		{"not found", http.NotFound, signer.ErrUnsupported, "404"},
		{"a proxy's failure", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, signer.ErrUnavailable, "502"},
		{"no protocol buffer", message(4, "\xff\xff\xff\xff"), signer.ErrUnavailable, "unmarshal"},
		{"an empty message", message(0, ""), signer.ErrBadKey, `that of ""`},
		{"a long message", message(100<<20, strings.Repeat("a", 8<<20)), signer.ErrUnavailable, "larger than max"},
		{"half a message", message(100, "a"), signer.ErrUnavailable, "unexpected EOF"},
		{"no end", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/grpc")
			_, _ = w.Write([]byte{0, 0, 0, 0xff, 0xff})
			for r.Context().Err() == nil {
				_, _ = w.Write([]byte{0})
				_ = http.NewResponseController(w).Flush()
				time.Sleep(20 * time.Millisecond)
			}
		}, signer.ErrUnavailable, "DEADLINE_EXCEEDED"},
		{"long headers", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("a", 2*maxHeaders)) }, signer.ErrUnavailable, "UNAVAILABLE"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var sent atomic.Int64
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				c.answer(counted{w, &sent}, r)
			}))
			server.Config.Protocols = new(http.Protocols)
			server.Config.Protocols.SetUnencryptedHTTP2(true)
			server.Start()
			defer server.Close()
			start := time.Now()
			_, err := Backend(Options{Policy: brisk()}).Open(t.Context(), reference(t, "gcpkms://"+vendorOne+"?timeout=500ms&endpoint="+server.Listener.Addr().String()), signer.OpenOptions{})
			if took := time.Since(start); took > time.Second {
				t.Errorf("it took %v", took)
			}
			if !errors.Is(err, c.family) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %q, want one line of %q that says %q", err, c.family, c.says)
			}
			if errors.Is(err, remote.ErrThrottled) {
				t.Errorf("%v: nobody throttles", err)
			}
			if n := sent.Load(); n > 16*maxAnswer {
				t.Errorf("%d bytes were taken", n)
			}
		})
	}
}

// counted counts what is written.
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
