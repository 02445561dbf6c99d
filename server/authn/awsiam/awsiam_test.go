package awsiam

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/ledger/sqlite"
	"hsmsign/server/authn/awsiam/awsiamtest"
)

const (
	account = "111122223333"
	roleArn = "arn:aws:iam::111122223333:role/signer"
	role    = "AROAEXAMPLEROLE00001"
	here    = "sign.example.com"
	ireland = "https://sts.eu-west-1.amazonaws.com/"
)

var (
	session = awsiamtest.Role(account, "signer", role, "i-0123456789abcdef0")
	source  = netip.MustParseAddr("192.0.2.1")
	rule    = Rule{Servers: []string{"localhost", here}, Source: source}
)

// memory is a Once without a clock.
type memory struct {
	mu   sync.Mutex
	seen map[[sha256.Size]byte]time.Time
}

func (m *memory) Once(_ context.Context, hash [sha256.Size]byte, until time.Time) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, known := m.seen[hash]
	if m.seen == nil {
		m.seen = map[[sha256.Size]byte]time.Time{}
	}
	m.seen[hash] = until
	return !known, nil
}

// start returns a verifier that asks a new double.
func start(t testing.TB, change func(*Config)) (*Verifier, *awsiamtest.Server) {
	t.Helper()
	double := awsiamtest.Start(session)
	t.Cleanup(double.Close)
	cfg := Config{Once: (&memory{}).Once, Endpoint: double.URL}
	if change != nil {
		change(&cfg)
	}
	v := testkit.Value(New(cfg))(t)
	t.Cleanup(v.Close)
	return v, double
}

// sign signs with the signer of the AWS SDK.
func sign(t testing.TB, c awsiamtest.Credentials, url, region string, at time.Time, headers ...string) Signed {
	t.Helper()
	r := testkit.Value(http.NewRequest(http.MethodPost, url, strings.NewReader(body)))(t)
	r.Header.Set("Content-Type", contentType)
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	sum := sha256.Sum256([]byte(body))
	from := aws.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, SessionToken: c.SessionToken}
	testkit.OK(t, v4.NewSigner().SignHTTP(t.Context(), from, r, hexOf(sum), "sts", region, at))
	return signedOf(r)
}

func signedOf(r *http.Request) Signed {
	s := Signed{URL: r.URL.String()}
	for name, values := range r.Header {
		s.Headers = append(s.Headers, Header{name, values[0]})
	}
	return s
}

func hexOf(sum [sha256.Size]byte) string {
	const digits = "0123456789abcdef"
	var b strings.Builder
	for _, c := range sum {
		b.WriteByte(digits[c>>4])
		b.WriteByte(digits[c&15])
	}
	return b.String()
}

// mine signs a request for this server now.
func mine(t testing.TB) Signed {
	t.Helper()
	return sign(t, session, ireland, "eu-west-1", time.Now(), ServerHeader, here)
}

func TestVerify(t *testing.T) {
	v, double := start(t, nil)
	user := awsiamtest.Credentials{AccessKeyID: "AKIAEXAMPLEUSERKEY01", SecretAccessKey: "s", Account: account, ARN: "arn:aws:iam::111122223333:user/teams/alice", UserID: "AIDAEXAMPLEUSER00001"}
	china := awsiamtest.Credentials{AccessKeyID: "AKIAEXAMPLECHINA0001", SecretAccessKey: "s", Account: account, ARN: "arn:aws-cn:sts::111122223333:assumed-role/signer/x=y", UserID: role + ":x=y"}
	double.Add(user)
	double.Add(china)
	for _, tt := range []struct {
		what        string
		credentials awsiamtest.Credentials
		url, region string
		want        Identity
	}{
		{"a role", session, ireland, "eu-west-1", Identity{account, roleArn, role}},
		{"the global endpoint", session, "https://sts.amazonaws.com", "us-east-1", Identity{account, roleArn, role}},
		{"a FIPS endpoint", session, "https://sts-fips.us-east-2.amazonaws.com/", "us-east-2", Identity{account, roleArn, role}},
		{"a user", user, ireland, "eu-west-1", Identity{account, user.ARN, user.UserID}},
		{"China", china, "https://sts.cn-north-1.amazonaws.com.cn/", "cn-north-1", Identity{account, "arn:aws-cn:iam::111122223333:role/signer", role}},
	} {
		got, err := v.Verify(t.Context(), sign(t, tt.credentials, tt.url, tt.region, time.Now(), ServerHeader, strings.ToUpper(here)), rule)
		if err != nil || got != tt.want {
			t.Errorf("%s: %+v, %v", tt.what, got, err)
		}
	}
	last := double.Last()
	if last.Method != http.MethodPost || last.URL.String() != "/" || last.Header.Get("Accept") != "application/json" || last.Host != "sts.cn-north-1.amazonaws.com.cn" {
		t.Errorf("%+v", last)
	}
}

