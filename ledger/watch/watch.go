// Package watch reads the certificate chains of files and TLS endpoints, so that their expiry can be reported.
//
// A file can also have a server token of Apple Business Manager as JSON; of it only the expiry is kept.
//
// A target is the name of a file, HOST:PORT, or an https:// URL, of which only host and port are used:
//
//	target, err := watch.Parse("https://push.example.com/")  // "push.example.com:443"
//	for _, result := range watch.Read(ctx, []watch.Target{target}) { ... }
//
// A chain is read and not verified: one that has expired must be seen too. Nothing is sent but a TLS handshake.
//
// Targets come from the operator; still, a name may resolve to any address. Connections to link-local, multicast and
// unspecified addresses and to the metadata services of clouds are refused. The check is on the address that is dialed, after
// the name was resolved. Each target has 5 seconds, 16 are read at once, and Read ends after a minute.
//
// Everything here is safe for concurrent use.
package watch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/internal/input"
	"hsmsign/lifecycle/abm"
)

const (
	// MaxTargets is how many targets can be read at once.
	MaxTargets = 128
	// maxText is the maximum length of a target in bytes.
	maxText = 1024
	// maxHost is the maximum length of a host name (RFC 1035, section 2.3.4).
	maxHost = 253

	timeout = 5 * time.Second // of one target
	whole   = time.Minute     // of Read
	atOnce  = 16
)

// ErrTarget means that a text is not a target.
var ErrTarget = fault.Usage.New("not a file, HOST:PORT or https:// URL")

// ErrAddress means that an address must not be connected to.
var ErrAddress = fault.Forbidden.New("a connection to this address is not allowed")

// Target is a file or a TLS endpoint. Its text is an absolute path, or HOST:PORT.
type Target struct {
	file, host, port string
}

func (t Target) String() string {
	if t.file != "" {
		return t.file
	}
	return net.JoinHostPort(t.host, t.port)
}

// Parse reads a target. A file whose name has the form HOST:PORT is written as ./HOST:PORT. The error wraps ErrTarget or
// ErrAddress.
func Parse(text string) (Target, error) {
	refused := func(why string) (Target, error) {
		return Target{}, fault.Errorf("%w: %q: %s", ErrTarget, fault.Clip(text, 64), why).Fix("write the name of a file, HOST:PORT, or https://HOST")
	}
	if text == "" || len(text) > maxText || !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return refused("it is empty, too long or not printable")
	}
	if strings.Contains(text, "://") {
		u, err := url.Parse(text)
		if err != nil || !strings.EqualFold(u.Scheme, "https") || u.User != nil || u.Hostname() == "" {
			return refused("it is not an https:// URL with a host, or it contains a user name")
		}
		port := u.Port()
		if port == "" {
			port = "443"
		}
		text = net.JoinHostPort(u.Hostname(), port)
	}
	host, port, err := net.SplitHostPort(text)
	if n, errPort := strconv.ParseUint(port, 10, 16); err != nil || errPort != nil || n == 0 || strings.ContainsAny(text, `/\`) {
		path, err := filepath.Abs(text)
		if err != nil {
			return refused(err.Error())
		}
		return Target{file: path}, nil
	}
	host = strings.ToLower(host)
	if addr, err := netip.ParseAddr(host); err == nil {
		return Target{host: host, port: port}, checkAddress(addr)
	}
	if len(host) > maxHost || !hostForm().MatchString(host) {
		return refused("the host is neither an address nor a name")
	}
	return Target{host: host, port: port}, nil
}

var hostForm = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\.?$`)
})

// Result is the chain of a target, as it is there, or why it was not read. The error is of kind unavailable if the endpoint
// does not answer, and wraps ErrAddress if it was not asked.
type Result struct {
	Target Target
	Certs  []*x509.Certificate
	// Token is when the server token in the file expires (package abm), UTC; zero: the target has certificates.
	Token time.Time
	Err   error
}

// Read reads the chains of at most MaxTargets targets, in their order.
func Read(ctx context.Context, targets []Target) []Result { return read(ctx, targets, nil) }

