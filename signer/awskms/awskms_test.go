package awskms

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"hsmsign/internal/signerkit"
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
			r := testkit.Value(parseReference(signerkit.Ref(t, reference), kms.Policy{}))(t)
			signertest.Run(t, signertest.Fixture{
				Backend: Backend(Options{}), Ref: reference, Public: signerkit.MustOpen(t, Backend(Options{}), reference, nil).Public().(*rsa.PublicKey),
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

func TestWiring(t *testing.T) {
	server, reference := start(t, awskmstest.Config{})
	faults := signerkit.Faults[awskmstest.Fault]{OK: awskmstest.OK, Throttle: awskmstest.Throttle, Internal: awskmstest.Internal, Hang: awskmstest.Hang}
	signerkit.Wiring(t, server, faults, func(p kms.Policy) signer.Backend { return Backend(Options{Policy: p}) }, reference, "Sign")
}

func TestReferenceForms(t *testing.T) {
	server, _ := start(t, awskmstest.Config{})
	arn := testkit.Value(server.Add(awskmstest.Key{Name: "alias/Form", Private: testkit.GoldenKey(t)}))(t)
	id := strings.TrimPrefix(resource(arn), "key/")
	for _, name := range []string{arn, id, strings.Replace(arn, "key/"+id, "alias/Form", 1)} {
		for _, public := range []crypto.PublicKey{nil, &testkit.GoldenKey(t).PublicKey} {
			signerkit.MustSign(t, signerkit.MustOpen(t, Backend(Options{}), at(server, name), public))
		}
	}
	_, err := signerkit.Open(t, Backend(Options{}), "awskms:///alias/Vendor?endpoint="+server.Endpoint(), nil)
	signerkit.WantError(t, err, signer.ErrReference, "no region", "region=")
	_, err = signerkit.Open(t, Backend(Options{}), "awskms:///alias/Vendor?region=us-east-1&endpoint="+server.Endpoint(), nil)
	signerkit.WantError(t, err, signer.ErrKeyNotFound, "us-east-1", "us-east-1")
	_, err = signerkit.Open(t, Backend(Options{}), at(server, ""), nil)
	signerkit.WantError(t, err, signer.ErrReference, "no key", "")
	signerkit.MustSign(t, signerkit.MustOpen(t, Backend(Options{}), "awskms:///"+arn+"?endpoint="+server.Endpoint(), nil)) // the region of the ARN
	t.Setenv("AWS_REGION", server.Region())
	signerkit.MustSign(t, signerkit.MustOpen(t, Backend(Options{}), "awskms:///alias/Vendor?endpoint="+server.Endpoint(), nil))
}

// TestUnusableKeys: keys that exist and cannot make the signatures, when they are opened, at the first signature if Open
// sends no request, and after Open.
func TestUnusableKeys(t *testing.T) {
	server, _ := start(t, awskmstest.Config{})
	private := testkit.GoldenKey(t)
	ec := testkit.Value(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
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
			arn := testkit.Value(server.Add(tt.key))(t)
			_, err := signerkit.Open(t, Backend(quick()), at(server, arn), nil)
			signerkit.WantError(t, err, signer.ErrBadKey, tt.text, tt.fix)
			signerkit.WantError(t, signerkit.Sign(t, signerkit.MustOpen(t, Backend(quick()), at(server, arn), &private.PublicKey)), signer.ErrBadKey, "", "")
		})
	}
	arn := testkit.Value(server.Add(awskmstest.Key{Private: private}))(t)
	key := signerkit.MustOpen(t, Backend(quick()), at(server, arn), nil)
	testkit.OK(t, server.SetState(arn, awskmstest.StateDisabled))
	signerkit.WantError(t, signerkit.Sign(t, key), signer.ErrBadKey, "disabled", "kms:EnableKey")
}

// TestMovedAlias: an alias that moves, after Open or after the first signature, does not change the key.
func TestMovedAlias(t *testing.T) {
	for _, public := range []crypto.PublicKey{nil, &testkit.GoldenKey(t).PublicKey} {
		server, reference := start(t, awskmstest.Config{})
		key := signerkit.MustOpen(t, Backend(quick()), reference, public)
		signerkit.MustSign(t, key)
		testkit.Value(server.Add(awskmstest.Key{Name: "alias/Vendor", Private: testkit.Key("other")}))(t)
		signerkit.MustSign(t, key)
	}
}

// TestRegions: the second region signs while the first is unavailable, with the same key only.
func TestRegions(t *testing.T) {
	server, _ := start(t, awskmstest.Config{})
	const id = "mrk-1234abcd12ab34cd56ef1234567890ab"
	regions := []string{"eu-west-1", "us-east-1"}
	testkit.Value(server.Add(awskmstest.Key{Private: testkit.GoldenKey(t), ID: id, Name: "alias/Multi", Regions: regions}))(t)
	query := "?regions=eu-west-1,us-east-1&endpoint=" + server.Endpoint()
	var warned string
	opts := quick()
	opts.Warn = func(message string) { warned = message }
	opts.Policy.Timeout = time.Second
	for _, name := range []string{id, "alias/Multi", "arn:aws:kms:us-east-1:111122223333:key/" + id} {
		t.Run(name, func(t *testing.T) {
			warned = ""
			key := signerkit.MustOpen(t, Backend(opts), "awskms:///"+name+query, nil)
			signerkit.MustSign(t, key)
			testkit.OK(t, server.Stand("*@eu-west-1", awskmstest.Internal))
			signerkit.MustSign(t, key)
			if !strings.Contains(warned, `"us-east-1" signs now, not "eu-west-1"`) {
				t.Errorf("warning %q", warned)
			}
			signerkit.MustSign(t, signerkit.MustOpen(t, Backend(opts), "awskms:///"+name+query, nil))
			testkit.OK(t, server.Stand("*@eu-west-1", awskmstest.Denied))
			before := server.Calls("Sign")
			signerkit.WantError(t, signerkit.Sign(t, key), signer.ErrAuth, "AccessDenied", "kms:Sign")
			if n := server.Calls("Sign") - before; n != 1 {
				t.Errorf("%d requests; a refusal must not be tried in another region", n)
			}
			testkit.OK(t, server.Stand("*@eu-west-1", awskmstest.OK))
			signerkit.MustSign(t, key)
		})
	}
	// The first region does not answer; time is left for the second.
	key := signerkit.MustOpen(t, Backend(opts), "awskms:///"+id+query, nil)
	testkit.OK(t, server.Stand("*@eu-west-1", awskmstest.Hang))
	ctx, cancel := context.WithTimeout(t.Context(), opts.Policy.Timeout)
	defer cancel()
	testkit.Value(signer.Sign(ctx, key, []byte("message"), crypto.SHA256))(t)
	testkit.OK(t, server.Stand("*@eu-west-1", awskmstest.OK))

	testkit.Value(server.Add(awskmstest.Key{Private: testkit.Key("other"), Name: "alias/Multi", Regions: regions[1:]}))(t)
	key = signerkit.MustOpen(t, Backend(opts), "awskms:///alias/Multi"+query, nil)
	testkit.OK(t, server.Stand("Sign@eu-west-1", awskmstest.Internal))
	signerkit.WantError(t, signerkit.Sign(t, key), signer.ErrUnavailable, fmt.Sprintf("the key in region %q is a different one", regions[1]), "")
}
