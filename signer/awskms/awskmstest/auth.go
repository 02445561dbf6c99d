package awskmstest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxSkew is how far the clocks may differ ("Common errors", AWS KMS API reference).
const maxSkew = 5 * time.Minute

// Credentials are those that a client signs requests with. Session credentials have a token and expire.
type Credentials struct {
	AccessKeyID, SecretAccessKey string
	SessionToken                 string    // "": long-term credentials
	Expires                      time.Time // zero: never
}

// AddCredentials adds credentials that the server accepts, or replaces those with the same access key.
func (s *Server) AddCredentials(c Credentials) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.credentials[c.AccessKeyID] = c
}

// Expire lets session credentials expire now.
func (s *Server) Expire(accessKeyID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.credentials[accessKeyID]; ok {
		c.Expires = time.Now().Add(-time.Second)
		s.credentials[accessKeyID] = c
	}
}

// authorization is the header Authorization ("Signature Version 4", IAM user guide).
type authorization struct {
	accessKey, date, region, service string
	headers                          []string
	signature                        []byte
}

func parseAuthorization(header string) (authorization, error) {
	var a authorization
	incomplete := fail("IncompleteSignatureException", "the Authorization header is not one of Signature Version 4")
	rest, ok := strings.CutPrefix(header, "AWS4-HMAC-SHA256 ")
	if !ok {
		return a, incomplete
	}
	fields := map[string]string{}
	for _, field := range strings.Split(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		fields[name] = value
	}
	scope := strings.Split(fields["Credential"], "/")
	signature, err := hex.DecodeString(fields["Signature"])
	if len(scope) != 5 || scope[4] != "aws4_request" || err != nil || fields["SignedHeaders"] == "" {
		return a, incomplete
	}
	a.accessKey, a.date, a.region, a.service = scope[0], scope[1], scope[2], scope[3]
	a.headers, a.signature = strings.Split(fields["SignedHeaders"], ";"), signature
	return a, nil
}

// authenticate checks the signature of a request and returns the region of the signature.
func (s *Server) authenticate(r *http.Request, body []byte, service string) (region string, err error) {
	if r.Header.Get("Authorization") == "" {
		return "", fail("MissingAuthenticationTokenException", "Missing Authentication Token")
	}
	a, err := parseAuthorization(r.Header.Get("Authorization"))
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	c, known := s.credentials[a.accessKey]
	s.mu.Unlock()
	if !known || r.Header.Get("X-Amz-Security-Token") != c.SessionToken {
		return "", fail("UnrecognizedClientException", "The security token included in the request is invalid.")
	}
	mismatch := fail("InvalidSignatureException", "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details.")
	if a.service != service {
		return "", fail("InvalidSignatureException", "Credential should be scoped to correct service: '%s'.", service)
	}
	for _, needed := range []string{"host", "x-amz-date", "x-amz-target", "x-amz-security-token"} {
		if (needed == "host" || r.Header.Get(needed) != "") && !slices.Contains(a.headers, needed) {
			return "", mismatch
		}
	}
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil || at.Format("20060102") != a.date {
		return "", fail("IncompleteSignatureException", "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP")
	}
	if !hmac.Equal(a.signature, signatureOf(c.SecretAccessKey, a, r, body)) {
		return "", mismatch
	}
	if skew := time.Since(at); skew.Abs() > maxSkew {
		return "", fail("InvalidSignatureException", "Signature expired: the request is of %s, and now is %s", r.Header.Get("X-Amz-Date"), time.Now().UTC().Format("20060102T150405Z"))
	}
	if !c.Expires.IsZero() && time.Now().After(c.Expires) {
		return "", fail("ExpiredTokenException", "The security token included in the request is expired")
	}
	return a.region, nil
}

// signatureOf returns the signature that the request must have.
func signatureOf(secret string, a authorization, r *http.Request, body []byte) []byte {
	var headers strings.Builder
	for _, name := range a.headers {
		value := strings.Join(r.Header.Values(name), ",")
		switch name { // Go's server removes these two from the header
		case "host":
			value = r.Host
		case "content-length":
			value = strconv.FormatInt(r.ContentLength, 10)
		}
		headers.WriteString(name + ":" + strings.Join(strings.Fields(value), " ") + "\n")
	}
	path := r.URL.EscapedPath()
	if path == "" {
		path = "/"
	}
	query := strings.ReplaceAll(r.URL.Query().Encode(), "+", "%20")
	request := strings.Join([]string{r.Method, path, query, headers.String(), strings.Join(a.headers, ";"), hexSHA256(body)}, "\n")
	scope := strings.Join([]string{a.date, a.region, a.service, "aws4_request"}, "/")
	text := strings.Join([]string{"AWS4-HMAC-SHA256", r.Header.Get("X-Amz-Date"), scope, hexSHA256([]byte(request))}, "\n")
	key := []byte("AWS4" + secret)
	for _, part := range []string{a.date, a.region, a.service, "aws4_request", text} {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(part))
		key = mac.Sum(nil)
	}
	return key
}

func hexSHA256(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func fail(code, format string, args ...any) error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// formAction returns the Action of a request to STS, or "" for any other request.
func formAction(r *http.Request, body []byte) string {
	if !strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		return ""
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return ""
	}
	return form.Get("Action")
}