// read is Read with a resolver; nil: that of the system.
func read(ctx context.Context, targets []Target, resolver *net.Resolver) []Result {
	ctx, cancel := context.WithTimeout(ctx, whole)
	defer cancel()
	results := make([]Result, len(targets))
	slots := make(chan struct{}, atOnce)
	var all sync.WaitGroup
	for i, target := range targets {
		results[i].Target = target
		if i >= MaxTargets {
			results[i].Err = fault.Usage.Errorf("more than %d targets", MaxTargets).Fix("watch fewer")
			continue
		}
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			results[i].Certs, results[i].Token, results[i].Err = target.read(ctx, resolver)
		})
	}
	all.Wait()
	return results
}

func (t Target) read(ctx context.Context, resolver *net.Resolver) (certs []*x509.Certificate, token time.Time, err error) {
	if t.file != "" {
		data, err := input.File(t.file, chain.MaxFile)
		if err != nil {
			return nil, token, fault.Refused.Errorf("%q: %w", t.file, err).Fix("name a readable file")
		}
		defer clear(data) // of a token only the date is kept
		if found, err := abm.ParseToken(data); err == nil {
			clear(found.JSON)
			return nil, found.Expiry, nil
		}
		if certs, err = chain.Parse(data); err != nil {
			return nil, token, fault.Refused.Errorf("%q: %w", t.file, err).Fix("name a file with certificates, or with the JSON of a server token")
		}
		return certs, token, nil
	}
	certs, err = t.dial(ctx, resolver)
	switch {
	case len(certs) > chain.MaxCerts:
		return nil, token, fault.Refused.Errorf("%s: %d certificates; at most %d are read", t, len(certs), chain.MaxCerts)
	case len(certs) > 0:
		return certs, token, nil
	case errors.Is(err, ErrAddress):
		return nil, token, err
	case err == nil:
		err = errors.New("it has no certificate")
	}
	return nil, token, fault.Unavailable.Errorf("%s: %w", t, err).Fix("check the host and its port")
}

// dial returns the chain that the endpoint shows in its handshake, whether or not the handshake succeeds after that.
func (t Target) dial(ctx context.Context, resolver *net.Resolver) (certs []*x509.Certificate, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	dialer := &net.Dialer{Resolver: resolver, Control: func(_, address string, _ syscall.RawConn) error {
		addr, err := netip.ParseAddrPort(address)
		if err != nil {
			return ErrAddress
		}
		return checkAddress(addr.Addr())
	}}
	conn, err := dialer.DialContext(ctx, "tcp", t.String())
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()     // nothing was written but the handshake
	client := tls.Client(conn, &tls.Config{ //nolint:gosec // nothing is sent, and an expired chain and an old server must be seen too
		ServerName: strings.TrimSuffix(t.host, "."), InsecureSkipVerify: true, MinVersion: tls.VersionTLS10,
		VerifyConnection: func(state tls.ConnectionState) error {
			certs = state.PeerCertificates
			return nil
		},
	})
	err = client.HandshakeContext(ctx)
	return certs, err
}

// blocked are the networks that are not connected to: this network, link-local, multicast, broadcast, and the metadata
// services of clouds that are elsewhere (AWS and GCP over IPv6, Alibaba, Azure, Oracle).
var blocked = sync.OnceValue(func() (all []netip.Prefix) {
	for _, text := range []string{
		"0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32",
		"::/128", "fe80::/10", "ff00::/8", "fd00:ec2::/32", "fd20:ce::254/128",
	} {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
})

// nat64 is the prefix of IPv4 addresses behind NAT64 (RFC 6052).
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// checkAddress returns an error that wraps ErrAddress if the address must not be connected to.
func checkAddress(addr netip.Addr) error {
	addr = addr.Unmap().WithZone("")
	if nat64.Contains(addr) {
		bytes := addr.As16()
		addr = netip.AddrFrom4([4]byte(bytes[12:]))
	}
	for _, network := range blocked() {
		if network.Contains(addr) {
			return fault.Errorf("%w: %s is in %s", ErrAddress, addr, network).Fix("watch a file, or a host with another address")
		}
	}
	return nil
}
