package server

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"hsmsign/api"
	"hsmsign/internal/testkit"
)

// apiCall is one call, and how it ends.
type apiCall struct {
	uid         int
	pattern     string // of the route
	path        string // with values and query; "": that of the pattern
	contentType string // of the body; "": none
	accept      string
	encoding    string // of the body
	body        string
	status      int
	rule        string // of the problem
	answer      string // media type of the answer; "": any of the document
	invalid     bool   // the document forbids the request
}

const (
	asJSON  = "application/json"
	rawType = "application/octet-stream"
)

// apiValues are what calls need of earlier ones.
type apiValues struct{ profile, customer, request, csr, other, push, wrongTopic, pend, unwanted string }

// apiCalls returns the calls, in their order.
func apiCalls(v apiValues) []apiCall {
	id, big := strings.Repeat("a", 32), strings.Repeat("a", 2<<20)
	return slices.Concat(signCalls(v, id, big), profileCalls(v.profile, big), pendingCalls(v, id, big), customerCalls(v, id, big), ledgerCalls(v, id), serviceCalls(big, v.request))
}

// signCalls are calls about requests.
func signCalls(v apiValues, id, big string) []apiCall {
	order := func(o api.SignOrder) string { return string(testkit.Must(json.Marshal(o))) }
	const post, list, show, verify = "POST /v1/requests", "GET /v1/requests", "GET /v1/requests/{id}", "POST /v1/verify"
	return []apiCall{
		{uid: backend, pattern: post, path: "/v1/requests?customer=acme", contentType: "application/x-www-form-urlencoded", body: v.csr, status: 200, answer: rawType},
		{uid: backend, pattern: post, path: "/v1/requests?customer=acme&format=plist", contentType: "application/pkcs10", accept: "text/html, application/json;q=0.9", body: v.csr, status: 200, answer: asJSON},
		{uid: acmeOps, pattern: post, path: "/v1/requests?receipt=1", contentType: "text/plain", body: v.csr, status: 200, answer: asJSON},
		{uid: backend, pattern: post, contentType: asJSON, body: order(api.SignOrder{CSR: v.csr, Customer: "acme", Receipt: true}), status: 200, answer: asJSON},
		{uid: backend, pattern: post, contentType: asJSON, body: order(api.SignOrder{CSR: v.csr, Customer: "acme"}), status: 200, answer: asJSON},
		{uid: backend, pattern: post, path: "/v1/requests?customer=acme&check=1", contentType: rawType, body: v.csr, status: 200},
		{uid: backend, pattern: post, path: "/v1/requests?custommer=acme", contentType: rawType, body: v.csr, status: 400},
		{uid: backend, pattern: post, contentType: rawType, body: v.csr, status: 400},
		{uid: backend, pattern: post, path: "/v1/requests?customer=acme&check=yes", contentType: rawType, body: v.csr, status: 400, invalid: true},
		{uid: backend, pattern: post, path: "/v1/requests?customer=acme&format=der", contentType: rawType, body: v.csr, status: 400, invalid: true},
		{uid: backend, pattern: post, contentType: asJSON, body: `{"csr": "x", "costumer": "acme"}`, status: 400, invalid: true},
		{uid: reader, pattern: post, path: "/v1/requests?customer=acme", contentType: rawType, body: v.csr, status: 403, rule: "policy.may"},
		{uid: acmeOps, pattern: post, path: "/v1/requests?customer=bolt", contentType: rawType, body: v.other, status: 403},
		{uid: acmeOps, pattern: post, path: "/v1/requests?customer=bolt&check=1", contentType: rawType, body: v.other, status: 403},
		{uid: backend, pattern: post, path: "/v1/requests?customer=acme&vendor=old", contentType: rawType, body: v.csr, status: 403, rule: "policy.vendors"},
		{uid: backend, pattern: post, path: "/v1/requests?customer=bolt", contentType: rawType, body: v.csr, status: 409},
		{uid: backend, pattern: post, path: "/v1/requests?customer=acme", contentType: rawType, body: big, status: 413},
		{uid: backend, pattern: post, path: "/v1/requests?customer=acme", contentType: "application/xml", body: v.csr, status: 415, invalid: true},
		{uid: backend, pattern: post, path: "/v1/requests?customer=acme", contentType: rawType, body: "no CSR", status: 422, rule: "csr.encoding"},
		{uid: backend, pattern: post, path: "/v1/requests?customer=acme", contentType: rawType, body: strings.Repeat("a", 100<<10), status: 422, rule: "csr.size"},
		{uid: tight, pattern: post, path: "/v1/requests?customer=acme&check=1", contentType: rawType, body: v.csr, status: 429},

		{uid: ops, pattern: list, path: "/v1/requests?limit=1&state=issued&customer=acme", status: 200},
		{uid: reader, pattern: list, status: 200},
		{uid: ops, pattern: list, path: "/v1/requests?limit=0", status: 400, invalid: true},
		{uid: ops, pattern: list, path: "/v1/requests?before=-1", status: 400, invalid: true},
		{uid: backend, pattern: list, status: 403, rule: "policy.may"},
		{uid: reader, pattern: list, path: "/v1/requests?customer=bolt", status: 404},
		{uid: backend, pattern: show, path: "/v1/requests/" + v.request, status: 200},
		{uid: reader, pattern: show, path: "/v1/requests/" + v.request, status: 200},
		{uid: approver, pattern: show, path: "/v1/requests/" + v.request, status: 404},
		{uid: backend, pattern: show, path: "/v1/requests/" + id, status: 404},
		{uid: backend, pattern: show, path: "/v1/requests/x", status: 404, invalid: true},

		{uid: approver, pattern: verify, contentType: "text/plain", body: "no request", status: 200},
		{uid: approver, pattern: verify, contentType: rawType, body: big, status: 413},
		{uid: approver, pattern: verify, contentType: rawType, encoding: "gzip", body: "x", status: 415},
	}
}

