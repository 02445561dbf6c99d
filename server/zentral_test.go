package server

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"golang.org/x/time/rate"

	"hsmsign/internal/testkit"
	"hsmsign/server/authn/awsiam/awsiamtest"
)

const (
	stsURL  = "https://sts.eu-central-1.amazonaws.com/"
	stsBody = "Action=GetCallerIdentity&Version=2011-06-15"
)

// stsRequest is what a client signs.
type stsRequest struct {
	method, url, service, body string
	headers                    []string // more of them, which are signed too: names and values
}

// sign signs with the signer of the AWS SDK, and returns the headers that it adds.
func (r stsRequest) sign(t *testing.T, c awsiamtest.Credentials, at time.Time) http.Header {
	t.Helper()
	made := testkit.Value(http.NewRequestWithContext(t.Context(), r.method, r.url, http.NoBody))(t) // without a length, as boto3 signs
	made.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	for i := 0; i+1 < len(r.headers); i += 2 {
		made.Header.Set(r.headers[i], r.headers[i+1])
	}
	sum := sha256.Sum256([]byte(r.body))
	from := aws.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, SessionToken: c.SessionToken}
	testkit.OK(t, v4.NewSigner().SignHTTP(t.Context(), from, made, hex.EncodeToString(sum[:]), r.service, "eu-central-1", at))
	return made.Header
}

// zentralRequest is what Zentral's client signs.
func zentralRequest() stsRequest { return stsRequest{http.MethodPost, stsURL, "sts", stsBody, nil} }

// signedBy returns the recorded bytes of Zentral's client, signed by credentials at a time.
func (f *dropInFixture) signedBy(t *testing.T, sent string, c awsiamtest.Credentials, at time.Time) string {
	t.Helper()
	header := zentralRequest().sign(t, c, at)
	for name, value := range map[string]string{"X-Amz-Date": header.Get("X-Amz-Date"), "X-Amz-Security-Token": header.Get("X-Amz-Security-Token"), "Authorization": header.Get("Authorization")} {
		pattern := regexp.MustCompile(`"` + name + `": "[^"]*"`)
		if len(pattern.FindAllString(sent, -1)) != 1 {
			t.Fatalf("%s is not there once", name)
		}
		sent = pattern.ReplaceAllLiteralString(sent, fmt.Sprintf("%q: %q", name, value))
	}
	head, body, _ := strings.Cut(sent, "\r\n\r\n")
	return regexp.MustCompile(`Content-Length: \d+`).ReplaceAllString(head, fmt.Sprint("Content-Length: ", len(body))) + "\r\n\r\n" + body
}

// zentralBody returns the recorded body of Zentral's client, signed by credentials at a time.
func (f *dropInFixture) zentralBody(t *testing.T, c awsiamtest.Credentials, at time.Time) string {
	t.Helper()
	_, body, _ := strings.Cut(f.signedBy(t, string(testkit.Value(os.ReadFile(filepath.Join("testdata", "dropin", "zentral.http")))(t)), c, at), "\r\n\r\n")
	return body
}

// made returns a body of Zentral's client whose iam_request is another one.
func made(t *testing.T, r stsRequest, c awsiamtest.Credentials, unsigned ...string) string {
	t.Helper()
	headers := map[string]string{}
	for name, values := range r.sign(t, c, time.Now()) {
		headers[name] = values[0]
	}
	for i := 0; i+1 < len(unsigned); i += 2 {
		headers[unsigned[i]] = unsigned[i+1]
	}
	return zentralOrder(t, map[string]any{"method": r.method, "url": r.url, "headers": headers, "body": r.body})
}

func zentralOrder(t *testing.T, signed any) string {
	t.Helper()
	return string(testkit.Value(json.Marshal(map[string]any{"b64_csr": b64(newCSR("drop-in")), "fqdn": "zentral.acme.example", "iam_request": signed}))(t))
}

// A role of the configuration is the caller. What it signed is accepted once, by one replica, within a minute.
func TestZentralAWS(t *testing.T) {
	f := newDropIns(t)
	body := f.zentralBody(t, f.role, time.Now())
	if a := f.post(t, "", ZentralPath, body); a.status != http.StatusOK || !strings.HasPrefix(string(a.body), `{"signed_csr":"`) {
		t.Fatalf("%d %s", a.status, a.body)
	}
	f.log.await(t, `"credential":"aws `+zentralID+`"`)
	second := &dropInFixture{apiFixture: f.replica(t)}
	next := *f.Server.state.Load()
	next.Vendors, next.AWS = second.Server.state.Load().Vendors, second.verifierAt(t, f.sts.URL)
	second.Server.state.Store(&next)
	for i, at := range []*dropInFixture{second, f} {
		if a := at.post(t, "", ZentralPath, body); a.status != http.StatusUnauthorized || strings.Contains(string(a.body), "before") {
			t.Errorf("replay %d: %d %s", i, a.status, a.body)
		}
	}
	if a := second.post(t, "", ZentralPath, f.zentralBody(t, f.role, time.Now().Add(-10*time.Second))); a.status != http.StatusOK {
		t.Errorf("another signature, on the second replica: %d %s", a.status, a.body)
	}
	// A page of another web site cannot send it: it is refused, and used up.
	a := send(t, f.http, http.MethodPost, ZentralPath, map[string]string{"Sec-Fetch-Site": "cross-site"}, f.zentralBody(t, f.role, time.Now().Add(-20*time.Second)))
	if a.status != http.StatusForbidden {
		t.Errorf("from another web site: %d %s", a.status, a.body)
	}
	for _, secret := range []string{f.role.SecretAccessKey, f.role.SessionToken, "i-0123456789abcdef0", "Signature="} {
		if strings.Contains(f.log.String(), secret) {
			t.Errorf("the log has %q", secret)
		}
	}
}

