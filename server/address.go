package server

import (
	"maps"
	"net"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"hsmsign/fault"
	"hsmsign/server/authn"
)

// Address is where a server listens.
type Address struct {
	Kind string // authn.TLS, authn.Unix or authn.HTTP
	Host string // of TLS and HTTP: a name, or an IP address without brackets
	Port uint16
	Path string // of the Unix socket
}

// ParseAddress reads tls://HOST:PORT, unix:///PATH or http://HOST:PORT, whose host must be a loopback address. The error is
// of kind usage.
func ParseAddress(text string) (Address, error) {
	refused := func(why string) (Address, error) {
		return Address{}, fault.Usage.Errorf("listen: %q: %s", fault.Clip(text, 128), why).
			Fix("write tls://0.0.0.0:8443, unix:///run/hsmsign/agent.sock or http://127.0.0.1:8080")
	}
	u, err := url.Parse(text)
	if err != nil || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "" {
		return refused("it is not an address")
	}
	a := Address{Kind: u.Scheme, Host: u.Hostname()}
	switch a.Kind {
	case authn.Unix:
		if a.Path = u.Path; u.Host != "" || !path.IsAbs(a.Path) || path.Clean(a.Path) != a.Path {
			return refused("the path of a Unix socket must be absolute")
		}
		if len(a.Path) > 100 { // of sockaddr_un, 108 on Linux and 104 elsewhere
			return refused("the path is longer than 100 bytes")
		}
		return a, nil
	case authn.TLS, authn.HTTP:
	default:
		return refused("the scheme is not tls, unix or http")
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil || a.Host == "" || u.Path != "" {
		return refused("it needs a host and a port, and nothing else")
	}
	a.Port = uint16(port)
	if a.Kind == authn.HTTP && !isLoopback(a.Host) {
		return refused("HTTP without TLS is for loopback addresses")
	}
	return a, nil
}

// isLoopback returns whether a host is an address of this machine that no other machine reaches.
func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// String returns the address as ParseAddress reads it.
func (a Address) String() string {
	u := url.URL{Scheme: a.Kind, Path: a.Path}
	if a.Kind != authn.Unix {
		u.Host = a.hostPort()
	}
	return u.String()
}

func (a Address) hostPort() string { return net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port))) }

// allowedHosts returns the hosts that a request may name: those of the addresses, those of this machine's loopback, and more.
func allowedHosts(addresses []Address, more ...string) map[string]bool {
	hosts := map[string]bool{"localhost": true, "127.0.0.1": true, "::1": true}
	for _, a := range addresses {
		hosts[strings.ToLower(a.Host)] = true
	}
	for _, name := range more {
		hosts[strings.ToLower(name)] = true
	}
	delete(hosts, "")
	return hosts
}

// ownNames returns the hosts that are not those of every machine: loopback addresses and "any address".
func ownNames(hosts map[string]bool) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(hosts)), func(host string) bool {
		ip, err := netip.ParseAddr(host)
		return isLoopback(host) || err == nil && ip.IsUnspecified()
	})
}

// Hosts returns the hosts that requests may name, sorted; more are those of the configuration.
func Hosts(listen []Address, t *TLS, more []string) []string {
	return slices.Sorted(maps.Keys(allowedHosts(listen, append(t.hosts(), more...)...)))
}

// hostOf returns the host of a Host header without its port, in lower case.
func hostOf(header string) string {
	host := header
	if h, _, err := net.SplitHostPort(header); err == nil {
		host = h
	}
	return strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
}
