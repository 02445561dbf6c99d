package gcpkms

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"crypto/rsa"

	"cloud.google.com/go/kms/apiv1/kmspb"
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
			want := []signer.Property{{Name: "algorithm", Value: c.algorithm}, {Name: "protection", Value: c.protection, Want: c.protection}, {Name: "state", Value: "ENABLED"}}
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
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	_, err := Backend(Options{}).Generate(ctx, signerkit.Ref(t, at(server, vendorOne)), signer.KeySpec{Bits: 2048})
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, signer.ErrUnavailable) || !strings.Contains(err.Error(), "the key was created") {
		t.Errorf("got %v", err)
	}
}

func TestList(t *testing.T) {
	server, _ := start(t, gcpkmstest.Config{})
	testkit.Value(server.Add(gcpkmstest.Key{Name: vendorTwo, Private: testkit.GoldenKey(t), Algorithm: rsaSign, State: kmspb.CryptoKeyVersion_DISABLED}))(t)
	testkit.Value(server.Add(gcpkmstest.Key{Name: ring + "/cryptoKeys/backup/cryptoKeyVersions/1", Algorithm: kmspb.CryptoKeyVersion_GOOGLE_SYMMETRIC_ENCRYPTION}))(t)
	elsewhere := testkit.Value(server.Add(gcpkmstest.Key{Name: strings.Replace(vendorOne, "keyRings/mdm", "keyRings/old", 1), Algorithm: rsaSign}))(t)
	const query = "&max-rps=1000"
	for _, c := range []struct {
		name string
		want []string
	}{
		{vendorOne, []string{vendorOne}},
		{vendor, []string{vendorOne, vendorTwo}},
		{ring, []string{vendorOne, vendorTwo}},
		{"projects/mdm-prod/locations/europe-west1", []string{vendorOne, vendorTwo, elsewhere}},
		{"projects/mdm-prod/locations/europe-west3", nil},
	} {
		infos, err := Backend(Options{}).List(t.Context(), signerkit.Ref(t, at(server, c.name)+"&protection=software"+query))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		var got, want []string
		for _, info := range infos {
			got = append(got, info.Ref)
		}
		for _, name := range c.want {
			want = append(want, at(server, name)+query)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
	infos := testkit.Value(Backend(Options{}).List(t.Context(), signerkit.Ref(t, at(server, vendor))))(t)
	want := signer.KeyInfo{Ref: at(server, vendorTwo), Store: ring, Label: "vendor", ID: "2", Algorithm: "RSA", Bits: 2048, Properties: []signer.Property{
		{Name: "algorithm", Value: "RSA_SIGN_PKCS1_2048_SHA256"}, {Name: "protection", Value: "HSM", Want: "HSM"}, {Name: "state", Value: "DISABLED"}}}
	if diff := cmp.Diff(want, infos[1]); diff != "" {
		t.Error(diff)
	}
	if n := server.Calls("GetPublicKey"); n != 1 {
		t.Errorf("%d requests GetPublicKey; only for the version that is named", n)
	}
}

// TestListPages: a listing continues to the last page, also after a fault, and is limited.
func TestListPages(t *testing.T) {
	server := empty(t, gcpkmstest.Config{})
	fill := func(from, to int) {
		for i := from; i <= to; i++ {
			testkit.Value(server.Add(gcpkmstest.Key{Name: fmt.Sprintf("%s/cryptoKeyVersions/%d", vendor, i), Algorithm: rsaSign}))(t)
		}
	}
	fill(1, maxListed)
	testkit.OK(t, server.Script("ListCryptoKeyVersions", gcpkmstest.OK, gcpkmstest.Throttle))
	ref := signerkit.Ref(t, at(server, vendor))
	infos, err := Backend(quick()).List(t.Context(), ref)
	if err != nil || len(infos) != maxListed {
		t.Fatalf("%d versions, %v", len(infos), err)
	}
	var ids []string
	for _, info := range infos {
		ids = append(ids, info.ID)
	}
	if slices.Sort(ids); len(slices.Compact(ids)) != maxListed {
		t.Error("some versions are repeated")
	}
	// The service chooses the size of a page.
	if n := server.Calls("ListCryptoKeyVersions"); n != maxListed/100+1 { // and the one that was throttled
		t.Errorf("%d requests", n)
	}
	_, err = signerkit.Open(t, Backend(quick()), ref.String(), nil)
	signerkit.WantError(t, err, signer.ErrAmbiguousKey, "...", "add the version")
	if n := strings.Count(err.Error(), "cryptoKeyVersions/"); n != maxMentions {
		t.Errorf("the error names %d versions: %v", n, err)
	}
	fill(maxListed+1, maxListed+1)
	_, err = Backend(Options{}).List(t.Context(), ref)
	signerkit.WantError(t, err, signer.ErrUnsupported, "more than 1000", "name the key")
	_, err = signerkit.Open(t, Backend(quick()), ref.String(), nil)
	signerkit.WantError(t, err, signer.ErrUnsupported, "more than 1000", "name the key")
}

func TestDiagnose(t *testing.T) {
	server, _ := start(t, gcpkmstest.Config{})
	soft := testkit.Value(server.Add(gcpkmstest.Key{Name: ring + "/cryptoKeys/soft/cryptoKeyVersions/1", Private: testkit.GoldenKey(t), Algorithm: rsaSign, Protection: kmspb.ProtectionLevel_SOFTWARE}))(t)
	pss := testkit.Value(server.Add(gcpkmstest.Key{Name: ring + "/cryptoKeys/pss/cryptoKeyVersions/1", Private: testkit.GoldenKey(t), Algorithm: kmspb.CryptoKeyVersion_RSA_SIGN_PSS_2048_SHA256}))(t)
	// One letter for each step: reference, credentials, reach, access, key, algorithm, protection, signature.
	for _, c := range []struct {
		name, ref string
		operation string
		fault     gcpkmstest.Fault
		want      string
		public    crypto.PublicKey
	}{
		{"good", at(server, vendorOne), "", "", "oooooooo", nil},
		{"software", at(server, soft), "", "", "oooooowo", nil},
		{"software, HSM required", at(server, soft) + "&require-hsm=yes", "", "", "oooooofs", nil},
		{"PSS", at(server, pss), "", "", "ooooofss", nil},
		{"missing", at(server, vendorThree), "", "", "oooofsss", nil},
		{"no version", at(server, vendor), "", "", "oooofsss", nil},
		{"no key", at(server, ring), "", "", "fsssssss", nil},
		{"malformed", at(server, vendorOne) + "&x=1", "", "", "fsssssss", nil},
		{"denied", at(server, vendorOne), "GetPublicKey", gcpkmstest.Denied, "ooofssss", nil},
		{"unreachable", at(server, vendorOne) + "&timeout=300ms", "GetPublicKey", gcpkmstest.Unavailable, "oofsssss", nil},
		{"may not sign", at(server, vendorOne), "AsymmetricSign", gcpkmstest.Denied, "ooooooof", nil},
		{"good certificate", at(server, vendorOne), "", "", "oooooooo", &testkit.GoldenKey(t).PublicKey},
		{"another certificate", at(server, vendorOne), "", "", "ooooofss", &testkit.Key("other").PublicKey},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.operation != "" {
				testkit.OK(t, server.Stand(c.operation, c.fault))
				defer func() { testkit.OK(t, server.Stand(c.operation, gcpkmstest.OK)) }()
			}
			if got, steps := signerkit.Diagnose(t, Backend(quick()), c.ref, c.public); got != c.want {
				t.Errorf("got %s, want %s: %v", got, c.want, steps)
			}
		})
	}
	_ = server.Close()
	signerkit.DiagnoseClosed(t, Backend(Options{}), at(server, vendorOne))
}
