package server

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net/http"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"

	"hsmsign/api"
	"hsmsign/internal/testkit"
	"hsmsign/request"
	"hsmsign/server/console"
)

// TestConsolePages loads every page as callers with different roles. What a role may not do is not offered, and is refused.
func TestConsolePages(t *testing.T) {
	f := newConsole(t)
	pages := []string{"/console/", "/console/sign", "/console/vendor", "/console/verify", "/console/me"}
	for _, role := range []struct {
		as      string
		offered []string
	}{
		{"ops", []string{"sign", "pending", "customers", "ledger", "vendor", "verify", "me"}},
		{"auditor", []string{"pending", "customers", "ledger", "vendor", "verify", "me"}},
		{"fay", []string{"pending", "vendor", "verify", "me"}},
		{"backend", []string{"sign", "pending", "vendor", "verify", "me"}},
	} {
		signs := slices.Contains(role.offered, "sign")
		for _, path := range pages {
			got, page := f.get(t, role.as, path)
			if path == "/console/sign" && !signs {
				says(t, got, page, http.StatusForbidden, "caller "+role.as+" may not ask for signatures", "the page Me says what it may", "Id of this request")
				continue
			}
			says(t, got, page, http.StatusOK, role.as, "Sign out")
			for _, name := range []string{"sign", "pending", "customers", "ledger", "vendor", "verify", "me"} {
				offered := slices.ContainsFunc(links(page), func(l string) bool { return l == "/console/"+name })
				if offered != slices.Contains(role.offered, name) {
					t.Errorf("%s as %s: a link to %s: %v", path, role.as, name, offered)
				}
			}
			current := elements(page, func(n *html.Node) bool { value, _ := attribute(n, "aria-current"); return value == "page" })
			if len(current) != 1 {
				t.Errorf("%s: %d current pages", path, len(current))
			}
		}
	}
	got, page := f.get(t, "ops", "/console/nothing")
	says(t, got, page, http.StatusNotFound, "Not found", "there is no page")
	if got := f.fetch(t, "ops", "/"); got.status != http.StatusOK || got.request.URL.Path == "" {
		t.Errorf("/: %d", got.status)
	}
}

// TestConsoleForged sends the forms of pages by hand as callers that may not, and checks that the API's refusal is shown.
func TestConsoleForged(t *testing.T) {
	f := newConsole(t)
	got, page := f.post(t, "auditor", "/console/sign", nil, "customer", "acme", "csr", newCSR("forged"), "action", "request")
	says(t, got, page, http.StatusForbidden, "may not ask for signatures")
	item := []string{"action", "request", "item", "0", "name-0", "x", "csr-0", "TUlJ", "customer-0", "other", "ready-0", "other"}
	got, page = f.post(t, "acme-ops", "/console/sign", nil, item...)
	says(t, got, page, http.StatusUnprocessableEntity, "refused")
	for _, broken := range [][]string{
		{"item", "99", "csr-99", "TUlJ"}, {"item", "0", "csr-0", "?"}, {"item", "-1"},
	} {
		got, page = f.post(t, "ops", "/console/sign", nil, broken...)
		says(t, got, page, http.StatusBadRequest, "the form was not received")
	}
	got = send(t, f.browser, http.MethodPost, "/console/sign", map[string]string{"Cookie": f.cookie(t, "ops"), "Content-Type": "application/json", "Sec-Fetch-Site": "same-origin"}, "{}")
	says(t, got, parsedPage(t, got), http.StatusUnsupportedMediaType, "the body has the type")
	got = send(t, f.browser, http.MethodPost, "/console/sign", map[string]string{"Cookie": f.cookie(t, "ops"), "Content-Type": "application/x-www-form-urlencoded"}, "customer=acme")
	says(t, got, parsedPage(t, got), http.StatusForbidden, "the request comes from another web site")
	if used := f.key.Calls.Load(); used != 0 {
		t.Errorf("%d signatures", used)
	}
}

