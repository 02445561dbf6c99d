package watch

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// certificate returns a self-signed certificate that expires at a time.
func certificate(t *testing.T, notAfter time.Time) tls.Certificate {
	t.Helper()
	key := testkit.Key("watched")
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "watched"}, NotBefore: notAfter.AddDate(-1, 0, 0), NotAfter: notAfter}
	der := testkit.Value(x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key))(t)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// serve accepts connections on loopback and hands each to do; it returns the address and the number of connections.
func serve(t *testing.T, do func(net.Conn)) (string, *atomic.Int64) {
	t.Helper()
	listener := testkit.Value(net.Listen("tcp", "127.0.0.1:0"))(t)
	count, done := &atomic.Int64{}, make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			count.Add(1)
			do(conn)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		_ = listener.Close()
		<-done
	})
	return listener.Addr().String(), count
}

func serveTLS(t *testing.T, config *tls.Config) string {
	address, _ := serve(t, func(conn net.Conn) {
		server := tls.Server(conn, config)
		_ = server.SetDeadline(time.Now().Add(5 * time.Second))
		_ = server.HandshakeContext(context.Background()) // which may fail
	})
	return address
}

func TestParse(t *testing.T) {
	here := testkit.Value(os.Getwd())(t)
	for _, tt := range []struct {
		text, want string
		err        error
	}{
		{"apns.pem", filepath.Join(here, "apns.pem"), nil},
		{"/etc/x/../a.pem", "/etc/a.pem", nil},
		{"./host:443", filepath.Join(here, "host:443"), nil},
		{"MDM.example.com:8443", "mdm.example.com:8443", nil},
		{"https://Push.Example.com/path?x", "push.example.com:443", nil},
		{"https://127.0.0.1:8443", "127.0.0.1:8443", nil},
		{"[::1]:443", "[::1]:443", nil},
		{"host:0", filepath.Join(here, "host:0"), nil},
		{"", "", ErrTarget},
		{"a\nb", "", ErrTarget},
		{strings.Repeat("x", 1025), "", ErrTarget},
		{"http://a.example", "", ErrTarget},
		{"https://user:secret@a.example", "", ErrTarget},
		{"https://", "", ErrTarget},
		{"-a.example:443", "", ErrTarget},
		{"a..b:443", "", ErrTarget},
		{"169.254.169.254:80", "", ErrAddress},
		{"https://[fe80::1%25eth0]/", "", ErrAddress},
	} {
		target, err := Parse(tt.text)
		if !errors.Is(err, tt.err) || err == nil && target.String() != tt.want {
			t.Errorf("%q: %q, %v", tt.text, target, err)
		}
		if err != nil && fault.Hint(err) == "" {
			t.Errorf("%q: no hint", tt.text)
		}
		if err == nil { // the text of a target is the target
			if again, err := Parse(target.String()); err == nil && again != target && tt.text != "./host:443" && tt.text != "host:0" {
				t.Errorf("%q is read as %q", target, again)
			}
		}
	}
}

