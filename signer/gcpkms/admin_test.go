package gcpkms

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/google/go-cmp/cmp"

	"hsmsign/signer"
	"hsmsign/signer/gcpkms/gcpkmstest"
)

// empty starts a double without keys.
func empty(t *testing.T, config gcpkmstest.Config) *gcpkmstest.Server {
	t.Helper()
	server, err := gcpkmstest.NewServer(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	return server
}

// From an empty project to a signature: ring and key are made, the version is waited for, and what is made is an HSM
// key of the size that was asked for.
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
			// The certificate's key is not that of a key that is only now made.
			backend := Backend(Options{Warn: func(m string) { warned = append(warned, m) }, PublicKey: &vendorKey(t).PublicKey})
			ref := reference(t, at(server, vendorOne)+c.query)
			key, err := backend.Generate(t.Context(), ref, signer.KeySpec{Bits: c.bits})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = key.Close() }()
			if err := sign(t.Context(), key, "message"); err != nil {
				t.Error(err)
			}
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
			wants(t, err, signer.ErrKeyExists, true)
		})
	}
}

func TestGenerateRefuses(t *testing.T) {
	server := double(t, gcpkmstest.Config{})
	for _, c := range []struct {
		ref    string
		bits   int
		family error
		hint   bool
	}{
		{at(server, ring+"/cryptoKeys/new"), 2048, signer.ErrReference, true},
		{at(server, ring+"/cryptoKeys/new/cryptoKeyVersions/2"), 2048, signer.ErrReference, true},
		{at(server, ring+"/cryptoKeys/new/cryptoKeyVersions/1"), 1024, signer.ErrUnsupported, false},
		{at(server, ring+"/cryptoKeys/new/cryptoKeyVersions/1"), 8192, signer.ErrUnsupported, false},
		{at(server, vendorOne), 2048, signer.ErrKeyExists, true},
	} {
		_, err := Backend(Options{}).Generate(t.Context(), reference(t, c.ref), signer.KeySpec{Bits: c.bits})
		wants(t, err, c.family, c.hint)
	}
	if n := server.Calls(gcpkmstest.CreateCryptoKey); n != 1 {
		t.Errorf("%d calls of CreateCryptoKey; only the last may come so far", n)
	}
}

// A key whose making was answered by a lost connection is not said to be somebody else's.
func TestGenerateWithALostAnswer(t *testing.T) {
	server := empty(t, gcpkmstest.Config{})
	server.Script(gcpkmstest.CreateKeyRing, gcpkmstest.Lost) // the retry finds the ring, which is well
	server.Script(gcpkmstest.CreateCryptoKey, gcpkmstest.OK, gcpkmstest.Lost)
	ref := reference(t, at(server, vendorOne))
	_, err := Backend(Options{Policy: brisk()}).Generate(t.Context(), ref, signer.KeySpec{Bits: 2048})
	wants(t, err, signer.ErrKeyExists, true)
	if !strings.Contains(err.Error(), "may have made it") {
		t.Error(err)
	}
	if err := sign(t.Context(), open(t, Options{}, ref.String()), "message"); err != nil {
		t.Error(err)
	}
}

func TestGenerateEndsWithItsContext(t *testing.T) {
	server := empty(t, gcpkmstest.Config{Generation: time.Hour})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := Backend(Options{}).Generate(ctx, reference(t, at(server, vendorOne)), signer.KeySpec{Bits: 2048})
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, signer.ErrUnavailable) || !strings.Contains(err.Error(), "the key was made") {
		t.Errorf("got %v", err)
	}
}

func TestList(t *testing.T) {
	server := double(t, gcpkmstest.Config{})
	add := func(name string, algorithm kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm, state kmspb.CryptoKeyVersion_CryptoKeyVersionState) {
		v := gcpkmstest.Version{Name: name, Algorithm: algorithm, State: state}
		if algorithm == kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256 {
			v.Key = vendorKey(t)
		}
		if err := server.AddVersion(v); err != nil {
			t.Fatal(err)
		}
	}
	const rsaSign = kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256
	add(vendorTwo, rsaSign, kmspb.CryptoKeyVersion_DISABLED)
	add(ring+"/cryptoKeys/backup/cryptoKeyVersions/1", kmspb.CryptoKeyVersion_GOOGLE_SYMMETRIC_ENCRYPTION, 0)
	elsewhere := strings.Replace(vendorOne, "keyRings/mdm", "keyRings/old", 1)
	add(elsewhere, rsaSign, 0)
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
		infos, err := Backend(Options{}).List(t.Context(), reference(t, at(server, c.name)+query))
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
	infos, err := Backend(Options{}).List(t.Context(), reference(t, at(server, vendor)))
	if err != nil {
		t.Fatal(err)
	}
	want := signer.KeyInfo{Ref: at(server, vendorTwo), Store: ring, Label: "vendor", ID: "2", Algorithm: "RSA", Bits: 2048, Properties: []signer.Property{
		{Name: "algorithm", Value: "RSA_SIGN_PKCS1_2048_SHA256"}, {Name: "protection", Value: "HSM"}, {Name: "state", Value: "DISABLED"}}}
	if diff := cmp.Diff(want, infos[1]); diff != "" {
		t.Error(diff)
	}
	if n := server.Calls(gcpkmstest.GetPublicKey); n != 1 {
		t.Errorf("%d calls of GetPublicKey: only the version that is named may cost one", n)
	}
}

