package awsiam

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/server/authn/awsiam/awsiamtest"
)

// set returns what was signed with another value of a header; "" removes it.
func set(s Signed, name, value string) Signed {
	s.Headers = slices.DeleteFunc(slices.Clone(s.Headers), func(h Header) bool { return strings.EqualFold(h.Name, name) })
	if value != "" {
		s.Headers = append(s.Headers, Header{name, value})
	}
	return s
}

// TestRefused: what is not exactly the request that hsmsign would have sent is refused, and STS is not asked.
func TestRefused(t *testing.T) {
	v, double := start(t, nil)
	good, now := mine(t), time.Now()
	with := func(headers ...string) Signed {
		return sign(t, session, ireland, "eu-west-1", now, append(headers, ServerHeader, here)...)
	}
	replace := func(old, with string) Signed {
		return set(good, "Authorization", strings.Replace(value(good, "Authorization"), old, with, 1))
	}
	url := func(url string) Signed { s := good; s.URL = url; return s }
	for what, tt := range map[string]struct {
		signed Signed
		want   string
	}{
		"another method":         {Signed{Method: "GET", URL: good.URL, Headers: good.Headers}, `the method is "GET"`},
		"another Action":         {Signed{URL: good.URL, Headers: good.Headers, Body: "Action=GetSessionToken&Version=2011-06-15"}, "the body is not"},
		"a doubled parameter":    {Signed{URL: good.URL, Headers: good.Headers, Body: "Action=GetCallerIdentity&Version=2011-06-15&Action=X"}, "the body is not"},
		"another host":           {url("https://sts.attacker.example/"), "is not an endpoint of STS"},
		"a region of nobody":     {url("https://sts.eu-west-9.amazonaws.com/"), "is not an endpoint"},
		"another service":        {url("https://iam.amazonaws.com/"), "is not an endpoint"},
		"a longer host":          {url("https://sts.eu-west-1.amazonaws.com.attacker.example/"), "is not an endpoint"},
		"another case":           {url("https://STS.eu-west-1.amazonaws.com/"), "is not an endpoint"},
		"a user":                 {url("https://x@sts.eu-west-1.amazonaws.com/"), "is not an endpoint"},
		"a host as the user":     {url("https://sts.eu-west-1.amazonaws.com@attacker.example/"), "is not an endpoint"},
		"a port":                 {url("https://sts.eu-west-1.amazonaws.com:443/"), "is not an endpoint"},
		"a path":                 {url("https://sts.eu-west-1.amazonaws.com/x"), "is not an endpoint"},
		"two slashes":            {url("https://sts.eu-west-1.amazonaws.com//"), "is not an endpoint"},
		"a query":                {url("https://sts.eu-west-1.amazonaws.com/?Action=GetCallerIdentity&Version=2011-06-15"), "is not an endpoint"},
		"an empty query":         {url("https://sts.eu-west-1.amazonaws.com/?"), "is not an endpoint"},
		"a fragment":             {url("https://sts.eu-west-1.amazonaws.com/#"), "is not an endpoint"},
		"plain HTTP":             {url("http://sts.eu-west-1.amazonaws.com/"), "is not an endpoint"},
		"no URL":                 {url(""), "is not an endpoint"},
		"the host is another":    {set(good, "Host", "sts.us-east-1.amazonaws.com"), `signed header "host"`},
		"another region":         {url("https://sts.us-east-1.amazonaws.com/"), `the signature is for the region "eu-west-1"`},
		"no Authorization":       {set(good, "Authorization", ""), "Authorization"},
		"another algorithm":      {replace("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"), "Authorization"},
		"another scope":          {replace("/sts/", "/iam/"), "Authorization"},
		"a doubled field":        {replace("Credential=", "Credential=AKIAEXAMPLEUSERKEY01/20260101/eu-west-1/sts/aws4_request, Credential="), "Authorization"},
		"an upper-case digit":    {replace("Signature=", "Signature=A"), "Authorization"},
		"headers out of order":   {replace("SignedHeaders=content-length;content-type", "SignedHeaders=content-type;content-length"), "not sorted"},
		"a header twice":         {replace("SignedHeaders=content-length;", "SignedHeaders=content-length;content-length;"), "name twice"},
		"host is not signed":     {replace(";host;", ";"), `"host" is not signed`},
		"the date is not signed": {replace(";x-amz-date", ""), `"x-amz-date" is not signed`},
		"the token is not":       {replace(";x-amz-security-token", ""), `"x-amz-security-token" is not signed`},
		"the server is not":      {replace(";x-hsmsign-server", ""), `"x-hsmsign-server" is not signed`},
		"the type is not":        {replace(";content-type", ""), `"content-type" is not signed`},
		"another header":         {set(good, "X-Forwarded-For", "192.0.2.1"), `"x-forwarded-for" is not signed`},
		"another signed header":  {with("X-Forwarded-For", "192.0.2.1"), `"x-forwarded-for" is not one that is sent`},
		"a Date header":          {set(good, "Date", "x"), `"date" is not signed`},
		"transfer encoding":      {set(good, "Transfer-Encoding", "chunked"), "is not signed"},
		"a repeated header":      {Signed{URL: good.URL, Headers: append(slices.Clone(good.Headers), Header{"x-amz-DATE", value(good, "X-Amz-Date")})}, `"x-amz-date" is repeated`},
		"a missing header":       {set(good, "X-Amz-Security-Token", ""), "is signed and missing"},
		"a second line":          {set(good, "User-Agent", "a\r\nX-Amz-Date: b"), "characters that no header has"},
		"spaces around":          {set(good, ServerHeader, " "+here), "characters that no header has"},
		"XML is asked for":       {with("Accept", "text/xml"), `"accept" has a value`},
		"compression":            {with("Accept-Encoding", "gzip"), `"accept-encoding" has a value`},
		"another body's hash":    {with("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD"), `"x-amz-content-sha256" has a value`},
		"another type":           {with("Content-Type", "application/json"), `"content-type" has a value`},
		"many headers":           {Signed{URL: good.URL, Headers: make([]Header, 33)}, "33 headers"},
		"large headers":          {set(good, "User-Agent", strings.Repeat("x", 13<<10)), "larger than"},
		"too old":                {sign(t, session, ireland, "eu-west-1", now.Add(-15*time.Minute-2*time.Second), ServerHeader, here), "ago, and is accepted for 15m0s"},
		"from the future":        {sign(t, session, ireland, "eu-west-1", now.Add(62*time.Second), ServerHeader, here), "in the future"},
		"another day":            {set(good, "X-Amz-Date", "20010101T000000Z"), "not the time of the signature"},
		"no date":                {set(good, "X-Amz-Date", "now"), "not the time of the signature"},
		"no server":              {sign(t, session, ireland, "eu-west-1", now), "there is no signed header X-Hsmsign-Server"},
		"another server":         {sign(t, session, ireland, "eu-west-1", now, ServerHeader, "other.example.com"), `"other.example.com", which is not a name of this server`},
		"nothing":                {Signed{}, "is not an endpoint"},
	} {
		got, err := v.Verify(t.Context(), tt.signed, rule)
		if fault.KindOf(err) != fault.Unauthenticated || !strings.Contains(err.Error(), tt.want) || got != (Identity{}) || fault.Hint(err) == "" {
			t.Errorf("%s: %+v, %v; want %s", what, got, err, tt.want)
		}
		if err != nil && (strings.Contains(err.Error(), session.SessionToken) || strings.ContainsAny(err.Error(), "\r\n")) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := v.Verify(t.Context(), sign(t, session, ireland, "eu-west-1", now, ServerHeader, "other.example.com"), Rule{Zentral: true}); fault.KindOf(err) != fault.Unauthenticated {
		t.Errorf("Zentral's with the name of another server: %v", err)
	}
	if n := double.Calls(); n != 0 {
		t.Errorf("STS was asked %d times", n)
	}
	testkit.Value(v.Verify(t.Context(), good, rule))(t)
}

// TestSignatureIsVerified: STS refuses what was changed after it was signed; the error has no secret of the caller.
func TestSignatureIsVerified(t *testing.T) {
	v, _ := start(t, nil)
	good := mine(t)
	other := session
	other.SecretAccessKey = "another"
	for what, s := range map[string]Signed{
		"another secret": sign(t, other, ireland, "eu-west-1", time.Now(), ServerHeader, here),
		"another server": set(sign(t, session, ireland, "eu-west-1", time.Now(), ServerHeader, "other.example.com"), ServerHeader, here),
		"a later time":   set(sign(t, session, ireland, "eu-west-1", time.Now().Add(-5*time.Second), ServerHeader, here), "X-Amz-Date", value(good, "X-Amz-Date")),
		"another token":  set(good, "X-Amz-Security-Token", "another"),
		"another key":    set(good, "Authorization", strings.Replace(value(good, "Authorization"), session.AccessKeyID, "ASIAEXAMPLESESSION99", 1)),
	} {
		_, err := v.Verify(t.Context(), s, rule)
		if fault.KindOf(err) != fault.Unauthenticated || !strings.Contains(err.Error(), "STS refuses the signature: ") || strings.Contains(err.Error(), "token/") {
			t.Errorf("%s: %v", what, err)
		}
		v.limits = newLimits()
	}
}

// answer is a handler that answers with a text.
func answer(status int, contentType, text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		_, _ = w.Write([]byte(text))
	}
}

