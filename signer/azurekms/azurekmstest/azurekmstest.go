// Package azurekmstest is a double of Azure Key Vault, and of the servers that issue its tokens, for tests of programs that
// sign with it. It speaks the REST API over TLS on a real socket, sends the challenge of the service, makes real signatures,
// and fails on request (Script, Stand). Log returns what it answered.
//
// A client needs Address as the host of the vault, must trust CA, and gets its tokens from the same server: Environment
// returns the variables with which the Azure SDK finds it. The program cmd/azurekms-double is the same server as a separate
// process. Packages vaulttest, awskmstest and gcpkmstest are its counterparts.
//
// The operations are Sign, GetKey, CreateKey, ListKeys and ListVersions, and Token for the servers of the tokens: Entra ID
// with a client secret or a federated token, and the managed identity of an app. All data is in memory. It has no roles:
// every valid token may do everything. Everything here is safe for concurrent use.
package azurekmstest

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"hsmsign/internal/double"
)

// What the servers of the tokens accept. It is valid for this double only.
const (
	TenantID     = "11111111-2222-3333-4444-555555555555"
	ClientID     = "66666666-7777-8888-9999-000000000000"
	ClientSecret = "secret-of-the-double-for-tests-only" // #nosec G101 -- of the double alone
	// FederatedToken is what the file of a workload identity contains.
	FederatedToken = "federated.token.of-the-double" // #nosec G101 -- of the double alone
	// IdentityHeader is what a managed identity sends.
	IdentityHeader = "header-of-the-double"
)

// maxBody is the longest request, in bytes.
const maxBody = 64 << 10

// Config configures a server. The zero value is usable.
type Config struct {
	Listen   string        // HOST:PORT; "127.0.0.1:0"
	Delay    time.Duration // added to every answer, except those with a token
	PageSize int           // of a list; 25
}

// Server is a running double.
type Server struct {
	config     Config
	listener   net.Listener
	http       *http.Server
	ca         []byte
	closed     chan struct{} // closed by Close
	done       chan struct{} // closed when the server has stopped
	once       sync.Once
	script     *double.Script[Fault]
	challenges atomic.Int64
	issued     atomic.Int64

	mu     sync.Mutex
	keys   map[string][]*Key // by name in lower case; the newest version last
	tokens map[string]bool
	log    []Request
}

// NewServer starts a double. It listens until Close.
func NewServer(config Config) (*Server, error) {
	if config.Listen == "" {
		config.Listen = "127.0.0.1:0"
	}
	if config.PageSize <= 0 {
		config.PageSize = 25
	}
	cert, ca, err := double.Certificate()
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", config.Listen)
	if err != nil {
		return nil, err
	}
	s := &Server{
		config: config, listener: listener, ca: ca, closed: make(chan struct{}), done: make(chan struct{}),
		script: double.NewScript(operations(), faults()...), keys: map[string][]*Key{}, tokens: map[string]bool{},
	}
	s.http = &http.Server{
		Handler: s, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: maxBody,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}, ErrorLog: double.NoLog(), ConnContext: double.WithConn,
	}
	go func() {
		defer close(s.done)
		_ = s.http.ServeTLS(listener, "", "") // ErrServerClosed, or the listener is gone, which clients notice
	}()
	return s, nil
}

// Address returns the address that the server listens on, HOST:PORT, as a key reference has it.
func (s *Server) Address() string { return s.listener.Addr().String() }

// CA returns the certificate of the server's issuer in PEM.
func (s *Server) CA() []byte { return s.ca }

// Environment returns the variables for a client secret: NAME=VALUE.
func (s *Server) Environment() []string {
	return []string{
		"AZURE_AUTHORITY_HOST=https://" + s.Address() + "/", "AZURE_TENANT_ID=" + TenantID, "AZURE_CLIENT_ID=" + ClientID, "AZURE_CLIENT_SECRET=" + ClientSecret,
	}
}

// Close cuts all connections and stops the server. It may be called twice.
func (s *Server) Close() error {
	s.once.Do(func() { close(s.closed) })
	err := s.http.Close()
	<-s.done
	return err
}

// Calls returns how many requests of an operation have arrived with a token, including refused ones; "*" means all
// operations of the vault.
func (s *Server) Calls(operation string) int { return s.script.Calls(operation) }

// Challenges returns how many requests without a valid token were answered with a challenge.
func (s *Server) Challenges() int { return int(s.challenges.Load()) }

// Tokens returns how many tokens were issued.
func (s *Server) Tokens() int { return int(s.issued.Load()) }