// TestConsoleSign checks, requests and downloads, with and without several CSRs, as a browser without JavaScript does.
func TestConsoleSign(t *testing.T) {
	f := newConsole(t)
	got, page := f.get(t, "ops", "/console/sign?customer=acme")
	says(t, got, page, http.StatusOK, "You see every check before anything is signed")
	if value, _ := attribute(named(page, atom.Form)[1], "enctype"); value != "multipart/form-data" {
		t.Error("no form for files")
	}
	got, page = f.post(t, "ops", "/console/sign", nil, "customer", "acme", "csr", "  ", "action", "check")
	says(t, got, page, http.StatusBadRequest, "the form has no CSR")
	der := string(testkit.CSR(testkit.Key("der")).Raw)
	files := []file{{"acme.csr", newCSR("one") + newCSR("two")}, {"acme.der", der}, {"weak.csr", newCSR("three") + "-----BEGIN CERTIFICATE-----\n"}}
	got, page = f.post(t, "ops", "/console/sign", files, "customer", "acme", "csr", newCSR("four"), "action", "check")
	says(t, got, page, http.StatusOK, "4 passed the checks", "1 refused", "Nothing is signed yet", "Request 4 signatures", "acme.csr (2)", "pasted text", "weak.csr", "CN=")
	if used := f.key.Calls.Load(); used != 0 {
		t.Fatalf("%d signatures of a check", used)
	}
	got, page = f.submit(t, "ops", page, "request", nil)
	says(t, got, page, http.StatusOK, "4 of 5 requested", "Download the request", "identity.apple.com/pushcert", "Renew")
	if used := f.key.Calls.Load(); used != 4 {
		t.Errorf("%d signatures", used)
	}
	ids := requestIDs(page)
	if len(ids) != 4 {
		t.Fatalf("requests %v", ids)
	}
	download := f.fetch(t, "ops", "/console/download/requests/"+ids[0]+".req")
	if disposition := download.header.Get("Content-Disposition"); download.status != http.StatusOK || disposition != `attachment; filename="`+ids[0]+`.req"` {
		t.Errorf("%d %q", download.status, disposition)
	}
	if r := request.Verify(download.body, request.VerifyOptions{TrustRoots: f.Server.state.Load().Roots, Now: f.cfg.Now()}); !r.OK() {
		t.Errorf("%+v", r.Findings)
	}
	receipt := f.fetch(t, "ops", "/console/download/requests/"+ids[0]+".tlog-proof")
	if disposition := receipt.header.Get("Content-Disposition"); !strings.Contains(string(receipt.body), "c2sp.org/tlog-proof") || disposition != `attachment; filename="`+ids[0]+`.tlog-proof"` {
		t.Errorf("%d %q %s", receipt.status, disposition, receipt.body)
	}
	got, page = f.get(t, "ops", "/console/requests/"+ids[0])
	says(t, got, page, http.StatusOK, "issued", "acme", "Download the receipt")
	for _, path := range []string{"requests/" + ids[0], "download/requests/" + ids[0] + ".req", "download/requests/" + ids[0] + ".tlog-proof"} {
		got, page = f.get(t, "eve", "/console/"+path)
		says(t, got, page, http.StatusNotFound, "there is no request")
	}
	got, page = f.get(t, "ops", "/console/download/requests/"+ids[0]+".exe")
	says(t, got, page, http.StatusNotFound, "there is no download")
	t.Run("one form is bounded", func(t *testing.T) {
		got, page := f.post(t, "ops", "/console/sign", nil, "customer", "acme", "csr", strings.Repeat(newCSR("one"), maxItems+1), "action", "check")
		says(t, got, page, http.StatusBadRequest, "the form has 21 CSRs", "at most 20")
	})
}

// requestIDs returns the requests that a page has downloads of.
func requestIDs(page *html.Node) (ids []string) {
	for _, path := range links(page) {
		if id, ok := strings.CutPrefix(path, "/console/download/requests/"); ok && strings.HasSuffix(id, ".req") {
			ids = append(ids, strings.TrimSuffix(id, ".req"))
		}
	}
	return ids
}

