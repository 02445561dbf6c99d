package gcpkms

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/gcpkms/gcpkmstest"
)

// TestGenerate: in an empty project, Generate creates key ring and key and waits for the version.
func TestGenerate(t *testing.T) {
	for _, c := range []struct {
		query      string
		bits       int
		algorithm  string
		protection string
	}{
		{"", 2048, "RSA_SIGN_PKCS1_2048_SHA256", "HSM"},
		{"&protection=software", 3072, "RSA_SIGN_PKCS1_3072_SHA256", "SOFTWARE"},
		{"&protection=hsm&require-hsm=yes", 2048, "RSA_SIGN_PKCS1_2048_SHA256", "HSM"},
	} {
		t.Run(fmt.Sprint(c.bits, c.query), func(t *testing.T) {
			server := empty(t, gcpkmstest.Config{Generation: 250 * time.Millisecond})
			var warned []string
			backend := Backend(Options{Warn: func(m string) { warned = append(warned, m) }})
			ref := signerkit.Ref(t, at(server, vendorOne)+c.query)
			key := testkit.Value(backend.Generate(t.Context(), ref, signer.KeySpec{Bits: c.bits}))(t)
			defer func() { _ = key.Close() }()
			signerkit.MustSign(t, key)
			if public, ok := key.Public().(*rsa.PublicKey); !ok || public.N.BitLen() != c.bits {
				t.Errorf("public key: %T", key.Public())
			}
			if len(warned) != 1 || !strings.Contains(warned[0], `"mdm"`) {
				t.Errorf("warnings: %q", warned)
			}
			infos, err := backend.List(t.Context(), ref)
			if err != nil || len(infos) != 1 || !key.Public().(*rsa.PublicKey).Equal(infos[0].Public) {
				t.Fatalf("list: %+v, %v", infos, err)
			}
			want := []signer.Property{{Name: "algorithm", Value: c.algorithm}, {Name: "protection", Value: c.protection}, {Name: "state", Value: "ENABLED"}}
			if diff := cmp.Diff(want, infos[0].Properties); diff != "" {
				t.Error(diff)
			}
			_, err = backend.Generate(t.Context(), ref, signer.KeySpec{Bits: c.bits})
			signerkit.WantError(t, err, signer.ErrKeyExists, "already exists", "another key name")
		})
	}
}

func TestGenerateRefuses(t *testing.T) {
	server, _ := start(t, gcpkmstest.Config{})
	for _, c := range []struct {
		ref    string
		bits   int
		family error
		fix    string
	}{
		{at(server, ring+"/cryptoKeys/new"), 2048, signer.ErrReference, "cryptoKeyVersions/1"},
		{at(server, ring+"/cryptoKeys/new/cryptoKeyVersions/2"), 2048, signer.ErrReference, "cryptoKeyVersions/1"},
		{at(server, ring+"/cryptoKeys/new/cryptoKeyVersions/1"), 1024, signer.ErrUnsupported, ""},
		{at(server, ring+"/cryptoKeys/new/cryptoKeyVersions/1"), 8192, signer.ErrUnsupported, ""},
		{at(server, vendorOne), 2048, signer.ErrKeyExists, "another key name"},
	} {
		_, err := Backend(Options{}).Generate(t.Context(), signerkit.Ref(t, c.ref), signer.KeySpec{Bits: c.bits})
		signerkit.WantError(t, err, c.family, "", c.fix)
	}
	if n := server.Calls("CreateCryptoKey"); n != 1 {
		t.Errorf("%d requests CreateCryptoKey; only the last case may send one", n)
	}
}

// TestGenerateLostAnswer: if an answer is lost, the error does not say that the key belongs to someone else.
func TestGenerateLostAnswer(t *testing.T) {
	server := empty(t, gcpkmstest.Config{})
	testkit.OK(t, server.Script("CreateKeyRing", gcpkmstest.Lost)) // the retry finds the ring
	testkit.OK(t, server.Script("CreateCryptoKey", gcpkmstest.OK, gcpkmstest.Lost))
	ref := signerkit.Ref(t, at(server, vendorOne))
	_, err := Backend(quick()).Generate(t.Context(), ref, signer.KeySpec{Bits: 2048})
	signerkit.WantError(t, err, signer.ErrKeyExists, "may have created it", "gcloud kms keys describe")
	signerkit.MustSign(t, signerkit.MustOpen(t, Backend(quick()), ref.String(), nil))
}

func TestGenerateEndsWithItsContext(t *testing.T) {
	server := empty(t, gcpkmstest.Config{Generation: time.Hour})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := Backend(Options{}).Generate(ctx, signerkit.Ref(t, at(server, vendorOne)), signer.KeySpec{Bits: 2048})
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, signer.ErrUnavailable) || !strings.Contains(err.Error(), "the key was created") {
		t.Errorf("got %v", err)
	}
}