// profileCalls are calls about profiles.
func profileCalls(profile, big string) []apiCall {
	const post, config = "POST /v1/profiles", "application/x-apple-aspen-config"
	return []apiCall{
		{uid: ops, pattern: post, contentType: config, body: profile, status: 200, answer: config},
		{uid: acmeOps, pattern: post, path: "/v1/profiles?profile=main", contentType: "application/x-www-form-urlencoded", accept: asJSON, body: profile, status: 200, answer: asJSON},
		{uid: ops, pattern: post, path: "/v1/profiles?vendor=main", contentType: config, body: profile, status: 400},
		{uid: backend, pattern: post, contentType: config, body: profile, status: 403, rule: "policy.may"},
		{uid: acmeOps, pattern: post, path: "/v1/profiles?customer=bolt", contentType: config, body: profile, status: 403, rule: "policy.customers"},
		{uid: ops, pattern: post, path: "/v1/profiles?profile=other", contentType: config, body: profile, status: 404},
		{uid: ops, pattern: post, path: "/v1/profiles?customer=unknown", contentType: config, body: profile, status: 404, rule: "policy.must-exist"},
		{uid: ops, pattern: post, contentType: config, body: big, status: 413},
		{uid: ops, pattern: post, contentType: "application/pkcs10", body: profile, status: 415},
		{uid: ops, pattern: post, contentType: config, body: "no profile", status: 422, rule: "profile.form"},
	}
}

