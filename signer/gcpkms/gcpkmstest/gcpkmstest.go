// Package gcpkmstest is a double of Google Cloud KMS, for tests of programs that sign with it. It is a gRPC server on a
// real socket, with real signatures, real checksums and real status codes, and it fails on request (Script, Stand).
// Log and AuditLog return what it answered.
//
// A client needs Endpoint as its endpoint. The program cmd/gcpkms-double is the same server as a separate process.
// Package awskmstest is its counterpart for AWS and has the same functions.
//
// The operations are Create, Get and List of KeyRing, CryptoKey and CryptoKeyVersion, and GetPublicKey and
// AsymmetricSign. All others answer UNIMPLEMENTED, and so does the creation of a version with another algorithm than RSA
// PKCS1, PSS or OAEP, EC P256 or P384, and symmetric encryption. All data is in memory. Everything here is safe for
// concurrent use.
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

	"hsmsign/internal/double"
)

// Config configures a server. The zero value is usable.
type Config struct {
	Listen     string        // HOST:PORT; "127.0.0.1:0". Without TLS it must be a loopback address
	Delay      time.Duration // added to every answer
	TLS        *tls.Config   // nil: plain text
	Token      string        // if it is not empty, every request must have it ("authorization: Bearer TOKEN")
	Generation time.Duration // how long a new version is PENDING_GENERATION
}

// Server is a running double.
type Server struct {
	kmspb.UnimplementedKeyManagementServiceServer
	config   Config
	listener *listener
	grpc     *grpc.Server
	closed   chan struct{} // closed by Close
	done     chan struct{} // closed when the server has stopped
	once     sync.Once
	script   *double.Script[Fault]

	mu       sync.Mutex
	rings    map[string]*kmspb.KeyRing   // their values do not change
	keys     map[string]*kmspb.CryptoKey // the same
	versions map[string]Key
	log      []Request
}

// NewServer starts a double. It listens until Close.
func NewServer(config Config) (*Server, error) {
	if config.Listen == "" {
		config.Listen = "127.0.0.1:0"
	}
	inner, err := net.Listen("tcp", config.Listen)
	if err != nil {
		return nil, err
	}
	if addr, ok := inner.Addr().(*net.TCPAddr); config.TLS == nil && (!ok || !addr.IP.IsLoopback()) {
		return nil, errors.Join(fmt.Errorf("listen on %q: without TLS the address must be loopback", config.Listen), inner.Close())
	}
	s := &Server{
		config: config, listener: &listener{Listener: inner, open: map[string]net.Conn{}}, closed: make(chan struct{}), done: make(chan struct{}),
		script: double.NewScript(operations(), faults()...),
		rings:  map[string]*kmspb.KeyRing{}, keys: map[string]*kmspb.CryptoKey{}, versions: map[string]Key{},
	}
	opts := []grpc.ServerOption{grpc.UnaryInterceptor(s.intercept)}
	if config.TLS != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(config.TLS)))
	}
	s.grpc = grpc.NewServer(opts...)
	kmspb.RegisterKeyManagementServiceServer(s.grpc, s)
	go func() {
		defer close(s.done)
		_ = s.grpc.Serve(s.listener) // ends with Close
	}()
	return s, nil
}

// Addr returns the address that the server listens on, HOST:PORT.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Endpoint returns the value of the attribute endpoint in a key reference: HOST:PORT.
func (s *Server) Endpoint() string { return s.Addr() }

// Close cuts all connections and stops the server. It may be called twice.
func (s *Server) Close() error {
	s.once.Do(func() { close(s.closed) })
	s.grpc.Stop()
	<-s.done
	return nil
}

// Calls returns how many requests of an operation have arrived, including refused ones; "*" means all operations.
func (s *Server) Calls(operation string) int { return s.script.Calls(operation) }

// Script queues faults for the next requests of an operation ("AsymmetricSign", or "*" for any), one for each request
// and in this order. An unknown operation or fault is an error, and then nothing is queued.
func (s *Server) Script(operation string, faults ...Fault) error {
	return s.script.Add(operation, faults...)
}

// Stand sets the fault of every request of an operation, named as for Script, for which no fault is queued. OK removes
// it.
func (s *Server) Stand(operation string, fault Fault) error { return s.script.Stand(operation, fault) }

// listener records its connections by the address of the peer, so that Reset can break that of a request.
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

// reset breaks a connection: the peer receives a TCP reset.
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

// tracked is a connection that removes itself from its listener.
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