// TestConsoleChangedCustomer changes the customer after the check: nothing is signed before it is checked for that customer.
func TestConsoleChangedCustomer(t *testing.T) {
	f := newConsole(t)
	_, page := f.post(t, "acme-ops", "/console/sign", nil, "customer", "acme", "csr", newCSR("changed"), "action", "check")
	got, page := f.submit(t, "acme-ops", page, "request", map[string]string{"customer-0": "other"})
	says(t, got, page, http.StatusUnprocessableEntity, "refused", "other")
	got, page = f.submit(t, "acme-ops", page, "check", map[string]string{"customer-0": "acme"})
	says(t, got, page, http.StatusOK, "1 passed the checks")
	if used := f.key.Calls.Load(); used != 0 {
		t.Fatalf("%d signatures", used)
	}
	got, page = f.submit(t, "acme-ops", page, "request", nil)
	says(t, got, page, http.StatusOK, "1 of 1 requested")
	_, page = f.post(t, "acme-ops", "/console/sign", nil, "customer", "acme", "csr", newCSR("changed"), "action", "check")
	got, page = f.submit(t, "acme-ops", page, "request", nil)
	says(t, got, page, http.StatusOK, "it was issued before")
	if used := f.key.Calls.Load(); used != 1 {
		t.Errorf("%d signatures", used)
	}
}

// TestConsoleUncheckedCustomer changes the customer to one that the role may sign for, too: it is checked, and not signed.
func TestConsoleUncheckedCustomer(t *testing.T) {
	f := newConsole(t)
	_, page := f.post(t, "ops", "/console/sign", nil, "customer", "acme", "csr", newCSR("unchecked"), "action", "check")
	got, page := f.submit(t, "ops", page, "request", map[string]string{"customer-0": "other"})
	says(t, got, page, http.StatusOK, "1 passed the checks", "Nothing is signed yet")
	got, page = f.submit(t, "ops", page, "check", nil)
	says(t, got, page, http.StatusOK, "1 passed the checks", "Nothing is signed yet")
	if used := f.key.Calls.Load(); used != 0 {
		t.Errorf("%d signatures", used)
	}
}

// TestConsoleWaits requests what others must approve.
func TestConsoleWaits(t *testing.T) {
	f := newConsole(t)
	got, page := f.post(t, "careful", "/console/sign", nil, "customer", "acme", "csr", newCSR("waits"), "action", "check")
	says(t, got, page, http.StatusOK, "pending", "It waits for approval after you request it", "Request the signature")
	got, page = f.submit(t, "careful", page, "request", nil)
	says(t, got, page, http.StatusOK, "Nothing is signed yet: other people must approve it first", "(0 of 2")
	if len(requestIDs(page)) != 0 || f.key.Calls.Load() != 0 {
		t.Error("it is signed")
	}
	got, page = f.get(t, "fay", "/console/")
	says(t, got, page, http.StatusOK, "asked by careful", "0 of 2 approvals")
}

// TestConsoleSignPaced checks more CSRs at once than the role may send in a second.
func TestConsoleSignPaced(t *testing.T) {
	f := newConsole(t)
	got, page := f.post(t, "tight", "/console/sign", nil, "customer", "acme", "csr", newCSR("slow one")+newCSR("slow two"), "action", "check")
	says(t, got, page, http.StatusOK, "2 passed the checks")
}

// TestConsoleFindings shows every finding about a CSR that is refused.
func TestConsoleFindings(t *testing.T) {
	f := newConsole(t)
	der := testkit.Value(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "weak"}, SignatureAlgorithm: x509.SHA1WithRSA,
	}, testkit.Key("weak")))(t)
	der[len(der)-1] ^= 1
	got, page := f.post(t, "ops", "/console/sign", nil, "customer", "acme", "csr", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), "action", "check")
	says(t, got, page, http.StatusUnprocessableEntity, "csr.signature", "csr.sha1", "What to do", "Apple's portal would say: Invalid Certificate Signing Request")
}

