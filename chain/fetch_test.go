package chain

import (
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hsmsign/fault"
)

// mirror starts a server with TLS on loopback and returns options to fetch a test PKI's certificates from it. Each handler
// answers one request, the last one also all others. tries counts the requests.
func mirror(t *testing.T, handlers ...http.HandlerFunc) (opts FetchOptions, tries *atomic.Int64) {
	t.Helper()
	tries = &atomic.Int64{}
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handlers[min(int(tries.Add(1)), len(handlers))-1](w, r)
	}))
	t.Cleanup(s.Close)
	t.Cleanup(s.CloseClientConnections)
	opts = FetchOptions{BaseURL: s.URL + "/", Client: s.Client()}
	w := newWorld()
	for name, cert := range map[string]*x509.Certificate{"WWDR": w.WWDR, "Old": w.Root} {
		opts.Pins = append(opts.Pins, Pin{Name: name, File: name + ".cer", SHA256: sha256Hex(cert.Raw), Retired: name == "Old"})
	}
	return opts, tries
}

// good serves the certificates of mirror.
func good(out http.ResponseWriter, r *http.Request) {
	w := newWorld()
	_, _ = out.Write(map[string][]byte{"/WWDR.cer": w.WWDR.Raw, "/Old.cer": w.Root.Raw}[r.URL.Path])
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", code) }
}

func content(data []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(data) }
}

// truncated sends less than its Content-Length.
func truncated(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Length", "1000")
	_, _ = w.Write([]byte("0"))
}

func TestFetchNames(t *testing.T) {
	for want, names := range map[string][]string{"WWDR": nil, "Old": {"Old"}, "WWDR ": {"WWDR.cer"}} {
		opts, _ := mirror(t, good)
		opts.Names = names
		fetched, err := Fetch(t.Context(), opts)
		if err != nil || len(fetched) != 1 || fetched[0].Pin.Name != strings.TrimSpace(want) || sha256Hex(fetched[0].Cert.Raw) != fetched[0].Pin.SHA256 {
			t.Errorf("%q: %v, %v", names, fetched, err)
		}
	}
}

func TestFetch(t *testing.T) {
	for _, tt := range []struct {
		name     string
		handlers []http.HandlerFunc
		is       error
		want     string // in the error
		tries    int64
	}{
		{"503 once", []http.HandlerFunc{status(503), good}, nil, "", 2},
		{"429 once", []http.HandlerFunc{status(429), good}, nil, "", 2},
		{"truncated once", []http.HandlerFunc{truncated, good}, nil, "", 2},
		{"wrong bytes", []http.HandlerFunc{content([]byte("<html>log in"))}, ErrPin, "pinned is " + sha256Hex(newWorld().WWDR.Raw), 1},
		{"nothing", []http.HandlerFunc{content(nil)}, ErrPin, "e3b0c44298fc1c14", 1},
		{"too large", []http.HandlerFunc{content(make([]byte, fetchMax+1))}, ErrFetch, "more than 65536 bytes", 1},
		{"404", []http.HandlerFunc{http.NotFound}, ErrFetch, `(try 1): the server answers "404 Not Found"`, 1},
		{"500", []http.HandlerFunc{status(500)}, ErrFetch, "(try 3)", 3},
		{"truncated", []http.HandlerFunc{truncated}, ErrFetch, "unexpected EOF", 3},
		{"redirect to http", []http.HandlerFunc{http.RedirectHandler("http://127.0.0.1:1/x", http.StatusFound).ServeHTTP}, ErrFetch, "redirect refused", 1},
		{"endless redirect", []http.HandlerFunc{http.RedirectHandler("/again", http.StatusFound).ServeHTTP}, ErrFetch, "redirect refused: more than 5", 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			opts, tries := mirror(t, tt.handlers...)
			got, err := Fetch(t.Context(), opts)
			if !errors.Is(err, tt.is) || (err == nil) != (tt.is == nil) || err != nil && !strings.Contains(err.Error(), tt.want) || len(got) > 0 == (err != nil) {
				t.Errorf("%v, error %v; want %v with %q", got, err, tt.is, tt.want)
			}
			if tries.Load() != tt.tries {
				t.Errorf("%d requests, want %d", tries.Load(), tt.tries)
			}
		})
	}
}

// Both the timeout of a try and the context end a request that gets no answer.
func TestFetchTimesOut(t *testing.T) {
	opts, _ := mirror(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	opts.Client.Timeout = 20 * time.Millisecond
	if _, err := Fetch(t.Context(), opts); !errors.Is(err, ErrFetch) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "(try 3)") {
		t.Errorf("error %v, want a timeout at the third try", err)
	}
	opts.Client.Timeout = 0
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Fetch(ctx, opts); !errors.Is(err, ErrFetch) || !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "(try 3)") {
		t.Errorf("error %v, want that of the context", err)
	}
}

func TestFetchOptions(t *testing.T) {
	client := &http.Client{}
	for want, opts := range map[string]FetchOptions{
		"only https is used": {BaseURL: "http://127.0.0.1:1", Client: client},
		`there is no certificate "WWDR G9"; there are Apple Root CA, `: {Names: []string{"WWDR G3", "WWDR G9"}, Client: client},
	} {
		if _, err := Fetch(t.Context(), opts); !errors.Is(err, ErrFetch) || !strings.Contains(err.Error()+"; "+fault.Hint(err), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
	if client.CheckRedirect != nil {
		t.Error("Fetch changed the client")
	}
}
