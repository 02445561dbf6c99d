// Package servicekit runs the service for tests of several packages: a server with a SQLite ledger, a vendor of the test PKI, and
// callers with every kind of credential. No product code imports it.
package servicekit

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmsign/agent"
	"hsmsign/agent/policy"
	"hsmsign/internal/testkit"
	"hsmsign/ledger"
	"hsmsign/ledger/sqlite"
	"hsmsign/server"
	"hsmsign/server/authn"
	"hsmsign/server/authn/oidc"
	"hsmsign/server/notify"
	"hsmsign/signer"
	"hsmsign/testpki"
)

// VendorKey is the name of the vendor's key; see testkit.Key.
const VendorKey = "vendor of the service"

// Options change a service. The zero value is one with the callers of Callers.
type Options struct {
	// Callers and Roles are added to those of every service, or replace those of the same name.
	Callers map[string]policy.CallerConfig
	Roles   map[string]policy.RoleConfig
	// Key opens the vendor's key; nil: a key in memory.
	Key interface {
		Open(ctx context.Context, opts signer.OpenOptions) (signer.Signer, error)
	}
	// Store is the store of the ledger; nil: SQLite in a folder of the test.
	Store *ledger.Store
	// Ledger changes the configuration of the ledger.
	Ledger func(cfg *ledger.Config)
	// Clients are the CAs for callers with a name.
	Clients *authn.Authorities
	// DropIn are the wire forms of other products.
	DropIn server.DropIn
	// Channels are the ways to people.
	Channels notify.Channels
	// Issuers are those of OIDC tokens, by name.
	Issuers map[string]policy.OIDCIssuer
	// Now is the clock of the ledger, the server and the vendor, whose test PKI begins then; nil: time.Now.
	Now func() time.Time
	// Console switches the console on, with these clients of issuers.
	Console     bool
	ConsoleOIDC []oidc.ClientConfig
	// Change changes what the server is made of.
	Change func(cfg *server.Config)
}

// Service is a running service. Its fields do not change.
type Service struct {
	Server *server.Server
	Ledger *ledger.Ledger
	Key    *testkit.Signer // of the vendor, unless there is Options.Key
	CA     *testkit.CA     // of the server's certificate, and of client certificates
	Root   *x509.Certificate
	PKI    *testpki.Authority // of the vendor

	URL    string // of the TLS listener
	HTTP   string // of the loopback listener
	Socket string // path of the Unix socket
	// Metrics is the URL of the listener for metrics, if Options.Change sets its address.
	Metrics string
	// Tokens are the tokens of the callers "backend" (signer for all customers) and "acme" (signer for acme only).
	Tokens map[string]string
	// Cert is the client certificate of the caller "ada" (admin).
	Cert tls.Certificate

	// The configuration that the next Reload has.
	Callers map[string]policy.CallerConfig
	Roles   map[string]policy.RoleConfig
	DropIn  server.DropIn
	// Channels are those that the next Reload has.
	Channels notify.Channels

	options Options
	tls     server.TLS // that the next Reload has
	oidc    *oidc.Issuers
	vendor  agent.Config
	log     logged
	stop    context.CancelFunc
	done    chan error
}

// logged is the log of a service. It is safe for concurrent use.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(data []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(data)
}

// Log returns what the service has logged.
func (s *Service) Log() string {
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	return s.log.text.String()
}

// memory is a key in memory.
type memory struct{ key *testkit.Signer }

func (m memory) Open(context.Context, signer.OpenOptions) (signer.Signer, error) { return m.key, nil }