// pendingCalls are calls about what others must approve. The ids of what waits are in v.
func pendingCalls(v apiValues, id, big string) []apiCall {
	const post, approve, reject, pending = "POST /v1/requests", "POST /v1/requests/{id}/approve", "POST /v1/requests/{id}/reject", "GET /v1/pending"
	calls := []apiCall{
		{uid: careful, pattern: post, path: "/v1/requests?customer=coral&check=1", contentType: rawType, body: newCSR("dune"), status: 200},
		{uid: careful, pattern: post, path: "/v1/requests?customer=coral", contentType: rawType, body: newCSR("dune"), status: 202, answer: asJSON},
		{uid: fay, pattern: pending, path: "/v1/pending?limit=1", status: 200},
		{uid: careful, pattern: pending, status: 200},
		{uid: fay, pattern: pending, path: "/v1/pending?customer=acme", status: 400},
		{uid: fay, pattern: "GET /v1/requests/{id}", path: "/v1/requests/" + v.pend, status: 200},
	}
	for pattern, end := range map[string]string{approve: "/approve", reject: "/reject"} {
		path := "/v1/requests/" + v.pend + end
		calls = append(calls, []apiCall{
			{uid: fay, pattern: pattern, path: path, contentType: asJSON, body: `{"csr": "x"}`, status: 400, invalid: true},
			{uid: backend, pattern: pattern, path: path, contentType: asJSON, body: v.shown("bolt", "no"), status: 403, rule: "policy.may"},
			{uid: fay, pattern: pattern, path: "/v1/requests/" + id + end, contentType: asJSON, body: `{}`, status: 404},
			{uid: fay, pattern: pattern, path: path, contentType: asJSON, body: v.shown("acme", "no"), status: 409, rule: "approval.shown"},
			{uid: fay, pattern: pattern, path: path, contentType: asJSON, body: big, status: 413, invalid: true},
			{uid: fay, pattern: pattern, path: path, contentType: rawType, body: `{}`, status: 415, invalid: true},
		}...)
	}
	return append(calls,
		apiCall{uid: fay, pattern: approve, path: "/v1/requests/" + v.pend + "/approve", contentType: asJSON, body: v.shown("bolt", ""), status: 202},
		apiCall{uid: careful, pattern: reject, path: "/v1/requests/" + v.pend + "/reject", contentType: asJSON, body: v.shown("bolt", "no"), status: 403, rule: "policy.may"},
		apiCall{uid: gus, pattern: approve, path: "/v1/requests/" + v.pend + "/approve", contentType: asJSON, body: v.shown("bolt", ""), status: 200},
		apiCall{uid: gus, pattern: reject, path: "/v1/requests/" + v.unwanted + "/reject", contentType: asJSON, body: strings.Replace(v.shown("coral", "no"), api.SHA256(testkit.CSR(testkit.Key("bolt")).Raw), api.SHA256(testkit.CSR(testkit.Key("coral")).Raw), 1), status: 200},
		apiCall{uid: gus, pattern: reject, path: "/v1/requests/" + v.pend + "/reject", contentType: asJSON, body: v.shown("bolt", "late"), status: 409},
		apiCall{uid: ops, pattern: "POST /v1/freeze", contentType: asJSON, body: `{"scope": "vendor", "name": "old", "reason": "test"}`, status: 200},
		apiCall{uid: careful, pattern: "POST /v1/unfreeze", contentType: asJSON, body: `{"scope": "vendor", "name": "old", "reason": "test"}`, status: 202},
		apiCall{uid: ops, pattern: "POST /v1/unfreeze", contentType: asJSON, body: `{"scope": "vendor", "name": "old", "reason": "test"}`, status: 200},
	)
}

// shown is the body of a decision about the CSR of the key "bolt".
func (v apiValues) shown(customer, reason string) string {
	return string(testkit.Must(json.Marshal(api.Decision{Customer: customer, CSRSHA256: api.SHA256(testkit.CSR(testkit.Key("bolt")).Raw), Reason: reason})))
}

