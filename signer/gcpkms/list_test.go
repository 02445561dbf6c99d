package gcpkms

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/google/go-cmp/cmp"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/gcpkms/gcpkmstest"
)

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
		infos, err := Backend(Options{}).List(t.Context(), signerkit.Ref(t, at(server, c.name)+query))
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
		{Name: "algorithm", Value: "RSA_SIGN_PKCS1_2048_SHA256"}, {Name: "protection", Value: "HSM"}, {Name: "state", Value: "DISABLED"}}}
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
	if n := server.Calls("ListCryptoKeyVersions"); n != maxListed/pageSize+1 {
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
