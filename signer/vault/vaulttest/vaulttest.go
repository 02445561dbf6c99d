// Package vaulttest is a double of HashiCorp Vault or OpenBao with a transit secrets engine, for tests of programs that
// sign with it. It speaks the HTTP API on a real socket, makes real signatures, issues, renews and expires tokens, and
// fails on request (Script, Stand). Log returns what it answered.
//
// A client needs Address and a token: Token, one of AddToken, or one of a login with AppRole or Kubernetes (AddAppRole,
// AddKubernetesRole). With Config.TLS it speaks TLS, and CA returns the certificate to trust. The program cmd/vault-double
// is the same server as a separate process. Packages awskmstest and gcpkmstest are its counterparts for the clouds.
//
// The operations are Sign, ReadKey, ListKeys, CreateKey, Login, LookupToken, RenewToken and Health. All data is in memory.
// Mounts and namespaces exist as soon as a key or a token is in them. It has no policies: every valid token may do
// everything in its namespace. Everything here is safe for concurrent use.
package vaulttest

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
	"time"

	"hsmsign/internal/double"
)

// Token is a token that every server accepts in its root namespace. It does not expire, and is valid for this double only.
const Token = "token-of-the-double-for-tests-only" // #nosec G101 -- of the double alone

// Version is the version that the double reports.
const Version = "1.20.0-double"

// maxBody is the longest request, in bytes.
const maxBody = 64 << 10

// Config configures a server. The zero value is usable.
type Config struct {
	Listen string        // HOST:PORT; "127.0.0.1:0"
	Delay  time.Duration // added to every answer
	TLS    bool          // speak TLS, with a certificate for 127.0.0.1, ::1 and localhost that CA issued
}

// Server is a running double.
type Server struct {
	config   Config
	listener net.Listener
	http     *http.Server
	ca       []byte
	closed   chan struct{} // closed by Close
	done     chan struct{} // closed when the server has stopped
	once     sync.Once
	script   *double.Script[Fault]

	mu     sync.Mutex
	keys   map[string]*key // by namespace, mount and name
	tokens map[string]*issued
	roles  map[string]Role // by the path of the login and the role's name
	log    []Request
}