// customerCalls are calls about customers.
func customerCalls(v apiValues, id, big string) []apiCall {
	const list, add, show, edit, attach = "GET /v1/customers", "POST /v1/customers", "GET /v1/customers/{id}", "PATCH /v1/customers/{id}", "POST /v1/customers/{id}/push-certificates"
	acme, missing := "/v1/customers/"+v.customer, "/v1/customers/"+id
	return []apiCall{
		{uid: ops, pattern: list, status: 200},
		{uid: reader, pattern: list, status: 200},
		{uid: ops, pattern: list, path: "/v1/customers?order=expiry&match=AC&limit=1", status: 200},
		{uid: ops, pattern: list, path: "/v1/customers?order=newest", status: 400, invalid: true},
		{uid: ops, pattern: list, path: "/v1/customers?order=expiry&after=soon", status: 400},
		{uid: ops, pattern: list, path: "/v1/customers?name=acme", status: 400},
		{uid: backend, pattern: list, status: 403, rule: "policy.may"},
		{uid: ops, pattern: add, contentType: "application/json; charset=utf-8", body: `{"name": "coil", "contact": "it@coil.example", "notes": "n"}`, status: 201},
		{uid: ops, pattern: add, contentType: asJSON, body: `{"contact": "it@coil.example"}`, status: 400, invalid: true},
		{uid: ops, pattern: add, contentType: asJSON, body: `{"name": 1}`, status: 400, invalid: true},
		{uid: acmeOps, pattern: add, contentType: asJSON, body: `{"name": "dune"}`, status: 403},
		{uid: ops, pattern: add, contentType: asJSON, body: `{"name": "coil"}`, status: 409},
		{uid: ops, pattern: add, contentType: asJSON, body: big, status: 413, invalid: true},
		{uid: ops, pattern: add, contentType: "text/plain", body: `{"name": "coil"}`, status: 415, invalid: true},
		{uid: reader, pattern: show, path: acme, status: 200},
		{uid: backend, pattern: show, path: acme, status: 404},
		{uid: ops, pattern: show, path: missing, status: 404},
		{uid: acmeOps, pattern: edit, path: acme, contentType: asJSON, body: `{"contact": "mdm@acme.example"}`, status: 200},
		{uid: ops, pattern: edit, path: acme, contentType: asJSON, body: `{"contacts": "x"}`, status: 400, invalid: true},
		{uid: reader, pattern: edit, path: acme, contentType: asJSON, body: `{"contact": "x"}`, status: 403},
		{uid: acmeOps, pattern: edit, path: acme, contentType: asJSON, body: `{"name": "dune"}`, status: 403},
		{uid: ops, pattern: edit, path: missing, contentType: asJSON, body: `{}`, status: 404},
		{uid: ops, pattern: edit, path: acme, contentType: asJSON, body: `{"name": "coil"}`, status: 409},
		{uid: ops, pattern: edit, path: acme, contentType: asJSON, body: big, status: 413, invalid: true},
		{uid: ops, pattern: edit, path: acme, contentType: "application/merge-patch+json", body: `{}`, status: 415, invalid: true},
		{uid: acmeOps, pattern: attach, path: acme + "/push-certificates", contentType: "application/x-pem-file", body: v.push, status: 201},
		{uid: reader, pattern: attach, path: acme + "/push-certificates", contentType: rawType, body: v.push, status: 403},
		{uid: ops, pattern: attach, path: missing + "/push-certificates", contentType: rawType, body: v.push, status: 404},
		{uid: ops, pattern: attach, path: acme + "/push-certificates", contentType: rawType, body: v.wrongTopic, status: 409},
		{uid: ops, pattern: attach, path: acme + "/push-certificates", contentType: rawType, body: big, status: 413},
		{uid: ops, pattern: attach, path: acme + "/push-certificates", contentType: rawType, body: v.csr, status: 422},
		{uid: ops, pattern: attach, path: acme + "/push-certificates", contentType: rawType, encoding: "gzip", body: v.push, status: 415},
		{uid: reader, pattern: "GET /v1/due", status: 200},
		{uid: ops, pattern: "GET /v1/due", path: "/v1/due?within=0", status: 200},
		{uid: ops, pattern: "GET /v1/due", path: "/v1/due?within=soon", status: 400, invalid: true},
		{uid: backend, pattern: "GET /v1/due", status: 403, rule: "policy.may"},
		{uid: ops, pattern: "GET /v1/calendar", status: 200},
		{uid: reader, pattern: "GET /v1/calendar", path: "/v1/calendar?customer=acme", status: 200},
		{uid: reader, pattern: "GET /v1/calendar", path: "/v1/calendar?customer=bolt", status: 404},
		{uid: ops, pattern: "GET /v1/calendar", path: "/v1/calendar?customer=nobody", status: 404},
		{uid: ops, pattern: "GET /v1/calendar", path: "/v1/calendar?within=3", status: 400},
		{uid: backend, pattern: "GET /v1/calendar", status: 403, rule: "policy.may"},
	}
}

