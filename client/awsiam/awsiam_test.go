package awsiam_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"hsmsign/client/awsiam"
	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/server/authn/awsiam/awsiamtest"

	server "hsmsign/server/authn/awsiam"
)

// environment sets the AWS credentials of a role, and nothing else of AWS.
func environment(t *testing.T, c awsiamtest.Credentials, region string) {
	t.Helper()
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": c.AccessKeyID, "AWS_SECRET_ACCESS_KEY": c.SecretAccessKey, "AWS_SESSION_TOKEN": c.SessionToken, "AWS_REGION": region,
		"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_EC2_METADATA_DISABLED": "true",
	} {
		t.Setenv(name, value)
	}
}

// TestBearer: each value is another one, which the server reads and STS verifies, in every region and also without one.
func TestBearer(t *testing.T) {
	role := awsiamtest.Role("111122223333", "ci", "AROAEXAMPLEROLE00001", "build-1")
	double := awsiamtest.Start(role)
	t.Cleanup(double.Close)
	seen := map[[32]byte]bool{}
	v := testkit.Value(server.New(server.Config{Endpoint: double.URL, Once: onceIn(seen)}))(t)
	for _, region := range []string{"eu-west-1", "us-east-1", "", "us-gov-west-1", "cn-north-1"} {
		environment(t, role, region)
		c := testkit.Value(awsiam.New(t.Context(), awsiam.Config{Server: "Sign.example.com"}))(t)
		for range 2 {
			value := testkit.Value(c.Bearer(t.Context()))(t)
			signed := testkit.Value(server.Decode(strings.TrimPrefix(value, server.Prefix)))(t)
			if strings.Contains(value, role.SecretAccessKey) || !strings.HasPrefix(value, server.Prefix) {
				t.Error(value)
			}
			_, err := v.Verify(t.Context(), signed, server.Rule{Servers: []string{"sign.example.com"}})
			// The double's role is one of the partition aws: STS of another partition does not know it.
			if foreign := strings.HasPrefix(region, "us-gov") || strings.HasPrefix(region, "cn-"); (err != nil) != foreign || foreign && !strings.Contains(err.Error(), "answers with the ARN") {
				t.Errorf("%q: %s: %v", region, signed.URL, err)
			}
		}
	}
	if len(seen) != 6 {
		t.Errorf("%d signatures", len(seen))
	}
	t.Setenv("AWS_USE_FIPS_ENDPOINT", "true")
	environment(t, role, "us-east-2")
	value := testkit.Value(testkit.Value(awsiam.New(t.Context(), awsiam.Config{Server: "a"}))(t).Bearer(t.Context()))(t)
	if signed := testkit.Value(server.Decode(strings.TrimPrefix(value, server.Prefix)))(t); signed.URL != "https://sts-fips.us-east-2.amazonaws.com/" {
		t.Error(signed.URL)
	}
}

func TestBearerRefused(t *testing.T) {
	environment(t, awsiamtest.Credentials{}, "eu-west-1")
	c := testkit.Value(awsiam.New(t.Context(), awsiam.Config{Server: "a"}))(t)
	if _, err := c.Bearer(t.Context()); fault.KindOf(err) != fault.Auth || fault.Hint(err) == "" || strings.Contains(err.Error(), "\n") {
		t.Errorf("no credentials: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Bearer(ctx); fault.KindOf(err) != fault.Interrupted {
		t.Errorf("canceled: %v", err)
	}
	for _, name := range []string{"", "a b", "a\nb"} {
		if _, err := awsiam.New(t.Context(), awsiam.Config{Server: name}); fault.KindOf(err) != fault.Usage {
			t.Errorf("%q: %v", name, err)
		}
	}
	for name, value := range map[string]string{"AWS_REGION": "eu/west", "AWS_PROFILE": "absent"} {
		t.Setenv(name, value)
		if _, err := awsiam.New(t.Context(), awsiam.Config{Server: "a"}); fault.KindOf(err) != fault.Usage || fault.Hint(err) == "" {
			t.Errorf("%s=%s: %v", name, value, err)
		}
		t.Setenv(name, "")
	}
}

// onceIn remembers hashes in a map.
func onceIn(seen map[[32]byte]bool) func(context.Context, [32]byte, time.Time) (bool, error) {
	return func(_ context.Context, hash [32]byte, _ time.Time) (bool, error) {
		known := seen[hash]
		seen[hash] = true
		return !known, nil
	}
}