// capture is an HTTP client that sends nothing.
type capture struct{ request *http.Request }

func (c *capture) Do(r *http.Request) (*http.Response, error) {
	c.request = r
	return nil, context.Canceled
}

// TestSDKs: what the clients of AWS really sign: the Go SDK's own client of STS, and botocore.
func TestSDKs(t *testing.T) {
	v, _ := start(t, nil)
	sent := &capture{}
	client := sts.New(sts.Options{
		Region: "eu-west-1", Credentials: credentials.NewStaticCredentialsProvider(session.AccessKeyID, session.SecretAccessKey, session.SessionToken), HTTPClient: sent,
		BaseEndpoint: aws.String(ireland), Retryer: aws.NopRetryer{},
	})
	_, _ = client.GetCallerIdentity(t.Context(), nil) // nothing was sent
	if got, err := v.Verify(t.Context(), signedOf(sent.request), Rule{Zentral: true}); err != nil || got.UniqueID != role {
		t.Errorf("the Go SDK: %+v, %v; %v", got, err, sent.request.Header)
	}
	// Recorded from botocore 1.43.11. boto3.json has the form and the bytes of Zentral's iam_request: all headers, as boto3 sends them.
	at := time.Date(2026, 6, 1, 12, 0, 30, 0, time.UTC)
	v, double := start(t, func(cfg *Config) { cfg.Now = func() time.Time { return at } })
	double.SetTime(func() time.Time { return at })
	double.Add(awsiamtest.Credentials{
		AccessKeyID: "ASIAEXAMPLESESSION01", SecretAccessKey: "secret-of-the-double-EXAMPLE", SessionToken: "token/of+the/double==",
		Account: account, ARN: session.ARN, UserID: session.UserID,
	})
	for name, rule := range map[string]Rule{"boto3.json": {Zentral: true}, "botocore.json": rule} {
		var s Signed
		testkit.OK(t, json.Unmarshal(testkit.Value(os.ReadFile(filepath.Join("testdata", name)))(t), &s))
		if got, err := v.Verify(t.Context(), s, rule); err != nil || got != (Identity{account, roleArn, role}) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	// Zentral's request names no server: elsewhere it is refused, and here 60 seconds later.
	var s Signed
	testkit.OK(t, json.Unmarshal(testkit.Value(os.ReadFile("testdata/boto3.json"))(t), &s))
	if _, err := v.Verify(t.Context(), s, rule); fault.KindOf(err) != fault.Unauthenticated || !strings.Contains(err.Error(), "there is no signed header") {
		t.Errorf("without the server's name: %v", err)
	}
	at = at.Add(31 * time.Second)
	if _, err := v.Verify(t.Context(), s, Rule{Zentral: true}); fault.KindOf(err) != fault.Unauthenticated || !strings.Contains(err.Error(), "signed 1m1s ago") {
		t.Errorf("later: %v", err)
	}
}

// TestReplay: a signature is accepted once, whichever replica it reaches first, and also if both verify it at the same time.
func TestReplay(t *testing.T) {
	double := awsiamtest.Start(session)
	t.Cleanup(double.Close)
	path := filepath.Join(t.TempDir(), "ledger.db")
	key, verifier, err := ledger.GenerateKey("example.com/aws")
	testkit.OK(t, err)
	var replicas []*Verifier
	for i := range 2 {
		store := testkit.Value(sqlite.Open(t.Context(), path, true))(t)
		t.Cleanup(func() { _ = store.DB.Close() })
		cfg := ledger.Config{Store: store, Key: key, Verifier: verifier}
		if i == 0 {
			testkit.Value(ledger.Init(t.Context(), cfg))(t)
		}
		l := testkit.Value(ledger.Open(t.Context(), cfg))(t)
		t.Cleanup(func() { _ = l.Close() })
		replicas = append(replicas, testkit.Value(New(Config{Endpoint: double.URL, Once: func(ctx context.Context, hash [32]byte, until time.Time) (bool, error) {
			return l.Once(ctx, record.Hash(hash), until)
		}}))(t))
	}
	s := mine(t)
	testkit.Value(replicas[0].Verify(t.Context(), s, rule))(t)
	changed := s
	changed.Method, changed.URL = method, strings.TrimSuffix(s.URL, "/")
	changed.Headers = append([]Header{{"User-Agent", "another"}}, s.Headers...)
	for i, again := range []Signed{s, s, changed} {
		if _, err := replicas[1-i%2].Verify(t.Context(), again, rule); fault.KindOf(err) != fault.Unauthenticated || !strings.Contains(err.Error(), "the signature was used before") {
			t.Errorf("replay %d: %v", i, err)
		}
	}
	// STS answers the same request of both replicas at the same moment.
	var both sync.WaitGroup
	both.Add(2)
	double.Misbehave(func(w http.ResponseWriter, r *http.Request) {
		both.Done()
		both.Wait()
		awsiamtest.Answer(w, r, session)
	})
	s = sign(t, session, ireland, "eu-west-1", time.Now().Add(-5*time.Second), ServerHeader, here)
	errs := make(chan error, 2)
	for _, v := range replicas {
		go func() {
			_, err := v.Verify(t.Context(), s, rule)
			errs <- err
		}()
	}
	if one, two := <-errs, <-errs; (one == nil) == (two == nil) {
		t.Errorf("at the same time: %v, %v", one, two)
	}
}

// TestAccept: a signature of somebody who is no caller is not remembered, so that strangers cannot fill the memory.
func TestAccept(t *testing.T) {
	m := &memory{}
	v, _ := start(t, func(cfg *Config) { cfg.Once = m.Once })
	strict := rule
	strict.Accept = func(id Identity) error {
		if id.UniqueID != role {
			t.Errorf("%+v", id)
		}
		return fault.Unauthenticated.Errorf("nobody")
	}
	s := mine(t)
	if _, err := v.Verify(t.Context(), s, strict); err == nil || err.Error() != "nobody" || len(m.seen) != 0 {
		t.Errorf("%v, %d are remembered", err, len(m.seen))
	}
	testkit.Value(v.Verify(t.Context(), s, rule))(t)
	at := testkit.Value(time.Parse(dateForm, value(s, "X-Amz-Date")))(t)
	for _, until := range m.seen {
		if !until.Equal(at.Add(15 * time.Minute)) {
			t.Errorf("remembered until %v, signed at %v", until, at)
		}
	}
	if len(m.seen) != 1 {
		t.Errorf("%d are remembered", len(m.seen))
	}
}

func value(s Signed, name string) string {
	for _, h := range s.Headers {
		if strings.EqualFold(h.Name, name) {
			return h.Value
		}
	}
	return ""
}

// bearer encodes as clients do.
func bearer(t testing.TB, s Signed) string {
	t.Helper()
	headers := map[string]string{}
	for _, h := range s.Headers {
		headers[h.Name] = h.Value
	}
	data := testkit.Value(json.Marshal(map[string]any{"url": s.URL, "headers": headers}))(t)
	return base64.RawURLEncoding.EncodeToString(data)
}