// identityJSON is an answer of STS.
func identityJSON(account, arn, id string) string {
	return fmt.Sprintf(`{"GetCallerIdentityResponse":{"GetCallerIdentityResult":{"Account":%q,"Arn":%q,"UserId":%q},"ResponseMetadata":{"RequestId":"1"}}}`, account, arn, id)
}

// TestAnswers: only one identity in JSON, with status 200, is an answer.
func TestAnswers(t *testing.T) {
	v, double := start(t, nil)
	v.timeout = 200 * time.Millisecond
	good := identityJSON(account, session.ARN, session.UserID)
	inner := strings.TrimSuffix(strings.TrimPrefix(good, `{"GetCallerIdentityResponse":`), "}")
	for what, tt := range map[string]struct {
		answer http.HandlerFunc
		kind   fault.Kind
		want   string
	}{
		"XML":                      {answer(200, "text/xml", "<GetCallerIdentityResponse/>"), fault.Unavailable, "is not JSON"},
		"JSON that says it is XML": {answer(200, "text/xml", good), fault.Unavailable, "is not JSON"},
		"a web page":               {answer(200, "text/html", good), fault.Unavailable, "is not JSON"},
		"a redirect":               {http.RedirectHandler("https://attacker.example/", http.StatusTemporaryRedirect).ServeHTTP, fault.Unavailable, "status 307"},
		"another status":           {answer(201, typeJSON, good), fault.Unavailable, "is not expected"},
		"a failure of STS":         {answer(500, typeJSON, good), fault.Unavailable, "is not expected"},
		"an identity at 403":       {answer(403, typeJSON, good), fault.Unavailable, "is not about the signature"},
		"throttled":                {answer(400, typeJSON, `{"Error":{"Code":"Throttling","Message":"Rate exceeded"}}`), fault.Unavailable, "is not about the signature"},
		"expired":                  {answer(403, typeJSON, `{"Error":{"Code":"ExpiredToken","Message":"x"}}`), fault.Unauthenticated, "STS refuses the signature: ExpiredToken"},
		"a code with a line":       {answer(403, typeJSON, `{"Error":{"Code":"a\nb"}}`), fault.Unavailable, "is not about the signature"},
		"huge":                     {answer(200, typeJSON, good+strings.Repeat(" ", maxAnswer)), fault.Unavailable, "too large"},
		"slow":                     {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, fault.Unavailable, "cannot be asked"},
		"a part": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "999")
			_, _ = w.Write([]byte(good))
		}, fault.Unavailable, "not whole"},
		"two results":           {answer(200, typeJSON, `{"GetCallerIdentityResponse":`+strings.Replace(inner, `"ResponseMetadata"`, `"GetCallerIdentityResult":{"Account":"1"},"ResponseMetadata"`, 1)+`}`), fault.Unavailable, "is repeated"},
		"two results by case":   {answer(200, typeJSON, `{"GetCallerIdentityResponse":`+strings.Replace(inner, `"ResponseMetadata"`, `"getcalleridentityresult":{"Account":"1"},"ResponseMetadata"`, 1)+`}`), fault.Unavailable, "is repeated"},
		"two accounts":          {answer(200, typeJSON, strings.Replace(good, `"Arn"`, `"Account":"444455556666","Arn"`, 1)), fault.Unavailable, "is repeated"},
		"two answers":           {answer(200, typeJSON, good+good), fault.Unavailable, "more after"},
		"another response":      {answer(200, typeJSON, strings.ReplaceAll(good, "GetCallerIdentity", "GetSessionToken")), fault.Unavailable, "is not one GetCallerIdentityResponse"},
		"a response besides":    {answer(200, typeJSON, `{"x":1,`+good[1:]), fault.Unavailable, "is not one GetCallerIdentityResponse"},
		"a list":                {answer(200, typeJSON, "["+good+"]"), fault.Unavailable, "is not a JSON object"},
		"no user id":            {answer(200, typeJSON, strings.Replace(good, "UserId", "UserName", 1)), fault.Unavailable, "it has no UserId"},
		"a null":                {answer(200, typeJSON, strings.Replace(good, `"`+account+`"`, "null", 1)), fault.Unavailable, "is not a string"},
		"nothing":               {answer(200, typeJSON, ""), fault.Unavailable, "is not a JSON object"},
		"the account":           {answer(200, typeJSON, identityJSON(account, "arn:aws:iam::111122223333:root", account)), fault.Unauthenticated, "neither a role nor a user"},
		"a federated user":      {answer(200, typeJSON, identityJSON(account, "arn:aws:sts::111122223333:federated-user/bob", account+":bob")), fault.Unauthenticated, "neither a role nor a user"},
		"another account's ARN": {answer(200, typeJSON, identityJSON("444455556666", session.ARN, session.UserID)), fault.Unauthenticated, "of the account"},
		"another partition":     {answer(200, typeJSON, identityJSON(account, strings.Replace(session.ARN, "aws", "aws-cn", 1), session.UserID)), fault.Unauthenticated, "answers with the ARN"},
		"another session":       {answer(200, typeJSON, identityJSON(account, session.ARN, role+":another")), fault.Unauthenticated, "neither"},
		"a session in a name":   {answer(200, typeJSON, identityJSON(account, "arn:aws:sts::111122223333:assumed-role/signer/x/"+"y", role+":x/y")), fault.Unauthenticated, "neither"},
		"a user's id of a role": {answer(200, typeJSON, identityJSON(account, session.ARN, "AIDAEXAMPLEUSER00001:"+"i-0123456789abcdef0")), fault.Unauthenticated, "neither"},
		"a role's id of a user": {answer(200, typeJSON, identityJSON(account, "arn:aws:iam::111122223333:user/x", role)), fault.Unauthenticated, "neither"},
		"a role of IAM":         {answer(200, typeJSON, identityJSON(account, roleArn, role)), fault.Unauthenticated, "neither"},
		"a line in the ARN":     {answer(200, typeJSON, identityJSON(account, "arn:aws:iam::111122223333:user/x\ny", "AIDAEXAMPLEUSER00001")), fault.Unauthenticated, "neither"},
	} {
		double.Misbehave(tt.answer)
		got, err := v.Verify(t.Context(), mine(t), rule)
		if fault.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.want) || got != (Identity{}) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %+v, %v, %v", what, got, fault.KindOf(err), err)
		}
		v.limits = newLimits()
	}
	double.Close()
	if _, err := v.Verify(t.Context(), mine(t), rule); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("nobody answers: %v", err)
	}
	v, double = start(t, nil)
	double.Misbehave(answer(200, typeJSON, good))
	testkit.Value(v.Verify(t.Context(), mine(t), rule))(t)
}