// ledgerCalls are calls about entries.
func ledgerCalls(v apiValues, id string) []apiCall {
	const list, show, export, point, proof = "GET /v1/entries", "GET /v1/entries/{index}", "GET /v1/export", "GET /v1/checkpoint", "GET /v1/proof/{id}"
	const prove, state = "GET /v1/entries/{index}/proof", "GET /v1/ledger"
	return []apiCall{
		{uid: ops, pattern: list, path: "/v1/entries?limit=2&kind=issued&customer=acme", status: 200},
		{uid: reader, pattern: list, status: 200},
		{uid: ops, pattern: list, path: "/v1/entries?limit=1001", status: 400, invalid: true},
		{uid: ops, pattern: list, path: "/v1/entries?limit=1&limit=2", status: 400},
		{uid: backend, pattern: list, status: 403, rule: "policy.may"},
		{uid: ops, pattern: list, path: "/v1/entries?customer=none", status: 404},
		{uid: ops, pattern: show, path: "/v1/entries/0", status: 200},
		{uid: reader, pattern: show, path: "/v1/entries/3", status: 200},
		{uid: reader, pattern: show, path: "/v1/entries/0", status: 404},
		{uid: backend, pattern: show, path: "/v1/entries/0", status: 403, rule: "policy.may"},
		{uid: ops, pattern: show, path: "/v1/entries/999", status: 404},
		{uid: ops, pattern: show, path: "/v1/entries/-1", status: 404, invalid: true},
		{uid: ops, pattern: list, path: "/v1/entries?actor=backend&until=2999-01-01T00:00:00Z&request=" + v.request + "&sha256=" + strings.Repeat("a", 64), status: 200},
		{uid: ops, pattern: list, path: "/v1/entries?request=acme", status: 400, invalid: true},
		{uid: ops, pattern: list, path: "/v1/entries?sha256=acme", status: 400, invalid: true},
		{uid: ops, pattern: list, path: "/v1/entries?until=soon", status: 400, invalid: true},
		{uid: ops, pattern: prove, path: "/v1/entries/0/proof", status: 200, answer: rawType},
		{uid: reader, pattern: prove, path: "/v1/entries/3/proof", accept: asJSON, status: 200, answer: asJSON},
		{uid: reader, pattern: prove, path: "/v1/entries/0/proof", status: 404},
		{uid: backend, pattern: prove, path: "/v1/entries/0/proof", status: 403, rule: "policy.may"},
		{uid: ops, pattern: prove, path: "/v1/entries/999/proof", status: 404},
		{uid: reader, pattern: state, status: 200},
		{uid: backend, pattern: state, status: 403, rule: "policy.may"},
		{uid: ops, pattern: export, status: 200, answer: "application/x-ndjson"},
		{uid: reader, pattern: export, path: "/v1/export?as=csv", status: 200, answer: "text/csv; charset=utf-8"},
		{uid: ops, pattern: export, path: "/v1/export?as=xml", status: 400, invalid: true},
		{uid: backend, pattern: export, status: 403, rule: "policy.may"},
		{uid: reader, pattern: point, status: 200},
		{uid: backend, pattern: point, status: 403, rule: "policy.may"},
		{uid: backend, pattern: proof, path: "/v1/proof/" + v.request, status: 200},
		{uid: approver, pattern: proof, path: "/v1/proof/" + v.request, status: 404},
		{uid: ops, pattern: proof, path: "/v1/proof/" + id, status: 404},
	}
}