// A listing goes on from page to page, survives a fault between two, and ends at its bound.
func TestListPages(t *testing.T) {
	server := empty(t, gcpkmstest.Config{})
	add := func(from, to int) {
		for i := from; i <= to; i++ {
			name := fmt.Sprintf("%s/cryptoKeyVersions/%d", vendor, i)
			if err := server.AddVersion(gcpkmstest.Version{Name: name, Algorithm: kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256}); err != nil {
				t.Fatal(err)
			}
		}
	}
	add(1, maxListed)
	server.Script(gcpkmstest.ListCryptoKeyVersions, gcpkmstest.OK, gcpkmstest.Throttle)
	ref := reference(t, at(server, vendor))
	infos, err := Backend(Options{Policy: brisk()}).List(t.Context(), ref)
	if err != nil || len(infos) != maxListed {
		t.Fatalf("%d versions, %v", len(infos), err)
	}
	var ids []string
	for _, info := range infos {
		ids = append(ids, info.ID)
	}
	if slices.Sort(ids); len(slices.Compact(ids)) != maxListed {
		t.Error("some stand twice")
	}
	if n := server.Calls(gcpkmstest.ListCryptoKeyVersions); n != maxListed/pageSize+1 {
		t.Errorf("%d calls", n)
	}
	_, err = Backend(Options{}).Open(t.Context(), ref, signer.OpenOptions{})
	wants(t, err, signer.ErrAmbiguousKey, true)
	if n := strings.Count(err.Error(), "cryptoKeyVersions/"); n != maxMentions {
		t.Errorf("the error names %d versions: %v", n, err)
	}
	add(maxListed+1, maxListed+1)
	_, err = Backend(Options{}).List(t.Context(), ref)
	wants(t, err, signer.ErrUnsupported, true)
	_, err = Backend(Options{}).Open(t.Context(), ref, signer.OpenOptions{})
	wants(t, err, signer.ErrUnsupported, true)
}

func TestDiagnose(t *testing.T) {
	server := double(t, gcpkmstest.Config{})
	soft := ring + "/cryptoKeys/soft/cryptoKeyVersions/1"
	if err := server.AddVersion(gcpkmstest.Version{Name: soft, Key: vendorKey(t), Algorithm: kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256, Protection: kmspb.ProtectionLevel_SOFTWARE}); err != nil {
		t.Fatal(err)
	}
	pss := ring + "/cryptoKeys/pss/cryptoKeyVersions/1"
	if err := server.AddVersion(gcpkmstest.Version{Name: pss, Key: vendorKey(t), Algorithm: kmspb.CryptoKeyVersion_RSA_SIGN_PSS_2048_SHA256}); err != nil {
		t.Fatal(err)
	}
	// One letter a step: reference, credentials, reach, access, key, algorithm, protection, signature.
	for _, c := range []struct {
		name, ref string
		op        gcpkmstest.Operation
		fault     gcpkmstest.Fault
		want      string
	}{
		{"well", at(server, vendorOne), "", "", "oooooooo"},
		{"software", at(server, soft), "", "", "oooooowo"},
		{"software, HSM required", at(server, soft) + "&require-hsm=yes", "", "", "oooooofs"},
		{"PSS", at(server, pss), "", "", "ooooofss"},
		{"missing", at(server, vendorThree), "", "", "oooofsss"},
		{"no version", at(server, vendor), "", "", "oooofsss"},
		{"no key", at(server, ring), "", "", "fsssssss"},
		{"malformed", at(server, vendorOne) + "&x=1", "", "", "fsssssss"},
		{"denied", at(server, vendorOne), gcpkmstest.GetPublicKey, gcpkmstest.PermissionDenied, "ooofssss"},
		{"unreachable", at(server, vendorOne) + "&timeout=300ms", gcpkmstest.GetPublicKey, gcpkmstest.Unavailable, "oofsssss"},
		{"may not sign", at(server, vendorOne), gcpkmstest.AsymmetricSign, gcpkmstest.PermissionDenied, "ooooooof"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.op != "" {
				server.Standing(c.op, c.fault)
				defer server.Standing(c.op, gcpkmstest.OK)
			}
			got := ""
			key := Backend(Options{}).Diagnose(t.Context(), reference(t, c.ref), signer.OpenOptions{}, func(s signer.Step) {
				letter := map[signer.Status]string{signer.StatusOK: "o", signer.StatusWarn: "w", signer.StatusFail: "f", signer.StatusSkipped: "s"}[s.Status]
				got += letter
				if (letter == "f") != (s.Err != nil) || letter == "w" && s.Fix == "" || letter == "o" && s.Detail == "" {
					t.Errorf("step %+v", s)
				}
			})
			if got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
			if (key == nil) != strings.Contains(c.want, "f") {
				t.Errorf("key is %v", key)
			}
			if key != nil {
				if err := sign(t.Context(), key, "message"); err != nil {
					t.Error(err)
				}
				_ = key.Close()
			}
		})
	}
}
