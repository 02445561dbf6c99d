package server_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"hsmsign/internal/servicekit"
	"hsmsign/internal/testkit"
)

// A page is one request of the log, although it asks the API several times, and the log has the CSR and the request of what it signed.
func TestConsolePageIsLoggedOnce(t *testing.T) {
	s := servicekit.Start(t, withConsole())
	b := newBrowser(t, s, nil)
	b.signInByLink(t, s)
	before := len(lines(s, `"msg":"request"`))
	if a := b.get(t, "/console/"); a.StatusCode != http.StatusOK {
		t.Fatalf("%d: %s", a.StatusCode, a.Body)
	}
	logged := lines(s, `"msg":"request"`)[before:]
	if len(logged) != 1 || !strings.Contains(logged[0], `"route":"GET /console/{$}"`) || !strings.Contains(logged[0], `"caller":"local"`) {
		t.Errorf("%v", logged)
	}
	csr := servicekit.CSR(testkit.Key("console log"))
	page := b.post(t, "/console/sign", url.Values{"customer": {"acme"}, "csr": {csr}, "action": {"check"}})
	form := url.Values{"action": {"request"}}
	for _, field := range strings.Split(page.Body, "<input ")[1:] {
		form.Add(quoted(field, `name="`), quoted(field, `value="`))
	}
	result := b.post(t, "/console/sign", form)
	if result.StatusCode != http.StatusOK || !strings.Contains(result.Body, "Download the request") {
		t.Fatalf("%d: %s", result.StatusCode, result.Body)
	}
	_, rest, _ := strings.Cut(result.Body, `href="/console/download/`)
	download := b.get(t, "/console/download/"+strings.Replace(rest[:strings.Index(rest, `"`)], ".req", ".tlog-proof", 1))
	if logged := lines(s, `"route":"GET /console/download/requests/{file}"`); download.StatusCode != http.StatusOK || len(logged) != 1 ||
		!strings.Contains(logged[0], `"status":200`) || !strings.Contains(logged[0], fmt.Sprintf(`"bytes":%d,`, len(download.Body))) {
		t.Errorf("%d %v", download.StatusCode, logged)
	}
	logged = lines(s, `"route":"POST /console/sign"`)
	if len(logged) != 2 || !strings.Contains(logged[1], `"csr_sha256":"`) || !strings.Contains(logged[1], `"request":"`) {
		t.Errorf("%v", logged)
	}
}

// lines returns the lines of the log with a text.
func lines(s *servicekit.Service, text string) (all []string) {
	for line := range strings.Lines(s.Log()) {
		if strings.Contains(line, text) {
			all = append(all, line)
		}
	}
	return all
}

// quoted returns what follows a prefix, up to the next quotation mark. The values of the forms of this test need no other decoding than
// that of the plus sign.
func quoted(text, prefix string) string {
	_, rest, _ := strings.Cut(text, prefix)
	value, _, _ := strings.Cut(rest, `"`)
	return strings.ReplaceAll(value, "&#43;", "+")
}
