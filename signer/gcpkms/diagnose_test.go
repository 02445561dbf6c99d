package gcpkms

import (
	"crypto"
	"testing"

	"cloud.google.com/go/kms/apiv1/kmspb"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer/gcpkms/gcpkmstest"
)

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
}
