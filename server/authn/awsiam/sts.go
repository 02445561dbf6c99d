package awsiam

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"

	"hsmsign/fault"
)

const (
	maxAnswer       = 16 << 10 // far larger than an answer of STS
	maxAnswerHeader = 16 << 10
	maxIdle         = 16 // connections to one endpoint
	typeJSON        = "application/json"
)

var errNotLoopback = errors.New("sts-endpoint resolves to an address of another machine")

// newHTTP returns a client for STS: TLS with the roots of the system, redirects are answers.
func newHTTP(double string) *http.Client {
	dialer := &net.Dialer{Timeout: Timeout}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext, TLSHandshakeTimeout: Timeout, ResponseHeaderTimeout: Timeout,
		MaxResponseHeaderBytes: maxAnswerHeader, MaxIdleConnsPerHost: maxIdle, IdleConnTimeout: 10 * Timeout, DisableCompression: true,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if double != "" {
		transport.Proxy = nil
		dialer.Control = func(_, dialed string, _ syscall.RawConn) error {
			if to, err := netip.ParseAddrPort(dialed); err != nil || !to.Addr().IsLoopback() {
				return errNotLoopback
			}
			return nil
		}
	}
	return &http.Client{Transport: transport, Timeout: Timeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// ask sends the request to STS and returns whose it is.
func (v *Verifier) ask(ctx context.Context, from *request) (Identity, error) {
	address := v.cfg.Endpoint
	if address == "" {
		address = "https://" + from.endpoint.host + "/"
	}
	r, err := http.NewRequestWithContext(ctx, method, address, strings.NewReader(body))
	if err != nil {
		return Identity{}, err
	}
	r.Host = from.endpoint.host
	r.Header = http.Header{"Content-Type": {contentType}, "Accept": {typeJSON}, "User-Agent": {"hsmsign"}}
	for _, h := range from.headers {
		if h.Name != "host" && h.Name != "content-length" { // net/http sends them
			r.Header.Set(h.Name, h.Value)
		}
	}
	answer, err := v.http.Do(r)
	if err != nil {
		if inner, ok := errors.AsType[*url.Error](err); ok {
			err = inner.Err
		}
		return Identity{}, fault.Errorf("%w: %s: %w", ErrUnavailable, from.endpoint.host, err).Fix("check that this host reaches it, with a proxy (HTTPS_PROXY) if it needs one")
	}
	defer func() { _ = answer.Body.Close() }() // it was read
	data, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	media, _, _ := mime.ParseMediaType(answer.Header.Get("Content-Type")) // "" if it cannot be read
	unusable := func(why string) error {
		return fault.Errorf("%w: %s: the answer with status %d %s", ErrUnavailable, from.endpoint.host, answer.StatusCode, why).Fix("try again later; STS answers with JSON")
	}
	switch {
	case err != nil:
		return Identity{}, unusable("is not whole: " + fault.Clip(err.Error(), 128))
	case len(data) > maxAnswer:
		return Identity{}, unusable("is too large")
	case media != typeJSON:
		return Identity{}, unusable("is not JSON")
	case answer.StatusCode == http.StatusBadRequest || answer.StatusCode == http.StatusForbidden:
		if code := errorCode(data); code != "" && !slices.Contains(busy, code) {
			return Identity{}, refusef("STS refuses the signature: %s", code)
		}
		return Identity{}, unusable("is not about the signature")
	case answer.StatusCode != http.StatusOK:
		return Identity{}, unusable("is not expected")
	}
	told, err := parseAnswer(data)
	if err != nil {
		return Identity{}, unusable("cannot be used: " + err.Error())
	}
	return told.identity(from.endpoint.partition)
}

// busy are codes of errors that are not about the signature ("Common errors", STS API reference).
var busy = []string{"Throttling", "ThrottlingException", "RequestLimitExceeded", "ServiceUnavailable", "InternalFailure"}

// errorCode returns the code of an error of STS; "" if there is none. Its message can have the signed headers, which are a secret
// while the signature is valid, and is not used.
func errorCode(data []byte) string {
	inner, err := memberOf(data, "Error")
	if err != nil {
		return ""
	}
	code, err := textOf(inner, "Code")
	if err != nil || !codeForm().MatchString(code) {
		return ""
	}
	return code
}

// told is what STS answers.
type told struct{ account, arn, userID string }

// The forms of what STS answers.
var (
	codeForm    = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z.]{1,64}$`) })
	accountForm = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[0-9]{12}$`) })
	roleForm    = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^assumed-role/([A-Za-z0-9+=,.@_-]{1,64})/([A-Za-z0-9+=,.@_-]{2,64})$`)
	})
	userForm = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^user/([!-~]{1,512}/)?[A-Za-z0-9+=,.@_-]{1,64}$`) })
	roleID   = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^(AROA[A-Z0-9]{12,124}):(.*)$`) })
	userID   = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^AIDA[A-Z0-9]{12,124}$`) })
)

// parseAnswer reads the JSON of a GetCallerIdentityResponse with one result.
func parseAnswer(data []byte) (t told, err error) {
	outer, err := object(data)
	if err == nil && (len(outer) != 1 || outer[0].name != "GetCallerIdentityResponse") {
		err = errors.New("it is not one GetCallerIdentityResponse")
	}
	if err != nil {
		return t, err
	}
	result, err := memberOf(outer[0].value, "GetCallerIdentityResult")
	if err != nil {
		return t, err
	}
	for name, to := range map[string]*string{"Account": &t.account, "Arn": &t.arn, "UserId": &t.userID} {
		if *to, err = textOf(result, name); err != nil {
			return told{}, err
		}
	}
	return t, nil
}

// memberOf returns the member of an object.
func memberOf(data []byte, name string) ([]byte, error) {
	members, err := object(data)
	if err != nil {
		return nil, err
	}
	for _, m := range members {
		if m.name == name {
			return m.value, nil
		}
	}
	return nil, errors.New("it has no " + name)
}

func textOf(data []byte, name string) (string, error) {
	value, err := memberOf(data, name)
	if err != nil {
		return "", err
	}
	return text(value)
}

// identity returns the role or user that STS has told. A session of a role has the ARN
// arn:aws:sts::ACCOUNT:assumed-role/NAME/SESSION and the user id AROA...:SESSION; whoever assumes the role chooses the name of the
// session, so it is left out. The account itself (root) and federated users are refused.
func (t told) identity(partition string) (Identity, error) {
	part := strings.SplitN(t.arn, ":", 6)
	if len(part) != 6 || part[0] != "arn" || part[1] != partition || part[3] != "" || part[4] != t.account || !accountForm().MatchString(t.account) {
		return Identity{}, refusef("STS answers with the ARN %q of the account %q", fault.Clip(t.arn, 128), fault.Clip(t.account, 16))
	}
	prefix := "arn:" + partition + ":iam::" + t.account + ":"
	role, session := roleForm().FindStringSubmatch(part[5]), roleID().FindStringSubmatch(t.userID)
	switch {
	case part[2] == "sts" && role != nil && session != nil && role[2] == session[2]:
		return Identity{t.account, prefix + "role/" + role[1], session[1]}, nil
	case part[2] == "iam" && userForm().MatchString(part[5]) && userID().MatchString(t.userID):
		return Identity{t.account, t.arn, t.userID}, nil
	}
	return Identity{}, refusef("%q with the user id %q is neither a role nor a user", fault.Clip(t.arn, 128), fault.Clip(t.userID, 128))
}
