package server

import (
	"bytes"
	"context"
	"mime/multipart"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"

	"hsmsign/api"
	"hsmsign/internal/testkit"
	"hsmsign/ledger"
)

// withFile returns a multipart form with a file and a text, and its type.
func withFile(t *testing.T, file, text string) (mediaType, body string) {
	t.Helper()
	var out bytes.Buffer
	w := multipart.NewWriter(&out)
	part := testkit.Value(w.CreateFormFile("file", "MDM_<b>.pem"))(t)
	testkit.Value(part.Write([]byte(file)))(t)
	testkit.OK(t, w.WriteField("text", text))
	testkit.OK(t, w.Close())
	return w.FormDataContentType(), out.String()
}

// TestConsoleCustomers: customers are added, changed and get certificates, by roles that may; the picture and the table say when these expire.
func TestConsoleCustomers(t *testing.T) {
	f := newRecords(t)
	const hostile = `<script>"acme"</script><b>A</b>`
	got := f.sendForm(t, "ops", "/console/customers/new", url.Values{"name": {hostile}, "contact": {"it@acme.example"}})
	root := f.follow(t, "ops", got)
	one, _, _ := strings.Cut(got.header.Get("Location"), "?")
	if !strings.Contains(text(root), hostile) || !strings.Contains(text(root), "The customer is added.") || strings.Contains(text(root), "None of") {
		t.Errorf("%s", text(root))
	}
	if got := f.sendForm(t, "ops", "/console/customers/new", url.Values{"name": {hostile}, "notes": {"typed"}}); got.status != http.StatusConflict || fields(t, parsedPage(t, got), "/console/customers/new").Get("notes") != "typed" {
		t.Errorf("a name that is taken: %d", got.status)
	}
	f.staleSession(t)
	// What somebody else changes while the form is open stays.
	_, root = f.get(t, "ops", one+"/edit")
	form := fields(t, root, one+"/edit")
	testkit.OK(t, f.ledger.EditCustomer(t.Context(), "uid 0", "local", hostile, func(c ledger.Customer) ledger.Customer {
		c.Contact = "new@acme.example"
		return c
	}))
	form.Set("account", "mdm@acme.example")
	root = f.follow(t, "ops", f.sendForm(t, "ops", one+"/edit", form))
	if shown := text(root); !strings.Contains(shown, "new@acme.example") || !strings.Contains(shown, "mdm@acme.example") {
		t.Errorf("after the change: %s", shown)
	}
	if root := f.follow(t, "ops", f.sendForm(t, "ops", one+"/edit", fields(t, second(f.get(t, "ops", one+"/edit")), one+"/edit"))); strings.Contains(text(root), "saved") {
		t.Error("nothing was changed, and something was saved")
	}

	mediaType, body := withFile(t, newPush(t, "acme"), "")
	if root := f.follow(t, "ops", f.sendBody(t, "ops", one, mediaType, body)); !strings.Contains(text(root), "com.apple.mgmt.External.") || !strings.Contains(text(root), "is attached") {
		t.Errorf("attached: %s", text(root))
	}
	other := newPush(t, "acme")
	if got := f.sendForm(t, "ops", one, url.Values{"text": {other}}); got.status != http.StatusConflict || fields(t, parsedPage(t, got), one).Get("text") != other {
		t.Errorf("another topic: %d %s", got.status, got.body)
	}
	mediaType, body = withFile(t, other, other)
	if got := f.sendBody(t, "ops", one, mediaType, body); got.status != http.StatusBadRequest {
		t.Errorf("a file and a text: %d", got.status)
	}
	f.rolesOfCustomers(t, one)
	f.pictureOfCustomers(t, hostile)
	for path, name := range map[string]string{"due.ics": "due.ics", strings.TrimPrefix(one, "/console/customers/") + ".ics": strings.TrimPrefix(one, "/console/customers/") + ".ics"} {
		got := f.fetch(t, "ops", "/console/download/customers/"+path)
		if got.header.Get("Content-Disposition") != `attachment; filename="`+name+`"` || !strings.HasPrefix(got.header.Get("Content-Type"), "text/calendar") || !strings.HasPrefix(string(got.body), "BEGIN:VCALENDAR") {
			t.Errorf("%s: %v %s", path, got.header, got.body)
		}
	}
	if got, root := f.get(t, "ops", one+"/renew"); got.status != http.StatusOK || !strings.Contains(text(root), "mdm@acme.example") || !strings.Contains(text(root), "Choose Renew") {
		t.Errorf("how to renew: %d %s", got.status, text(root))
	}
}

func second[A, B any](_ A, b B) B { return b }

// staleSession: a change needs a sign-in of the last minutes, and what was typed stays on the page that says so.
func (f *consoleFixture) staleSession(t *testing.T) {
	t.Helper()
	recent := f.cookies["ops"]
	f.session(t, "ops", f.cfg.Now().Add(-freshFor))
	got := f.sendForm(t, "ops", "/console/customers/new", url.Values{"name": {"dune"}})
	if got.status != http.StatusUnauthorized || fields(t, parsedPage(t, got), "/console/customers/new").Get("name") != "dune" || !strings.Contains(string(got.body), ruleFresh) {
		t.Errorf("an old sign-in: %d %s", got.status, got.body)
	}
	f.cookies["ops"] = recent
}

