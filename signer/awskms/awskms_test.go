package awskms

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/awskms/awskmstest"
	"hsmsign/signer/kms"
	"hsmsign/signer/signertest"
)

// TestConformance runs the suite of every backend on the double, and on AWS itself if HSMSIGN_TEST_AWSKMS is a reference
// to a key.
func TestConformance(t *testing.T) {
	if reference := os.Getenv("HSMSIGN_TEST_AWSKMS"); reference != "" {
		t.Run("service", func(t *testing.T) {
			r, err := parseReference(parse(t, reference), kms.Policy{})
			if err != nil {
				t.Fatal(err)
			}
			signertest.Run(t, signertest.Fixture{
				Backend: Backend(Options{}), Ref: reference, Public: mustOpen(t, Options{}, reference, nil).Public().(*rsa.PublicKey),
				Missing: strings.Replace(reference, r.id, "alias/hsmsign-there-is-no-such-alias", 1), Hashes: []crypto.Hash{crypto.SHA256},
			})
		})
	}
	t.Run("double", func(t *testing.T) {
		server, reference := start(t, awskmstest.Config{Delay: time.Millisecond})
		signertest.Run(t, signertest.Fixture{
			Backend: Backend(quick()), Ref: reference, Public: &testkit.GoldenKey(t).PublicKey,
			Missing: at(server, "alias/vendor"), // aliases are case-sensitive
			Hashes:  []crypto.Hash{crypto.SHA256}, Secrets: []string{awskmstest.SecretAccessKey},
		})
	})
}

// TestWiring: the backend uses package kms, which has its own tests, and nothing else repeats a request.
func TestWiring(t *testing.T) {
	server, reference := start(t, awskmstest.Config{})
	public := &testkit.GoldenKey(t).PublicKey
	requests := func(want int, what string) {
		t.Helper()
		if n := server.Calls("*"); n != want {
			t.Errorf("%s: %d requests in total, want %d", what, n, want)
		}
	}
	key := mustOpen(t, quick(), reference, nil)
	requests(1, "open")
	for range 3 {
		mustSign(t, key)
	}
	requests(4, "three signatures")
	key = mustOpen(t, quick(), reference, public)
	requests(4, "open with the certificate's key")
	mustSign(t, key)
	requests(5, "its first signature")

	// Throttling is an ErrThrottled, or this breaker would open. Other failures open it.
	fragile := quick()
	fragile.Policy.BreakerThreshold = 1
	key = mustOpen(t, fragile, reference, public)
	script(t, server, "Sign", awskmstest.Throttle, awskmstest.Throttle, awskmstest.OK, awskmstest.Internal)
	mustSign(t, key)
	requests(8, "throttled twice")
	wantError(t, sign(t, key), signer.ErrUnavailable, "KMSInternalException", "")
	requests(9, "breaker open")

	stand(t, server, "Sign", awskmstest.Hang)
	began := time.Now()
	err := sign(t, mustOpen(t, Options{}, reference+"&timeout=100ms", public))
	wantError(t, err, signer.ErrUnavailable, "no answer in time", "")
	if took := time.Since(began); took > 3*time.Second || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("timeout=100ms: %v after %v", err, took)
	}
	stand(t, server, "Sign", awskmstest.OK)
	wantError(t, sign(t, mustOpen(t, Options{}, reference+"&max-rps=0.01", nil)), signer.ErrUnavailable, "0.01 calls per second", "")
	wantError(t, sign(t, mustOpen(t, quick(), reference, &testkit.Key("other").PublicKey)), signer.ErrBadKey, "do not belong together", "certificate")
	_, err = open(t, quick(), reference, "no key")
	wantError(t, err, signer.ErrUnsupported, "string", "")
	for query, want := range map[string]int{"": 64, "&max-concurrent=3": 3, "&max-rps=1": 10, "&max-rps=1&timeout=10s": 5} {
		if n := Backend(Options{}).InFlight(parse(t, reference+query)); n != want {
			t.Errorf("%q: %d in flight, want %d", query, n, want)
		}
	}
}

func TestReferenceForms(t *testing.T) {
	server, _ := start(t, awskmstest.Config{})
	arn := add(t, server, awskmstest.Key{Name: "alias/Form", Private: testkit.GoldenKey(t)})
	id := strings.TrimPrefix(resource(arn), "key/")
	for _, name := range []string{arn, id, strings.Replace(arn, "key/"+id, "alias/Form", 1)} {
		for _, public := range []crypto.PublicKey{nil, &testkit.GoldenKey(t).PublicKey} {
			mustSign(t, mustOpen(t, Options{}, at(server, name), public))
		}
	}
	_, err := open(t, Options{}, "awskms:///alias/Vendor?endpoint="+server.Endpoint(), nil)
	wantError(t, err, signer.ErrReference, "no region", "region=")
	_, err = open(t, Options{}, "awskms:///alias/Vendor?region=us-east-1&endpoint="+server.Endpoint(), nil)
	wantError(t, err, signer.ErrKeyNotFound, "us-east-1", "us-east-1")
	_, err = open(t, Options{}, at(server, ""), nil)
	wantError(t, err, signer.ErrReference, "no key", "")
	mustSign(t, mustOpen(t, Options{}, "awskms:///"+arn+"?endpoint="+server.Endpoint(), nil)) // the region of the ARN
	t.Setenv("AWS_REGION", server.Region())
	mustSign(t, mustOpen(t, Options{}, "awskms:///alias/Vendor?endpoint="+server.Endpoint(), nil))
}

