package client_test

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/client"
	"hsmsign/fault"
	"hsmsign/internal/servicekit"
	"hsmsign/internal/testkit"
)

// startCareful runs a service whose caller backend needs two other people for a new customer, and one to unfreeze: bo and cy.
func startCareful(t testing.TB) (s *servicekit.Service, as func(name string, url ...string) *client.Client) {
	t.Helper()
	two, none := 2, 0
	tokens, callers := map[string]string{}, map[string]policy.CallerConfig{}
	for _, name := range []string{"bo", "cy"} {
		secret, entry := policy.NewToken(time.Now().Add(time.Hour))
		tokens[name], callers[name] = secret, policy.CallerConfig{Role: "approver", Person: name, Tokens: []string{entry}}
	}
	callers["me"] = policy.CallerConfig{Role: "careful", Person: "me", UID: []int{os.Getuid()}}
	s = servicekit.Start(t, servicekit.Options{Callers: callers, Roles: map[string]policy.RoleConfig{
		"careful": {
			May: []string{policy.Sign, policy.Read, policy.Freeze}, Customers: []string{"*"}, PerSecond: 1000, PerDay: 1000, UnfreezeApprovals: 1,
			Approvals: policy.ApprovalsConfig{NewCustomer: &two, NewKey: &none, SameKey: &none},
		},
		"approver": {May: []string{policy.Approve}, Customers: []string{"*"}},
	}})
	maps.Copy(tokens, s.Tokens)
	return s, func(name string, url ...string) *client.Client {
		if name == "me" {
			return open(t, client.Config{URL: "unix://" + s.Socket})
		}
		return open(t, client.Config{URL: append(url, s.HTTP)[0], Token: token(tokens[name])})
	}
}

// waits returns what an error says that others must approve.
func waits(t *testing.T, err error) *client.Waiting {
	t.Helper()
	w, ok := errors.AsType[*client.Waiting](err)
	if !ok || fault.KindOf(err) != fault.Pending {
		t.Fatalf("%v", err)
	}
	return w
}

// shown is a decision about a request as the service shows it.
func shown(r *api.Request) api.Decision {
	d := api.Decision{Customer: r.Customer, CSRSHA256: r.CSRSHA256, Vendor: r.Approval.Vendor, Reason: "a test"}
	if about := r.Approval.Freeze; about != nil {
		d.Scope, d.Name = about.Scope, about.Name
	}
	return d
}

// TestApprovals: a request that others must approve is an error with its id, never a signature, until the last one approves.
func TestApprovals(t *testing.T) {
	s, as := startCareful(t)
	me, bo, cy := as("me"), as("bo"), as("cy")
	_, err := me.Sign(t.Context(), order("customer"))
	w := waits(t, err)
	if w.Need != 2 || w.Have != 0 || w.Location != "/v1/requests/"+w.ID || time.Until(w.Until) < 71*time.Hour || w.After != 5*time.Second || w.Approval.Event != "new-customer" || fault.Hint(err) == "" {
		t.Errorf("%+v", w)
	}
	if checked := testkit.Value(me.Check(t.Context(), order("customer")))(t); checked.Status != api.StatusPending {
		t.Errorf("%+v", checked)
	}
	var list []api.Request
	for r, err := range bo.Pending(t.Context()) {
		testkit.OK(t, err)
		list = append(list, r)
	}
	if len(list) != 1 || list[0].ID != w.ID {
		t.Fatalf("%+v", list)
	}
	r, err := bo.Approve(t.Context(), w.ID, shown(&list[0]))
	if waits(t, err).Have != 1 || r.State != "approved" {
		t.Errorf("after one of two: %+v", r)
	}
	if _, err := bo.Approve(t.Context(), w.ID, shown(r)); fault.KindOf(err) != fault.Conflict {
		t.Errorf("approved twice, no answer was lost: %v", err)
	}
	wrong := shown(r)
	wrong.Customer = "bolt"
	if _, err := cy.Approve(t.Context(), w.ID, wrong); fault.KindOf(err) != fault.Conflict || fault.Rule(err) != "approval.shown" {
		t.Errorf("something else was shown: %v", err)
	}
	// Two answers to the last approval are lost.
	proxy := cut(t, strings.TrimPrefix(s.HTTP, "http://"), after, 2)
	r, err = as("cy", proxy.url()).Approve(t.Context(), w.ID, shown(r))
	if err != nil || r.State != "issued" || proxy.accepted.Load() < 3 {
		t.Errorf("the answer of the last approval was lost: %+v, %v", r, err)
	}
	if r := testkit.Value(me.Wait(t.Context(), w.ID))(t); r.State != "issued" || r.Request == "" {
		t.Errorf("%+v", r)
	}
	if signed := testkit.Value(me.Sign(t.Context(), order("customer")))(t); signed.Status != api.StatusStored || signed.RequestID != w.ID {
		t.Errorf("%+v", signed)
	}
}

