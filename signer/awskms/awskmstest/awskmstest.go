// Package kmstest is a double of AWS Key Management Service, for tests of programs that sign with it. It speaks the
// service's protocol (JSON 1.1 over HTTP) on a real socket, checks the Signature Version 4 of every request against
// its own secret keys, does real cryptography, and fails as it is told to.
//
//	server, err := awskmstest.NewServer(awskmstest.Config{})
//	defer server.Close()
//	arn, err := server.AddKey("alias/mdm-vendor", privateKey)
//	server.Script("Sign", awskmstest.Throttle, awskmstest.Delay(2*time.Second), awskmstest.OK)
//
// A client needs server.URL() as its endpoint (over plain http, on loopback), server.Region(), and the credentials
// AccessKeyID and SecretAccessKey. cmd/awskms-double is the same as a process of its own.
//
// The operations are GetPublicKey, Sign, DescribeKey, CreateKey, CreateAlias, ListKeys and ListAliases, and
// AssumeRole of STS, which gives out credentials of their own. Everything lies in memory. The region of a request is
// that of its signature, so one server is all regions. It is for tests only: it has no policies, any valid
// credentials may do anything. Everything here is safe for concurrent use.
package awskmstest

import (
	"context"
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
)

// The credentials that every server takes. They are examples and open nothing.
const (
	AccessKeyID     = "AKIAKMSTESTEXAMPLE00"                        // #nosec G101 -- of the double alone
	SecretAccessKey = "kmstest-secret-for-tests-only-000000EXAMPLE" // #nosec G101 -- of the double alone
)

// The bounds of a request.
const (
	maxBody    = 64 << 10
	maxHeaders = 32 << 10
)

// Config says what a server is like. The zero value is usable.
type Config struct {
	Listen  string        // address; "127.0.0.1:0"
	Region  string        // of keys that name none; "eu-west-1"
	Account string        // "111122223333"
	Delay   time.Duration // added to every answer
}

// Server is a running double.
type Server struct {
	config   Config
	listener net.Listener
	http     *http.Server
	served   chan struct{}
	ending   chan struct{} // closed by Close
	once     sync.Once

	mu          sync.Mutex
	keys        map[string]*Key   // by ARN
	aliases     map[string]string // ARN of the alias to ARN of the key
	credentials map[string]Credentials
	scripts     map[string][]Fault
	standing    map[string]Fault
	calls       map[string]int
}

// NewServer starts a double. It listens until Close.
func NewServer(config Config) (*Server, error) {
	set := func(field *string, standard string) {
		if *field == "" {
			*field = standard
		}
	}
	set(&config.Listen, "127.0.0.1:0")
	set(&config.Region, "eu-west-1")
	set(&config.Account, "111122223333")
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", config.Listen)
	if err != nil {
		return nil, err
	}
	s := &Server{
		config: config, listener: listener, served: make(chan struct{}), ending: make(chan struct{}),
		keys: map[string]*Key{}, aliases: map[string]string{}, calls: map[string]int{},
		credentials: map[string]Credentials{AccessKeyID: {AccessKeyID: AccessKeyID, SecretAccessKey: SecretAccessKey}},
		scripts:     map[string][]Fault{}, standing: map[string]Fault{},
	}
	s.http = &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: maxHeaders}
	go func() {
		defer close(s.served)
		_ = s.http.Serve(listener) // always ErrServerClosed, or the listener is gone, and clients see that
	}()
	return s, nil
}

// Addr is the address it listens on, "127.0.0.1:PORT".
func (s *Server) Addr() string { return s.listener.Addr().String() }

// URL is what a client takes as its endpoint.
func (s *Server) URL() string { return "http://" + s.Addr() }

// Region is that of keys that name none.
func (s *Server) Region() string { return s.config.Region }

// Close ends it: connections are cut. Closing twice is no error.
func (s *Server) Close() error {
	var err error
	s.once.Do(func() {
		close(s.ending)
		err = s.http.Close()
		<-s.served
	})
	return err
}

// Calls is how many requests for an operation ("Sign") have come, refused ones and those that met a fault included.
func (s *Server) Calls(operation string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[operation]
}

// call is one request.
type call struct {
	operation, region string
	body              []byte
	fault             Fault
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := call{}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		refuse(w, fail("ValidationException", "the request is longer than %d bytes", maxBody))
		return
	}
	c.body = body
	target, isKMS := strings.CutPrefix(r.Header.Get("X-Amz-Target"), "TrentService.")
	service := "kms"
	if c.operation = target; !isKMS {
		c.operation, service = formAction(r, body), "sts"
	}
	if c.operation == "" {
		refuse(w, fail("UnknownOperationException", ""))
		return
	}
	s.mu.Lock()
	s.calls[c.operation]++
	s.mu.Unlock()
	c.region, err = s.authenticate(r, body, service)
	if err == nil {
		c.fault = s.next(c.operation, c.region)
		if !s.meet(w, r, c.fault) {
			return
		}
	}
	if err == nil {
		err = c.fault.refusal()
	}
	if service == "sts" {
		s.serveSTS(w, c, err)
		return
	}
	var answer map[string]any
	if err == nil {
		answer, err = s.perform(c)
	}
	if err != nil {
		refuse(w, err)
		return
	}
	write(w, http.StatusOK, c.fault.damage(answer))
}

func write(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.Header().Set("X-Amzn-Requestid", requestID())
	w.WriteHeader(status)
	_, _ = w.Write(body) // #nosec G705 -- JSON, and the client may be gone
}

func requestID() string {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails (Go 1.24)
	return hex.EncodeToString(id)
}

// encode never fails: an answer is a map of strings, numbers, byte slices and lists of them.
func encode(answer any) []byte {
	body, err := json.Marshal(answer)
	if err != nil {
		return nil
	}
	return body
}

// Error is an answer that is an error, as KMS gives it: a code, a message and a status of HTTP.
type Error struct {
	Code, Message string
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// refuse answers with an error. KMS writes the member "message", and "Message" where its front end refuses access.
func refuse(w http.ResponseWriter, err error) {
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
	write(w, status, encode(map[string]string{"__type": e.Code, member: e.Message}))
}
