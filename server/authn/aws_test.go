package authn

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"hsmsign/agent/policy"
	"hsmsign/client/awsiam"
	"hsmsign/internal/testkit"
	server "hsmsign/server/authn/awsiam"
	"hsmsign/server/authn/awsiam/awsiamtest"
)

// TestSigned: a caller's networks apply before its signature is remembered, and a signature for localhost comes from this host only.
func TestSigned(t *testing.T) {
	role := awsiamtest.Role("111122223333", "ci", "AROAEXAMPLEROLE00001", "build-1")
	double := awsiamtest.Start(role)
	t.Cleanup(double.Close)
	remembered := 0
	v := testkit.Value(server.New(server.Config{Endpoint: double.URL, Once: func(context.Context, [32]byte, time.Time) (bool, error) {
		remembered++
		return true, nil
	}}))(t)
	p := testkit.Value(policy.New(map[string]policy.CallerConfig{
		"ci": {Role: "reader", Owners: []string{"ada"}, AWS: policy.AWSConfig{ARN: "arn:aws:iam::111122223333:role/ci", UniqueID: "AROAEXAMPLEROLE00001"}, From: []string{"10.0.0.0/8", "127.0.0.0/8"}},
	}, map[string]policy.RoleConfig{"reader": {May: []string{policy.Read}, Customers: []string{"*"}}}, policy.Environment{}))(t)
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": role.AccessKeyID, "AWS_SECRET_ACCESS_KEY": role.SecretAccessKey, "AWS_SESSION_TOKEN": role.SessionToken, "AWS_REGION": "eu-west-1",
		"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_EC2_METADATA_DISABLED": "true",
	} {
		t.Setenv(name, value)
	}
	c := Checker{Policy: p, AWS: v, Servers: []string{"sign.example.com"}, Now: time.Now()}
	for i, tt := range []struct {
		name, from string
		want       bool
	}{
		{"sign.example.com", "10.1.2.3", true}, {"sign.example.com", "192.0.2.1", false}, {"localhost", "127.0.0.1", true}, {"localhost", "10.1.2.3", false}, {"other", "127.0.0.1", false},
	} {
		before := remembered
		credentials := testkit.Value(awsiam.New(t.Context(), awsiam.Config{Server: tt.name}))(t)
		value := testkit.Value(credentials.Bearer(t.Context()))(t)
		signed := testkit.Value(server.Decode(strings.TrimPrefix(value, server.Prefix)))(t)
		found, err := c.Signed(t.Context(), signed, Connection{Kind: TLS, Remote: netip.MustParseAddr(tt.from)}, false)
		if (err == nil) != tt.want || tt.want != (found.Caller != nil) || tt.want != (remembered > before) {
			t.Errorf("%d: %+v, %v, %d are remembered", i, found, err, remembered-before)
		}
	}
}
