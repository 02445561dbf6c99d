package awskms

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hsmsign/signer"
	"hsmsign/signer/awskms/awskmstest"
	remote "hsmsign/signer/kms"
)

// TestGolden: the double's signature is that of the golden request, byte for byte.
func TestGolden(t *testing.T) {
	_, reference := start(t, awskmstest.Config{})
	csr, err := os.ReadFile("../../testdata/golden/customer.csr")
	if err != nil {
		t.Fatal(err)
	}
	if block, _ := pem.Decode(csr); block != nil {
		csr = block.Bytes
	}
	sig, err := signer.Sign(t.Context(), mustOpen(t, Options{}, reference), csr, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	plist, err := os.ReadFile("../../testdata/golden/customer.plist")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(plist), "<string>"+base64.StdEncoding.EncodeToString(sig)+"</string>") {
		t.Error("the golden request has another signature")
	}
}

// TestFaults: what KMS answers to a signature, by family. asked is how often it is asked in all.
func TestFaults(t *testing.T) {
	server, reference := start(t, awskmstest.Config{})
	private := vendorKey(t)
	key := mustOpen(t, Options{Policy: quick()}, reference)
	for _, tt := range []struct {
		fault     awskmstest.Fault
		family    error // nil: the second answer is good
		text, fix string
		asked     int
	}{
		{awskmstest.Throttle, nil, "", "", 2},
		{awskmstest.Internal, nil, "", "", 2},
		{awskmstest.KeyUnavailable, nil, "", "", 2},
		{awskmstest.BadGateway, nil, "", "", 2},
		{awskmstest.Reset, nil, "", "", 2},
		{awskmstest.Truncate, nil, "", "", 2},
		{awskmstest.Empty, nil, "", "", 2},
		{"DependencyTimeoutException", nil, "", "", 2},
		{awskmstest.FlipBit, signer.ErrBadSignature, "does not verify", "", 1},
		{awskmstest.ShortSignature, signer.ErrBadSignature, "gave 255 bytes", "", 1},
		{awskmstest.OtherKey, signer.ErrBadKey, "KMS answered for", "", 1},
		{awskmstest.AccessDenied, signer.ErrAuth, "kms:Sign", "grant kms:Sign", 1},
		{awskmstest.ExpiredToken, signer.ErrAuth, "expired", "new credentials", 1},
		{"UnrecognizedClientException", signer.ErrAuth, "invalid", "credentials", 1},
		{"MissingAuthenticationTokenException", signer.ErrAuth, "Missing", "credentials", 1},
		{"InvalidSignatureException", signer.ErrAuth, "InvalidSignature", "clock", 1},
		{"DisabledException", signer.ErrBadKey, "disabled", "kms:EnableKey", 1},
		{"KMSInvalidStateException", signer.ErrBadKey, "pending deletion", "kms:CancelKeyDeletion", 1},
		{"InvalidKeyUsageException", signer.ErrBadKey, "usage", "SIGN_VERIFY", 1},
		{"NotFoundException", signer.ErrKeyNotFound, "not found", "eu-west-1", 1},
		{"LimitExceededException", signer.ErrUnsupported, "quota", "Service Quotas", 1},
		{"ValidationException", signer.ErrReference, "validation", "", 1},
	} {
		t.Run(string(tt.fault), func(t *testing.T) {
			script(t, server, "Sign", tt.fault)
			before := server.Calls("Sign")
			if tt.family == nil {
				mustSign(t, key, private, string(tt.fault))
			} else {
				_, err := signer.Sign(t.Context(), key, []byte("x"), crypto.SHA256)
				if tt.fault == awskmstest.FlipBit { // found by signer.Sign
					if !errors.Is(err, tt.family) || !strings.Contains(err.Error(), tt.text) {
						t.Errorf("got %v", err)
					}
				} else {
					wantError(t, err, tt.family, tt.text, tt.fix)
				}
			}
			if n := server.Calls("Sign") - before; n != tt.asked {
				t.Errorf("asked %d times, want %d", n, tt.asked)
			}
		})
	}
}

// TestAlwaysCorrupt: damaged answers without end give no signature, and end in time.
func TestAlwaysCorrupt(t *testing.T) {
	server, reference := start(t, awskmstest.Config{})
	policy := quick()
	policy.Total, policy.Trip = 200*time.Millisecond, 1000
	key := mustOpen(t, Options{Policy: policy}, reference)
	stand(t, server, "Sign", awskmstest.Truncate)
	_, err := signer.Sign(t.Context(), key, []byte("x"), crypto.SHA256)
	wantError(t, err, signer.ErrUnavailable, "damaged", "")
	if n := server.Calls("Sign"); n < 2 {
		t.Errorf("asked %d times; damage is worth another attempt", n)
	}
	stand(t, server, "GetPublicKey", awskmstest.Truncate)
	_, err = open(t, Options{Policy: policy}, reference)
	wantError(t, err, signer.ErrUnavailable, "damaged", "")
}

