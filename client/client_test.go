package client_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/client"
	"hsmsign/fault"
	"hsmsign/internal/servicekit"
	"hsmsign/internal/testkit"
	"hsmsign/request"
)

// start runs a service whose Unix socket accepts this user, too.
func start(t testing.TB) *servicekit.Service {
	t.Helper()
	return servicekit.Start(t, servicekit.Options{Callers: map[string]policy.CallerConfig{
		"me": {Role: "admin", Person: "me", UID: []int{os.Getuid()}},
	}})
}

// roots are the CAs of a service.
func roots(s *servicekit.Service) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(s.CA.Cert)
	return pool
}

// token returns a source that is always the same token.
func token(text string) func(context.Context) ([]byte, error) {
	return func(context.Context) ([]byte, error) { return []byte(text), nil }
}

// open returns a client that is closed at the end of the test.
func open(t testing.TB, cfg client.Config) *client.Client {
	t.Helper()
	c := testkit.Value(client.New(cfg))(t)
	t.Cleanup(c.Close)
	return c
}

// admin returns a client of the caller ada.
func admin(t testing.TB, s *servicekit.Service) *client.Client {
	t.Helper()
	return open(t, client.Config{URL: s.URL, Certificate: &s.Cert, Roots: roots(s)})
}

func order(name string) api.SignOrder {
	return api.SignOrder{CSR: servicekit.CSR(testkit.Key(name)), Customer: "acme"}
}

// TestSign signs over every kind of connection. The requests are the same bytes, and the second is a stored one.
func TestSign(t *testing.T) {
	s := start(t)
	var first *api.SignResult
	for name, cfg := range map[string]client.Config{
		"certificate":     {URL: s.URL, Certificate: &s.Cert, Roots: roots(s)},
		"token over TLS":  {URL: s.URL, Token: token(s.Tokens["backend"]), Roots: roots(s)},
		"token over HTTP": {URL: s.HTTP, Token: token(s.Tokens["backend"])},
		"Unix socket":     {URL: "unix://" + s.Socket},
	} {
		o := order("customer")
		o.Receipt = true
		c := open(t, cfg)
		checked := testkit.Value(c.Check(t.Context(), o))(t)
		result := testkit.Value(c.Sign(t.Context(), o))(t)
		if first == nil {
			first = result
			if checked.Status != api.StatusAllowed || result.Status != api.StatusSigned || !strings.Contains(result.Receipt, "c2sp.org/tlog-proof") {
				t.Errorf("%s: %s, %+v", name, checked.Status, result)
			}
			continue
		}
		if checked.Status != api.StatusStored || result.Status != api.StatusStored || result.Request != first.Request || result.RequestID != first.RequestID {
			t.Errorf("%s: %s, %+v", name, checked.Status, result)
		}
	}
	if report := request.Verify([]byte(first.Request), request.VerifyOptions{TrustRoots: []*x509.Certificate{s.Root}}); !report.OK() {
		t.Errorf("%+v", report.Findings)
	}
	if strings.Contains(s.Log(), s.Tokens["backend"]) {
		t.Error("the log has the token")
	}
}

