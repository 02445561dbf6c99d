package gcpkms

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/gcpkms/gcpkmstest"
)

const accessToken = "ya29.an-access-token"

// outside returns an address of this machine that is not loopback.
func outside(t *testing.T) net.IP {
	t.Helper()
	addrs := testkit.Value(net.InterfaceAddrs())(t)
	for _, addr := range addrs {
		if n, ok := addr.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.To4()
		}
	}
	t.Skip("this machine has no address but loopback")
	return nil
}

// certificate returns a self-signed certificate for ip, and a file that contains it.
func certificate(t *testing.T, ip net.IP) (tls.Certificate, string) {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "double"}, IPAddresses: []net.IP{ip},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	private := testkit.GoldenKey(t)
	der := testkit.Value(x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private))(t)
	path := filepath.Join(t.TempDir(), "roots.pem")
	testkit.OK(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}, path
}

// metadataServer is the part of Google's metadata server that issues tokens, for virtual machines and for pods with a
// workload identity.
func metadataServer(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Metadata-Flavor", "Google")
		if strings.HasSuffix(r.URL.Path, "/token") {
			w.Header().Set("Content-Type", "application/json")
			_, _ = fmt.Fprintf(w, `{"access_token":%q,"expires_in":3599,"token_type":"Bearer"}`, accessToken)
			return
		}
		http.NotFound(w, r)
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// child signs in a separate process and returns its output: Go reads the system's roots, and Google's library the
// environment, once for each process.
func child(t *testing.T, environment ...string) string {
	t.Helper()
	exe := testkit.Value(os.Executable())(t)
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(environment, "HOME="+t.TempDir(), "GCE_METADATA_HOST="+metadataServer(t))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// childVariable is the variable with the reference of the key that a child signs with.
const childVariable = "HSMSIGN_TEST_CHILD"

func TestMain(m *testing.M) {
	text := os.Getenv(childVariable)
	if text == "" {
		os.Exit(m.Run())
	}
	ref, err := signer.ParseRef(text)
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	key, err := Backend(Options{Warn: func(m string) { fmt.Println("warning:", m) }}).Open(ctx, ref, signer.OpenOptions{})
	if err == nil {
		_, err = signer.Sign(ctx, key, []byte("message"), crypto.SHA256)
		err = errors.Join(err, key.Close())
	}
	fmt.Println("result:", err)
}

// TestThroughTLS: requests to an address that is not loopback use TLS and the token of the metadata server, and the user
// is warned.
func TestThroughTLS(t *testing.T) {
	ip := outside(t)
	pair, roots := certificate(t, ip)
	_, reference := start(t, gcpkmstest.Config{Listen: net.JoinHostPort(ip.String(), "0"), Token: accessToken, TLS: &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}})
	out := child(t, childVariable+"="+reference, "SSL_CERT_FILE="+roots, "GOOGLE_SDK_GO_LOGGING_LEVEL=debug",
		"GRPC_GO_LOG_SEVERITY_LEVEL=info", "GRPC_GO_LOG_VERBOSITY_LEVEL=99")
	if strings.Contains(out, accessToken) {
		t.Errorf("the output contains the access token:\n%s", out)
	}
	if !strings.Contains(out, "result: <nil>") {
		t.Error(out)
	}
	if !strings.Contains(out, "warning: endpoint") {
		t.Errorf("no warning:\n%s", out)
	}
	// The same with roots that do not know the server.
	out = child(t, childVariable+"="+reference+"&timeout=1s", "SSL_CERT_FILE=/dev/null", "SSL_CERT_DIR=/dev/null")
	if !strings.Contains(out, signer.ErrUnavailable.Error()) || !strings.Contains(out, "certificate") {
		t.Error(out)
	}
}

// TestNoPlainTextOutside: a peer without TLS receives neither the token nor a request, only the beginning of a handshake.
func TestNoPlainTextOutside(t *testing.T) {
	listener := testkit.Value(net.Listen("tcp", net.JoinHostPort(outside(t).String(), "0")))(t)
	received := make(chan []byte, 100)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				close(received)
				return
			}
			_ = conn.SetDeadline(time.Now().Add(500 * time.Millisecond))
			said, _ := io.ReadAll(io.LimitReader(conn, 1<<16))
			received <- said
			_ = conn.Close()
		}
	}()
	out := child(t, childVariable+"=gcpkms://"+vendorOne+"?timeout=1s&endpoint="+listener.Addr().String())
	_ = listener.Close()
	if !strings.Contains(out, signer.ErrUnavailable.Error()) {
		t.Error(out)
	}
	var all [][]byte
	for said := range received {
		all = append(all, said)
	}
	if len(all) == 0 {
		t.Fatal("nobody called")
	}
	if slices.ContainsFunc(all, func(said []byte) bool {
		return !bytes.HasPrefix(said, []byte{22, 3}) || bytes.Contains(said, []byte(accessToken)) // 22: handshake, RFC 8446 section 5.1
	}) {
		t.Errorf("received %q", all)
	}
}