// serviceCalls are calls about the service, and freezes.
func serviceCalls(big, request string) []apiCall {
	const freeze, unfreeze, acme = "POST /v1/freeze", "POST /v1/unfreeze", `{"scope": "customer", "name": "acme", "reason": "test"}`
	return []apiCall{
		{pattern: "GET /livez", status: 200},
		{pattern: "GET /readyz", status: 200},
		{uid: approver, pattern: "GET /v1/openapi.yaml", status: 200},
		{uid: approver, pattern: "GET /v1/vendor", status: 200},
		{uid: reader, pattern: "GET /v1/status", status: 200},
		{uid: backend, pattern: "GET /v1/status", status: 403, rule: "policy.may"},
		{uid: backend, pattern: "GET /v1/me", status: 200},
		{uid: approver, pattern: "GET /v1/me", status: 200},
		{uid: approver, pattern: "POST /v1/console/login", status: 200},
		{uid: acmeOps, pattern: freeze, contentType: asJSON, body: acme, status: 200},
		{uid: reader, pattern: "GET /v1/me", status: 200},
		{uid: backend, pattern: "GET /v1/requests/{id}", path: "/v1/requests/" + request, status: 403, rule: "ledger.frozen"},
		{uid: ops, pattern: "GET /v1/status", status: 200},
		{uid: ops, pattern: freeze, contentType: asJSON, body: acme, status: 409},
		{uid: ops, pattern: freeze, contentType: asJSON, body: `{"scope": "customer", "name": "none", "reason": "test"}`, status: 404},
		{uid: ops, pattern: freeze, contentType: asJSON, body: `{"scope": "customer", "reason": "test"}`, status: 400, invalid: true},
		{uid: ops, pattern: freeze, contentType: asJSON, body: `{"scope": "all"}`, status: 400, invalid: true},
		{uid: ops, pattern: freeze, contentType: asJSON, body: `[]`, status: 400, invalid: true},
		{uid: acmeOps, pattern: freeze, contentType: asJSON, body: `{"scope": "all", "reason": "test"}`, status: 403, rule: "policy.customers"},
		{uid: backend, pattern: freeze, contentType: asJSON, body: acme, status: 403, rule: "policy.may"},
		{uid: ops, pattern: freeze, contentType: asJSON, body: big, status: 413, invalid: true},
		{uid: ops, pattern: freeze, contentType: "text/plain", body: acme, status: 415, invalid: true},
		{uid: ops, pattern: unfreeze, contentType: asJSON, body: acme, status: 200},
		{uid: ops, pattern: unfreeze, contentType: asJSON, body: acme, status: 404},
		{uid: ops, pattern: unfreeze, contentType: asJSON, body: `{"scope": "none", "reason": "test"}`, status: 400, invalid: true},
		{uid: ops, pattern: unfreeze, contentType: asJSON, body: acme + " {}", status: 400},
		{uid: ops, pattern: unfreeze, contentType: asJSON, body: acme + "]", status: 400},
		{uid: backend, pattern: unfreeze, contentType: asJSON, body: acme, status: 403, rule: "policy.may"},
		{uid: ops, pattern: unfreeze, contentType: asJSON, body: big, status: 413, invalid: true},
		{uid: ops, pattern: unfreeze, contentType: "text/plain", body: acme, status: 415, invalid: true},
	}
}

// TestOpenAPICalls: every request and every answer is as the document has it, in every outcome that it has.
func TestOpenAPICalls(t *testing.T) {
	f := newAPIFixture(t)
	c := &checker{doc: document(t), seen: map[string]bool{}}
	if a := send(t, f.socket, "GET", "/readyz", nil, ""); a.status != 503 {
		t.Errorf("/readyz before the first probe: %d", a.status)
	} else {
		c.check(t, "GET /readyz", a, false)
	}
	f.probe(t.Context())
	f.exhaust("tight", "requests for signatures", 1)
	for _, call := range apiCalls(f.values(t)) {
		method, path, _ := strings.Cut(call.pattern, " ")
		if call.path != "" {
			path = call.path
		}
		header := map[string]string{uidHeader: strconv.Itoa(call.uid)}
		for name, value := range map[string]string{"Content-Type": call.contentType, "Accept": call.accept, "Content-Encoding": call.encoding} {
			if value != "" {
				header[name] = value
			}
		}
		a := send(t, f.socket, method, path, header, call.body)
		if a.status != call.status {
			t.Errorf("%d %s %s: %d, want %d\n%.600s", call.uid, method, path, a.status, call.status, a.body)
			continue
		}
		c.check(t, call.pattern, a, call.invalid)
		if got := a.header.Get("Content-Type"); call.answer != "" && got != call.answer {
			t.Errorf("%d %s %s: the answer is %s, want %s", call.uid, method, path, got, call.answer)
		}
		var p api.Problem
		if call.rule != "" && (json.Unmarshal(a.body, &p) != nil || p.Rule != call.rule) {
			t.Errorf("%d %s %s: rule %q, want %q", call.uid, method, path, p.Rule, call.rule)
		}
	}
	f.everyRoute(t, c)
	c.unseen(t)
}

// values signs a first request, adds a customer and returns what the calls need.
func (f *apiFixture) values(t *testing.T) apiValues {
	t.Helper()
	v := apiValues{profile: string(testkit.File(t, "golden/wifi.mobileconfig")), csr: newCSR("acme"), other: newCSR("bolt"), push: newPush(t, "acme"), wrongTopic: newPush(t, "acme")}
	as := map[string]string{uidHeader: strconv.Itoa(backend), "Content-Type": rawType}
	first := send(t, f.socket, "POST", "/v1/requests?customer=acme", as, v.csr)
	again := send(t, f.socket, "POST", "/v1/requests?customer=acme", as, v.csr)
	if first.status != 200 || string(first.body) != string(again.body) || first.header.Get("Location") != again.header.Get("Location") {
		t.Fatalf("%d %s, and again %d %s", first.status, first.body, again.status, again.body)
	}
	v.request = strings.TrimPrefix(first.header.Get("Location"), "/v1/requests/")
	as[uidHeader] = strconv.Itoa(careful)
	v.pend = strings.TrimPrefix(send(t, f.socket, "POST", "/v1/requests?customer=bolt", as, v.other).header.Get("Location"), "/v1/requests/")
	v.unwanted = strings.TrimPrefix(send(t, f.socket, "POST", "/v1/requests?customer=coral", as, newCSR("coral")).header.Get("Location"), "/v1/requests/")
	found := testkit.Value(f.ledger.Customers(t.Context(), "acme"))(t)
	v.customer = found[0].ID.String()
	return v
}

