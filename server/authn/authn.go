// Package authn finds the caller of the configuration who sent a request.
//
// A request comes over a listener of one kind, and each kind accepts its own credentials: TLS a client certificate or a token,
// loopback HTTP a token, a Unix socket the user of the peer process. A token is sent as a bearer token (RFC 6750) or, if hsmsign
// made it, as the password of Basic authentication (RFC 7617). A bearer token with two dots is an OIDC token of an issuer of the
// configuration (package oidc). What an AWS IAM role or user signed (package awsiam) is sent as a bearer value. Several
// credentials on one request must name one caller.
//
// A Checker is a value without state and safe for concurrent use.
package authn

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"hsmsign/agent/policy"
	"hsmsign/fault"
	"hsmsign/server/authn/awsiam"
	"hsmsign/server/authn/oidc"
)

// The kinds of listeners.
const (
	TLS  = "tls"
	Unix = "unix"
	HTTP = "http" // loopback only
)

// Connection is what a listener knows of the other side. No header of a request changes it.
type Connection struct {
	Kind   string
	UID    int        // of the peer process: Unix only
	Remote netip.Addr // not of Unix
	Peer   []*x509.Certificate
}

// NewConnection returns the connection of a TLS or HTTP listener.
func NewConnection(kind, remote string, state *tls.ConnectionState) Connection {
	c := Connection{Kind: kind}
	if address, err := netip.ParseAddrPort(remote); err == nil {
		c.Remote = address.Addr().Unmap()
	}
	if state != nil {
		c.Peer = state.PeerCertificates
	}
	return c
}

// Checker is what credentials are checked against.
type Checker struct {
	Policy  *policy.Policy
	Clients *Authorities     // for callers whose certificate has a name under a CA; nil: there are none
	OIDC    *oidc.Issuers    // of OIDC tokens; nil: there are none
	AWS     *awsiam.Verifier // for callers with an AWS identity; nil: there are none
	Servers []string         // the names of this server in what others sign for it, in lower case
	Now     time.Time
}

// ErrUnknown is what anybody is told whose credentials are not accepted, whatever the reason.
var ErrUnknown = fault.WithHint(fault.Unauthenticated.New("the caller is not known"),
	"send a client certificate or a token of a caller in the server's configuration")

// Refusal is why credentials were not accepted: for the server's log, and not for the other side. It wraps ErrUnknown.
type Refusal struct{ Reason error }

func (r *Refusal) Error() string { return ErrUnknown.Error() }

// Unwrap returns ErrUnknown, and not the reason.
func (r *Refusal) Unwrap() error { return ErrUnknown }

func refusef(format string, args ...any) error { return &Refusal{fmt.Errorf(format, args...)} }

// Identify returns the credential of a request. It may wait for the keys of an issuer or for AWS STS, until ctx ends. The error is a
// *Refusal, or that of somebody else who has to be asked and does not answer.
func (c Checker) Identify(ctx context.Context, r *http.Request, conn Connection) (policy.Credential, error) {
	found, err := c.Connection(conn)
	if err != nil {
		return policy.Credential{}, err
	}
	values := r.Header.Values("Authorization")
	switch {
	case len(values) > 1:
		return policy.Credential{}, refusef("%d Authorization headers", len(values))
	case len(values) == 1 && conn.Kind == Unix:
		return policy.Credential{}, refusef("an Authorization header on a Unix socket, whose callers are Unix users")
	case len(values) == 1:
		token, err := c.token(ctx, values[0], conn)
		if err != nil {
			return policy.Credential{}, err
		}
		if found.Caller != nil && found.Caller != token.Caller {
			return policy.Credential{}, refusef("%s is that of %s, and %s that of %s", found.Name, found.Caller.Name, token.Name, token.Caller.Name)
		}
		found = token
	}
	switch {
	case found.Caller == nil:
		return policy.Credential{}, refusef("no credentials")
	case conn.Kind != Unix && !found.Caller.From(conn.Remote):
		return policy.Credential{}, refusef("%s may not use %s from %v", found.Caller.Name, found.Name, conn.Remote)
	}
	return found, nil
}

// Connection returns the credential that the connection itself has: that of its client certificate or Unix user. The caller is
// nil if it has none. The error is a *Refusal.
func (c Checker) Connection(conn Connection) (found policy.Credential, err error) {
	switch {
	case conn.Kind == Unix:
		found, err = c.Policy.UID(conn.UID)
	case len(conn.Peer) > 0:
		verified := c.Clients.Verify(conn.Peer, c.Now)
		if found, err = c.Policy.Certificate(conn.Peer[0], verified == nil, c.Now); err != nil && c.Clients != nil && verified != nil {
			err = fmt.Errorf("%w; under client-ca: %w", err, verified)
		}
	}
	if err != nil {
		return policy.Credential{}, &Refusal{err}
	}
	return found, nil
}

// token returns the credential of an Authorization header.
func (c Checker) token(ctx context.Context, header string, conn Connection) (policy.Credential, error) {
	scheme, value, _ := strings.Cut(header, " ")
	user := ""
	switch strings.ToLower(scheme) {
	case "bearer":
		if value = strings.TrimSpace(value); strings.Count(value, ".") == 2 {
			return c.issued(ctx, value)
		}
		if signed, ok := strings.CutPrefix(value, awsiam.Prefix); ok {
			return c.aws(ctx, signed, conn)
		}
	case "basic":
		r := http.Request{Header: http.Header{"Authorization": {header}}}
		var ok bool
		if user, value, ok = r.BasicAuth(); !ok {
			return policy.Credential{}, refusef("a Basic Authorization header that cannot be read")
		}
	default:
		return policy.Credential{}, refusef("an Authorization header of another scheme than Bearer and Basic")
	}
	found, err := c.Policy.Token(strings.TrimSpace(value), c.Now)
	if err != nil {
		return policy.Credential{}, &Refusal{err}
	}
	if user != "" && user != found.Caller.Name {
		return policy.Credential{}, refusef("%s with the user name of another caller than %s", found.Name, found.Caller.Name)
	}
	return found, nil
}

// issued returns the credential of an OIDC token.
func (c Checker) issued(ctx context.Context, token string) (policy.Credential, error) {
	issuer, claims, err := c.OIDC.Verify(ctx, token, c.Now)
	if err != nil {
		return policy.Credential{}, &Refusal{err}
	}
	found, err := c.Policy.OIDC(issuer, claims)
	if err != nil {
		return policy.Credential{}, &Refusal{err}
	}
	return found, nil
}
