// Package awskmstest is a double of AWS Key Management Service, for tests of programs that sign with it. It speaks the
// service's protocol (JSON 1.1 over HTTP) on a real socket, checks the Signature Version 4 of every request against its
// own secret keys, makes real signatures, and fails on request (Script, Stand). Log and CloudTrail
// return what it answered.
//
// A client needs Endpoint as its endpoint (plain HTTP on loopback), Region, and the credentials AccessKeyID and
// SecretAccessKey. The program cmd/awskms-double is the same server as a separate process. Package gcpkmstest is its
// counterpart for Google Cloud and has the same functions.
//
// The operations are GetPublicKey, Sign, DescribeKey, CreateKey, CreateAlias, ListKeys and ListAliases, and AssumeRole
// of STS, which issues session credentials. All data is in memory. The region of a request is that of its signature, so
// one server is all regions. It has no policies: every valid credential may do everything. Everything here is safe for
// concurrent use.
package awskmstest

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"hsmsign/internal/double"
)

// The credentials that every server accepts. They are valid for this double only.
const (
	AccessKeyID     = "AKIAKMSTESTEXAMPLE00"                        // #nosec G101 -- of the double alone
	SecretAccessKey = "kmstest-secret-for-tests-only-000000EXAMPLE" // #nosec G101 -- of the double alone
)

// The limits of a request.
const (
	maxBody    = 64 << 10
	maxHeaders = 32 << 10
)

// Config configures a server. The zero value is usable.
type Config struct {
	Listen  string        // HOST:PORT; "127.0.0.1:0"
	Delay   time.Duration // added to every answer
	Region  string        // of keys that name none; "eu-west-1"
	Account string        // "111122223333"
}

// Server is a running double.
type Server struct {
	config   Config
	listener net.Listener
	http     *http.Server
	closed   chan struct{} // closed by Close
	done     chan struct{} // closed when the server has stopped
	once     sync.Once
	script   *double.Script[Fault]

	mu          sync.Mutex
	keys        map[string]*Key   // by ARN
	aliases     map[string]string // ARN of the alias to ARN of the key
	credentials map[string]Credentials
	log         []Request
}

// NewServer starts a double. It listens until Close.
func NewServer(config Config) (*Server, error) {
	set := func(field *string, def string) {
		if *field == "" {
			*field = def
		}
	}
	set(&config.Listen, "127.0.0.1:0")
	set(&config.Region, "eu-west-1")
	set(&config.Account, "111122223333")
	listener, err := net.Listen("tcp", config.Listen)
	if err != nil {
		return nil, err
	}
	s := &Server{
		config: config, listener: listener, closed: make(chan struct{}), done: make(chan struct{}), script: double.NewScript(operations(), faults()...),
		keys: map[string]*Key{}, aliases: map[string]string{},
		credentials: map[string]Credentials{AccessKeyID: {AccessKeyID: AccessKeyID, SecretAccessKey: SecretAccessKey}},
	}
	s.http = &http.Server{
		Handler: s, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: maxHeaders,
	}
	go func() {
		defer close(s.done)
		_ = s.http.Serve(listener) // ErrServerClosed, or the listener is gone, which clients notice
	}()
	return s, nil
}

// Addr returns the address that the server listens on, HOST:PORT.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Endpoint returns the value of the attribute endpoint in a key reference: a URL.
func (s *Server) Endpoint() string { return "http://" + s.Addr() }

// Region returns the region of keys that name none.
func (s *Server) Region() string { return s.config.Region }

// Close cuts all connections and stops the server. It may be called twice.
func (s *Server) Close() error {
	s.once.Do(func() { close(s.closed) })
	err := s.http.Close()
	<-s.done
	return err
}

// Calls returns how many requests of an operation have arrived, including refused ones; "*" means all operations.
func (s *Server) Calls(operation string) int { return s.script.Calls(operation) }

// Script queues faults for the next requests of an operation ("Sign", "AssumeRole", or "*" for any), one for each
// request and in this order. "Sign@us-east-1" means one region. An unknown operation or fault is an error, and then
// nothing is queued.
func (s *Server) Script(operation string, faults ...Fault) error {
	return s.script.Add(operation, faults...)
}

// Stand sets the fault of every request of an operation, named as for Script, for which no fault is queued. OK removes
// it.
func (s *Server) Stand(operation string, fault Fault) error { return s.script.Stand(operation, fault) }

// call is one request.
type call struct {
	id, operation, region string
	body                  []byte
	fault                 Fault
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := call{id: requestID()}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		refuse(w, c.id, fail("ValidationException", "the request is longer than %d bytes", maxBody))
		return
	}
	c.body = body
	target, isKMS := strings.CutPrefix(r.Header.Get("X-Amz-Target"), "TrentService.")
	service := "kms"
	if c.operation = target; !isKMS {
		c.operation, service = formAction(r, body), "sts"
	}
	if c.operation == "" {
		refuse(w, c.id, fail("UnknownOperationException", ""))
		return
	}
	s.script.Count(c.operation)
	c.region, err = s.authenticate(r, body, service)
	if err == nil {
		c.fault = s.script.Next(c.operation, c.region)
		if !s.meet(w, r, c.fault) {
			return
		}
		err = c.fault.refusal(c.operation)
	}
	if service == "sts" {
		s.serveSTS(w, c, err)
		return
	}
	var answer map[string]any
	if err == nil {
		answer, err = s.perform(c)
	}
	s.record(c, answer, err)
	if c.fault == Lost {
		reset(w)
		return
	}
	if err != nil {
		refuse(w, c.id, err)
		return
	}
	write(w, c.id, http.StatusOK, c.fault.damage(answer))
}

func write(w http.ResponseWriter, id string, status int, body []byte) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.Header().Set("X-Amzn-Requestid", id)
	w.WriteHeader(status)
	_, _ = w.Write(body) // #nosec G705 -- JSON, and the client may be gone
}

// requestID returns the id of a request, a UUID as those of AWS.
func requestID() string {
	id := random()
	return strings.Join([]string{id[:8], id[8:12], id[12:16], id[16:20], id[20:]}, "-")
}

// random returns 32 hex digits.
func random() string {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails (Go 1.24)
	return hex.EncodeToString(id)
}

// Error is an error that KMS answers with.
type Error struct {
	Code, Message string
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// refuse answers with an error. KMS names the member "message", and "Message" if its front end denies access.
func refuse(w http.ResponseWriter, id string, err error) {
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{Code: "KMSInternalException", Message: err.Error()}
	}
	member, status := "message", http.StatusBadRequest
	switch e.Code {
	case "AccessDeniedException":
		member = "Message"
	case "KMSInternalException", "KeyUnavailableException", "DependencyTimeoutException":
		status = http.StatusInternalServerError
	}
	body, _ := json.Marshal(map[string]string{"__type": e.Code, member: e.Message})
	write(w, id, status, body)
}
