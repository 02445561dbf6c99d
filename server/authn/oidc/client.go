package oidc

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"hsmsign/fault"
)

// newClient returns a client that fetches the keys of an issuer, and nothing else.
func newClient(cfg Config, read func(path string) ([]byte, error)) (*http.Client, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil || !allowed(u, false) {
		return nil, fault.Usage.Errorf("issuer %q is not an https URL", fault.Clip(cfg.URL, 128)).Fix("write https://; http is for loopback addresses only")
	}
	if cfg.TokenFile != "" && cfg.CA == nil && u.Scheme == "https" {
		return nil, fault.Usage.Errorf("token-file without ca").Fix("name the CA of the issuer, so that no other server gets the token")
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.CA != nil {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(cfg.CA) {
			return nil, fault.Usage.Errorf("ca: the file has no certificate").Fix("name a file with the CA of the issuer, PEM")
		}
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: fetchWait}).DialContext, TLSClientConfig: config,
		DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
	}
	return &http.Client{Transport: &bounded{RoundTripper: transport, secure: u.Scheme == "https", tokenFile: cfg.TokenFile, read: read}}, nil
}

// exchanging returns a client of the same issuer that redeems codes. It has no token for keys.
func exchanging(keys *http.Client) *http.Client {
	from := keys.Transport.(*bounded) // newClient has made it
	return &http.Client{Transport: &bounded{RoundTripper: from.RoundTripper, secure: from.secure, errors: true}}
}

// allowed returns whether a URL of an issuer is used: https, or http to a loopback address unless secure is demanded.
func allowed(u *url.URL, secure bool) bool {
	addr, err := netip.ParseAddr(u.Hostname())
	loopback := u.Hostname() == "localhost" || err == nil && addr.IsLoopback()
	return u.Scheme == "https" && u.Host != "" || u.Scheme == "http" && loopback && !secure
}

// bounded is a transport with the bounds of an issuer.
type bounded struct {
	http.RoundTripper
	secure    bool // the issuer is https, so that what it names must be, too
	tokenFile string
	read      func(path string) ([]byte, error)
	errors    bool // answers of OAuth errors (RFC 6749, section 5.2) are passed on
}

// RoundTrip implements http.RoundTripper. An answer of another status than 200 is an error, so no redirect is followed, and no
// error contains an answer.
func (b *bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	if !allowed(r.URL, b.secure) {
		return nil, errors.New("not an https URL")
	}
	if b.tokenFile != "" {
		data, err := b.read(b.tokenFile)
		if err != nil {
			return nil, fmt.Errorf("token-file: %w", err)
		}
		token := string(bytes.TrimSpace(data))
		clear(data)
		if token == "" || strings.ContainsFunc(token, func(c rune) bool { return c <= ' ' || c > '~' }) {
			return nil, errors.New("token-file: it has no token")
		}
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := b.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	told := b.errors && (response.StatusCode == http.StatusBadRequest || response.StatusCode == http.StatusUnauthorized)
	if response.StatusCode != http.StatusOK && !told {
		_ = response.Body.Close() // it is not read
		return nil, fmt.Errorf("status %d, and only 200 is accepted", response.StatusCode)
	}
	response.Body = &limited{response.Body, maxAnswer}
	return response, nil
}

// limited is a body that is an error beyond its limit.
type limited struct {
	io.ReadCloser
	left int
}

func (l *limited) Read(p []byte) (int, error) {
	n, err := l.ReadCloser.Read(p)
	if l.left -= n; l.left < 0 {
		return 0, fmt.Errorf("an answer of more than %d bytes", maxAnswer)
	}
	return n, err
}
