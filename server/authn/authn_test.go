package authn

import (
	"encoding/base64"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"hsmsign/agent/policy"
	"hsmsign/fault"
	"hsmsign/internal/testkit"
)

// tokens returns a policy with the callers ada and bo, each with a token.
func tokens(t testing.TB) (p *policy.Policy, ada, bo string) {
	t.Helper()
	ada, one := policy.NewToken(time.Now().Add(24 * time.Hour))
	bo, two := policy.NewToken(time.Now().Add(24 * time.Hour))
	p = testkit.Value(policy.New(map[string]policy.CallerConfig{
		"ada": {Role: "reader", Person: "ada", Tokens: []string{one}, From: []string{"10.0.0.0/8", "127.0.0.0/8"}},
		"bo":  {Role: "reader", Person: "bo", Tokens: []string{two}, UID: []int{7}},
	}, map[string]policy.RoleConfig{"reader": {May: []string{policy.Read}, Customers: []string{"*"}}}, policy.Environment{}))(t)
	return p, ada, bo
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

func TestIdentify(t *testing.T) {
	p, ada, bo := tokens(t)
	near, far := Connection{Kind: HTTP, Remote: netip.MustParseAddr("127.0.0.1")}, Connection{Kind: TLS, Remote: netip.MustParseAddr("192.0.2.1")}
	for _, tt := range []struct {
		what    string
		conn    Connection
		headers []string
		want    string // name of the caller; "" for nobody
	}{
		{"bearer", near, []string{"Bearer " + ada}, "ada"},
		{"bearer in another case", near, []string{"bEARER " + ada}, "ada"},
		{"basic", near, []string{basic("ada", ada)}, "ada"},
		{"basic without a name", near, []string{basic("", ada)}, "ada"},
		{"basic with another name", near, []string{basic("bo", ada)}, ""},
		{"from another network", far, []string{"Bearer " + ada}, ""},
		{"from any network", far, []string{"Bearer " + bo}, "bo"},
		{"a mapped address", NewConnection(TLS, "[::ffff:10.1.2.3]:1", nil), []string{"Bearer " + ada}, "ada"},
		{"without an address", Connection{Kind: TLS}, []string{"Bearer " + ada}, ""},
		{"two headers", near, []string{"Bearer " + ada, "Bearer " + ada}, ""},
		{"nothing", near, nil, ""},
		{"a token alone", near, []string{ada}, ""},
		{"a Unix user", Connection{Kind: Unix, UID: 7}, nil, "bo"},
		{"another Unix user", Connection{Kind: Unix, UID: 8}, nil, ""},
		{"a Unix user with a token", Connection{Kind: Unix, UID: 7}, []string{"Bearer " + bo}, ""},
	} {
		r := &http.Request{Header: http.Header{}}
		for _, header := range tt.headers {
			r.Header.Add("Authorization", header)
		}
		found, err := Checker{Policy: p, Now: time.Now()}.Identify(t.Context(), r, tt.conn)
		switch {
		case tt.want == "" && (found.Caller != nil || fault.KindOf(err) != fault.Unauthenticated || err.Error() != ErrUnknown.Error()):
			t.Errorf("%s: %+v, %v", tt.what, found, err)
		case tt.want == "":
			if refusal, ok := errors.AsType[*Refusal](err); !ok || refusal.Reason == nil || strings.Contains(refusal.Reason.Error(), ada) {
				t.Errorf("%s: %v", tt.what, err)
			}
		case err != nil || found.Caller.Name != tt.want:
			t.Errorf("%s: %+v, %v", tt.what, found, err)
		}
	}
}

// Only a header with the token itself is accepted, whatever is around it.
func FuzzAuthorization(f *testing.F) {
	testkit.Seeds(f, "FuzzAuthorization", 3)
	p, ada, _ := tokens(f)
	f.Fuzz(func(t *testing.T, header string) {
		header = strings.ReplaceAll(header, "TOKEN", ada)
		r := &http.Request{Header: http.Header{"Authorization": {header}}}
		found, err := Checker{Policy: p, Now: time.Now()}.Identify(t.Context(), r, Connection{Kind: HTTP, Remote: netip.MustParseAddr("127.0.0.1")})
		scheme, rest, _ := strings.Cut(header, " ")
		_, password, _ := r.BasicAuth()
		sent := strings.EqualFold(scheme, "bearer") && strings.TrimSpace(rest) == ada || strings.TrimSpace(password) == ada
		if (err == nil) != (found.Caller != nil) || err == nil && !sent {
			t.Errorf("%q: %+v, %v", header, found, err)
		}
	})
}