// TestThrottled: a batch at 64 in flight waits while it is throttled, and every signature comes.
func TestThrottled(t *testing.T) {
	server, reference := start(t, awskmstest.Config{})
	private := vendorKey(t)
	key := mustOpen(t, Options{Policy: quick()}, reference)
	stand(t, server, "Sign", awskmstest.Throttle)
	timer := time.AfterFunc(300*time.Millisecond, func() { _ = server.Stand("Sign", awskmstest.OK) })
	defer timer.Stop()
	results := batch(t.Context(), key, private, 200)
	if results.good != 200 {
		t.Errorf("%d of 200 signed; the first error: %v", results.good, results.first)
	}
	if server.Calls("Sign") <= 264 {
		t.Errorf("asked %d times: it was not throttled", server.Calls("Sign"))
	}
}

// TestOutage: with nothing but errors a call ends within its deadline, the breaker lets the next ones fail in
// milliseconds without asking, and the service is used again by itself once it is well.
func TestOutage(t *testing.T) {
	server, reference := start(t, awskmstest.Config{})
	private := vendorKey(t)
	policy := quick()
	policy.Total, policy.Trip = time.Second, 5
	key := mustOpen(t, Options{Policy: policy}, reference)
	stand(t, server, "*", awskmstest.Internal)
	began := time.Now()
	_, err := signer.Sign(t.Context(), key, []byte("x"), crypto.SHA256)
	wantError(t, err, signer.ErrUnavailable, "", "")
	if took := time.Since(began); took > policy.Total+500*time.Millisecond {
		t.Errorf("the first took %v", took)
	}
	asked := server.Calls("Sign")
	began = time.Now()
	for range 20 {
		_, err = signer.Sign(t.Context(), key, []byte("x"), crypto.SHA256)
		wantError(t, err, signer.ErrUnavailable, "left alone", "")
	}
	if took := time.Since(began); took > 100*time.Millisecond || server.Calls("Sign") != asked {
		t.Errorf("20 more took %v and asked %d times", took, server.Calls("Sign")-asked)
	}
	stand(t, server, "*", awskmstest.OK)
	time.Sleep(policy.Recover + 50*time.Millisecond)
	mustSign(t, key, private, "well again")
}

