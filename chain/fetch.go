package chain

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"hsmsign/fault"
)

// The errors of Fetch, found with errors.Is.
var (
	// ErrFetch: a certificate could not be got. May work later, or from elsewhere.
	ErrFetch = fault.Unavailable.New("cannot fetch")
	// ErrPin: what was got is not the certificate that is pinned.
	ErrPin = fault.Vendor.New("not the pinned certificate")
)

// Bounds of Fetch.
const (
	fetchMax      = 64 << 10 // bytes of one file; Apple's have about 1 KiB
	fetchTries    = 3
	fetchTotal    = 2 * time.Minute
	fetchPause    = 250 * time.Millisecond // before the second try; doubled before the third
	fetchRedirect = 5
)

// FetchOptions say what Fetch gets, and from where. The zero value gets every current certificate from Apple.
type FetchOptions struct {
	BaseURL string        // an https mirror: every file is got from BaseURL/<Pin.File>. Empty: from Apple
	Names   []string      // which, by Pin.Name or Pin.File. Empty: all that are not retired
	Pins    []Pin         // what there is, and held to. nil: Apple's, which are Pins()
	Client  *http.Client  // nil: one with the transport http.DefaultTransport
	Timeout time.Duration // of one try; zero: 15 s
}

// Fetched is one certificate, and the pin that it was held to.
type Fetched struct {
	Pin  Pin
	Cert *x509.Certificate
}

// Fetch gets Apple's certificates over HTTPS and holds each to its pinned SHA-256, so that neither the server
// nor a proxy in between needs to be trusted. It gets all that are asked for or fails: with ErrPin when the
// bytes are others than pinned, else with ErrFetch. It ends within two minutes.
func Fetch(ctx context.Context, opts FetchOptions) ([]Fetched, error) {
	pins, err := opts.selectPins()
	if err != nil {
		return nil, err
	}
	if opts.Timeout == 0 {
		opts.Timeout = 15 * time.Second
	}
	var client http.Client
	if opts.Client != nil {
		client = *opts.Client
	}
	client.CheckRedirect = onlyHTTPS
	ctx, cancel := context.WithTimeout(ctx, fetchTotal)
	defer cancel()

	var got []Fetched
	for _, pin := range pins {
		url := pin.URL
		if opts.BaseURL != "" {
			url = strings.TrimSuffix(opts.BaseURL, "/") + "/" + pin.File
		}
		cert, err := fetch(ctx, &client, url, pin, opts.Timeout)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", pin.Name, err)
		}
		got = append(got, Fetched{Pin: pin, Cert: cert})
	}
	return got, nil
}

// Known is what can be fetched: Pins, or Apple's.
func (opts FetchOptions) Known() []Pin {
	if opts.Pins == nil {
		return Pins()
	}
	return opts.Pins
}

func (opts FetchOptions) selectPins() ([]Pin, error) {
	var chosen []Pin
	var known []string
	for _, p := range opts.Known() {
		known = append(known, p.Name)
		if len(opts.Names) == 0 && !p.Retired || slices.Contains(opts.Names, p.Name) || slices.Contains(opts.Names, p.File) {
			chosen = append(chosen, p)
		}
	}
	for _, n := range opts.Names {
		if !slices.ContainsFunc(chosen, func(p Pin) bool { return n == p.Name || n == p.File }) {
			return nil, fmt.Errorf("%w: no certificate is called %q; there are %s", ErrFetch, n, strings.Join(known, ", "))
		}
	}
	return chosen, nil
}

// fetch tries a few times; what another try will not change is not tried again.
func fetch(ctx context.Context, client *http.Client, url string, pin Pin, timeout time.Duration) (*x509.Certificate, error) {
	if !strings.HasPrefix(url, "https://") {
		return nil, fmt.Errorf("%w %q: only https is used", ErrFetch, url)
	}
	pause := fetchPause
	for try := 1; ; try++ {
		data, again, err := download(ctx, client, url, timeout)
		if err == nil {
			return pinned(data, url, pin)
		}
		if !again || try == fetchTries {
			return nil, fmt.Errorf("%w %q (try %d): %w", ErrFetch, url, try, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w %q: %w", ErrFetch, url, ctx.Err())
		case <-time.After(pause):
			pause *= 2
		}
	}
}

// errRedirect: where a server sends us is not where we go.
var errRedirect = errors.New("redirect refused")

func onlyHTTPS(req *http.Request, via []*http.Request) error {
	if req.URL.Scheme != "https" {
		return fmt.Errorf("%w: to %q, which is not https", errRedirect, req.URL.Redacted())
	}
	if len(via) >= fetchRedirect {
		return fmt.Errorf("%w: more than %d", errRedirect, fetchRedirect)
	}
	return nil
}

// download gets one file; again says whether another try may help.
func download(ctx context.Context, client *http.Client, url string, timeout time.Duration) (data []byte, again bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, false, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, !errors.Is(err, errRedirect), err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests, fmt.Errorf("the server answers %q", resp.Status)
	}
	data, err = io.ReadAll(io.LimitReader(resp.Body, fetchMax+1))
	if err != nil {
		return nil, true, err
	}
	if len(data) > fetchMax {
		return nil, false, fmt.Errorf("more than %d bytes", fetchMax)
	}
	return data, false, nil
}

// pinned holds the bytes to the pin before anything else looks at them.
func pinned(data []byte, url string, pin Pin) (*x509.Certificate, error) {
	if sum := sha256Hex(data); sum != pin.SHA256 {
		return nil, fmt.Errorf("%w: %q has SHA-256 %s, pinned is %s", ErrPin, url, sum, pin.SHA256)
	}
	return x509.ParseCertificate(data)
}