// hostile is a subject that tries to be more than a text.
var hostile = `</td><script>alert(1)</script><img src=x onerror=alert(2)>` + "\u202egnp.exe\u2066\u200b \x1b[31mred\x1b]0;title\x07 =cmd|' /C calc'!A0"

// TestConsoleHostileSubject signs a CSR with such a subject, short and of 60 KB, and looks at every page that shows it.
func TestConsoleHostileSubject(t *testing.T) {
	f := newConsole(t)
	for _, subject := range []string{hostile, hostile + strings.Repeat("<b>A</b>", 7000)} {
		der := testkit.Value(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: subject}}, testkit.Key("hostile"+subject[:5])))(t)
		csr := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
		name := strings.NewReplacer("\x1b", "", "\x07", "").Replace(hostile) // Go refuses these in a header
		files := []file{{name + ".csr", csr}}
		if len(csr) > request.MaxCSR {
			files[0].content = string(der)
		}
		got, page := f.post(t, "ops", "/console/sign", files, "customer", "acme "+hostile[:20], "action", "check")
		harmless(t, got, page)
		says(t, got, page, http.StatusOK, "1 passed the checks", "U+202E", "U+001B", "<script>alert(1)</script>")
		got, page = f.submit(t, "ops", page, "request", nil)
		harmless(t, got, page)
		ids := requestIDs(page)
		if len(ids) != 1 {
			t.Fatalf("%d requests: %.2000s", len(ids), text(page))
		}
		got, page = f.get(t, "ops", "/console/requests/"+ids[0])
		harmless(t, got, page)
		signed := f.fetch(t, "ops", "/console/download/requests/"+ids[0]+".req")
		got, page = f.post(t, "auditor", "/console/verify", []file{{name, string(signed.body)}}, "request", "")
		harmless(t, got, page)
		says(t, got, page, http.StatusOK, "under a root that this service trusts", "U+202E")
	}
}

// harmless checks that a page has no element, character or control of a hostile subject.
func harmless(t *testing.T, got answered, page *html.Node) {
	t.Helper()
	for _, n := range named(page, atom.Img, atom.B) {
		if n.DataAtom == atom.Img || n.FirstChild != nil && n.FirstChild.Data == "A" {
			t.Errorf("%s has <%s>", got.request.URL.Path, n.Data)
		}
	}
	if n := len(named(page, atom.Script)); n != 1 {
		t.Errorf("%d scripts", n)
	}
	for n := range page.Descendants() {
		shown := n.Data
		if n.Type != html.TextNode {
			continue
		}
		if strings.ContainsAny(shown, "\u202e\u2066\u200b\x1b\x07") {
			t.Errorf("%s: %q", got.request.URL.Path, shown)
		}
	}
	if title := text(named(page, atom.Title)[0]); len(title) > 200 {
		t.Errorf("a title of %d bytes", len(title))
	}
}

// TestConsoleVerify verifies files of any tool.
func TestConsoleVerify(t *testing.T) {
	f := newConsole(t)
	got, page := f.post(t, "fay", "/console/verify", nil, "request", " ")
	says(t, got, page, http.StatusBadRequest, "the form has no request")
	got, page = f.post(t, "fay", "/console/verify", nil, "request", "hello")
	says(t, got, page, http.StatusOK, "defective", "Apple's portal would refuse this request", "What to do")
	golden := string(testkit.File(t, "golden/customer.req"))
	got, page = f.post(t, "fay", "/console/verify", []file{{"golden.req", golden}}, "request", "")
	says(t, got, page, http.StatusOK, "golden.req", "The vendor's chain", "The customer's CSR")
}