// everyRoute makes the calls that end alike on every route: a caller that is not known, one that asks too often, a request from
// another web site, and another Host.
func (f *apiFixture) everyRoute(t *testing.T, c *checker) {
	t.Helper()
	f.exhaust("eve", "other requests", anyRate)
	for _, rt := range routes() {
		method, pattern, _ := strings.Cut(rt.pattern, " ")
		path := strings.NewReplacer("{id}", strings.Repeat("a", 32), "{index}", "1").Replace(pattern)
		call := func(uid int, name, value string, want int) {
			header, body := map[string]string{uidHeader: strconv.Itoa(uid)}, ""
			if rt.body > 0 {
				header["Content-Type"], body = asJSON, bodies[rt.pattern]
			}
			if name != "" {
				header[name] = value
			}
			a := send(t, f.socket, method, path, header, body)
			if a.status != want {
				t.Errorf("%d %s: %d, want %d\n%s", uid, rt.pattern, a.status, want, a.body)
				return
			}
			c.check(t, rt.pattern, a, false)
		}
		if rt.open {
			a := sendTo(t, f.http, method, path, "evil.example")
			if a.status != 400 {
				t.Errorf("%s with another Host: %d", rt.pattern, a.status)
			}
			c.check(t, rt.pattern, a, false)
			continue
		}
		call(stranger, "", "", 401)
		call(approver, "", "", 429)
		if method != http.MethodGet {
			call(ops, "Sec-Fetch-Site", "cross-site", 403)
		}
	}
	for path, want := range map[string]int{"/v1/none": 404, "/v1/requests/": 404, "/v1//me": 404, "/v1/requests/../me": 404, "/v1/me": 405} {
		method := http.MethodGet
		if want == http.StatusMethodNotAllowed {
			method = http.MethodDelete
		}
		a := send(t, f.socket, method, path, map[string]string{uidHeader: strconv.Itoa(ops)}, "")
		if a.status != want || (a.header.Get("Allow") == "GET") != (want == 405) {
			t.Errorf("%s %s: %d, %v", method, path, a.status, a.header)
		}
		c.problem(t, a)
	}
}

// exhaust uses up what a limit allows a caller. It does so in the future, so that nothing is added to it during the test.
func (f *apiFixture) exhaust(caller, what string, perSecond int) {
	for f.pace.allow(caller, what, perSecond, time.Now().Add(time.Hour)) == nil {
	}
}

// bodies are valid bodies by route.
var bodies = map[string]string{
	"POST /v1/requests": `{"csr": "x"}`, "POST /v1/verify": `"x"`, "POST /v1/profiles": `"x"`, "POST /v1/customers": `{"name": "acme"}`, "PATCH /v1/customers/{id}": `{}`,
	"POST /v1/customers/{id}/push-certificates": `"x"`, "POST /v1/freeze": `{"scope": "all", "reason": "x"}`, "POST /v1/unfreeze": `{"scope": "all", "reason": "x"}`,
	"POST /v1/requests/{id}/approve": `{}`, "POST /v1/requests/{id}/reject": `{}`,
}

// unseen reports the outcomes of the document that no call had.
func (c *checker) unseen(t *testing.T) {
	t.Helper()
	for pattern, operation := range operations(c.doc) {
		for _, status := range slices.Sorted(maps.Keys(operation.Responses.Map())) {
			if other := status == "500" || status == "503" && pattern != "GET /readyz"; other || c.seen[pattern+" "+status] {
				continue
			}
			t.Errorf("no call of %s ended with %s", pattern, status)
		}
	}
}