// NewServer starts a double. It listens until Close.
func NewServer(config Config) (*Server, error) {
	if config.Listen == "" {
		config.Listen = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", config.Listen)
	if err != nil {
		return nil, err
	}
	s := &Server{
		config: config, listener: listener, closed: make(chan struct{}), done: make(chan struct{}), script: double.NewScript(operations(), faults()...),
		keys: map[string]*key{}, roles: map[string]Role{}, tokens: map[string]*issued{Token: {}},
	}
	s.http = &http.Server{
		Handler: s, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: maxBody,
		ConnContext: double.WithConn,
	}
	if config.TLS {
		var cert tls.Certificate
		if cert, s.ca, err = double.Certificate(); err != nil {
			_ = listener.Close()
			return nil, err
		}
		s.http.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
		s.http.ErrorLog = double.NoLog()
	}
	go func() {
		defer close(s.done)
		if config.TLS {
			_ = s.http.ServeTLS(listener, "", "")
		} else {
			_ = s.http.Serve(listener) // ErrServerClosed, or the listener is gone, which clients notice
		}
	}()
	return s, nil
}

// Address returns the address that the server listens on, HOST:PORT, as a key reference has it.
func (s *Server) Address() string { return s.listener.Addr().String() }

// CA returns the certificate of the server's issuer in PEM; nil without TLS.
func (s *Server) CA() []byte { return s.ca }

// Close cuts all connections and stops the server. It may be called twice.
func (s *Server) Close() error {
	s.once.Do(func() { close(s.closed) })
	err := s.http.Close()
	<-s.done
	return err
}

// Calls returns how many requests of an operation have arrived, including refused ones; "*" means all operations.
func (s *Server) Calls(operation string) int { return s.script.Calls(operation) }

// Script queues faults for the next requests of an operation ("Sign", "Login", or "*" for any), one for each request and
// in this order. An unknown operation or fault is an error, and then nothing is queued.
func (s *Server) Script(operation string, faults ...Fault) error {
	return s.script.Add(operation, faults...)
}

// Stand sets the fault of every request of an operation, named as for Script, for which no fault is queued. OK removes it.
func (s *Server) Stand(operation string, fault Fault) error { return s.script.Stand(operation, fault) }

// call is one request.
type call struct {
	id, operation, path  string
	namespace, token     string
	mount, name, version string // of a key; version is the end of a path of Sign
	body                 map[string]json.RawMessage
	fault                Fault
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := call{
		id: random(), path: strings.TrimPrefix(r.URL.Path, "/v1/"),
		namespace: strings.Trim(r.Header.Get("X-Vault-Namespace"), "/"), token: r.Header.Get("X-Vault-Token"),
	}
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err == nil && len(text) > 0 {
		err = json.Unmarshal(text, &c.body)
	}
	if err != nil {
		refuse(w, &Error{http.StatusBadRequest, "failed to parse JSON input: " + err.Error()})
		return
	}
	if err := c.route(r); err != nil {
		refuse(w, err)
		return
	}
	s.script.Count(c.operation)
	c.fault = s.script.Next(c.operation, "")
	if !s.meet(w, r, c.fault) {
		return
	}
	answer, err := s.perform(c)
	s.record(c, err)
	if c.fault == Lost {
		double.Reset(r)
		return
	}
	if err != nil {
		refuse(w, err)
		return
	}
	write(w, http.StatusOK, c.fault.damage(answer))
}

// route reads the path of a request.
func (c *call) route(r *http.Request) error {
	missing := &Error{http.StatusNotFound, fmt.Sprintf("no handler for route %q. route entry not found.", c.path)}
	switch {
	case r.URL.Path != "/v1/"+c.path:
		return missing
	case c.path == "sys/health":
		c.operation = "Health"
		return nil
	case c.path == "auth/token/lookup-self":
		c.operation = "LookupToken"
		return nil
	case c.path == "auth/token/renew-self":
		c.operation = "RenewToken"
		return nil
	case strings.HasPrefix(c.path, "auth/") && strings.HasSuffix(c.path, "/login"):
		c.operation = "Login"
		return nil
	}
	if mount, ok := strings.CutSuffix(c.path, "/keys"); ok && r.URL.Query().Get("list") == "true" {
		c.operation, c.mount = "ListKeys", mount
		return nil
	}
	if i := strings.LastIndex(c.path, "/sign/"); i > 0 {
		c.operation, c.mount = "Sign", c.path[:i]
		c.name, c.version, _ = strings.Cut(c.path[i+len("/sign/"):], "/")
		return nil
	}
	i := strings.LastIndex(c.path, "/keys/")
	if i < 0 {
		return missing
	}
	c.operation, c.mount, c.name = "ReadKey", c.path[:i], c.path[i+len("/keys/"):]
	if r.Method != http.MethodGet {
		c.operation = "CreateKey"
	}
	return nil
}

// perform executes a request and returns the answer.
func (s *Server) perform(c call) (map[string]any, error) {
	switch err := c.fault.refusal(); {
	case err != nil:
		return nil, err
	case c.operation == "Health":
		return map[string]any{"initialized": true, "sealed": false, "standby": false, "version": Version}, nil
	case c.operation == "Login":
		return s.login(c)
	}
	t, err := s.authenticate(c)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	answer := map[string]any{"request_id": c.id, "lease_id": "", "renewable": false, "lease_duration": 0, "data": nil, "wrap_info": nil, "warnings": nil, "auth": nil}
	switch c.operation {
	case "LookupToken":
		answer["data"] = t.info()
	case "RenewToken":
		answer["auth"], err = t.renew(c.token)
	case "ListKeys":
		answer["data"], err = s.list(c)
	case "ReadKey":
		answer["data"], err = s.read(c)
	case "CreateKey":
		err = s.create(c, answer)
	default:
		answer["data"], err = s.sign(c)
	}
	return answer, err
}

func write(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body) // #nosec G705 -- JSON, and the client may be gone
}

// random returns a UUID.
func random() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails (Go 1.24)
	id := hex.EncodeToString(b)
	return strings.Join([]string{id[:8], id[8:12], id[12:16], id[16:20], id[20:]}, "-")
}

// Error is an error that Vault answers with. An empty message is an empty list of errors.
type Error struct {
	Status  int
	Message string
}

func (e *Error) Error() string { return fmt.Sprintf("status %d: %s", e.Status, e.Message) }

func refuse(w http.ResponseWriter, err error) {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = &Error{http.StatusInternalServerError, err.Error()}
	}
	messages := []string{}
	if e.Message != "" {
		messages = append(messages, e.Message)
	}
	body, _ := json.Marshal(map[string]any{"errors": messages})
	write(w, e.Status, body)
}