// TestLostDecisions: a decision whose answer was lost is sent again, and is no failure if it was recorded. That of another one is.
func TestLostDecisions(t *testing.T) {
	s, as := startCareful(t)
	me, bo, cy := as("me"), as("bo"), as("cy")
	ask := func(name, customer string) *api.Request {
		o := order(name)
		o.Customer = customer
		_, err := me.Sign(t.Context(), o)
		return testkit.Value(bo.Request(t.Context(), waits(t, err).ID))(t)
	}
	lose := func() string { return cut(t, strings.TrimPrefix(s.HTTP, "http://"), after, 1).url() }
	first := ask("customer", "acme")
	r, err := as("bo", lose()).Approve(t.Context(), first.ID, shown(first))
	if waits(t, err).Have != 1 || r.State != "approved" {
		t.Errorf("the answer of the first approval was lost: %+v", r)
	}
	r, err = as("cy", lose()).Reject(t.Context(), first.ID, shown(first))
	if fault.KindOf(err) != fault.None && fault.KindOf(err) != fault.Refused || r == nil || r.State != "rejected" || r.Approval.Rejected.Person != "cy" {
		t.Errorf("the answer of the rejection was lost: %+v, %v", r, err)
	}
	if _, err := bo.Reject(t.Context(), first.ID, shown(first)); fault.KindOf(err) != fault.Conflict {
		t.Errorf("rejected twice: %v", err)
	}
	// The first try is cut. This caller has approved it before, and somebody else has rejected it since.
	proxy := cut(t, strings.TrimPrefix(s.HTTP, "http://"), before, 1)
	if _, err := as("bo", proxy.url()).Approve(t.Context(), first.ID, shown(first)); fault.KindOf(err) != fault.Refused || proxy.accepted.Load() < 2 {
		t.Errorf("somebody else's decision: %v", err)
	}
	_, err = me.Wait(t.Context(), first.ID)
	if fault.KindOf(err) != fault.Refused || !strings.Contains(err.Error(), "was rejected by cy: a test") {
		t.Errorf("%v", err)
	}
	testkit.Value(me.Freeze(t.Context(), api.FreezeOrder{Scope: "customer", Name: "acme", Reason: "a test"}))(t)
	_, err = me.Unfreeze(t.Context(), api.FreezeOrder{Scope: "customer", Name: "acme", Reason: "a test"})
	w := waits(t, err)
	about := testkit.Value(cy.Request(t.Context(), w.ID))(t)
	if r, err := cy.Approve(t.Context(), w.ID, shown(about)); err != nil || r.State != "unfrozen" {
		t.Errorf("%+v, %v", r, err)
	}
	testkit.Value(me.Freeze(t.Context(), api.FreezeOrder{Scope: "customer", Name: "acme", Reason: "it is not frozen any more"}))(t)
}

// TestWait: it ends with the time of ctx, goes on while the service is gone, and honours Retry-After.
func TestWait(t *testing.T) {
	t.Parallel() // it waits
	_, as := startCareful(t)
	me := as("me")
	_, err := me.Sign(t.Context(), order("customer"))
	id := waits(t, err).ID
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if r, err := me.Wait(ctx, id); waits(t, err).ID != id || r == nil || r.State != "pending" {
		t.Errorf("%+v, %v", r, err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := me.Wait(ctx, id); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if _, err := me.Wait(t.Context(), "0123456789abcdef0123456789abcdef"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("%v", err)
	}
	answers := []string{`{"type":"` + fault.Unavailable.Problem() + `","detail":"restarting"}`, `{"id":"x","state":"issued","request":"file"}`}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if len(answers) == 2 {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_, _ = io.WriteString(w, answers[0])
		answers = answers[1:]
	}))
	t.Cleanup(server.Close)
	if r, err := open(t, client.Config{URL: server.URL}).Wait(t.Context(), "x"); err != nil || r.State != "issued" {
		t.Errorf("%+v, %v", r, err)
	}
	for _, tt := range []struct{ before, after, want time.Duration }{
		{0, 0, 2 * time.Second}, {2 * time.Second, 0, 3 * time.Second}, {14 * time.Second, 0, 15 * time.Second}, {time.Hour, 0, 15 * time.Second},
		{0, 9 * time.Second, 9 * time.Second}, {14 * time.Second, time.Second, 15 * time.Second}, {0, time.Hour, 5 * time.Minute},
	} {
		if got := client.NextPause(tt.before, &client.Waiting{After: tt.after}); got != tt.want {
			t.Errorf("after %v, the service says %v: %v, want %v", tt.before, tt.after, got, tt.want)
		}
	}
}

// TestAcceptedIsNoSignature: an answer with status 202 is never a request or the end of a freeze, whatever it says.
func TestAcceptedIsNoSignature(t *testing.T) {
	for _, body := range []string{
		`{"status":"signed","request":"file","request_id":"x"}`, `{}`, `{"status":"pending","request_id":"x","approval":{"until":"tomorrow"}}`, `{"status":"pending","request_id":"../x","approval":{"until":"2026-01-02T03:04:05Z"}}`,
		`{"items":[]}`, `{"id":"x","state":"unfrozen"}`, `[]`,
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusAccepted)
			_, _ = io.WriteString(w, body)
		}))
		c := open(t, client.Config{URL: server.URL, MaxWait: -1})
		if r, err := c.Sign(t.Context(), order("customer")); r != nil || fault.KindOf(err) != fault.Unavailable {
			t.Errorf("%s: %+v, %v", body, r, err)
		}
		if list, err := c.Unfreeze(t.Context(), api.FreezeOrder{Scope: "all", Reason: "x"}); list != nil || fault.KindOf(err) != fault.Unavailable {
			t.Errorf("%s: %+v, %v", body, list, err)
		}
		server.Close()
	}
}
