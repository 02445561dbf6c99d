package consoletest

import (
	"net/http"
	"strings"
	"testing"

	"hsmsign/agent/policy"
	"hsmsign/api"
)

// pageOf is a page of the console: its name for pictures, its path, and the verbs of which a role needs one.
type pageOf struct {
	name, path string
	needs      []string
}

// pages returns the pages of an office, each with an object that exists.
func (o *office) pages(t testing.TB) []pageOf {
	t.Helper()
	var waiting, issued api.List[api.Request]
	o.must(t, "ada", http.MethodGet, "/v1/pending", nil, &waiting)
	o.must(t, "ada", http.MethodGet, "/v1/requests?state=issued", nil, &issued)
	if len(waiting.Items) < 2 || len(issued.Items) < 2 {
		t.Fatalf("%d wait, %d are issued", len(waiting.Items), len(issued.Items))
	}
	return []pageOf{
		{"start", "/console/", nil},
		{"sign", "/console/sign", []string{policy.Sign}},
		{"pending", "/console/pending", nil},
		{"approval", "/console/pending/" + waiting.Items[1].ID, nil},
		{"customers", "/console/customers", []string{policy.Read, policy.Customers}},
		{"customer", "/console/customers/" + o.id(t, "alder-logistics"), []string{policy.Read, policy.Customers}},
		{"customer-form", "/console/customers/" + o.id(t, "alder-logistics") + "/edit", []string{policy.Customers}},
		{"renewal", "/console/customers/" + o.id(t, "alder-logistics") + "/renew", []string{policy.Read, policy.Customers}},
		{"ledger", "/console/ledger", []string{policy.Read}},
		{"entry", "/console/ledger/" + "12", []string{policy.Read}},
		{"request", "/console/requests/" + issued.Items[0].ID, []string{policy.Sign, policy.Read}},
		{"vendor", "/console/vendor", nil},
		{"verify", "/console/verify", nil},
		{"me", "/console/me", nil},
	}
}

// people are those who sign in, and what their roles allow.
var people = map[string][]string{
	"ada": {policy.Sign, policy.Read, policy.Customers, policy.Freeze},
	"fay": {policy.Approve, policy.Read, policy.Freeze},
	"bo":  {policy.Sign},
}

// may returns whether a person's role has one of the verbs, or none is needed.
func may(person string, verbs []string) bool {
	for _, verb := range verbs {
		for _, has := range people[person] {
			if verb == has {
				return true
			}
		}
	}
	return len(verbs) == 0
}

// testPages: every page, for three roles: what a role may not read is refused, and not offered in the navigation. Each page is right in both
// themes and at both widths.
func testPages(t *testing.T, o *office) {
	all := o.pages(t)
	for _, person := range []string{"ada", "fay", "bo"} {
		t.Run(person, func(t *testing.T) {
			b := o.signIn(t, person)
			for _, p := range all {
				if !may(person, p.needs) {
					b.expect(o.URL + p.path) // the browser logs a status that is an error
				}
				status := b.open(p.path)
				if !may(person, p.needs) {
					if status != http.StatusForbidden && status != http.StatusNotFound {
						t.Errorf("%s: status %d for a role that may not read it\n%s", p.name, status, b.text())
					}
				} else if status != http.StatusOK {
					t.Errorf("%s: status %d\n%s", p.name, status, b.text())
				}
				if inMenu := strings.Count(p.path, "/") == 2; inMenu && (b.has(`header nav a[href="`+p.path+`"]`) == 1) != may(person, p.needs) {
					t.Errorf("%s: the navigation is not that of the role", p.name)
				}
				if person == "ada" {
					b.everyLook(p.name)
				} else {
					b.audit(person + " " + p.name)
				}
			}
		})
	}
}

// testStrangers: the pages that a person sees who is not signed in.
func testStrangers(t *testing.T, o *office) {
	b := o.tab(t)
	for _, p := range o.pages(t) {
		if status := b.open(p.path); status != http.StatusOK || !strings.HasPrefix(b.where(), o.URL+"/console/sign-in?") {
			t.Errorf("%s: status %d at %s", p.name, status, b.where())
		}
	}
	b.everyLook("sign-in")
}

// TestConsole tests the console of one office; its subtests run one after the other.
func TestConsole(t *testing.T) {
	o := newOffice(t)
	for _, one := range []struct {
		name string
		test func(t *testing.T, o *office)
	}{
		{"pages", testPages},
		{"strangers", testStrangers},
		{"sign in", testSignIn},
		{"jobs", testJobs},
		{"forgery", testForgery},
		{"framing", testFraming},
		{"fixation", testFixation},
		{"hostile", testHostile},
		{"expired", testExpired},
	} {
		t.Run(one.name, func(t *testing.T) { one.test(t, o) })
	}
}

// testSignIn: a person signs in with the provider and is at the page that they wanted. After the sign-out, the cookie that a thief has copied
// is worth nothing.
func testSignIn(t *testing.T, o *office) {
	b := o.tab(t)
	o.signInAt(b, "ada", "/console/vendor")
	stolen := b.cookies()
	if status := b.press(`header form[action="/console/sign-out"] button`); status != http.StatusOK {
		t.Errorf("sign out: status %d\n%s", status, b.text())
	}
	b.shows("signed out")
	b.everyLook("signed-out")
	b.setCookies(stolen)
	if b.open("/console/me"); !strings.HasPrefix(b.where(), o.URL+"/console/sign-in") {
		t.Errorf("the cookie after the sign-out: %s\n%s", b.where(), b.text())
	}
}