func TestDecode(t *testing.T) {
	good := mine(t)
	if got, err := Decode(bearer(t, good)); err != nil || got.URL != good.URL || len(got.Headers) != len(good.Headers) {
		t.Errorf("%+v, %v", got, err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	for what, tt := range map[string]struct{ value, want string }{
		"padding":              {base64.URLEncoding.EncodeToString([]byte(`{"url":"a"} `)) + "=", "not base64url"},
		"another alphabet":     {"+/", "not base64url"},
		"a line":               {bearer(t, good)[:8] + "\n" + bearer(t, good)[8:], "not base64url"},
		"bits at the end":      {"eB", "not base64url"},
		"too large":            {strings.Repeat("A", 20<<10), "larger than"},
		"nothing":              {"", "not a JSON object"},
		"a list":               {encode([]byte("[]")), "not a JSON object"},
		"a null":               {encode([]byte("null")), "not a JSON object"},
		"more":                 {encode([]byte("{}{}")), "more after"},
		"a part":               {encode([]byte(`{"url":"a"`)), "not JSON"},
		"no name":              {encode([]byte(`{"url"`)), "not JSON"},
		"an unknown member":    {encode([]byte(`{"host":"a"}`)), "unknown"},
		"a repeated member":    {encode([]byte(`{"url":"a","url":"b"}`)), "repeated"},
		"repeated by case":     {encode([]byte(`{"url":"a","URL":"b"}`)), "repeated"},
		"repeated by escape":   {encode([]byte(`{"url":"a","\u0075rl":"b"}`)), "repeated"},
		"another case":         {encode([]byte(`{"Url":"a"}`)), "unknown"},
		"a number":             {encode([]byte(`{"url":1}`)), "not a string"},
		"a null URL":           {encode([]byte(`{"url":null}`)), "not a string"},
		"a repeated header":    {encode([]byte(`{"headers":{"Host":"a","host":"b"}}`)), "repeated"},
		"a list of values":     {encode([]byte(`{"headers":{"Host":["a"]}}`)), "not a string"},
		"headers that are one": {encode([]byte(`{"headers":"a"}`)), "not a JSON object"},
	} {
		if _, err := Decode(tt.value); fault.KindOf(err) != fault.Unauthenticated || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestEndpoints compares the table with what the SDK of AWS knows.
func TestEndpoints(t *testing.T) {
	resolver := sts.NewDefaultEndpointResolverV2()
	for _, e := range endpoints() {
		got, err := resolver.ResolveEndpoint(t.Context(), sts.EndpointParameters{
			Region: aws.String(e.region), UseFIPS: aws.Bool(strings.HasPrefix(e.host, "sts-fips.")), UseGlobalEndpoint: aws.Bool(e.host == "sts.amazonaws.com"),
		})
		if err != nil || got.URI.Host != e.host {
			t.Errorf("%+v: %s, %v", e, got.URI.Host, err)
		}
	}
	if len(endpoints()) != 44 {
		t.Errorf("%d endpoints", len(endpoints()))
	}
}

func TestCheckEndpoint(t *testing.T) {
	for _, good := range []string{"", "http://127.0.0.1:1", "https://localhost:1/", "http://[::1]:8081", "http://127.9.9.9"} {
		testkit.OK(t, CheckEndpoint(good))
	}
	for _, bad := range []string{"https://sts.amazonaws.com", "http://10.0.0.1", "ftp://127.0.0.1", "127.0.0.1:1", "http://u@127.0.0.1", "http://127.0.0.1/x", "http://127.0.0.1?x=1", "http://127.0.0.1.attacker.example", "http://", "http://0.0.0.0:1", "%"} {
		if _, err := New(Config{Endpoint: bad}); fault.KindOf(err) != fault.Usage || fault.Hint(err) == "" {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// TestLimits: calls to STS are bounded for a source and in all, those of strangers apart from those of known callers, whatever
// access keys strangers name.
func TestLimits(t *testing.T) {
	now := time.Now()
	v, double := start(t, func(cfg *Config) { cfg.Now = func() time.Time { return now } })
	asked := 0
	ask := func(ip string, accessKey string) error {
		asked++
		from := rule
		from.Source = testkit.Value(netip.ParseAddr(ip))(t)
		s := sign(t, session, ireland, "eu-west-1", now, ServerHeader, here, "Amz-Sdk-Request", fmt.Sprint(asked))
		if accessKey != "" {
			s = set(s, "Authorization", strings.Replace(value(s, "Authorization"), session.AccessKeyID, accessKey, 1))
		}
		_, err := v.Verify(t.Context(), s, from)
		return err
	}
	testkit.OK(t, ask("192.0.2.1", ""))
	calls := double.Calls()
	for i := range 100 { // one stranger with many access keys
		if err := ask("198.51.100.1", fmt.Sprintf("ASIASTRANGER%08d", i)); i >= 2*strangersEach && fault.KindOf(err) != fault.Limited {
			t.Fatalf("call %d: %v", i, err)
		}
	}
	if n := double.Calls() - calls; n != 2*strangersEach {
		t.Errorf("STS was asked %d times for one stranger", n)
	}
	for i := range 100 { // many strangers, also in IPv6
		_ = ask(fmt.Sprintf("2001:db8:0:%x::1", i), "ASIASTRANGER00000000")
		_ = ask(fmt.Sprintf("2001:db8:0:0:%x::1", i), "ASIASTRANGER00000000")
	}
	if n := double.Calls() - calls; n > 2*strangersRate || n < 2*strangersRate-2 {
		t.Errorf("STS was asked %d times for strangers", n)
	}
	calls = double.Calls()
	testkit.OK(t, ask("192.0.2.1", "")) // a known caller meanwhile
	for i := range 100 {                // strangers behind its address
		_ = ask("192.0.2.1", fmt.Sprintf("ASIASTRANGER%08d", i))
	}
	if n := double.Calls() - calls; n != 1+2*nearEach {
		t.Errorf("STS was asked %d times from the address of a known caller", n)
	}
	for range 2*provenEach - 1 {
		testkit.OK(t, ask("192.0.2.1", ""))
	}
	if err := ask("192.0.2.1", ""); fault.KindOf(err) != fault.Limited || fault.Rule(err) != "server.aws" {
		t.Errorf("a known caller that is too fast: %v", err)
	}
	now = now.Add(time.Second)
	testkit.OK(t, ask("192.0.2.1", ""))
	if err := ask("203.0.113.9", ""); err != nil {
		t.Errorf("a new address after a second: %v", err)
	}
	now = now.Add(knownFor)
	for i := range 3 * maxSources {
		v.limits.strangers.allow(fmt.Sprint(i), now)
		v.limits.succeeded(testkit.Value(netip.ParseAddr(fmt.Sprintf("10.1.%d.%d", i/256, i%256)))(t), "x", now)
	}
	if n, m := len(v.limits.strangers.sources), len(v.limits.known); n > maxSources || m > maxSources+1 {
		t.Errorf("%d sources and %d known ones are remembered", n, m)
	}
}

// TestAtOnce: a slow STS holds few requests of strangers, and none of known callers wait for them.
func TestAtOnce(t *testing.T) {
	v, double := start(t, nil)
	v.timeout = 2 * time.Second
	testkit.Value(v.Verify(t.Context(), mine(t), rule))(t)
	release := make(chan bool)
	end := sync.OnceFunc(func() { close(release) })
	defer end()
	double.Misbehave(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Amz-Sdk-Request") == "slow" {
			<-release
		}
		awsiamtest.Answer(w, r, session)
	})
	errs := make(chan error, 2*strangersAtOnce)
	for i := range 2 * strangersAtOnce {
		from := rule
		from.Source = testkit.Value(netip.ParseAddr(fmt.Sprintf("198.51.100.%d", i)))(t)
		s := sign(t, session, ireland, "eu-west-1", time.Now(), ServerHeader, here, "Amz-Sdk-Request", "slow")
		go func() {
			_, err := v.Verify(t.Context(), s, from)
			errs <- err
		}()
	}
	for late := time.Now().Add(time.Second); double.Calls() < 1+strangersAtOnce && time.Now().Before(late); {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(20 * time.Millisecond)
	if n := double.Calls(); n != 1+strangersAtOnce {
		t.Errorf("%d calls of strangers at once", n-1)
	}
	testkit.Value(v.Verify(t.Context(), sign(t, session, ireland, "eu-west-1", time.Now().Add(-5*time.Second), ServerHeader, here), rule))(t)
	end()
	for range 2 * strangersAtOnce {
		<-errs
	}
}

// TestLimitsAreDocumented compares the limits in docs/service.md with the code.
func TestLimitsAreDocumented(t *testing.T) {
	doc := string(testkit.Value(os.ReadFile("../../../docs/service.md"))(t))
	for _, row := range []string{
		fmt.Sprintf("of all such sources; then 429 | %d, %d |", provenEach, provenRate), fmt.Sprintf("from all such addresses; then 429 | %d, %d |", nearEach, nearRate),
		fmt.Sprintf("of all strangers; then 429 | %d, %d |", strangersEach, strangersRate), fmt.Sprintf("of these three kinds | %d, %d, %d |", provenAtOnce, nearAtOnce, strangersAtOnce),
	} {
		if !strings.Contains(doc, row) {
			t.Errorf("there is no row %q", row)
		}
	}
}

// TestNetwork: one user of IPv6 has a whole /64.
func TestNetwork(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1", "2001:db8:0:1:a::b": "2001:db8:0:1::/64", "fe80::1%eth0": "fe80::/64",
	} {
		if got := network(testkit.Value(netip.ParseAddr(address))(t)); got != want {
			t.Errorf("%s: %s", address, got)
		}
	}
}