func TestAddresses(t *testing.T) {
	for text, allowed := range map[string]bool{
		"127.0.0.1": true, "10.0.0.1": true, "::1": true, "2001:db8::1": true, "fd00::1": true, "64:ff9b::a00:1": true,
		"169.254.169.254": false, "169.254.0.1": false, "::ffff:169.254.169.254": false, "64:ff9b::a9fe:a9fe": false, "fe80::1": false, "febf::1": false,
		"fd00:ec2::254": false, "fd20:ce::254": false, "100.100.100.200": false, "168.63.129.16": false, "192.0.0.192": false,
		"224.0.0.1": false, "ff02::1": false, "0.0.0.0": false, "::": false, "255.255.255.255": false,
	} {
		if err := checkAddress(netip.MustParseAddr(text)); (err == nil) != allowed {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestRead(t *testing.T) {
	old := certificate(t, time.Now().AddDate(-1, 0, 0).UTC().Truncate(time.Second))
	dir := t.TempDir()
	file := filepath.Join(dir, "old.pem")
	testkit.OK(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: old.Certificate[0]}), 0o600))
	testkit.OK(t, os.WriteFile(filepath.Join(dir, "x.pem"), []byte("x"), 0o600))
	plain, _ := serve(t, func(conn net.Conn) { _, _ = conn.Write([]byte("SSH-2.0-x\r\n")) })
	closed := testkit.Value(net.Listen("tcp", "127.0.0.1:0"))(t)
	testkit.OK(t, closed.Close())
	for _, tt := range []struct {
		name, target string
		kind         fault.Kind // None: the chain is read
	}{
		{"an expired one", serveTLS(t, &tls.Config{Certificates: []tls.Certificate{old}}), fault.None},
		{"a server that wants a certificate", serveTLS(t, &tls.Config{Certificates: []tls.Certificate{old}, ClientAuth: tls.RequireAnyClientCert, MaxVersion: tls.VersionTLS12}), fault.None},
		{"an old server", serveTLS(t, &tls.Config{Certificates: []tls.Certificate{old}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10}), fault.None},
		{"a file", file, fault.None},
		{"not TLS", plain, fault.Unavailable},
		{"nobody", closed.Addr().String(), fault.Unavailable},
		{"no file", filepath.Join(dir, "none.pem"), fault.Refused},
		{"a folder", dir, fault.Refused},
		{"no certificate", filepath.Join(dir, "x.pem"), fault.Refused},
	} {
		result := Read(t.Context(), []Target{testkit.Value(Parse(tt.target))(t)})[0]
		if tt.kind == fault.None {
			if result.Err != nil || len(result.Certs) != 1 || !result.Certs[0].Equal(testkit.Value(x509.ParseCertificate(old.Certificate[0]))(t)) {
				t.Errorf("%s: %d certificates, %v", tt.name, len(result.Certs), result.Err)
			}
		} else if kind := fault.KindOf(result.Err); kind != tt.kind || result.Certs != nil {
			t.Errorf("%s: %v, %v", tt.name, fault.KindOf(result.Err), result.Err)
		}
	}
}

// A silent server costs its time limit, several at once; too many targets are refused.
func TestReadIsBounded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	silent, count := serve(t, func(net.Conn) { <-ctx.Done() })
	target := testkit.Value(Parse(silent))(t)
	began := time.Now()
	results := Read(t.Context(), []Target{target, target, target, target})
	cancel()
	if took := time.Since(began); took < timeout || took > 2*timeout || count.Load() < 1 {
		t.Errorf("took %v, %d connections", took, count.Load())
	}
	for _, r := range results {
		if fault.KindOf(r.Err) != fault.Unavailable {
			t.Errorf("%v", r.Err)
		}
	}
	ended, end := context.WithCancel(t.Context())
	end()
	results = Read(ended, make([]Target, MaxTargets+1))
	if last := results[MaxTargets]; fault.KindOf(last.Err) != fault.Usage || results[0].Err == nil {
		t.Errorf("%v, %v", last.Err, results[0].Err)
	}
}

// A name that resolves to an address of the metadata service is not connected to, whatever it resolved to before.
func TestRebinding(t *testing.T) {
	address := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{certificate(t, time.Now())}})
	_, port, _ := net.SplitHostPort(address)
	server := &dnsServer{answers: []string{"127.0.0.1", "169.254.169.254"}}
	resolver := server.start(t)
	target := testkit.Value(Parse("rebound.example.com:" + port))(t)
	first := read(t.Context(), []Target{target}, resolver)[0]
	if first.Err != nil || len(first.Certs) != 1 {
		t.Fatalf("before: %v", first.Err)
	}
	second := read(t.Context(), []Target{target}, resolver)[0]
	if !errors.Is(second.Err, ErrAddress) || second.Certs != nil {
		t.Errorf("after: %v", second.Err)
	}
}

// dnsServer answers the queries for A records with one address after the other.
type dnsServer struct{ answers []string }

func (s *dnsServer) start(t *testing.T) *net.Resolver {
	t.Helper()
	conn := testkit.Value(net.ListenPacket("udp", "127.0.0.1:0"))(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			if answer := s.answer(buffer[:n]); answer != nil {
				_, _ = conn.WriteTo(answer, from)
			}
		}
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		<-done
	})
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

func (s *dnsServer) answer(query []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	m.Response, m.Authoritative, m.Additionals = true, true, nil
	if q.Type == dnsmessage.TypeA && len(s.answers) > 0 {
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class}, Body: &dnsmessage.AResource{A: netip.MustParseAddr(s.answers[0]).As4()},
		}}
		s.answers = s.answers[1:]
	}
	packed, err := m.Pack()
	if err != nil {
		return nil
	}
	return packed
}