// TestConsoleVendor shows what the role may know of the vendor identities.
func TestConsoleVendor(t *testing.T) {
	f := newConsole(t)
	got, page := f.get(t, "auditor", "/console/vendor")
	says(t, got, page, http.StatusOK, "active", "What to do next", "not since the service started", "The service cannot sign")
	f.probe(t.Context())
	got, page = f.get(t, "auditor", "/console/vendor")
	says(t, got, page, http.StatusOK, "The service can sign", "Key signed last")
	got, page = f.get(t, "fay", "/console/vendor")
	says(t, got, page, http.StatusOK, "What to do next")
	told := send(t, f.socket, http.MethodGet, "/v1/vendor", map[string]string{uidHeader: "1009"}, "")
	if strings.Contains(text(page), "Key signed last") || !strings.Contains(string(told.body), `"next"`) || strings.Contains(string(told.body), `"signed"`) {
		t.Errorf("an approver reads about the key: %s", told.body)
	}
	for backend, want := range map[string]string{"pkcs11": "CKA_EXTRACTABLE", "file": "memory of this host", "vault": "never leaves Vault", "awskms": "AWS KMS", "gcpkms": "Cloud KMS", "azurekms": "Key Vault"} {
		if v := (console.Vendor{Vendor: api.Vendor{Backend: backend}}); !strings.Contains(v.KeyStore()+v.Protection(), want) {
			t.Errorf("%s: %s", backend, v.Protection())
		}
	}
}

// TestConsoleMe shows limits, sessions and freezes, and signs out.
func TestConsoleMe(t *testing.T) {
	f := newConsole(t)
	got, page := f.get(t, "daily", "/console/me")
	says(t, got, page, http.StatusOK, "1 of 1, until 00:00 UTC", "this one", "uid 1007", "Sign out everywhere")
	send(t, f.socket, http.MethodPost, "/v1/freeze", map[string]string{uidHeader: "1002", "Content-Type": "application/json"}, `{"scope":"all","reason":"<b>drill</b>"}`)
	got, page = f.get(t, "daily", "/console/me")
	says(t, got, page, http.StatusOK, "Nothing is signed or released for what is frozen", "drill", "everything")
	got = send(t, f.browser, http.MethodPost, "/console/sign-out", map[string]string{"Cookie": f.cookie(t, "daily"), "Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"}, "")
	says(t, got, parsedPage(t, got), http.StatusOK, "You are signed out")
	got = f.fetch(t, "daily", "/console/me")
	says(t, got, parsedPage(t, got), http.StatusOK, "Sign in")
	got = send(t, f.browser, http.MethodPost, "/console/sign", map[string]string{"Cookie": f.cookie(t, "daily"), "Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"}, "customer=acme")
	says(t, got, parsedPage(t, got), http.StatusUnauthorized, "Sign in in another tab", "Submit it again")
}

// TestConsoleAssets loads the style sheet, the script and the icon of a page, which anybody may.
func TestConsoleAssets(t *testing.T) {
	f := newConsole(t)
	_, page := f.get(t, "ops", "/console/me")
	var paths []string
	for _, n := range named(page, atom.Link, atom.Script) {
		for _, name := range []string{"href", "src"} {
			if path, ok := attribute(n, name); ok {
				paths = append(paths, path)
			}
		}
	}
	if len(paths) != 3 {
		t.Fatalf("%v", paths)
	}
	for _, path := range paths {
		got := send(t, f.browser, http.MethodGet, path, nil, "")
		if got.status != http.StatusOK || !strings.Contains(got.header.Get("Cache-Control"), "immutable") || len(got.body) == 0 {
			t.Errorf("%s: %d %v", path, got.status, got.header)
		}
	}
	if got := send(t, f.browser, http.MethodGet, "/console/assets/console-0.css", nil, ""); got.status != http.StatusNotFound {
		t.Errorf("%d", got.status)
	}
	private, typed := f.fetch(t, "ops", "/console/me"), f.fetch(t, "ops", "/console/sign")
	if private.header.Get("Cache-Control") != "no-store" || typed.header.Get("Cache-Control") != "private, no-cache" {
		t.Errorf("%q %q", private.header.Get("Cache-Control"), typed.header.Get("Cache-Control"))
	}
	if got := send(t, f.socket, http.MethodGet, "/console/", map[string]string{uidHeader: "1002"}, ""); got.status != http.StatusNotFound && got.status != http.StatusUnauthorized {
		t.Errorf("the Unix socket answers pages: %d", got.status)
	}
}
