package kms

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"hsmsign/fault"
)

const (
	maxCA            = 1 << 20
	maxHandshake     = 10 * time.Second
	maxIdleTime      = 90 * time.Second
	maxConnections   = 256 // that stay open for the next batch
	maxAnswerHeaders = 64 << 10
	// maxDial is short: a retry may reach another address.
	maxDial = 3 * time.Second
)

// Transport returns the transport of a store that speaks HTTP: TLS 1.2 or newer, the proxy of the environment, which is never
// used for a loopback address, and limits. It speaks HTTP/1.1: a connection that breaks fails one signature and not the whole
// batch, and one whose request is cancelled is closed at once. Without roots those of the system count.
func Transport(roots *x509.CertPool) *http.Transport {
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: maxDial}).DialContext,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}, TLSHandshakeTimeout: maxHandshake,
		IdleConnTimeout: maxIdleTime, MaxIdleConns: maxConnections, MaxIdleConnsPerHost: maxConnections, MaxResponseHeaderBytes: maxAnswerHeaders,
	}
}

// Roots returns the CA certificates (PEM) in the file that the attribute ca of a reference names; nil without a name. The
// error is of kind usage.
func Roots(name string) (*x509.CertPool, error) {
	if name == "" {
		return nil, nil
	}
	f, err := os.Open(name) // #nosec G304 -- the operator names the file
	if err != nil {
		return nil, badCA(err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxCA))
	if err != nil {
		return nil, badCA(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, badCA(fmt.Errorf("%q contains no certificate in PEM", name))
	}
	return pool, nil
}

func badCA(err error) error {
	return fault.Usage.Errorf("read the CA certificates: %w", err).Fix("correct ca=FILE in the reference")
}
