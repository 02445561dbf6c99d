package awskms

import (
	"context"
	"crypto"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/awskms/awskmstest"
)

func diagnose(t *testing.T, reference string, public crypto.PublicKey) (map[string]signer.Step, signer.Signer) {
	t.Helper()
	opts := quick()
	opts.Policy.Timeout = 500 * time.Millisecond
	var names []string
	steps := map[string]signer.Step{}
	key := Backend(opts).Diagnose(context.Background(), signerkit.Ref(t, reference), signer.OpenOptions{PublicKey: public}, func(s signer.Step) {
		names = append(names, s.Name)
		steps[s.Name] = s
	})
	if diff := cmp.Diff([]string{"reference", "credentials", "reach", "key", "protection", "signature"}, names); diff != "" {
		t.Errorf("steps (-want +got)\n%s", diff)
	}
	return steps, key
}

func TestDiagnose(t *testing.T) {
	server, _ := start(t, awskmstest.Config{})
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
			steps, key := diagnose(t, tt.reference, tt.public)
			for _, operation := range []string{"*", "GetPublicKey", "Sign"} {
				testkit.OK(t, server.Stand(operation, awskmstest.OK))
			}
			if tt.step != "" {
				if s := steps[tt.step]; key != nil || s.Status != signer.StatusFail || !errors.Is(s.Err, tt.family) {
					t.Errorf("%+v", steps)
				}
				return
			}
			for name, text := range map[string]string{"credentials": "EnvConfigCredentials", "key": "RSA of 2048 bits", "protection": "Origin AWS_KMS", "signature": "made and verified"} {
				if s := steps[name]; s.Status != signer.StatusOK || !strings.Contains(s.Detail, text) {
					t.Errorf("%s: %+v, want %q", name, s, text)
				}
			}
			signerkit.MustSign(t, key)
			_ = key.Close()
		})
	}
	t.Setenv("AWS_ACCESS_KEY_ID", awskmstest.AccessKeyID)
	testkit.OK(t, server.Stand("DescribeKey", awskmstest.Denied))
	if steps, key := diagnose(t, reference, nil); key == nil || steps["protection"].Status != signer.StatusOK || !strings.Contains(steps["protection"].Detail, "needs kms:DescribeKey") {
		t.Errorf("%+v", steps)
	}
}
