package awskms

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/awskms/awskmstest"
)

const roleAttribute = "&role-arn=arn:aws:iam::111122223333:role/hsmsign"

func TestCredentials(t *testing.T) {
	for _, tt := range []struct {
		name, query string
		env         map[string]string
		text, fix   string // of an ErrAuth; "": it signs
	}{
		{name: "none", env: map[string]string{"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, text: "no AWS credentials", fix: "AWS_PROFILE"},
		{name: "unknown access key", env: map[string]string{"AWS_ACCESS_KEY_ID": "AKIAUNKNOWN000000000"}, text: "UnrecognizedClientException", fix: "credentials"},
		{name: "wrong secret", env: map[string]string{"AWS_SECRET_ACCESS_KEY": "wrong"}, text: "InvalidSignatureException", fix: "clock"},
		{name: "unknown token", env: map[string]string{"AWS_SESSION_TOKEN": "token"}, text: "UnrecognizedClientException", fix: "credentials"},
		{name: "no such profile", query: "&profile=absent", text: "absent", fix: "AWS_CONFIG_FILE"},
		{name: "profile", query: "&profile=signing", env: map[string]string{"AWS_SECRET_ACCESS_KEY": "wrong"}},
		{name: "role", query: roleAttribute},
		{name: "role without credentials", query: roleAttribute, env: map[string]string{"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
			text: "no AWS credentials", fix: "AWS_PROFILE"},
		{name: "role with a wrong secret", query: roleAttribute, env: map[string]string{"AWS_SECRET_ACCESS_KEY": "wrong"},
			text: "sts:AssumeRole: SignatureDoesNotMatch", fix: "clock"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server, reference := start(t, awskmstest.Config{})
			file := filepath.Join(t.TempDir(), "config")
			text := "[profile signing]\naws_access_key_id = " + awskmstest.AccessKeyID + "\naws_secret_access_key = " + awskmstest.SecretAccessKey + "\n"
			testkit.OK(t, os.WriteFile(file, []byte(text), 0o600))
			t.Setenv("AWS_CONFIG_FILE", file)
			t.Setenv("AWS_ENDPOINT_URL_STS", server.Endpoint())
			for name, value := range tt.env {
				t.Setenv(name, value)
			}
			key, err := signerkit.Open(t, Backend(quick()), reference+tt.query, nil)
			if tt.text == "" {
				if err != nil {
					t.Fatal(err)
				}
				signerkit.MustSign(t, key)
				return
			}
			signerkit.WantError(t, err, signer.ErrAuth, tt.text, tt.fix)
			// The message about a wrong signature may quote the request with its session token.
			if strings.Contains(err.Error(), "calculated") {
				t.Errorf("the error quotes the message: %v", err)
			}
			if n := server.Calls("*"); n > 1 {
				t.Errorf("%d requests; credentials must not be tried twice", n)
			}
		})
	}
}

// TestRoleFaults: a refusal of STS is final, and a failure is retried.
func TestRoleFaults(t *testing.T) {
	server, reference := start(t, awskmstest.Config{})
	t.Setenv("AWS_ENDPOINT_URL_STS", server.Endpoint())
	testkit.OK(t, server.Script("AssumeRole", awskmstest.Denied))
	_, err := signerkit.Open(t, Backend(quick()), reference+roleAttribute, nil)
	signerkit.WantError(t, err, signer.ErrAuth, "sts:AssumeRole: AccessDenied", "grant sts:AssumeRole")
	testkit.OK(t, server.Script("AssumeRole", awskmstest.Internal, awskmstest.Reset, awskmstest.Throttle))
	signerkit.MustSign(t, signerkit.MustOpen(t, Backend(quick()), reference+roleAttribute, nil))
	testkit.OK(t, server.Stand("AssumeRole", awskmstest.Internal))
	opts := quick()
	opts.Policy.Timeout = 500 * time.Millisecond
	_, err = signerkit.Open(t, Backend(opts), reference+roleAttribute, nil)
	signerkit.WantError(t, err, signer.ErrUnavailable, "", "")
}