// TestUnusableKeys: keys that exist and cannot make the signatures, when they are opened, at the first signature if Open
// sends no request, and after Open.
func TestUnusableKeys(t *testing.T) {
	server, _ := start(t, awskmstest.Config{})
	private := testkit.GoldenKey(t)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, text, fix string
		key             awskmstest.Key
	}{
		{"encryption", "ENCRYPT_DECRYPT", "SIGN_VERIFY", awskmstest.Key{Private: private, Usage: awskmstest.EncryptDecrypt}},
		{"elliptic curve", "ECC_NIST_P256", "RSA", awskmstest.Key{Private: ec}},
		{"symmetric", "UnsupportedOperationException", "RSA", awskmstest.Key{}},
		{"disabled", "is disabled", "kms:EnableKey", awskmstest.Key{Private: private, State: awskmstest.StateDisabled}},
		{"pending deletion", "is pending deletion", "kms:CancelKeyDeletion", awskmstest.Key{Private: private, State: awskmstest.StatePendingDeletion}},
		{"pending import", "is pending import", "kms:ImportKeyMaterial", awskmstest.Key{Private: private, State: awskmstest.StatePendingImport}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			arn := add(t, server, tt.key)
			_, err = open(t, quick(), at(server, arn), nil)
			wantError(t, err, signer.ErrBadKey, tt.text, tt.fix)
			wantError(t, sign(t, mustOpen(t, quick(), at(server, arn), &private.PublicKey)), signer.ErrBadKey, "", "")
		})
	}
	arn := add(t, server, awskmstest.Key{Private: private})
	key := mustOpen(t, quick(), at(server, arn), nil)
	if err := server.SetState(arn, awskmstest.StateDisabled); err != nil {
		t.Fatal(err)
	}
	wantError(t, sign(t, key), signer.ErrBadKey, "disabled", "kms:EnableKey")
}

// TestMovedAlias: an alias that moves, after Open or after the first signature, does not change the key.
func TestMovedAlias(t *testing.T) {
	for _, public := range []crypto.PublicKey{nil, &testkit.GoldenKey(t).PublicKey} {
		server, reference := start(t, awskmstest.Config{})
		key := mustOpen(t, quick(), reference, public)
		mustSign(t, key)
		add(t, server, awskmstest.Key{Name: "alias/Vendor", Private: testkit.Key("other")})
		mustSign(t, key)
	}
}

// TestRegions: the second region signs while the first is unavailable, with the same key only.
func TestRegions(t *testing.T) {
	server, _ := start(t, awskmstest.Config{})
	const id = "mrk-1234abcd12ab34cd56ef1234567890ab"
	regions := []string{"eu-west-1", "us-east-1"}
	add(t, server, awskmstest.Key{Private: testkit.GoldenKey(t), ID: id, Name: "alias/Multi", Regions: regions})
	query := "?regions=eu-west-1,us-east-1&endpoint=" + server.Endpoint()
	var warned string
	opts := quick()
	opts.Warn = func(message string) { warned = message }
	opts.Policy.Timeout = time.Second
	for _, name := range []string{id, "alias/Multi", "arn:aws:kms:us-east-1:111122223333:key/" + id} {
		t.Run(name, func(t *testing.T) {
			warned = ""
			key := mustOpen(t, opts, "awskms:///"+name+query, nil)
			mustSign(t, key)
			stand(t, server, "*@eu-west-1", awskmstest.Internal)
			mustSign(t, key)
			if !strings.Contains(warned, `"us-east-1" signs now, not "eu-west-1"`) {
				t.Errorf("warning %q", warned)
			}
			mustSign(t, mustOpen(t, opts, "awskms:///"+name+query, nil))
			stand(t, server, "*@eu-west-1", awskmstest.Denied)
			before := server.Calls("Sign")
			wantError(t, sign(t, key), signer.ErrAuth, "AccessDenied", "kms:Sign")
			if n := server.Calls("Sign") - before; n != 1 {
				t.Errorf("%d requests; a refusal must not be tried in another region", n)
			}
			stand(t, server, "*@eu-west-1", awskmstest.OK)
			mustSign(t, key)
		})
	}
	// The first region does not answer; time is left for the second.
	key := mustOpen(t, opts, "awskms:///"+id+query, nil)
	stand(t, server, "*@eu-west-1", awskmstest.Hang)
	mustSign(t, key)
	stand(t, server, "*@eu-west-1", awskmstest.OK)

	add(t, server, awskmstest.Key{Private: testkit.Key("other"), Name: "alias/Multi", Regions: regions[1:]})
	key = mustOpen(t, opts, "awskms:///alias/Multi"+query, nil)
	stand(t, server, "Sign@eu-west-1", awskmstest.Internal)
	wantError(t, sign(t, key), signer.ErrUnavailable, fmt.Sprintf("the key in region %q is a different one", regions[1]), "")
}