// TestReads calls every route that only reads.
func TestReads(t *testing.T) {
	s := start(t)
	c := admin(t, s)
	ctx := t.Context()
	var ids []string
	for _, name := range []string{"one", "two", "three"} {
		o := order(name)
		o.Customer = name
		ids = append(ids, testkit.Value(c.Sign(ctx, o))(t).RequestID)
	}
	var seen []string
	for r, err := range c.Requests(ctx, client.Query{Page: 1}) {
		testkit.OK(t, err)
		seen = append(seen, r.ID)
	}
	if len(seen) != 3 || seen[0] != ids[2] || seen[2] != ids[0] {
		t.Errorf("%v of %v", seen, ids)
	}
	found := testkit.Value(c.Request(ctx, ids[0]))(t)
	verdict := testkit.Value(c.Verify(ctx, []byte(found.Request)))(t)
	if found.Customer != "one" || found.State != "issued" || !verdict.OK {
		t.Errorf("%+v, %+v", found, verdict)
	}
	entries := 0
	for e, err := range c.Entries(ctx, client.Query{Kind: "issued", Page: 2}) {
		testkit.OK(t, err)
		entries++
		if one := testkit.Value(c.Entry(ctx, e.Index))(t); one.Kind != "issued" || one.Index != e.Index {
			t.Errorf("%+v", one)
		}
	}
	for range c.Requests(ctx, client.Query{Customer: "two"}) {
		entries++
	}
	if entries != 4 {
		t.Errorf("%d", entries)
	}
	me, status := testkit.Value(c.Me(ctx))(t), testkit.Value(c.Status(ctx))(t)
	vendors, due := testkit.Value(c.Vendor(ctx))(t), testkit.Value(c.Due(ctx, 30))(t)
	if me.Caller != "ada" || me.Role != "admin" || status.Ledger.Entries == 0 || len(vendors) != 1 || due == nil {
		t.Errorf("%+v %+v %+v %+v", me, status, vendors, due)
	}
	var text, csv bytes.Buffer
	testkit.OK(t, c.Export(ctx, &text, client.ExportJSON))
	testkit.OK(t, c.Export(ctx, &csv, client.ExportCSV))
	if lines := int64(strings.Count(text.String(), "\n")); lines != status.Ledger.Entries || !strings.HasPrefix(csv.String(), "entry,") {
		t.Errorf("%d lines of %d, %.40s", lines, status.Ledger.Entries, csv.String())
	}
	if err := c.Export(ctx, &text, "xml"); fault.KindOf(err) != fault.Usage {
		t.Errorf("%v", err)
	}
	if note := testkit.Value(c.Checkpoint(ctx))(t); !bytes.HasPrefix(note, []byte("example.com/service\n")) {
		t.Errorf("%s", note)
	}
	if proof := testkit.Value(c.Proof(ctx, ids[1]))(t); !bytes.Contains(proof, []byte("tlog-proof")) {
		t.Errorf("%s", proof)
	}
	testkit.Eventually(t, "the service is ready", func() bool {
		ready, err := c.Ready(ctx)
		return err == nil && ready.Ready && ready.SignedSecondsAgo != nil
	})
	unread := open(t, client.Config{URL: s.HTTP, Token: func(context.Context) ([]byte, error) { return nil, errors.New("nobody asks for it") }})
	testkit.Value(unread.Ready(ctx))(t)
	for _, id := range []string{"", "..", "x/y", "%", strings.Repeat("a", 26)} {
		if _, err := c.Request(ctx, id); fault.KindOf(err) != fault.NotFound {
			t.Errorf("%q: %v", id, err)
		}
	}
}

// TestChanges calls every route that changes something.
func TestChanges(t *testing.T) {
	s := start(t)
	c := admin(t, s)
	ctx := t.Context()
	name, contact := "acme", "mdm@acme.example"
	added := testkit.Value(c.AddCustomer(ctx, api.CustomerChange{Name: &name}))(t)
	edited := testkit.Value(c.EditCustomer(ctx, added.ID, api.CustomerChange{Contact: &contact}))(t)
	shown := testkit.Value(c.Customer(ctx, added.ID))(t)
	all := testkit.Value(c.Customers(ctx))(t)
	if edited.Contact != contact || shown.Contact != contact || len(all) != 1 || all[0].ID != added.ID {
		t.Errorf("%+v %+v %+v", edited, shown, all)
	}
	if _, err := c.AddCustomer(ctx, api.CustomerChange{Name: &name}); fault.KindOf(err) != fault.Conflict {
		t.Errorf("%v", err)
	}
	if _, err := c.Attach(ctx, added.ID, []byte("no certificate")); fault.KindOf(err) != fault.Refused {
		t.Errorf("%v", err)
	}
	frozen := testkit.Value(c.Freeze(ctx, api.FreezeOrder{Scope: "customer", Name: "acme", Reason: "test"}))(t)
	_, err := c.Sign(ctx, order("customer"))
	if len(frozen) != 1 || fault.KindOf(err) != fault.Forbidden || fault.Rule(err) != "ledger.frozen" || strings.Count(err.Error(), "[ledger.frozen]") != 1 || fault.Hint(err) == "" {
		t.Errorf("%+v, %v", frozen, err)
	}
	if frozen := testkit.Value(c.Unfreeze(ctx, api.FreezeOrder{Scope: "customer", Name: "acme", Reason: "over"}))(t); len(frozen) != 0 {
		t.Errorf("%+v", frozen)
	}
	testkit.Value(c.Sign(ctx, order("customer")))(t)
}

