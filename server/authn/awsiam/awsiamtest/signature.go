package awsiamtest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxSkew is how far X-Amz-Date may be from the time of STS.
const maxSkew = 15 * time.Minute

// authenticate verifies the signature of a request ("Create a signed AWS API request", IAM user guide).
func (s *Server) authenticate(r *http.Request, body []byte) (Credentials, *refusal) {
	incomplete := &refusal{http.StatusBadRequest, "IncompleteSignature"}
	mismatch := &refusal{http.StatusForbidden, "SignatureDoesNotMatch"}
	fields, ok := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	if !ok {
		return Credentials{}, &refusal{http.StatusForbidden, "MissingAuthenticationToken"}
	}
	field := map[string]string{}
	for _, part := range strings.Split(fields, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		field[name] = value
	}
	scope, signed := strings.Split(field["Credential"], "/"), strings.Split(field["SignedHeaders"], ";")
	if len(scope) != 5 || scope[3] != "sts" || scope[4] != "aws4_request" || field["Signature"] == "" {
		return Credentials{}, incomplete
	}
	s.mu.Lock()
	found, known := s.credentials[scope[0]]
	now := s.now()
	s.mu.Unlock()
	if !known || found.SessionToken != r.Header.Get("X-Amz-Security-Token") {
		return Credentials{}, &refusal{http.StatusForbidden, "InvalidClientTokenId"}
	}
	if !slices.Contains(signed, "host") || !strings.HasPrefix(r.Host, "sts.") && !strings.HasPrefix(r.Host, "sts-fips.") || !strings.Contains(r.Host, ".amazonaws.") {
		return Credentials{}, mismatch
	}
	if parts := strings.Split(r.Host, "."); parts[1] != "amazonaws" && parts[1] != scope[2] || parts[1] == "amazonaws" && scope[2] != "us-east-1" {
		return Credentials{}, mismatch // the signature is for another region
	}
	for name := range r.Header {
		if lower := strings.ToLower(name); strings.HasPrefix(lower, "x-amz-") && !slices.Contains(signed, lower) {
			return Credentials{}, mismatch
		}
	}
	date := r.Header.Get("X-Amz-Date")
	at, err := time.Parse("20060102T150405Z", date)
	if err != nil || scope[1] != date[:8] {
		return Credentials{}, incomplete
	}
	given, err := hex.DecodeString(field["Signature"])
	if err != nil || !hmac.Equal(given, signature(found.SecretAccessKey, scope[1:], signed, date, r, body)) {
		return Credentials{}, mismatch
	}
	if now.Sub(at).Abs() > maxSkew {
		return Credentials{}, &refusal{http.StatusForbidden, "SignatureDoesNotMatch"} // "Signature expired"
	}
	return found, nil
}

// signature returns the signature that a request must have.
func signature(secret string, scope, signed []string, date string, r *http.Request, body []byte) []byte {
	var canonical strings.Builder
	canonical.WriteString(r.Method + "\n/\n" + strings.ReplaceAll(r.URL.Query().Encode(), "+", "%20") + "\n")
	for _, name := range signed {
		value := strings.Join(r.Header.Values(name), ",")
		switch name { // net/http removes these two from the headers
		case "host":
			value = r.Host
		case "content-length":
			value = strconv.FormatInt(r.ContentLength, 10)
		}
		canonical.WriteString(name + ":" + strings.Join(strings.Fields(value), " ") + "\n")
	}
	canonical.WriteString("\n" + strings.Join(signed, ";") + "\n" + hash(body))
	key := []byte("AWS4" + secret)
	text := "AWS4-HMAC-SHA256\n" + date + "\n" + strings.Join(scope, "/") + "\n" + hash([]byte(canonical.String()))
	for _, part := range append(slices.Clone(scope), text) {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(part))
		key = mac.Sum(nil)
	}
	return key
}

func hash(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
