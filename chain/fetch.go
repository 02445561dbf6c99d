package chain

import (
	"cmp"
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

// The error families of Fetch.
var (
	// ErrFetch means that a certificate could not be downloaded. It may work later, or from another server.
	ErrFetch = fault.Unavailable.New("cannot fetch")
	// ErrPin means that the server sent other bytes than the pinned certificate.
	ErrPin = fault.Vendor.New("not the pinned certificate")
)

// The limits of Fetch.
const (
	fetchMax      = 64 << 10 // bytes of one file; Apple's are about 1 KiB
	fetchTries    = 3
	fetchTimeout  = 15 * time.Second // of one try
	fetchTotal    = 2 * time.Minute
	fetchPause    = 250 * time.Millisecond // before the second try; doubled before the third
	fetchRedirect = 5
)

// FetchOptions select what Fetch downloads, and from where. The zero value selects every current certificate, from Apple.
type FetchOptions struct {
	BaseURL string       // an https mirror with the files BaseURL/<Pin.File>; empty: Apple
	Names   []string     // Pin.Name or Pin.File of each; empty: all that are not retired
	Pins    []Pin        // the known certificates; nil: Pins()
	Client  *http.Client // nil: one with http.DefaultTransport. Its Timeout limits one try; zero: 15 s
}

// Fetched is one certificate and its pin.
type Fetched struct {
	Pin  Pin
	Cert *x509.Certificate
}

// Fetch downloads Apple's certificates over HTTPS and compares each with its pinned SHA-256, so that neither the server
// nor a proxy needs to be trusted. It returns all selected certificates, or an error that wraps ErrPin (other bytes) or
// ErrFetch. It ends within two minutes.
func Fetch(ctx context.Context, opts FetchOptions) ([]Fetched, error) {
	pins, err := opts.selectPins()
	if err != nil {
		return nil, err
	}
	var client http.Client
	if opts.Client != nil {
		client = *opts.Client
	}
	client.CheckRedirect, client.Timeout = onlyHTTPS, cmp.Or(client.Timeout, fetchTimeout)
	ctx, cancel := context.WithTimeout(ctx, fetchTotal)
	defer cancel()

	var got []Fetched
	for _, pin := range pins {
		url := pin.URL
		if opts.BaseURL != "" {
			url = strings.TrimSuffix(opts.BaseURL, "/") + "/" + pin.File
		}
		cert, err := fetch(ctx, &client, url, pin)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", pin.Name, err)
		}
		got = append(got, Fetched{Pin: pin, Cert: cert})
	}
	return got, nil
}

// Known returns the certificates that can be fetched: opts.Pins, or Apple's.
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
			return nil, fault.Errorf("%w: there is no certificate %q", ErrFetch, n).Fix("there are " + strings.Join(known, ", "))
		}
	}
	return chosen, nil
}

// fetch downloads one certificate. It tries again if that can help.
func fetch(ctx context.Context, client *http.Client, url string, pin Pin) (*x509.Certificate, error) {
	if !strings.HasPrefix(url, "https://") {
		return nil, fmt.Errorf("%w %q: only https is used", ErrFetch, url)
	}
	pause := fetchPause
	for try := 1; ; try++ {
		data, again, err := get(ctx, client, url)
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

// errRedirect means that a redirect is not followed.
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

// get downloads one file; again reports whether another try can help.
func get(ctx context.Context, client *http.Client, url string) (data []byte, again bool, err error) {
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
		return nil, resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests, fmt.Errorf("the server answers %q", fault.Clip(resp.Status, maxName))
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

// pinned parses the bytes if their SHA-256 is that of the pin.
func pinned(data []byte, url string, pin Pin) (*x509.Certificate, error) {
	if sum := sha256Hex(data); sum != pin.SHA256 {
		return nil, fmt.Errorf("%w: %q has SHA-256 %s, pinned is %s", ErrPin, url, sum, pin.SHA256)
	}
	return x509.ParseCertificate(data)
}
