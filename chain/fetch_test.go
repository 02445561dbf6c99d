package chain

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/testkit"

	"github.com/google/go-cmp/cmp"
)

// serve starts a mirror with TLS on loopback. h answers the request with number n, from 1.
func serve(t *testing.T, h func(w http.ResponseWriter, r *http.Request, n int)) FetchOptions {
	t.Helper()
	var n atomic.Int64
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h(w, r, int(n.Add(1))) }))
	t.Cleanup(s.Close)
	t.Cleanup(s.CloseClientConnections)
	return FetchOptions{BaseURL: s.URL, Client: s.Client()}
}

// files returns a handler that serves Apple's files.
func files(t *testing.T) func(w http.ResponseWriter, r *http.Request, n int) {
	t.Helper()
	content := map[string][]byte{}
	for _, pin := range Pins() {
		content["/"+pin.File] = testkit.Apple(t, pin.File).Raw
	}
	return func(w http.ResponseWriter, r *http.Request, _ int) { _, _ = w.Write(content[r.URL.Path]) }
}

func TestFetch(t *testing.T) {
	h := files(t)
	tests := []struct {
		name  string
		names []string
		want  []string
	}{
		{"all current", nil, []string{"Apple Root CA", "Apple Root CA - G3", "WWDR G2", "WWDR G3", "WWDR G4", "WWDR G5", "WWDR G6", "Application Integration 2"}},
		{"by name and by file", []string{"AppleWWDRCAG3.cer", "Apple Root CA"}, []string{"Apple Root CA", "WWDR G3"}},
		{"retired when asked for", []string{"WWDR G1"}, []string{"WWDR G1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			opts := serve(t, h)
			opts.Names = tt.names
			opts.BaseURL += "/"
			fetched, err := Fetch(context.Background(), opts)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range fetched {
				got = append(got, f.Pin.Name)
				if sha256Hex(f.Cert.Raw) != f.Pin.SHA256 {
					t.Errorf("%s: other bytes than pinned", f.Pin.Name)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestFetchTriesAgain(t *testing.T) {
	h := files(t)
	for name, fail := range map[string]http.HandlerFunc{
		"503":       func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "later", http.StatusServiceUnavailable) },
		"429":       func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "later", http.StatusTooManyRequests) },
		"truncated": truncated,
	} {
		t.Run(name, func(t *testing.T) {
			opts := serve(t, func(w http.ResponseWriter, r *http.Request, n int) {
				if n == 1 {
					fail(w, r)
					return
				}
				h(w, r, n)
			})
			opts.Names = []string{"WWDR G3"}
			if _, err := Fetch(context.Background(), opts); err != nil {
				t.Error(err)
			}
		})
	}
}

// truncated sends less than its Content-Length.
func truncated(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Length", "1000")
	_, _ = w.Write([]byte("0"))
}

func TestFetchRefuses(t *testing.T) {
	answer := func(h http.HandlerFunc) func(http.ResponseWriter, *http.Request, int) {
		return func(w http.ResponseWriter, r *http.Request, _ int) { h(w, r) }
	}
	tests := []struct {
		name  string
		h     http.HandlerFunc
		is    error
		want  string
		tries int64
	}{
		{"wrong bytes", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>log in")) }, ErrPin, "pinned is dcf21878", 1},
		{"nothing", func(http.ResponseWriter, *http.Request) {}, ErrPin, "e3b0c44298fc1c14", 1},
		{"too large", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, fetchMax+1)) }, ErrFetch, "more than 65536 bytes", 1},
		{"404", http.NotFound, ErrFetch, `(try 1): the server answers "404 Not Found"`, 1},
		{"500", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", http.StatusInternalServerError) }, ErrFetch, "(try 3)", 3},
		{"truncated", truncated, ErrFetch, "unexpected EOF", 3},
		{"redirect to http", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/x", http.StatusFound)
		}, ErrFetch, "redirect refused", 1},
		{"redirect without end", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/again", http.StatusFound) }, ErrFetch, "redirect refused: more than 5", 5},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var tries atomic.Int64
			opts := serve(t, answer(func(w http.ResponseWriter, r *http.Request) { tries.Add(1); tt.h(w, r) }))
			opts.Names = []string{"WWDR G3"}
			got, err := Fetch(context.Background(), opts)
			if !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.want) || got != nil {
				t.Errorf("%v, error %q; want %q with %q", got, err, tt.is, tt.want)
			}
			if tries.Load() != tt.tries {
				t.Errorf("%d requests, want %d", tries.Load(), tt.tries)
			}
		})
	}
}

func TestFetchTimesOut(t *testing.T) {
	slow := func(_ http.ResponseWriter, r *http.Request, _ int) {
		select {
		case <-r.Context().Done():
		case <-time.After(10 * time.Second):
		}
	}
	opts := serve(t, slow)
	opts.Names, opts.Timeout = []string{"WWDR G3"}, 20*time.Millisecond
	start := time.Now()
	_, err := Fetch(context.Background(), opts)
	if !errors.Is(err, ErrFetch) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "(try 3)") {
		t.Errorf("error %v, want a timeout at the third try", err)
	}
	opts.Timeout = 0
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err = Fetch(ctx, opts); !errors.Is(err, ErrFetch) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want that of the context", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestFetchOptions(t *testing.T) {
	for _, tt := range []struct {
		name string
		opts FetchOptions
		want string
	}{
		{"plain http", FetchOptions{BaseURL: "http://127.0.0.1:1"}, "only https is used"},
		{"unknown name", FetchOptions{Names: []string{"WWDR G3", "WWDR G9"}}, `there is no certificate "WWDR G9"; there are Apple Root CA, `},
	} {
		if _, err := Fetch(context.Background(), tt.opts); !errors.Is(err, ErrFetch) || !strings.Contains(err.Error()+"; "+fault.Hint(err), tt.want) {
			t.Errorf("%s: error %v, want one with %q", tt.name, err, tt.want)
		}
	}
	// Fetch does not change the client.
	client := &http.Client{}
	if _, err := Fetch(context.Background(), FetchOptions{BaseURL: "http://127.0.0.1:1", Client: client}); err == nil || client.CheckRedirect != nil {
		t.Errorf("error %v, the client was changed: %v", err, client.CheckRedirect != nil)
	}
}
