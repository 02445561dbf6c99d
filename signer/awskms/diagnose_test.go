package awskms

import (
	"crypto"
	"errors"
	"strings"
	"testing"
	"time"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/awskms/awskmstest"
)

func TestDiagnose(t *testing.T) {
	server, _ := start(t, awskmstest.Config{})
	opts := quick()
	opts.Policy.Timeout = 500 * time.Millisecond
	backend := Backend(opts)
	arn := testkit.Value(server.Add(awskmstest.Key{Private: testkit.GoldenKey(t)}))(t)
	reference := at(server, arn)
	for _, tt := range []struct {
		name, reference string
		public          crypto.PublicKey
		prepare         func()
		step            string // that fails; "": none
		family          error
	}{
		{"good", reference, &testkit.GoldenKey(t).PublicKey, nil, "", nil},
		{"malformed", "awskms:///Vendor", nil, nil, "reference", signer.ErrReference},
		{"no key", at(server, ""), nil, nil, "reference", signer.ErrReference},
		{"another region", strings.Replace(at(server, "alias/Vendor"), "eu-west-1", "us-east-1", 1), nil, nil, "key", signer.ErrKeyNotFound},
		{"another certificate", reference, &testkit.Key("other").PublicKey, nil, "key", signer.ErrBadKey},
		{"outage", reference, nil, func() { testkit.OK(t, server.Stand("*", awskmstest.Internal)) }, "reach", signer.ErrUnavailable},
		{"denied", reference, nil, func() { testkit.OK(t, server.Stand("GetPublicKey", awskmstest.Denied)) }, "key", signer.ErrAuth},
		{"signing denied", reference, nil, func() { testkit.OK(t, server.Stand("Sign", awskmstest.Denied)) }, "signature", signer.ErrAuth},
		{"disabled", reference, nil, func() { testkit.OK(t, server.Stand("GetPublicKey", awskmstest.Disabled)) }, "key", signer.ErrBadKey},
		{"no credentials", reference, nil, func() { t.Setenv("AWS_ACCESS_KEY_ID", "") }, "credentials", signer.ErrAuth},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.prepare != nil {
				tt.prepare()
			}
			letters, steps := signerkit.Diagnose(t, backend, tt.reference, tt.public)
			for _, operation := range []string{"*", "GetPublicKey", "Sign"} {
				testkit.OK(t, server.Stand(operation, awskmstest.OK))
			}
			if tt.step != "" {
				if s := steps[tt.step]; !errors.Is(s.Err, tt.family) || len(letters) != 6 {
					t.Errorf("%+v", steps)
				}
				return
			}
			for name, text := range map[string]string{"credentials": "EnvConfigCredentials", "key": "RSA of 2048 bits", "protection": "Origin AWS_KMS", "signature": "made and verified"} {
				if s := steps[name]; s.Status != signer.StatusOK || !strings.Contains(s.Detail, text) {
					t.Errorf("%s: %+v, want %q", name, s, text)
				}
			}
		})
	}
	t.Setenv("AWS_ACCESS_KEY_ID", awskmstest.AccessKeyID)
	testkit.OK(t, server.Stand("DescribeKey", awskmstest.Denied))
	if _, steps := signerkit.Diagnose(t, backend, reference, nil); steps["protection"].Status != signer.StatusOK || !strings.Contains(steps["protection"].Detail, "needs kms:DescribeKey") {
		t.Errorf("%+v", steps)
	}
}
