package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"hsmsign/agent"
	"hsmsign/chain"
	"hsmsign/keystore"
	"hsmsign/request"
	"hsmsign/testpki"
)

// cmdMDMCert: mdmcert starts a service of the kind of mdmcert.download; $MDMCERT is its address. It signs with the golden
// vendor key, encrypts with OpenSSL, and "mails" to the file mail.p7. Below $MDMCERT/redirect, /broken, /garbage and
// /silent it behaves so. Its API key is "product-key".
func cmdMDMCert(ts *testscript.TestScript, _ bool, _ []string) {
	service := &mdmcertService{mail: ts.MkAbs("mail.p7"), silent: make(chan struct{})}
	store := keystore.New(keystore.Options{})
	key, err := store.Parse("file:" + ts.MkAbs("vendor.key"))
	ts.Check(err)
	service.vendor, err = agent.NewVendor(context.Background(), agent.Config{
		Key: key, Certificates: agent.CertificateFiles(store, ts.MkAbs("chain.pem"), nil, []string{ts.MkAbs("root.pem")}),
	})
	ts.Check(err)
	server := httptest.NewServer(service)
	ts.Defer(server.Close)
	ts.Defer(func() { close(service.silent) })
	ts.Setenv("MDMCERT", server.URL)
}

type mdmcertService struct {
	mail   string
	vendor *agent.Vendor
	silent chan struct{}
}

func (s *mdmcertService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch strings.TrimSuffix(r.URL.Path, "/api/v1/signrequest") {
	case "/redirect":
		http.Redirect(w, r, "http://mdm.example/", http.StatusTemporaryRedirect)
	case "/broken":
		http.Error(w, "database is down", http.StatusInternalServerError)
	case "/garbage":
		_, _ = io.WriteString(w, "<html>hello</html>")
	case "/silent":
		<-s.silent
	case "":
		answer := map[string]string{"result": "success"}
		if err := s.take(r); err != nil {
			answer = map[string]string{"result": "failure", "reason": err.Error()}
		}
		_ = json.NewEncoder(w).Encode(answer)
	default:
		http.NotFound(w, r)
	}
}

// refusal is a reason that the service gives.
type refusal string

func (r refusal) Error() string { return string(r) }

// take signs, encrypts and mails.
func (s *mdmcertService) take(r *http.Request) error {
	var order struct{ CSR, Email, Key, Encrypt string }
	if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&order); err != nil {
		return err
	}
	if order.Key != "product-key" {
		return refusal("Invalid API key " + order.Key)
	}
	if !strings.HasSuffix(order.Email, "@acme.example") {
		return refusal("Invalid email address. Have you registered yet?")
	}
	csr, err := base64.StdEncoding.DecodeString(order.CSR)
	if err != nil {
		return err
	}
	cert, err := base64.StdEncoding.DecodeString(order.Encrypt)
	if err != nil {
		return err
	}
	if block, _ := pem.Decode(cert); block == nil || block.Type != "CERTIFICATE" {
		return refusal("no PEM certificate to encrypt to")
	}
	prepared, err := s.vendor.Prepare(r.Context(), agent.Caller{}, agent.Order{CSR: csr})
	if err != nil {
		return err
	}
	issued, err := s.vendor.Issue(r.Context(), prepared)
	if err != nil {
		return err
	}
	return s.send(issued.Request, cert)
}

func (s *mdmcertService) send(text, cert []byte) error {
	certFile := s.mail + ".cert"
	if err := os.WriteFile(certFile, cert, 0o600); err != nil {
		return err
	}
	defer os.Remove(certFile)
	cmd := exec.Command("openssl", "cms", "-encrypt", "-binary", "-aes-256-cbc", "-outform", "DER", certFile)
	cmd.Stdin = bytes.NewReader(text)
	der, err := cmd.Output()
	if err != nil {
		return err
	}
	if err := os.WriteFile(strings.TrimSuffix(s.mail, ".p7")+".der", der, 0o600); err != nil { // for OpenSSL's opinion
		return err
	}
	var lines bytes.Buffer
	for len(der) > 0 {
		n := min(len(der), 39)
		lines.WriteString(hex.EncodeToString(der[:n]) + "\n")
		der = der[n:]
	}
	return os.WriteFile(s.mail, lines.Bytes(), 0o600)
}

// cmdIssuePush: issuepush KIND CSR OUT issues a push certificate of that kind from the authority in pki, for dates that
// the program would not give.
func cmdIssuePush(ts *testscript.TestScript, _ bool, args []string) {
	now := time.Now()
	kinds := map[string]testpki.PushOptions{
		"expired": {NotBefore: now.AddDate(-1, 0, -2), NotAfter: now.AddDate(0, 0, -2)},
		"soon":    {NotBefore: now.AddDate(-1, 0, 10), NotAfter: now.AddDate(0, 0, 10)},
	}
	opts, ok := kinds[args[0]]
	if !ok {
		ts.Fatalf("unknown kind %q", args[0])
	}
	csr, err := request.ParseCSR([]byte(ts.ReadFile(args[1])))
	ts.Check(err)
	authority, err := testpki.Load(ts.MkAbs("pki"))
	ts.Check(err)
	cert, err := authority.IssuePush(csr.Parsed, opts)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), []byte(chain.PEM([]*x509.Certificate{cert})), 0o600))
}