// Pin returns the pin of a certificate.
func Pin(c tls.Certificate) string {
	sum := sha256.Sum256(c.Leaf.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// Start runs a service until the test ends.
func Start(t testing.TB, options Options) *Service {
	t.Helper()
	s := &Service{options: options, CA: testkit.NewCA(t, "service CA"), Tokens: map[string]string{}, done: make(chan error, 1)}
	s.Cert, s.DropIn, s.Channels = s.CA.Issue(t, "ada", nil), options.DropIn, options.Channels
	s.configure()
	s.vendorConfig(t)
	s.openLedger(t)
	s.vendor.Recorder = s.Ledger
	s.tls = server.TLS{Certificate: s.CA.Issue(t, "server", nil), Clients: options.Clients}
	dir := t.TempDir()
	cfg := server.Config{
		Ledger: s.Ledger, Replica: "test:1", Log: slog.New(slog.NewJSONHandler(&s.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Due: func(context.Context, time.Time) ([]server.Due, error) { return nil, nil },
		Listen: []server.Address{
			{Kind: authn.TLS, Host: "127.0.0.1"}, {Kind: authn.HTTP, Host: "127.0.0.1"}, {Kind: authn.Unix, Path: filepath.Join(dir, "a.sock")},
		},
		Load: func(ctx context.Context, _ bool) (*server.State, error) {
			p, err := policy.New(s.Callers, s.Roles, policy.Environment{Issuers: options.Issuers})
			if err != nil {
				return nil, err
			}
			v, err := agent.NewVendor(ctx, s.vendor)
			if err != nil {
				return nil, err
			}
			if s.oidc, err = oidc.New(issuers(options.Issuers), oidc.Options{}, s.oidc); err != nil {
				return nil, err
			}
			site, err := console(options, s.oidc)
			if err != nil {
				return nil, err
			}
			return &server.State{
				Console: site, Policy: p, OIDC: s.oidc, Vendors: map[string]*agent.Vendor{"": v}, Roots: []*x509.Certificate{s.Root},
				TLS:    &server.TLS{Certificate: s.tls.Certificate, Clients: s.tls.Clients},
				DropIn: s.DropIn, Channels: s.Channels,
			}, nil
		},
		Now: options.Now,
	}
	if options.Change != nil {
		options.Change(&cfg)
	}
	s.run(t, cfg)
	return s
}

// console returns the console of the options; nil: there is none.
func console(options Options, all *oidc.Issuers) (*server.Console, error) {
	if !options.Console {
		return nil, nil
	}
	site := &server.Console{Providers: map[string]*oidc.Client{}}
	for _, cfg := range options.ConsoleOIDC {
		client, err := all.Client(cfg)
		if err != nil {
			return nil, err
		}
		site.Providers[cfg.Issuer] = client
	}
	return site, nil
}

// issuers returns issuers whose tokens are verified.
func issuers(from map[string]policy.OIDCIssuer) (all []oidc.Config) {
	for name, i := range from {
		all = append(all, oidc.Config{Name: name, URL: i.URL, Audience: i.Audience, MaxAge: policy.DefMaxAge})
	}
	return all
}

// configure sets callers and roles.
func (s *Service) configure() {
	token := func(name string) string {
		secret, entry := policy.NewToken(time.Now().Add(24 * time.Hour))
		s.Tokens[name] = secret
		return entry
	}
	s.Roles = map[string]policy.RoleConfig{
		"signer": {May: []string{policy.Sign}, Customers: []string{"*"}, PerSecond: 1000, PerDay: 1_000_000, Approvals: policy.NoApprovals()},
		"acme":   {May: []string{policy.Sign, policy.Read, policy.Customers, policy.Freeze}, Customers: []string{"acme"}, PerSecond: 1000, PerDay: 1_000_000, Approvals: policy.NoApprovals()},
		"admin": {
			May: []string{policy.Sign, policy.Read, policy.Customers, policy.Freeze}, Customers: []string{"*"}, PerSecond: 1000, PerDay: 1_000_000, Approvals: policy.NoApprovals(),
		},
		"reader": {May: []string{policy.Read}, Customers: []string{"*"}},
	}
	s.Callers = map[string]policy.CallerConfig{
		"backend": {Role: "signer", Owners: []string{"ada"}, Tokens: []string{token("backend")}},
		"acme":    {Role: "acme", Owners: []string{"ada"}, Customer: "acme", Tokens: []string{token("acme")}},
		"reader":  {Role: "reader", Owners: []string{"ada"}, Tokens: []string{token("reader")}},
		"ada":     {Role: "admin", Person: "ada", ClientCert: policy.ClientCertConfig{SPKI: []string{Pin(s.Cert)}}},
	}
	maps.Copy(s.Roles, s.options.Roles)
	maps.Copy(s.Callers, s.options.Callers)
}

// vendorConfig makes a vendor of the test PKI.
func (s *Service) vendorConfig(t testing.TB) {
	t.Helper()
	key := testkit.Key(VendorKey)
	s.Key = testkit.NewSigner(key)
	begin, options := today(), testpki.VendorOptions{}
	if s.options.Now != nil {
		begin = s.options.Now()
		options.NotBefore = begin
	}
	authority := testkit.Authority(begin)
	cert := testkit.Value(authority.IssueVendor(testkit.CSR(key), options))(t)
	chain := []*x509.Certificate{cert, authority.WWDR, authority.Root}
	s.Root = authority.Root
	s.PKI = authority
	s.vendor = agent.Config{Key: memory{s.Key}, Now: s.options.Now, Certificates: func(context.Context) (agent.Certificates, error) {
		return agent.Certificates{Name: "vendor.pem", Vendor: chain, TrustRoots: []*x509.Certificate{s.Root}}, nil
	}}
	if s.options.Key != nil {
		s.vendor.Key = s.options.Key
	}
}

// today is the beginning of the test PKI.
var today = sync.OnceValue(func() time.Time { return time.Now().Add(-time.Hour) })

func (s *Service) openLedger(t testing.TB) {
	t.Helper()
	store := s.options.Store
	dir := t.TempDir()
	if store == nil {
		store = testkit.Value(sqlite.Open(t.Context(), filepath.Join(dir, "ledger.db"), true))(t)
		t.Cleanup(func() { _ = store.DB.Close() })
	}
	key, verifier, err := ledger.GenerateKey("example.com/service")
	testkit.OK(t, err)
	cfg := ledger.Config{Store: store, Key: key, Verifier: verifier, LastCheckpoint: filepath.Join(dir, "last"), Now: s.options.Now}
	testkit.Value(ledger.Init(t.Context(), cfg))(t)
	if s.options.Ledger != nil {
		s.options.Ledger(&cfg)
	}
	s.Ledger = testkit.Value(ledger.Open(t.Context(), cfg))(t)
	t.Cleanup(func() { _ = s.Ledger.Close() })
}

// run starts the server and stops it at the end of the test.
func (s *Service) run(t testing.TB, cfg server.Config) {
	t.Helper()
	s.Server = testkit.Value(server.New(cfg))(t)
	addresses := testkit.Value(s.Server.Listen(t.Context()))(t)
	for i, a := range addresses[:len(cfg.Listen)] {
		switch cfg.Listen[i].Kind {
		case authn.TLS:
			s.URL = "https://" + a.String()
		case authn.HTTP:
			s.HTTP = "http://" + a.String()
		case authn.Unix:
			s.Socket = cfg.Listen[i].Path
		}
	}
	if len(addresses) > len(cfg.Listen) {
		s.Metrics = "http://" + addresses[len(cfg.Listen)].String()
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	go func() { s.done <- s.Server.Run(ctx) }()
	t.Cleanup(func() { testkit.OK(t, s.Stop()) })
}

// SetTLS sets the server's certificate that the next Reload has.
func (s *Service) SetTLS(c tls.Certificate) { s.tls.Certificate = c }

// SetClients sets the CAs of callers that the next Reload has.
func (s *Service) SetClients(a *authn.Authorities) { s.tls.Clients = a }

// Stop ends the service, and returns the error of Run.
func (s *Service) Stop() error {
	s.stop()
	err := <-s.done
	s.done <- nil
	return err
}

// Stopping ends the service without waiting.
func (s *Service) Stopping() { s.stop() }

// Client returns a client of the TLS listener with a client certificate, or none.
func (s *Service) Client(t testing.TB, cert *tls.Certificate) *http.Client {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(s.CA.Cert)
	config := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}
	if cert != nil {
		config.Certificates = []tls.Certificate{*cert}
	}
	transport := &http.Transport{TLSClientConfig: config, MaxIdleConnsPerHost: 256}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: time.Minute}
}

// UnixClient returns a client of the Unix socket; the host of its addresses is "localhost".
func (s *Service) UnixClient(t testing.TB) *http.Client {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", s.Socket)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: time.Minute}
}

// Answer is an answer of the service.
type Answer struct {
	*http.Response
	Body string
}

// Do sends a request. A token is sent as a bearer token unless it is empty.
func Do(t testing.TB, client *http.Client, token, method, url, body string, headers ...string) Answer {
	t.Helper()
	r := testkit.Value(http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body)))(t)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
		if headers[i] == "Host" {
			r.Host = headers[i+1]
		}
	}
	response := testkit.Value(client.Do(r))(t)
	defer func() { _ = response.Body.Close() }() // it was read
	data := testkit.Value(io.ReadAll(response.Body))(t)
	return Answer{response, string(data)}
}

// CSR returns a CSR of a name, PEM. The same name has the same key in one test process.
func CSR(key *rsa.PrivateKey) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: testkit.CSR(key).Raw}))
}
