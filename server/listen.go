package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"

	"hsmsign/fault"
	"hsmsign/server/authn"
)

// listener is an open listener and its kind.
type listener struct {
	net.Listener
	kind string
}

// socketMode: the socket is for its owner and its group.
const socketMode fs.FileMode = 0o660

// listen opens every address. It uses the sockets that systemd passed for the addresses that they have; a passed socket of
// another address is an error.
func listen(ctx context.Context, addresses []Address) (all []listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range all {
				_ = l.Close() // the first error is reported
			}
			all = nil
		}
	}()
	passed, err := activation.Listeners()
	if err != nil {
		return nil, fault.Usage.Errorf("sockets of systemd: %w", err)
	}
	for _, a := range addresses {
		l := take(passed, a)
		if l == nil {
			if l, err = a.open(ctx); err != nil {
				return all, fault.Usage.Errorf("listen: %s: %w", a, err).Fix(listenFix(err))
			}
		}
		all = append(all, listener{l, a.Kind})
	}
	for _, l := range passed {
		if l != nil {
			return all, fault.Usage.Errorf("systemd passed a socket of %s, which is not in listen", l.Addr()).Fix("write the same addresses in the .socket unit and in listen")
		}
	}
	return all, nil
}

func listenFix(err error) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return "end the other program, or choose another address"
	case errors.Is(err, fs.ErrNotExist):
		return "make the folder of the socket first (systemd: RuntimeDirectory=hsmsign)"
	case errors.Is(err, fs.ErrPermission):
		return "choose a port above 1023, or a folder that this user can write to"
	}
	return "check the address"
}

// take removes the passed socket of an address from the list; nil: there is none.
func take(passed []net.Listener, a Address) net.Listener {
	for i, l := range passed {
		if l == nil {
			continue
		}
		same := false
		switch addr := l.Addr().(type) {
		case *net.UnixAddr:
			same = a.Kind == authn.Unix && addr.Name == a.Path
		case *net.TCPAddr:
			ip, err := netip.ParseAddr(a.Host)
			same = a.Kind != authn.Unix && int(a.Port) == addr.Port && (err != nil || ip.IsUnspecified() == addr.IP.IsUnspecified() && (ip.IsUnspecified() || addr.IP.Equal(ip.AsSlice())))
		}
		if same {
			passed[i] = nil
			return l
		}
	}
	return nil
}

// open listens at an address. A Unix socket that nobody listens on is replaced.
func (a Address) open(ctx context.Context) (net.Listener, error) {
	var config net.ListenConfig
	if a.Kind != authn.Unix {
		return config.Listen(ctx, "tcp", a.hostPort())
	}
	if info, err := os.Lstat(a.Path); err == nil {
		if info.Mode().Type() != fs.ModeSocket {
			return nil, errors.New("there is a file that is not a socket")
		}
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", a.Path)
		if err == nil {
			_ = conn.Close() // it was only to know
			return nil, syscall.EADDRINUSE
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, err
		}
		if err := os.Remove(a.Path); err != nil {
			return nil, err
		}
	}
	config.Control = restrict // nobody else may connect, not even before the mode is set
	l, err := config.Listen(ctx, "unix", a.Path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(a.Path, socketMode); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// tlsConfig returns the configuration of the TLS listeners. Each handshake uses the certificate of the newest state, and
// whether a client certificate is accepted is asked at each request: resumed sessions and old connections have no privilege.
func (s *Server) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		ClientAuth:             tls.RequestClientCert,
		SessionTicketsDisabled: true,
		NextProtos:             []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			if t := s.state.Load().TLS; t != nil {
				return &t.Certificate, nil
			}
			return nil, errors.New("there is no certificate")
		},
	}
}

// certificateHosts returns the names of the server's certificate.
func (t *TLS) hosts() (names []string) {
	if t == nil || t.Certificate.Leaf == nil {
		return nil
	}
	for _, name := range t.Certificate.Leaf.DNSNames {
		if !strings.HasPrefix(name, "*.") {
			names = append(names, name)
		}
	}
	for _, ip := range t.Certificate.Leaf.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}

func describe(l listener) string { return fmt.Sprintf("%s on %s", l.kind, l.Addr()) }
