package server_test

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
	"time"

	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/client"
	aws "hsmsign/client/awsiam"
	"hsmsign/fault"
	"hsmsign/internal/servicekit"
	"hsmsign/internal/testkit"
	"hsmsign/server"
	"hsmsign/server/authn/awsiam"
	"hsmsign/server/authn/awsiam/awsiamtest"
)

const (
	awsRole = "arn:aws:iam::111122223333:role/teams/signer"
	awsID   = "AROAEXAMPLEROLE00001"
)

// awsService starts a service that asks a double of STS, for the callers "ci" (a role), "away" (another role, from another network).
func awsService(t *testing.T, double *awsiamtest.Server, change func(cfg *server.Config)) *servicekit.Service {
	t.Helper()
	return servicekit.Start(t, servicekit.Options{
		Callers: map[string]policy.CallerConfig{
			"ci":   {Role: "signer", Owners: []string{"ada"}, AWS: policy.AWSConfig{ARN: awsRole, UniqueID: awsID}},
			"away": {Role: "signer", Owners: []string{"ada"}, AWS: policy.AWSConfig{ARN: "arn:aws:iam::111122223333:role/away", UniqueID: "AROAEXAMPLEAWAY00001"}, From: []string{"192.0.2.0/24"}},
		},
		Change: func(cfg *server.Config) {
			if change != nil {
				change(cfg)
			}
			l, load := cfg.Ledger, cfg.Load
			v := testkit.Value(awsiam.New(awsiam.Config{Endpoint: double.URL, Once: func(ctx context.Context, hash [sha256.Size]byte, until time.Time) (bool, error) {
				return l.Once(ctx, hash, until)
			}}))(t)
			cfg.Load = func(ctx context.Context, again bool) (*server.State, error) {
				next, err := load(ctx, again)
				if err == nil {
					next.AWS, next.Hosts = v, []string{"sign.example.com"}
				}
				return next, err
			}
		},
	})
}

// awsCredentials returns what signs for a server with credentials of the double.
func awsCredentials(t *testing.T, c awsiamtest.Credentials, name string) *aws.Credentials {
	t.Helper()
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": c.AccessKeyID, "AWS_SECRET_ACCESS_KEY": c.SecretAccessKey, "AWS_SESSION_TOKEN": c.SessionToken, "AWS_REGION": "eu-west-1",
		"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_EC2_METADATA_DISABLED": "true",
	} {
		t.Setenv(name, value)
	}
	return testkit.Value(aws.New(t.Context(), aws.Config{Server: name}))(t)
}

// awsClient returns a client of a service.
func awsClient(t *testing.T, s *servicekit.Service, signs *aws.Credentials) *client.Client {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(s.CA.Cert)
	c := testkit.Value(client.New(client.Config{URL: s.URL, Bearer: signs.Bearer, Roots: pool}))(t)
	t.Cleanup(c.Close)
	return c
}

