package server

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"hsmsign/api"
	"hsmsign/internal/testkit"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

// get sends a GET request of a Unix user, and decodes the answer unless v is nil.
func (f *apiFixture) get(t *testing.T, uid int, path string, v any) answered {
	t.Helper()
	a := send(t, f.socket, http.MethodGet, path, map[string]string{uidHeader: strconv.Itoa(uid)}, "")
	if v != nil {
		if err := json.Unmarshal(a.body, v); err != nil || a.status != http.StatusOK {
			t.Fatalf("%s: %d, %v: %s", path, a.status, err, a.body)
		}
	}
	return a
}

// signs has a CSR signed for a customer, and returns the answer.
func (f *apiFixture) signs(t *testing.T, uid int, customer, csr string) answered {
	t.Helper()
	return send(t, f.socket, http.MethodPost, "/v1/requests?customer="+customer, map[string]string{uidHeader: strconv.Itoa(uid), "Content-Type": rawType}, csr)
}

// TestPages: the pages of a list are all of it, once, and there is a last one.
func TestPages(t *testing.T) {
	f := newAPIFixture(t)
	if a := f.signs(t, backend, "acme", newCSR("acme")); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	size := testkit.Value(f.ledger.Head(t.Context()))(t).Size
	for _, limit := range []int64{1, 2, size, size + 1} {
		next, want := "/v1/entries?kind=&limit="+strconv.FormatInt(limit, 10), size
		for pages := 0; next != ""; pages++ {
			var page api.List[api.LedgerEntry]
			if f.get(t, ops, next, &page); pages > int(size) || len(page.Items) == 0 {
				t.Fatalf("limit %d: page %d is %+v", limit, pages, page)
			}
			for _, e := range page.Items {
				if want--; e.Index != want {
					t.Errorf("limit %d: entry %d, want %d", limit, e.Index, want)
				}
			}
			next = page.Next
		}
		if want != 0 {
			t.Errorf("limit %d: the last entry is %d", limit, want)
		}
	}
}

// TestDefects: what a ledger that fails its verification says is an error for the caller, and never an answer with 200.
func TestDefects(t *testing.T) {
	f := newAPIFixture(t)
	c := &checker{doc: document(t), seen: map[string]bool{}}
	csr := newCSR("acme")
	if a := f.signs(t, backend, "acme", csr); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	testkit.Value(f.store.DB.ExecContext(t.Context(), "UPDATE openings SET data = x'00' WHERE name = 'request'"))(t)
	a := f.signs(t, backend, "acme", csr)
	c.check(t, "POST /v1/requests", a, false)
	if !c.seen["POST /v1/requests 500"] || !strings.Contains(string(a.body), "urn:hsmsign:problem:defects") {
		t.Errorf("a damaged request: %d %s", a.status, a.body)
	}
	testkit.Value(f.store.DB.ExecContext(t.Context(), "UPDATE entries SET leaf = x'00' WHERE idx = 0"))(t)
	a = f.get(t, ops, "/v1/entries/0", nil)
	c.check(t, "GET /v1/entries/{index}", a, false)
	if !c.seen["GET /v1/entries/{index} 500"] {
		t.Errorf("a damaged entry: %d %s", a.status, a.body)
	}
}

// TestNothingLeft: a caller that has had all of a day's signatures is told so, and sees that nothing is left.
func TestNothingLeft(t *testing.T) {
	f := newAPIFixture(t)
	c := &checker{doc: document(t), seen: map[string]bool{}}
	left := func(uid int) *int {
		var me api.Me
		f.get(t, uid, "/v1/me", &me)
		return me.Left
	}
	if n := left(daily); n == nil || *n != 1 {
		t.Errorf("left before: %v", n)
	}
	if n := left(reader); n != nil {
		t.Errorf("left of a caller that may not sign: %d", *n)
	}
	if a := f.signs(t, daily, "acme", newCSR("acme")); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	a := f.signs(t, daily, "bolt", newCSR("bolt"))
	c.check(t, "POST /v1/requests", a, false)
	if !c.seen["POST /v1/requests 429"] || !strings.Contains(string(a.body), "policy.per-day") {
		t.Errorf("the second request of a day: %d %s", a.status, a.body)
	}
	if n := left(daily); n == nil || *n != 0 {
		t.Errorf("left after: %v", n)
	}
}

// TestReassigned: an entry names no customer that its reader may not read about.
func TestReassigned(t *testing.T) {
	f := newAPIFixture(t)
	if a := f.signs(t, backend, "bolt", newCSR("acme")); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	testkit.OK(t, f.ledger.AddCustomer(t.Context(), "ada", "local", ledger.Customer{Name: "acme"}))
	key := record.SHA256(testkit.CSR(testkit.Key("acme")).RawSubjectPublicKeyInfo)
	testkit.OK(t, f.ledger.Reassign(t.Context(), "ada", "local", key, "bolt", "acme"))
	head := testkit.Value(f.ledger.Head(t.Context()))(t)
	path := "/v1/entries/" + strconv.FormatInt(head.Size-1, 10)
	var whole, part api.LedgerEntry
	f.get(t, ops, path, &whole)
	f.get(t, reader, path, &part)
	if whole.From != "bolt" || whole.FromID == "" || part.Kind != "reassigned" || part.Customer != "acme" || part.From != "" || part.FromID != "" {
		t.Errorf("all: %+v\nacme: %+v", whole, part)
	}
	for _, path := range []string{"/v1/entries", "/v1/export", "/v1/export?as=csv"} {
		if a := f.get(t, reader, path, nil); !strings.Contains(string(a.body), "reassigned") || strings.Contains(string(a.body), "bolt") || strings.Contains(string(a.body), whole.FromID) {
			t.Errorf("%s: %s", path, a.body)
		}
	}
}

// TestScope: lists and exports contain nothing about customers that are not those of the caller.
func TestScope(t *testing.T) {
	f := newAPIFixture(t)
	for _, customer := range []string{"acme", "bolt"} {
		if a := f.signs(t, backend, customer, newCSR(customer)); a.status != http.StatusOK {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	for path, hidden := range map[string]string{
		"/v1/customers": `"bolt"`, "/v1/requests": `"bolt"`, "/v1/entries": `"bolt"`, "/v1/export": `"genesis"`, "/v1/export?as=csv": "bolt", "/v1/due": "watched certificate",
	} {
		all, part := string(f.get(t, ops, path, nil).body), string(f.get(t, reader, path, nil).body)
		if !strings.Contains(all, hidden) || !strings.Contains(all, "acme") || strings.Contains(part, hidden) || !strings.Contains(part, "acme") {
			t.Errorf("%s: all %s\nacme: %s", path, all, part)
		}
	}
}
