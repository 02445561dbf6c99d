package client

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"unicode"

	"hsmsign/fault"
)

// FuzzProblem: whatever is in a problem, the error has a kind of a service, and is one line of a bounded length.
func FuzzProblem(f *testing.F) {
	seeds := []string{
		`{"type":"urn:hsmsign:problem:refused","title":"refused","status":422,"detail":"the key is too short","fix":"make another","rule":"csr.key-size","exit":3,"request_id":"0"}`,
		`{"type":"urn:hsmsign:problem:forbidden","detail":"frozen [ledger.frozen]","rule":"ledger.frozen"}`,
		`{"type":"urn:hsmsign:problem:refused","rule":"chain.expired"}`, `{"type":"urn:hsmsign:problem:none"}`, `{"type":"urn:hsmsign:problem:interrupted"}`,
		`{"type":"about:blank","detail":"x"}`, `{"detail":"\u001b]0;x\u0007\n\u202e"}`, `{"type":7}`, `[]`, ``, `{"type":"urn:hsmsign:problem:limited","rule":"a.b\nc"}`,
	}
	for _, seed := range seeds {
		f.Add(http.StatusUnprocessableEntity, []byte(seed))
	}
	f.Add(200, []byte("{}"))
	f.Fuzz(func(t *testing.T, status int, data []byte) {
		err := problem(status, data)
		kind := fault.KindOf(err)
		if err == nil || kind == fault.None || kind == fault.Interrupted || kind.Exit() == 0 {
			t.Fatalf("%v: %v", kind, err)
		}
		for _, text := range []string{err.Error(), fault.Hint(err), fault.Rule(err)} {
			if len(text) > 2*maxDetail || strings.ContainsFunc(text, unicode.IsControl) {
				t.Fatalf("%q", text)
			}
		}
	})
}

// TestDialLoopback: a name that resolves to another machine is not connected to without TLS.
func TestDialLoopback(t *testing.T) {
	plain := Config{}.transport(address{scheme: "http", host: "localhost:80", loopback: true})
	if _, err := plain.DialContext(t.Context(), "tcp", "192.0.2.1:80"); !errors.Is(err, errNotLoopback) {
		t.Errorf("%v", err)
	}
	if plain.Proxy != nil {
		t.Error("a proxy for a loopback address")
	}
	if remote := (Config{}).transport(address{scheme: "https", host: "sign.example.com"}); remote.Proxy == nil {
		t.Error("no proxy for another machine")
	}
}

func TestProblem(t *testing.T) {
	for _, tt := range []struct {
		data          string
		kind          fault.Kind
		message, rule string
	}{
		{`{"type":"urn:hsmsign:problem:refused","detail":"short","rule":"csr.key-size"}`, fault.Refused, "short", "csr.key-size"},
		{`{"type":"urn:hsmsign:problem:vendor-identity","detail":"old","rule":"chain.expired"}`, fault.Vendor, "old", "chain.expired"},
		{`{"type":"urn:hsmsign:problem:conflict","detail":"x","rule":"csr.key-size"}`, fault.Conflict, "x [csr.key-size]", "csr.key-size"}, // a finding would be of another kind
		{`{"type":"urn:hsmsign:problem:forbidden","detail":"no [policy.may]","rule":"policy.may"}`, fault.Forbidden, "no [policy.may]", "policy.may"},
		{`{"type":"urn:hsmsign:problem:internal"}`, fault.Internal, "the service refused the request: internal", ""},
		{`{"type":"urn:hsmsign:problem:interrupted","detail":"stopping"}`, fault.Unavailable, "stopping", ""},
		{`{"type":"urn:hsmsign:problem:limited","detail":"slow","rule":"Not A Rule"}`, fault.Limited, "slow", ""},
	} {
		err := problem(http.StatusOK, []byte(tt.data))
		if fault.KindOf(err) != tt.kind || err.Error() != tt.message || fault.Rule(err) != tt.rule {
			t.Errorf("%s: %v, %q, %q", tt.data, fault.KindOf(err), err, fault.Rule(err))
		}
	}
	for status, kind := range map[int]fault.Kind{401: fault.Unauthenticated, 413: fault.TooLarge, 429: fault.Limited, 404: fault.Unavailable, 200: fault.Unavailable, 502: fault.Unavailable} {
		if err := problem(status, []byte("<html>")); fault.KindOf(err) != kind {
			t.Errorf("%d: %v", status, err)
		}
	}
}