// TestRefusals: errors of the service have the kind, the rule and the hint that they have without a service.
func TestRefusals(t *testing.T) {
	s := start(t)
	ctx := t.Context()
	acme := open(t, client.Config{URL: s.URL, Token: token(s.Tokens["acme"]), Roots: roots(s)})
	_, err := acme.Sign(ctx, api.SignOrder{CSR: "no CSR"})
	_, want := request.DecodeCSR([]byte("no CSR"))
	found, isFinding := errors.AsType[*fault.Finding](err)
	if !isFinding || found.ID != testkit.FindingID(want) || err.Error() != want.Error() || fault.KindOf(err) != fault.Refused || fault.Hint(err) != fault.Hint(want) {
		t.Errorf("%v; want %v", err, want)
	}
	o := order("other")
	o.Customer = "other"
	if _, err := acme.Sign(ctx, o); fault.KindOf(err) != fault.Forbidden || fault.Rule(err) != policy.RuleCustomer {
		t.Errorf("%v", err)
	}
	stranger := s.CA.Issue(t, "stranger", nil)
	for name, cfg := range map[string]client.Config{
		"no credentials":    {URL: s.URL, Roots: roots(s)},
		"wrong token":       {URL: s.URL, Roots: roots(s), Token: token("hsmsign_wrong")},
		"wrong certificate": {URL: s.URL, Roots: roots(s), Certificate: &stranger},
	} {
		if _, err := open(t, cfg).Sign(ctx, order("customer")); fault.KindOf(err) != fault.Unauthenticated || fault.KindOf(err).Exit() != 5 || fault.Hint(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTokens: a replaced token is read again, once, and the token is in no error.
func TestTokens(t *testing.T) {
	s := start(t)
	reads, current := 0, "hsmsign_old"
	c := open(t, client.Config{URL: s.URL, Roots: roots(s), Token: func(context.Context) ([]byte, error) {
		reads++
		return []byte(current), nil
	}})
	if _, err := c.Me(t.Context()); fault.KindOf(err) != fault.Unauthenticated || reads != 2 || strings.Contains(err.Error(), current) {
		t.Errorf("%d reads: %v", reads, err)
	}
	current = s.Tokens["backend"]
	testkit.Value(c.Me(t.Context()))(t)
	testkit.Value(c.Me(t.Context()))(t)
	if reads != 3 {
		t.Errorf("%d reads", reads)
	}
	for _, bad := range []string{"", "two lines\nX-Header: 1", "ü"} {
		if _, err := open(t, client.Config{URL: s.URL, Roots: roots(s), Token: token(bad)}).Me(t.Context()); fault.KindOf(err) != fault.Usage || bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	// The same token is not sent again.
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked++
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(server.Close)
	if _, err := open(t, client.Config{URL: server.URL, Token: token("hsmsign_old")}).Me(t.Context()); fault.KindOf(err) != fault.Unauthenticated || asked != 1 {
		t.Errorf("%d requests, %v", asked, err)
	}
	lost := fault.Auth.Errorf("no secret")
	if _, err := open(t, client.Config{URL: s.URL, Token: func(context.Context) ([]byte, error) { return nil, lost }}).Me(t.Context()); !errors.Is(err, lost) {
		t.Errorf("%v", err)
	}
}

func TestConfig(t *testing.T) {
	for _, text := range []string{"https://sign.example.com", "https://sign.example.com:8443/", "https://[2001:db8::1]:8443", "http://127.0.0.1:8080", "http://[::1]:1", "http://localhost", "unix:///run/hsmsign/agent.sock", "unix:/run/x"} {
		if _, err := client.New(client.Config{URL: text}); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, text := range []string{
		"", "sign.example.com", "https://", "https:///x", "https://h/path", "https://h?x", "https://h#x", "https://user:secret@h", "http://sign.example.com", "http://10.0.0.1", "http://127.0.0.1.example.com", "ftp://127.0.0.1",
		"unix://run/x", "unix:x", "unix:///", "unix:///run/../x", "https://h:port", "\x00",
	} {
		if _, err := client.New(client.Config{URL: text, Token: token("x")}); fault.KindOf(err) != fault.Usage || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", text, err)
		}
	}
	for name, cfg := range map[string]client.Config{
		"token on a Unix socket":         {URL: "unix:///run/x", Token: token("x")},
		"certificate on a Unix socket":   {URL: "unix:///run/x", Certificate: &tls.Certificate{}},
		"certificate on an HTTP address": {URL: "http://127.0.0.1:1", Certificate: &tls.Certificate{}},
	} {
		if _, err := client.New(cfg); fault.KindOf(err) != fault.Usage {
			t.Errorf("%s: %v", name, err)
		}
	}
}
