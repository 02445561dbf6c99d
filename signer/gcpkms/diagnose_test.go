package gcpkms

import (
	"strings"
	"testing"

	"cloud.google.com/go/kms/apiv1/kmspb"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/gcpkms/gcpkmstest"
)

func TestDiagnose(t *testing.T) {
	server, _ := start(t, gcpkmstest.Config{})
	soft := testkit.Value(server.Add(gcpkmstest.Key{Name: ring + "/cryptoKeys/soft/cryptoKeyVersions/1", Private: testkit.GoldenKey(t), Algorithm: rsaSign, Protection: kmspb.ProtectionLevel_SOFTWARE}))(t)
	pss := testkit.Value(server.Add(gcpkmstest.Key{Name: ring + "/cryptoKeys/pss/cryptoKeyVersions/1", Private: testkit.GoldenKey(t), Algorithm: kmspb.CryptoKeyVersion_RSA_SIGN_PSS_2048_SHA256}))(t)
	var none signer.OpenOptions
	// One letter for each step: reference, credentials, reach, access, key, algorithm, protection, signature.
	for _, c := range []struct {
		name, ref string
		operation string
		fault     gcpkmstest.Fault
		want      string
		open      signer.OpenOptions
	}{
		{"good", at(server, vendorOne), "", "", "oooooooo", none},
		{"software", at(server, soft), "", "", "oooooowo", none},
		{"software, HSM required", at(server, soft) + "&require-hsm=yes", "", "", "oooooofs", none},
		{"PSS", at(server, pss), "", "", "ooooofss", none},
		{"missing", at(server, vendorThree), "", "", "oooofsss", none},
		{"no version", at(server, vendor), "", "", "oooofsss", none},
		{"no key", at(server, ring), "", "", "fsssssss", none},
		{"malformed", at(server, vendorOne) + "&x=1", "", "", "fsssssss", none},
		{"denied", at(server, vendorOne), "GetPublicKey", gcpkmstest.Denied, "ooofssss", none},
		{"unreachable", at(server, vendorOne) + "&timeout=300ms", "GetPublicKey", gcpkmstest.Unavailable, "oofsssss", none},
		{"may not sign", at(server, vendorOne), "AsymmetricSign", gcpkmstest.Denied, "ooooooof", none},
		{"good certificate", at(server, vendorOne), "", "", "oooooooo", signer.OpenOptions{PublicKey: &testkit.GoldenKey(t).PublicKey}},
		{"another certificate", at(server, vendorOne), "", "", "ooooofss", signer.OpenOptions{PublicKey: &testkit.Key("other").PublicKey}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.operation != "" {
				testkit.OK(t, server.Stand(c.operation, c.fault))
				defer func() { testkit.OK(t, server.Stand(c.operation, gcpkmstest.OK)) }()
			}
			got := ""
			key := Backend(quick()).Diagnose(t.Context(), signerkit.Ref(t, c.ref), c.open, func(s signer.Step) {
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
				signerkit.MustSign(t, key)
				_ = key.Close()
			}
		})
	}
}
