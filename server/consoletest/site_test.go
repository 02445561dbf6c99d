package consoletest

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

// serveHTML serves pages at a loopback address, another origin than that of a service, and returns the origin. The page /csp forbids
// styles.
func serveHTML(t testing.TB, pages map[string]string) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		page, ok := pages[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		if r.URL.Path == "/csp" {
			w.Header().Set("Content-Security-Policy", "default-src 'none'")
		}
		_, _ = io.WriteString(w, page) // the browser may be gone
	}))
	t.Cleanup(server.Close)
	return server.URL
}
