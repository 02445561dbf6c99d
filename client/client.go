// Package client is the Go client of a signing service (hsmsign serve):
//
//	c, err := client.New(client.Config{URL: "https://sign.example.com:8443", Certificate: &cert})
//	result, err := c.Sign(ctx, api.SignOrder{CSR: csr, Customer: "acme"})
//	os.WriteFile("acme.req", []byte(result.Request), 0o644)
//
// A caller identifies itself with a client certificate, with a token, with AWS credentials (package client/awsiam), or, on a Unix
// socket, by its user. A Client has one method
// for each route of the API. They return the shapes of package api.
//
// # Errors
//
// An error that the service returns has the kind, the hint and the rule that it has at the service, so fault.KindOf, fault.Hint
// and fault.Rule answer as for a signature of the program's own key. A finding about a CSR or a chain is a *fault.Finding. Other
// errors are of kind
//
//	usage         the Config or an argument is wrong; nothing was sent
//	auth          the certificate of the service is not valid for its name, or not from a trusted CA
//	unavailable   the service does not answer, or does not answer as a signing service
//
// A request that other people must approve first is a *Waiting, of kind pending, with the id of the request: Wait waits until it is
// issued, and Sign then returns its file.
//
// An error is not more than one line and contains no token.
//
// # Retries
//
// The service signs a CSR once for a customer, and returns the stored request when it is asked again. So Sign may be sent again,
// and so may everything that only reads: after a connection failure at most four times, and after a status 429 or 503 as the
// header Retry-After says, all within Config.MaxWait. An approval or a rejection may be sent again too: if the
// service refuses it as a second one, the client looks whether the first one was its own. Other changes (customers, push
// certificates, freezes) are sent again only if no connection could be opened, because then the service has received nothing.
//
// # What is not done
//
// Redirects are not followed. A token or another bearer credential is sent over TLS, and without TLS to a loopback address only. A proxy (HTTPS_PROXY,
// NO_PROXY) is used for TLS only, whose content it cannot read, and never for loopback addresses and Unix sockets. Answers have a
// size limit.
//
// A Client is safe for concurrent use. It does not change its Config, and holds no lock while a request is in progress, except
// while Config.Token is called.
package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"strings"
	"sync"
	"syscall"
	"time"

	"hsmsign/fault"
)

const (
	// DefaultTimeout is the time limit of one exchange if Config has none.
	DefaultTimeout = time.Minute
	// DefaultMaxWait is Config.MaxWait if it is zero.
	DefaultMaxWait = time.Minute

	dialWait   = 10 * time.Second
	idleWait   = 90 * time.Second
	maxIdle    = 128 // connections; the service has a limit of as many requests of one caller at once
	maxHeader  = 64 << 10
	exportWait = 10 * time.Minute
)

// Config is where a service is and how its caller identifies itself.
type Config struct {
	// URL is https://HOST[:PORT], http://HOST[:PORT] with a loopback address, or unix:///PATH.
	URL string
	// Certificate is the client certificate; nil: none.
	Certificate *tls.Certificate
	// Token returns the token of the caller; nil: it has none. It is called before the first request, and again when the service
	// does not accept the token: it may have been replaced. Calls are one after the other.
	Token func(ctx context.Context) ([]byte, error)
	// Bearer returns the credential of one request, instead of a Token; nil: there is none. It is called for each request that is sent,
	// also for one that is sent again, and by several goroutines at once. Package client/awsiam has one.
	Bearer func(ctx context.Context) (string, error)
	// Roots are the CAs of the service's certificate; nil: those of the system.
	Roots *x509.CertPool
	// Proxy selects the proxy for hosts that are not loopback addresses; nil: http.ProxyFromEnvironment, which reads the
	// environment once in a process.
	Proxy func(*http.Request) (*url.URL, error)
	// Timeout is the time limit of one exchange; zero: DefaultTimeout. The limit of Export is ten minutes.
	Timeout time.Duration
	// MaxWait is the time after which nothing is sent again; zero: DefaultMaxWait; negative: nothing is ever sent again.
	MaxWait time.Duration
}

// Client is a client of one service.
type Client struct {
	base    string // scheme and host of addresses
	http    *http.Client
	name    string // of the service, in errors
	timeout time.Duration
	maxWait time.Duration
	read    func(ctx context.Context) ([]byte, error) // the token; nil: there is none
	bearer  func(ctx context.Context) (string, error) // nil: there is none

	mu    sync.Mutex // held while the token is read
	token string
}