// rolesOfCustomers: a role is offered what it may do, and the API refuses the rest.
func (f *consoleFixture) rolesOfCustomers(t *testing.T, one string) {
	t.Helper()
	for as, want := range map[string][3]int{ // the list, the customer, its form
		"ops": {200, 200, 200}, "auditor": {200, 404, 404}, "backend": {403, 404, 404}, "acme-ops": {200, 404, 404}, "fay": {403, 404, 404},
	} {
		for i, path := range []string{"/console/customers", one, one + "/edit"} {
			if got, _ := f.get(t, as, path); got.status != want[i] {
				t.Errorf("%s as %s: %d, want %d", path, as, got.status, want[i])
			}
		}
	}
	testkit.OK(t, f.ledger.AddCustomer(t.Context(), "uid 0", "local", ledger.Customer{Name: "acme"}))
	found := testkit.Value(f.ledger.Customers(t.Context(), "acme"))(t)
	path := "/console/customers/" + found[0].ID.String()
	got, root := f.get(t, "auditor", path)
	if got.status != http.StatusOK || hasForm(root, path) || slices.Contains(links(root), path+"/edit") || slices.Contains(links(root), "/console/sign?customer=acme") {
		t.Errorf("a reader is offered a change: %d %s", got.status, text(root))
	}
	for _, to := range []string{path, path + "/edit", "/console/customers/new"} {
		if got := f.sendForm(t, "auditor", to, url.Values{"name": {"x"}, "text": {newPush(t, "bolt")}}); got.status != http.StatusForbidden {
			t.Errorf("a reader posts to %s: %d", to, got.status)
		}
	}
}

// pictureOfCustomers: the picture has a bar for each certificate, and words.
func (f *consoleFixture) pictureOfCustomers(t *testing.T, hostile string) {
	t.Helper()
	testkit.OK(t, f.ledger.AddCustomer(t.Context(), "uid 0", "local", ledger.Customer{Name: "late"}))
	testkit.OK(t, f.ledger.Attach(t.Context(), "uid 0", "local", "late", ledger.Push{Topic: "x", NotAfter: time.Now().AddDate(0, 0, -3)}))
	_, root := f.get(t, "ops", "/console/customers")
	bars := elements(root, func(n *html.Node) bool { return n.Data == "rect" })
	if len(bars) != 2 || !strings.Contains(text(root), "Expired: 1. Expiring within 30 days: 0. The first is that of late") || !strings.Contains(text(root), "expired 3 days ago") {
		t.Errorf("%d bars: %s", len(bars), text(root))
	}
	if class, _ := attribute(bars[0], "class"); class != "bad" {
		t.Errorf("the first bar is %q", class)
	}
	rows := named(root, atom.Tr)
	if len(rows) != 4 || !strings.HasPrefix(text(rows[1]), "late") || !strings.HasPrefix(text(rows[2]), hostile) || !strings.HasPrefix(text(rows[3]), "acme") {
		t.Errorf("%d rows", len(rows))
	}
	_, root = f.get(t, "ops", "/console/customers?sort=name&match=A")
	if rows := named(root, atom.Tr); len(rows) != 4 || !strings.HasPrefix(text(rows[2]), "acme") {
		t.Errorf("by name: %s", text(root))
	}
	if _, root := f.get(t, "ops", "/console/customers?match=zebra"); len(named(root, atom.Tr)) != 0 {
		t.Error("a name that nobody has")
	}
}

// TestCalendar: a calendar has what its reader may know of.
func TestCalendar(t *testing.T) {
	f := newAPIFixture(t)
	f.cfg.Due = func(context.Context, time.Time) (all []Due, err error) {
		for _, customer := range []string{"acme", "bolt", ""} {
			all = append(all, Due{LedgerDue: api.LedgerDue{What: "certificate", Customer: customer}, Deadline: time.Now(), ID: customer})
		}
		return all, nil
	}
	for _, customer := range []string{"acme", "bolt"} {
		testkit.OK(t, f.ledger.AddCustomer(t.Context(), "uid 0", "local", ledger.Customer{Name: customer}))
	}
	for uid, want := range map[int]map[string]string{ops: {"": "acme bolt -", "?customer=bolt": "bolt"}, reader: {"": "acme", "?customer=acme": "acme"}} {
		for search, names := range want {
			got := send(t, f.socket, http.MethodGet, "/v1/calendar"+search, map[string]string{uidHeader: strconv.Itoa(uid)}, "")
			var found []string
			for line := range strings.Lines(string(got.body)) {
				if text, ok := strings.CutPrefix(strings.TrimSpace(line), "SUMMARY:certificate of "); ok {
					found = append(found, strings.TrimSuffix(text, " expires"))
				}
			}
			if strings.Join(found, " ") != names {
				t.Errorf("%d%s: %q, want %q", uid, search, found, names)
			}
		}
	}
}
