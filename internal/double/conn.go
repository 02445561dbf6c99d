package double

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
)

// connKey is the key of the connection in the context of a request.
type connKey struct{}

// WithConn puts the TCP connection into the context of its requests: http.Server.ConnContext of a double that calls Reset.
func WithConn(ctx context.Context, conn net.Conn) context.Context {
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	return context.WithValue(ctx, connKey{}, conn)
}

// Reset resets the connection of a request; with HTTP/2 that breaks all requests on it.
func Reset(r *http.Request) {
	conn, _ := r.Context().Value(connKey{}).(net.Conn) // WithConn put it there
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // with it Close sends RST (SO_LINGER, socket(7))
		_ = tcp.Close()
	}
}