// New returns a client of a service. It sends nothing. The error is of kind usage.
func New(cfg Config) (*Client, error) {
	a, err := parseURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	if !a.secure() && cfg.Certificate != nil {
		return nil, fault.Usage.Errorf("a client certificate without TLS").Fix("write https://HOST:PORT, or leave the certificate out")
	}
	if a.socket != "" && (cfg.Token != nil || cfg.Bearer != nil) {
		return nil, fault.Usage.Errorf("a token for a Unix socket, whose callers are Unix users").Fix("leave the token out")
	}
	if cfg.Token != nil && cfg.Bearer != nil {
		return nil, fault.Usage.Errorf("a token and another bearer credential").Fix("leave one out: a request has one")
	}
	return &Client{
		base: a.base(), name: a.String(), read: cfg.Token, bearer: cfg.Bearer,
		timeout: orDefault(cfg.Timeout, DefaultTimeout), maxWait: orDefault(cfg.MaxWait, DefaultMaxWait),
		http: &http.Client{
			Transport:     cfg.transport(a),
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

func orDefault(value, def time.Duration) time.Duration {
	if value == 0 {
		return def
	}
	return value
}

// Close closes idle connections. The Client can still be used.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// String returns the URL of the service.
func (c *Client) String() string { return c.name }

// address is a parsed Config.URL.
type address struct {
	scheme, host string // "" for a Unix socket
	socket       string
	loopback     bool
}

// CheckURL checks a Config.URL. The error is of kind usage.
func CheckURL(text string) error {
	_, err := parseURL(text)
	return err
}

func parseURL(text string) (address, error) {
	refused := func(why string) (address, error) {
		return address{}, fault.Usage.Errorf("the address of the service: %s", why).
			Fix("write https://HOST:PORT, unix:///PATH, or http://127.0.0.1:PORT")
	}
	u, err := url.Parse(text)
	if err != nil || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.Opaque != "" {
		return refused("it is not a URL without user, query and fragment") // it may contain a password
	}
	if u.Scheme == "unix" {
		if u.Host != "" || !path.IsAbs(u.Path) || path.Clean(u.Path) != u.Path || u.Path == "/" {
			return refused("the path of a Unix socket must be absolute")
		}
		return address{socket: u.Path}, nil
	}
	a := address{scheme: u.Scheme, host: u.Host, loopback: isLoopback(u.Hostname())}
	switch {
	case u.Scheme != "https" && u.Scheme != "http":
		return refused("its scheme is not https, http or unix")
	case u.Hostname() == "" || u.Path != "" && u.Path != "/":
		return refused("it needs a host, and has no path")
	case u.Scheme == "http" && !a.loopback:
		return refused("http is for loopback addresses only")
	}
	return a, nil
}

func (a address) secure() bool { return a.scheme == "https" }

func (a address) base() string {
	if a.socket != "" {
		return "http://localhost"
	}
	return a.scheme + "://" + a.host
}

func (a address) String() string {
	if a.socket != "" {
		return "unix://" + a.socket
	}
	return a.base()
}

// isLoopback returns whether a host is an address of this machine that no other machine reaches.
func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && ip.IsLoopback()
}

var errNotLoopback = errors.New("the name resolves to an address of another machine, and http is for loopback addresses only")

// transport returns a transport for one service.
func (cfg Config) transport(a address) *http.Transport {
	dialer := &net.Dialer{Timeout: dialWait}
	t := &http.Transport{
		DialContext: dialer.DialContext, TLSHandshakeTimeout: dialWait, IdleConnTimeout: idleWait, MaxIdleConns: maxIdle, MaxIdleConnsPerHost: maxIdle,
		MaxResponseHeaderBytes: maxHeader, DisableCompression: true,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: cfg.Roots},
	}
	if cfg.Certificate != nil {
		// Not Certificates: the certificate is sent whatever CAs the service names, and the service says what is wrong with it.
		t.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cfg.Certificate, nil }
	}
	switch {
	case a.socket != "":
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", a.socket)
		}
	case !a.secure():
		dialer.Control = func(_, dialed string, _ syscall.RawConn) error {
			if to, err := netip.ParseAddrPort(dialed); err != nil || !to.Addr().IsLoopback() {
				return errNotLoopback
			}
			return nil
		}
	case !a.loopback:
		if t.Proxy = cfg.Proxy; t.Proxy == nil {
			t.Proxy = http.ProxyFromEnvironment
		}
	}
	return t
}
