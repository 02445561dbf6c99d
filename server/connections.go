package server

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"

	"hsmsign/server/authn"
)

// connection is what the server knows of one connection.
type connection struct {
	authn.Connection
	refused error // why the user of a Unix socket is not accepted

	mu     sync.Mutex
	tls    *tls.ConnectionState
	caller string // of its newest request; "": of no known caller
	idle   time.Time
	state  http.ConnState
}

// connections are the open connections of all listeners, at most max. For one more, the oldest one that is idle is closed, first
// of those that have not sent a request of a known caller. It is safe for concurrent use.
type connections struct {
	max int
	mu  sync.Mutex
	all map[net.Conn]*connection
}

type connectionKey struct{}

// connectionOf returns the connection of a request.
func connectionOf(r *http.Request) *connection {
	c, _ := r.Context().Value(connectionKey{}).(*connection)
	return c
}

// accepted returns a function for http.Server.ConnContext.
func (cs *connections) accepted(kind string) func(ctx context.Context, conn net.Conn) context.Context {
	return func(ctx context.Context, conn net.Conn) context.Context {
		c := &connection{Connection: authn.NewConnection(kind, conn.RemoteAddr().String(), nil), idle: time.Now()}
		if unix, ok := conn.(*net.UnixConn); ok {
			c.UID, c.refused = authn.Peer(unix)
		}
		cs.mu.Lock()
		if len(cs.all) >= cs.max {
			cs.evict()
		}
		cs.all[conn] = c
		cs.mu.Unlock()
		return context.WithValue(ctx, connectionKey{}, c)
	}
}

// evict closes the connection that is worth least. The caller has cs.mu.
func (cs *connections) evict() {
	var worst net.Conn
	var known bool
	var since time.Time
	for conn, c := range cs.all {
		c.mu.Lock()
		if c.state != http.StateActive && (worst == nil || known && c.caller == "" || known == (c.caller != "") && c.idle.Before(since)) {
			worst, known, since = conn, c.caller != "", c.idle
		}
		c.mu.Unlock()
	}
	if worst != nil {
		_ = worst.Close() // the server sees the end
		delete(cs.all, worst)
	}
}

// changed is for http.Server.ConnState.
func (cs *connections) changed(conn net.Conn, state http.ConnState) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if state == http.StateClosed || state == http.StateHijacked {
		delete(cs.all, conn)
		return
	}
	if c := cs.all[conn]; c != nil {
		c.mu.Lock()
		c.state, c.idle = state, time.Now()
		c.mu.Unlock()
	}
}

// of remembers the caller of a connection's newest request, and its TLS state.
func (c *connection) of(caller string, state *tls.ConnectionState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.caller = caller
	if state != nil {
		c.tls = state
	}
}

// count returns how many connections are open.
func (cs *connections) count() int {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	return len(cs.all)
}

// closeIf closes the connections for which gone returns true.
func (cs *connections) closeIf(gone func(conn authn.Connection, caller string) bool) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for conn, c := range cs.all {
		c.mu.Lock()
		known := c.Connection
		if c.tls != nil {
			known.Peer = c.tls.PeerCertificates
		}
		closing := c.caller != "" && gone(known, c.caller)
		c.mu.Unlock()
		if closing {
			_ = conn.Close() // the server sees the end
			delete(cs.all, conn)
		}
	}
}

// Connections returns how many connections are open on all listeners but that of the metrics.
func (s *Server) Connections() int { return s.conns.count() }
