package awsiam

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"hsmsign/fault"
)

// The request to STS. Clients sign the same.
const (
	method      = "POST"
	body        = "Action=GetCallerIdentity&Version=2011-06-15"
	contentType = "application/x-www-form-urlencoded; charset=utf-8" // if the caller has not signed another one
)

// request is what is copied from a signed request after it was checked.
type request struct {
	endpoint  endpoint
	headers   []Header // with Authorization; none of them was chosen freely but those that STS verifies
	accessKey string   // id of the key that signed
	signature string   // 64 hex digits
	date      time.Time
}

// authorization is the only form of the header that is accepted ("Signature Version 4", IAM user guide). What the service is called
// is part of it.
var authorization = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^AWS4-HMAC-SHA256 Credential=([A-Z0-9_]{16,128})/([0-9]{8})/([a-z0-9-]{1,32})/sts/aws4_request, ?SignedHeaders=([a-z0-9;-]{1,512}), ?Signature=([0-9a-f]{64})$`)
})

// dateForm is the form of X-Amz-Date.
const dateForm = "20060102T150405Z"

// copied are the headers that are copied if the signature covers them, with the values that they may have; nil: what STS verifies.
// content-length is here because the Go SDK signs it; net/http sends it.
var copied = map[string]func(value string) bool{
	"x-amz-date": nil, "x-amz-security-token": nil, "x-hsmsign-server": nil, "user-agent": nil, "amz-sdk-invocation-id": nil, "amz-sdk-request": nil,
	"content-type":         oneOf(contentType, "application/x-www-form-urlencoded", "application/x-www-form-urlencoded; charset=UTF-8"),
	"content-length":       oneOf(strconv.Itoa(len(body))),
	"accept":               oneOf("application/json"),
	"accept-encoding":      oneOf("identity"),
	"x-amz-content-sha256": oneOf(bodyHash()),
}

func bodyHash() string {
	sum := sha256.Sum256([]byte(body))
	return hex.EncodeToString(sum[:])
}

func oneOf(values ...string) func(string) bool {
	return func(value string) bool { return slices.Contains(values, value) }
}

// dropped are the headers that clients send without signing them. They are not copied.
var dropped = []string{"user-agent", "content-length", "accept", "accept-encoding", "amz-sdk-invocation-id", "amz-sdk-request", "connection", "x-amzn-trace-id"}

// maxHeaders is how many headers a signed request has.
const maxHeaders = 32

// check returns what is sent to STS for a signed request. It compares everything with what hsmsign would have sent, and needs no
// network.
func (s Signed) check(rule Rule, now time.Time) (*request, error) {
	switch {
	case s.Method != "" && s.Method != method:
		return nil, refusef("the method is %q, and not %s", fault.Clip(s.Method, 16), method)
	case s.Body != "" && s.Body != body:
		return nil, refusef("the body is not %s", body)
	}
	to, err := findEndpoint(s.URL)
	if err != nil {
		return nil, err
	}
	values, err := s.values()
	if err != nil {
		return nil, err
	}
	part := authorization().FindStringSubmatch(values["authorization"])
	if part == nil {
		return nil, refusef("the header Authorization is not one of Signature Version 4 for STS")
	}
	r := &request{endpoint: to, accessKey: part[1], signature: part[5]}
	if part[3] != to.region {
		return nil, refusef("the signature is for the region %q, and %s is that of %s", part[3], to.host, to.region)
	}
	signed := strings.Split(part[4], ";")
	if err := r.copy(s.Headers, values, signed); err != nil {
		return nil, err
	}
	if r.date, err = checkDate(values["x-amz-date"], part[2], rule, now); err != nil {
		return nil, err
	}
	server, ok := values["x-hsmsign-server"]
	switch {
	case !ok && !rule.Zentral:
		return nil, refusef("there is no signed header %s", ServerHeader)
	case ok && !slices.Contains(rule.Servers, strings.ToLower(server)):
		return nil, refusef("the signed header %s is %q, which is not a name of this server", ServerHeader, fault.Clip(server, 128))
	}
	return r, nil
}

// values returns the headers by their names in lower case.
func (s Signed) values() (map[string]string, error) {
	if len(s.Headers) > maxHeaders {
		return nil, refusef("%d headers", len(s.Headers))
	}
	values, size := map[string]string{}, 0
	for _, h := range s.Headers {
		name := strings.ToLower(h.Name)
		size += len(h.Name) + len(h.Value)
		switch _, ok := values[name]; {
		case ok:
			return nil, refusef("the header %q is repeated", fault.Clip(name, 64))
		case size > maxSigned:
			return nil, refusef("the headers are larger than %d bytes", maxSigned)
		case strings.ContainsFunc(h.Value, func(r rune) bool { return r < ' ' || r > '~' }) || strings.TrimSpace(h.Value) != h.Value || h.Value == "":
			return nil, refusef("the value of the header %q is empty or has characters that no header has", fault.Clip(name, 64))
		}
		values[name] = h.Value
	}
	return values, nil
}

// copy sets the headers of the request to STS: those that are signed. All that is sent must be signed, but for what clients add
// afterwards.
func (r *request) copy(sent []Header, values map[string]string, signed []string) error {
	if !slices.IsSorted(signed) || len(slices.Compact(slices.Clone(signed))) != len(signed) {
		return refusef("SignedHeaders is not sorted, or has a name twice")
	}
	for _, needed := range []string{"host", "x-amz-date"} {
		if !slices.Contains(signed, needed) {
			return refusef("the header %q is not signed", needed)
		}
	}
	for _, name := range signed {
		accepts, known := copied[name]
		value, ok := values[name]
		switch {
		case name == "host" && (!ok || value == r.endpoint.host), name == "content-length" && !ok: // they follow from the request
		case !known:
			return refusef("the signed header %q is not one that is sent to STS", fault.Clip(name, 64))
		case !ok:
			return refusef("the header %q is signed and missing", name)
		case accepts != nil && !accepts(value):
			return refusef("the signed header %q has a value that is not sent to STS", name)
		}
	}
	for _, h := range sent {
		name := strings.ToLower(h.Name)
		switch {
		case name == "authorization" || slices.Contains(signed, name):
			r.headers = append(r.headers, Header{name, h.Value})
		case !slices.Contains(dropped, name):
			return refusef("the header %q is not signed", fault.Clip(name, 64))
		}
	}
	return nil
}

// checkDate returns when a request was signed; scope is the day in the Authorization header.
func checkDate(text, scope string, rule Rule, now time.Time) (time.Time, error) {
	date, err := time.Parse(dateForm, text)
	if err != nil || date.Format(dateForm) != text || text[:8] != scope {
		return date, refusef("X-Amz-Date is not the time of the signature")
	}
	most := MaxAge
	if rule.Zentral {
		most = ZentralMaxAge
	}
	switch age := now.Sub(date); {
	case age > most:
		return date, refusef("it was signed %v ago, and is accepted for %v", age.Truncate(time.Second), most)
	case age < -maxSkew:
		return date, refusef("it was signed in the future: the clocks differ by %v", -age.Truncate(time.Second))
	}
	return date, nil
}
