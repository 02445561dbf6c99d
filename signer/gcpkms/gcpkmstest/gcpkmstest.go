// Package kmstest is a double of Google Cloud KMS for tests: a gRPC server on a real socket, with real cryptography,
// real checksums and real status codes, and with faults in the order that a test asks for.
//
//	server, err := gcpkmstest.NewServer(gcpkmstest.Config{})
//	defer server.Close()
//	err = server.AddKey("projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1", privateKey)
//	server.Script(gcpkmstest.AsymmetricSign, gcpkmstest.Throttle, gcpkmstest.Delay(2*time.Second), gcpkmstest.OK)
//	// use gcpkms://projects/p/.../cryptoKeyVersions/1?endpoint= and server.Addr()
//
// It knows the calls that make, list, show and use signing keys: CreateKeyRing, CreateCryptoKey, GetCryptoKeyVersion,
// ListKeyRings, ListCryptoKeys, ListCryptoKeyVersions, GetPublicKey and AsymmetricSign. All others answer
// UNIMPLEMENTED. Its keys are in the memory of the process and gone with it.
//
// The program in cmd/gcpkms-double is the same server as a process of its own. A Server is safe for concurrent use.
package gcpkmstest

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// Config is what a server is made with. The zero value listens on a free port of 127.0.0.1 and knows no key.
type Config struct {
	// Listen is HOST:PORT; "127.0.0.1:0" when empty. Without TLS it must be a loopback address.
	Listen string
	// TLS makes the server speak TLS; nil: plain text.
	TLS *tls.Config
	// Token, where it is not empty, must come with every request ("authorization: Bearer TOKEN").
	Token string
	// Delay is added to every answer.
	Delay time.Duration
	// Generation is how long a new version stays PENDING_GENERATION.
	Generation time.Duration
}

// Server is a running double.
type Server struct {
	kmspb.UnimplementedKeyManagementServiceServer
	config   Config
	listener *listener
	grpc     *grpc.Server
	done     chan struct{} // closed when the server has stopped

	mu       sync.Mutex
	rings    map[string]bool
	keys     map[string]*kmspb.CryptoKey
	versions map[string]*Version
	scripts  map[Operation][]Fault
	standing map[Operation]Fault
	calls    map[Operation]int
}

// NewServer starts a double. The caller closes it.
func NewServer(config Config) (*Server, error) {
	if config.Listen == "" {
		config.Listen = "127.0.0.1:0"
	}
	inner, err := net.Listen("tcp", config.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if addr, ok := inner.Addr().(*net.TCPAddr); config.TLS == nil && (!ok || !addr.IP.IsLoopback()) {
		return nil, errors.Join(fmt.Errorf("listen on %q: without TLS only a loopback address will do", config.Listen), inner.Close())
	}
	s := &Server{
		config: config, listener: &listener{Listener: inner, open: map[string]net.Conn{}}, done: make(chan struct{}),
		rings: map[string]bool{}, keys: map[string]*kmspb.CryptoKey{}, versions: map[string]*Version{},
		scripts: map[Operation][]Fault{}, standing: map[Operation]Fault{}, calls: map[Operation]int{},
	}
	opts := []grpc.ServerOption{grpc.UnaryInterceptor(s.intercept)}
	if config.TLS != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(config.TLS)))
	}
	s.grpc = grpc.NewServer(opts...)
	kmspb.RegisterKeyManagementServiceServer(s.grpc, s)
	go func() {
		defer close(s.done)
		_ = s.grpc.Serve(s.listener) // ends with Close, and then has nothing to say
	}()
	return s, nil
}

// Addr is the address that the server listens on, as HOST:PORT.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Close ends all connections and stops the server. Closing twice does no harm.
func (s *Server) Close() {
	s.grpc.Stop()
	<-s.done
}

// Wait returns when the server has stopped.
func (s *Server) Wait() { <-s.done }

// Calls says how many requests of an operation have come in, refused ones included.
func (s *Server) Calls(op Operation) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[op]
}

// listener remembers its connections by the peer's address, so that Reset can break the one that a request came on.
type listener struct {
	net.Listener
	mu   sync.Mutex
	open map[string]net.Conn
}

func (l *listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[conn.RemoteAddr().String()] = conn
	return &tracked{Conn: conn, listener: l}, nil
}

// reset breaks a connection without a word: the peer sees a TCP reset.
func (l *listener) reset(peer string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if conn, ok := l.open[peer]; ok {
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = conn.Close()
	}
}

// tracked is forgotten when it is closed.
type tracked struct {
	net.Conn
	listener *listener
}

func (t *tracked) Close() error {
	t.listener.mu.Lock()
	delete(t.listener.open, t.RemoteAddr().String())
	t.listener.mu.Unlock()
	return t.Conn.Close()
}