// What is not exactly Zentral's request to STS, signed by a role of the configuration a moment ago, is nobody's. What has the wrong form
// does not reach STS.
func TestZentralAWSRefused(t *testing.T) {
	f := newDropIns(t)
	f.health.logs = rate.NewLimiter(rate.Inf, 1)                                       // each refusal is logged
	again := awsiamtest.Role("111122223333", "zentral", "AROAEXAMPLEZENTRAL02", "i-1") // the role was deleted and created again
	other := awsiamtest.Role("444455556666", "zentral", "AROAEXAMPLEOTHER0001", "i-1")
	far := awsiamtest.Role("111122223333", "far", farID, "i-1")
	for _, c := range []awsiamtest.Credentials{again, other, far} {
		f.sts.Add(c)
	}
	forged := f.role
	forged.SecretAccessKey = "guessed"
	change := func(change func(r *stsRequest)) string {
		r := zentralRequest()
		change(&r)
		return made(t, r, f.role)
	}
	doubled := strings.Replace(f.zentralBody(t, f.role, time.Now()), `"X-Amz-Date": `, `"x-amz-date": "20200101T000000Z", "X-Amz-Date": `, 1)
	for name, tt := range map[string]struct {
		body   string
		calls  int
		reason string
	}{
		"a role that was created again": {f.zentralBody(t, again, time.Now()), 1, "it was created again"},
		"another account":               {f.zentralBody(t, other, time.Now()), 1, "is not that of a caller"},
		"another network":               {f.zentralBody(t, far, time.Now()), 1, "far may not use aws " + farID + " from 127.0.0.1"},
		"a forged signature":            {f.zentralBody(t, forged, time.Now()), 1, ""},
		"a minute old":                  {f.zentralBody(t, f.role, time.Now().Add(-62*time.Second)), 0, "is accepted for 1m0s"},
		"in the future":                 {f.zentralBody(t, f.role, time.Now().Add(20*time.Minute)), 0, "in the future"},
		"another host":                  {change(func(r *stsRequest) { r.url = "https://sts.evil.example/" }), 0, ""},
		"a host that begins the same":   {change(func(r *stsRequest) { r.url = "https://sts.eu-central-1.amazonaws.com.evil.example/" }), 0, ""},
		"parameters in the URL":         {change(func(r *stsRequest) { r.url = stsURL + "?" + stsBody }), 0, ""},
		"doubled parameters":            {change(func(r *stsRequest) { r.body += "&Action=GetSessionToken" }), 0, "the body is not"},
		"another action":                {change(func(r *stsRequest) { r.body = "Action=AssumeRole&Version=2011-06-15" }), 0, "the body is not"},
		"another method":                {change(func(r *stsRequest) { r.method = http.MethodGet }), 0, "the method is"},
		"another service":               {change(func(r *stsRequest) { r.service = "s3" }), 0, "is not one of Signature Version 4 for STS"},
		"another server's name":         {change(func(r *stsRequest) { r.headers = []string{"X-Hsmsign-Server", "other.example.com"} }), 0, "is not a name of this server"},
		"an unsigned header":            {made(t, zentralRequest(), f.role, "X-Amz-Target", "x"), 0, "is not signed"},
		"a doubled header":              {doubled, 0, "is repeated"},
		"a number for a header":         {zentralOrder(t, map[string]any{"url": stsURL, "headers": map[string]any{"X-Amz-Date": 5}}), 0, "it is not a string"},
		"an unknown member":             {zentralOrder(t, map[string]any{"url": stsURL, "endpoint": "x"}), 0, "it is unknown"},
		"nothing":                       {zentralOrder(t, map[string]any{}), 0, ""},
	} {
		before, logged := f.sts.Calls(), len(f.log.String())
		a := f.post(t, "", ZentralPath, tt.body)
		if a.status != http.StatusUnauthorized || !strings.HasPrefix(string(a.body), "the caller is not known; ") || strings.Contains(string(a.body), "AWS") {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
		if calls := f.sts.Calls() - before; calls != tt.calls {
			t.Errorf("%s: %d calls of STS", name, calls)
		}
		testkit.Until(t, name+" is logged with its reason", func() bool {
			line := f.log.String()[logged:]
			return strings.HasSuffix(line, "\n") && strings.Contains(line, tt.reason)
		})
	}
	limited := false
	for range 30 {
		a := f.post(t, "", ZentralPath, f.zentralBody(t, forged, time.Now()))
		limited = limited || a.status == http.StatusTooManyRequests && a.header.Get("Retry-After") == "1"
	}
	if !limited {
		t.Error("strangers may ask STS as often as they like")
	}
	// Without an AWS identity in the configuration STS is never asked.
	next := *f.Server.state.Load()
	next.AWS = nil
	f.Server.state.Store(&next)
	before := f.sts.Calls()
	if a := f.post(t, "", ZentralPath, f.zentralBody(t, f.role, time.Now())); a.status != http.StatusUnauthorized || f.sts.Calls() != before {
		t.Errorf("without AWS: %d %s", a.status, a.body)
	}
}