// TestDeadlines: silence ends with the attempt, with the whole time, and with the caller's context.
func TestDeadlines(t *testing.T) {
	server, reference := start(t, awskmstest.Config{})
	private := vendorKey(t)
	policy := quick()
	policy.Attempt, policy.Total = 150*time.Millisecond, 600*time.Millisecond
	key := mustOpen(t, Options{Policy: policy}, reference)
	script(t, server, "Sign", awskmstest.Delay(time.Second))
	mustSign(t, key, private, "the second attempt is in time")

	stand(t, server, "Sign", awskmstest.Delay(3*time.Second))
	began := time.Now()
	_, err := signer.Sign(t.Context(), key, []byte("x"), crypto.SHA256)
	wantError(t, err, signer.ErrUnavailable, "no answer in time", "")
	if took := time.Since(began); took > time.Second || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("took %v: %v", took, err)
	}
	if n := server.Calls("Sign"); n < 4 {
		t.Errorf("%d attempts", n)
	}
	stand(t, server, "Sign", awskmstest.Hang)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = signer.Sign(ctx, key, []byte("x"), crypto.SHA256)
	wantError(t, err, context.DeadlineExceeded, "", "")
	wantError(t, err, signer.ErrUnavailable, "", "")

	t.Run("timeout of the reference", func(t *testing.T) {
		short := mustOpen(t, Options{}, reference+"&timeout=100ms")
		began := time.Now()
		_, err := signer.Sign(t.Context(), short, []byte("x"), crypto.SHA256)
		wantError(t, err, signer.ErrUnavailable, "", "")
		if took := time.Since(began); took > time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// outcome is how a batch went.
type outcome struct {
	good, bad int
	wrong     int // signatures that are not the key's
	first     error
}

// batch makes n signatures, 64 at a time.
func batch(ctx context.Context, key signer.Signer, private *rsa.PrivateKey, n int) outcome {
	var o outcome
	var mu sync.Mutex
	var next atomic.Int64
	var workers sync.WaitGroup
	for range 64 {
		workers.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				digest := sha256.Sum256(fmt.Append(nil, i))
				sig, err := key.SignContext(ctx, digest[:], crypto.SHA256)
				mu.Lock()
				switch {
				case err != nil:
					if o.bad++; o.first == nil {
						o.first = err
					}
				case rsa.VerifyPKCS1v15(&private.PublicKey, crypto.SHA256, digest[:], sig) != nil:
					o.wrong++
				default:
					o.good++
				}
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	return o
}

// TestResets: connections that break under a batch of 1,000 cost no signature its correctness.
func TestResets(t *testing.T) {
	server, reference := start(t, awskmstest.Config{})
	private := vendorKey(t)
	policy := quick()
	policy.Total = 10 * time.Second
	key := mustOpen(t, Options{Policy: policy}, reference)
	pattern := []awskmstest.Fault{awskmstest.OK, awskmstest.OK, awskmstest.Reset, awskmstest.OK, awskmstest.Truncate}
	script(t, server, "Sign", slices.Repeat(pattern, 100)...)
	o := batch(t.Context(), key, private, 1000)
	if o.wrong != 0 || o.good < 900 || o.good+o.bad != 1000 {
		t.Errorf("%+v", o)
	}
	if asked := server.Calls("Sign"); asked != 1200 && o.bad == 0 {
		t.Errorf("asked %d times for 1,000 signatures and 200 faults", asked)
	}
}

// TestAllConnectionsReset: what breaks every connection in one moment is waited out, as one failure.
func TestAllConnectionsReset(t *testing.T) {
	server, reference := start(t, awskmstest.Config{Delay: 100 * time.Millisecond})
	private := vendorKey(t)
	policy := quick()
	policy.Total, policy.Wait = 10*time.Second, 100*time.Millisecond
	key := mustOpen(t, Options{Policy: policy}, reference)
	script(t, server, "Sign", slices.Repeat([]awskmstest.Fault{awskmstest.Reset}, 64)...)
	if o := batch(t.Context(), key, private, 200); o.good != 200 {
		t.Errorf("%+v", o)
	}
	if asked := server.Calls("Sign"); asked != 264 {
		t.Errorf("asked %d times for 200 signatures and 64 resets", asked)
	}
}

// TestExpiry: credentials that end in the middle of a batch: what was signed is right, the rest fails at once.
func TestExpiry(t *testing.T) {
	server, reference := start(t, awskmstest.Config{})
	private := vendorKey(t)
	session := awskmstest.Credentials{AccessKeyID: "ASIAEXAMPLE0000000000", SecretAccessKey: "session-secret", SessionToken: "session-token-value", Expires: time.Now().Add(time.Hour)}
	server.AddCredentials(session)
	t.Setenv("AWS_ACCESS_KEY_ID", session.AccessKeyID)
	t.Setenv("AWS_SECRET_ACCESS_KEY", session.SecretAccessKey)
	t.Setenv("AWS_SESSION_TOKEN", session.SessionToken)
	key := mustOpen(t, Options{Policy: quick()}, reference)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for server.Calls("Sign") < 100 {
			time.Sleep(time.Millisecond)
		}
		server.Expire(session.AccessKeyID)
	}()
	o := batch(t.Context(), key, private, 400)
	<-done
	if o.wrong != 0 || o.good == 0 || o.bad == 0 {
		t.Errorf("%+v", o)
	}
	wantError(t, o.first, signer.ErrAuth, "ExpiredTokenException", "new credentials")
	if n := server.Calls("Sign"); n != 400 {
		t.Errorf("asked %d times; missing credentials are not tried twice", n)
	}
	for _, secret := range []string{session.SecretAccessKey, session.SessionToken} {
		if strings.Contains(fmt.Sprintf("%+v", o.first), secret) {
			t.Errorf("the error tells %q", secret)
		}
	}
}

// TestLimits: max-rps and max-concurrent of the reference are kept.
func TestLimits(t *testing.T) {
	server, reference := start(t, awskmstest.Config{Delay: 30 * time.Millisecond})
	private := vendorKey(t)
	slow := mustOpen(t, Options{}, reference+"&max-concurrent=1")
	began := time.Now()
	if o := batch(t.Context(), slow, private, 8); o.good != 8 || time.Since(began) < 8*30*time.Millisecond {
		t.Errorf("one at a time: %+v in %v", o, time.Since(began))
	}
	rare := mustOpen(t, Options{}, reference+"&max-rps=50")
	began = time.Now()
	if o := batch(t.Context(), rare, private, 20); o.good != 20 || time.Since(began) < 250*time.Millisecond {
		t.Errorf("50 a second: %+v in %v", o, time.Since(began))
	}
	if n := server.Calls("Sign"); n != 28 {
		t.Errorf("asked %d times", n)
	}
}

// TestServiceGone: nothing listens where the endpoint points.
func TestServiceGone(t *testing.T) {
	server, reference := start(t, awskmstest.Config{})
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	policy := remote.Policy{Total: 200 * time.Millisecond, Wait: 5 * time.Millisecond}
	_, err := open(t, Options{Policy: policy}, reference)
	wantError(t, err, signer.ErrUnavailable, "connection refused", "region")
}