// Script queues faults for the next requests of an operation ("Sign", "Token", or "*" for any), one for each request and
// in this order. An unknown operation or fault is an error, and then nothing is queued.
func (s *Server) Script(operation string, faults ...Fault) error {
	return s.script.Add(operation, faults...)
}

// Stand sets the fault of every request of an operation, named as for Script, for which no fault is queued. OK removes it.
func (s *Server) Stand(operation string, fault Fault) error { return s.script.Stand(operation, fault) }

// RevokeTokens makes all tokens invalid: the next request is answered with a challenge.
func (s *Server) RevokeTokens() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.tokens)
}

// call is one request.
type call struct {
	id, operation, name, version string
	skip                         string // of a page
	body                         []byte
	fault                        Fault
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := call{id: uuid(), skip: r.URL.Query().Get("$skiptoken")}
	var err error
	if c.body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody)); err != nil {
		refuse(w, c.id, &Error{http.StatusRequestEntityTooLarge, "BadParameter", "", "the request is too long"})
		return
	}
	if s.serveToken(w, r, c.body) {
		return
	}
	if err := c.route(r); err != nil {
		refuse(w, c.id, err)
		return
	}
	if !s.authorized(r) {
		s.challenges.Add(1)
		s.challenge(w, c.id)
		return
	}
	s.script.Count(c.operation)
	c.fault = s.script.Next(c.operation, "")
	if !s.meet(w, r, c) {
		return
	}
	var answer map[string]any
	if err = c.fault.refusal(); err == nil {
		answer, err = s.perform(c)
	}
	s.record(c, err)
	switch {
	case c.fault == Lost:
		double.Reset(r)
	case err != nil:
		refuse(w, c.id, err)
	default:
		write(w, c.id, http.StatusOK, c.fault.damage(answer))
	}
}

// authorized reports whether a request has a token of the double.
func (s *Server) authorized(r *http.Request) bool {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	s.mu.Lock()
	defer s.mu.Unlock()
	return ok && s.tokens[token]
}

// challenge answers as Key Vault does, with where a token comes from and for what.
func (s *Server) challenge(w http.ResponseWriter, id string) {
	w.Header().Set("WWW-Authenticate", fmt.Sprintf("Bearer authorization=\"https://%s/%s\", resource=%q", s.Address(), TenantID, resource))
	refuse(w, id, &Error{http.StatusUnauthorized, "Unauthorized", "", "AKV10000: Request is missing a Bearer or PoP token."})
}

// route reads the path of a request.
func (c *call) route(r *http.Request) error {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	missing := &Error{http.StatusNotFound, "NotFound", "", "no such path"}
	if parts[0] != "keys" || len(parts) > 4 || r.URL.Query().Get("api-version") == "" && c.skip == "" {
		return missing
	}
	parts = append(parts, "", "", "")
	c.name, c.version = parts[1], parts[2]
	for _, route := range []struct {
		method string
		match  bool
		name   string
	}{
		{http.MethodGet, c.name == "", "ListKeys"},
		{http.MethodGet, c.version == "versions" && parts[3] == "", "ListVersions"},
		{http.MethodGet, parts[3] == "", "GetKey"},
		{http.MethodPost, c.version == "create" && parts[3] == "", "CreateKey"},
		{http.MethodPost, parts[3] == "sign", "Sign"},
	} {
		if r.Method == route.method && route.match {
			c.operation = route.name
			return nil
		}
	}
	return missing
}

func write(w http.ResponseWriter, id string, status int, body []byte) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("X-Ms-Request-Id", id)
	w.WriteHeader(status)
	_, _ = w.Write(body) // #nosec G705 -- JSON, and the client may be gone
}

// hexID returns 32 random hex digits.
func hexID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails (Go 1.24)
	return hex.EncodeToString(b)
}

func uuid() string {
	id := hexID()
	return strings.Join([]string{id[:8], id[8:12], id[12:16], id[16:20], id[20:]}, "-")
}

// Error is an error that Key Vault answers with.
type Error struct {
	Status               int
	Code, Inner, Message string
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

func refuse(w http.ResponseWriter, id string, err error) {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = &Error{http.StatusInternalServerError, "InternalServerError", "", err.Error()}
	}
	members := map[string]any{"code": e.Code, "message": e.Message}
	if e.Inner != "" {
		members["innererror"] = map[string]any{"code": e.Inner}
	}
	body, _ := json.Marshal(map[string]any{"error": members})
	write(w, id, e.Status, body)
}