// TestAWS: a caller with an AWS role signs for each request; each signature is accepted once, by any replica.
func TestAWS(t *testing.T) {
	role := awsiamtest.Role("111122223333", "signer", awsID, "build-1")
	double := awsiamtest.Start(role)
	t.Cleanup(double.Close)
	s := awsService(t, double, nil)
	signs := awsCredentials(t, role, "127.0.0.1")
	c := awsClient(t, s, signs)
	for range 3 {
		if me := testkit.Value(c.Me(t.Context()))(t); me.Caller != "ci" {
			t.Errorf("%+v", me)
		}
	}
	result := testkit.Value(c.Sign(t.Context(), api.SignOrder{CSR: servicekit.CSR(testkit.Key("acme")), Customer: "acme"}))(t)
	if result.Request == "" || double.Calls() != 4 {
		t.Errorf("%+v after %d calls of STS", result, double.Calls())
	}
	if log := s.Log(); !strings.Contains(log, `"credential":"aws `+awsID+`"`) || strings.Contains(log, role.SessionToken) || strings.Contains(log, "build-1") {
		t.Error(log)
	}
	me := func(s *servicekit.Service, value string, headers ...string) servicekit.Answer {
		return servicekit.Do(t, s.Client(t, nil), value, http.MethodGet, s.URL+"/v1/me", "", headers...)
	}
	second := awsService(t, double, func(cfg *server.Config) { cfg.Ledger, cfg.Replica = s.Ledger, "test:2" })
	value := testkit.Value(signs.Bearer(t.Context()))(t)
	for i, at := range []*servicekit.Service{s, second, s} {
		if got := me(at, value); (got.StatusCode == 200) != (i == 0) || i > 0 && (got.StatusCode != 401 || strings.Contains(got.Body, "before")) {
			t.Errorf("use %d of a signature: %s %s", i, got.Status, got.Body)
		}
	}
	if !strings.Contains(second.Log(), "the signature was used before") {
		t.Error(second.Log())
	}
	if got := me(s, testkit.Value(awsCredentials(t, role, "sign.example.com").Bearer(t.Context()))(t)); got.StatusCode != 200 {
		t.Errorf("signed for a name of serve: hosts: %s", got.Body)
	}
	for _, name := range []string{"other.example.com", "sign.example.com:8443", "0.0.0.0"} {
		if got := me(s, testkit.Value(awsCredentials(t, role, name).Bearer(t.Context()))(t)); got.StatusCode != 401 {
			t.Errorf("signed for %s: %s", name, got.Body)
		}
	}
	fresh := testkit.Value(signs.Bearer(t.Context()))(t)
	if got := me(s, "", "Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("ci:"+fresh))); got.StatusCode != 401 {
		t.Errorf("as a password: %s", got.Body)
	}
	if got := servicekit.Do(t, s.UnixClient(t), fresh, http.MethodGet, "http://localhost/v1/me", ""); got.StatusCode != 401 {
		t.Errorf("on a Unix socket: %s", got.Body)
	}
	if got := me(s, "hsmsign-aws_e30"); got.StatusCode != 401 {
		t.Errorf("nothing: %s", got.Body)
	}
}

// TestAWSRefused: whoever STS knows and the configuration does not is told the same as everybody; the log has the reason.
func TestAWSRefused(t *testing.T) {
	again := awsiamtest.Role("111122223333", "signer", "AROAEXAMPLEROLE00002", "build-1") // the role was deleted and created again
	other := awsiamtest.Role("444455556666", "signer", "AROAEXAMPLEOTHER0001", "build-1")
	away := awsiamtest.Role("111122223333", "away", "AROAEXAMPLEAWAY00001", "build-1")
	double := awsiamtest.Start(again, other, away)
	t.Cleanup(double.Close)
	s := awsService(t, double, nil)
	for reason, c := range map[string]awsiamtest.Credentials{
		"it was created again": again, "is not that of a caller": other, "away may not use aws AROAEXAMPLEAWAY00001 from 127.0.0.1": away,
	} {
		_, err := awsClient(t, s, awsCredentials(t, c, "127.0.0.1")).Me(t.Context())
		if fault.KindOf(err) != fault.Unauthenticated || strings.Contains(err.Error(), "AROA") || !strings.Contains(s.Log(), reason) {
			t.Errorf("%s: %v", reason, err)
		}
	}
	signs := awsCredentials(t, again, "127.0.0.1")
	me := func() servicekit.Answer {
		return servicekit.Do(t, s.Client(t, nil), testkit.Value(signs.Bearer(t.Context()))(t), http.MethodGet, s.URL+"/v1/me", "")
	}
	double.Misbehave(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
	if got := me(); got.StatusCode != 503 || got.Header.Get("Retry-After") == "" || !strings.Contains(got.Body, "AWS STS or the sign-in provider does not answer") {
		t.Errorf("STS fails: %s %s", got.Status, got.Body)
	}
	double.Misbehave(nil)
	limited := false
	for range 30 {
		got := me()
		limited = limited || got.StatusCode == 429 && got.Header.Get("Retry-After") == "1"
	}
	if !limited {
		t.Error("a stranger is not limited")
	}
	if got := servicekit.Do(t, s.Client(t, nil), s.Tokens["backend"], http.MethodGet, s.URL+"/v1/me", ""); got.StatusCode != 200 {
		t.Errorf("a caller with a token meanwhile: %s", got.Body)
	}
	// Without AWS identities in the configuration STS is never asked.
	plain, calls := servicekit.Start(t, servicekit.Options{}), double.Calls()
	if got := servicekit.Do(t, plain.Client(t, nil), testkit.Value(signs.Bearer(t.Context()))(t), http.MethodGet, plain.URL+"/v1/me", ""); got.StatusCode != 401 || double.Calls() != calls {
		t.Errorf("without AWS: %s", got.Body)
	}
}
