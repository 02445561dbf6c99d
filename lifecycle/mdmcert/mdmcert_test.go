package mdmcert

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
)

// ParseOrder decodes what Send sends, and Send reads Success and Failure.
func TestRoundTrip(t *testing.T) {
	order := Order{CSR: []byte("der of a csr"), Email: "mdm@acme.example", EncryptFor: recipient(private()).Raw}
	answer := Success()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got, key, err := ParseOrder(testkit.Must(io.ReadAll(r.Body)))
		want := order
		want.CSR = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: order.CSR})
		if diff := cmp.Diff(&want, got); err != nil || diff != "" || key != apiKey || r.Method != http.MethodPost || r.URL.Path != "/api/v1/signrequest" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s: %v, key %q\n%s", r.Method, r.URL, err, key, diff)
		}
		_, _ = w.Write(answer)
	}))
	defer server.Close()
	service := Service{Address: server.URL + "/", APIKey: apiKey}
	if err := service.Send(t.Context(), order); err != nil {
		t.Error(err)
	}
	answer = Failure("first line\nsecond " + strings.Repeat("x", 1000))
	if err := service.Send(t.Context(), order); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), `"first line second xxx`) || len(answer) > 250 {
		t.Errorf("refused: %v", err)
	}
}

// The bodies are those of mdmcert.download.
func TestAnswers(t *testing.T) {
	got := string(Success()) + string(Failure("unknown <key>"))
	if got != `{"result":"success"}{"result":"failure","reason":"unknown \u003ckey\u003e"}` {
		t.Error(got)
	}
}

func TestParseOrder(t *testing.T) {
	b64 := base64.StdEncoding.EncodeToString
	pemOf := func(der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}) }
	cert := func(key any, signer any) string {
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}}
		return b64(testkit.Must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, key, signer)))
	}
	small, ec := testkit.KeyOf(1024, "small"), testkit.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	good := map[string]any{"csr": b64([]byte("csr")), "email": "mdm@acme.example", "key": apiKey, "encrypt": b64(recipient(private()).Raw)}
	for _, tt := range []struct {
		name, field string
		value       any
		want        string // in the error; "": accepted
	}{
		{"DER certificate", "key", "", ""},
		{"unknown field", "client", "x", ""},
		{"wrapped base64", "csr", "Y3\r\nNy", ""},
		{"no CSR", "csr", "", "csr is not base64"},
		{"CSR in PEM", "csr", "-----BEGIN", "csr is not base64"},
		{"CSR with bits after the last byte", "csr", "Y3N=", "csr is not base64"},
		{"certificate with bits after the last byte", "encrypt", "TUl=", "encrypt is not base64"},
		{"PEM certificate", "encrypt", b64(pemOf(recipient(private()).Raw)), ""},
		{"PEM certificate, cut", "encrypt", b64(pemOf(recipient(private()).Raw)[:300]), "encrypt is not a certificate"},
		{"PEM certificate with bits after the last byte", "encrypt", b64([]byte("-----BEGIN CERTIFICATE-----\nTUl=\n-----END CERTIFICATE-----\n")), "encrypt is not a certificate"},
		{"a number", "csr", 5, "not a JSON object"},
		{"no email", "email", "", "email is not"},
		{"two emails", "email", "a@b.c, d@e.f", "email is not"},
		{"email with a name", "email", "A <a@b.c>", "email is not"},
		{"email in brackets", "email", "<a@b.c>", "email is not"},
		{"email with a line", "email", "a@b.c\nBcc: d@e.f", "email is not"},
		{"email in Unicode", "email", "ü@b.c", "email is not"},
		{"long email", "email", strings.Repeat("a", 252) + "@b.c", "email is not"},
		{"no certificate", "encrypt", "", "encrypt is not a certificate"},
		{"certificate in PEM", "encrypt", "-----BEGIN", "encrypt is not base64"},
		{"small key", "encrypt", cert(&small.PublicKey, small), "no RSA key of 2048 to 8192 bits"},
		{"EC key", "encrypt", cert(&ec.PublicKey, ec), "no RSA key of 2048 to 8192 bits"},
		{"large", "email", strings.Repeat("a", MaxOrder), "larger than 262144 bytes"},
	} {
		fields := maps.Clone(good)
		fields[tt.field] = tt.value
		order, key, err := ParseOrder(testkit.Must(json.Marshal(fields)))
		switch {
		case tt.want == "":
			if err != nil || string(order.CSR) != "csr" || key != fields["key"] {
				t.Errorf("%s: %+v, %v", tt.name, order, err)
			}
		case order != nil || key != "" || !errors.Is(err, ErrOrder) || !strings.Contains(err.Error(), tt.want) || fault.Hint(err) == "":
			t.Errorf("%s: %v, want %q and a hint", tt.name, err, tt.want)
		}
	}
	for _, body := range []string{"", "[]", "{} {}", "<html>"} {
		if _, _, err := ParseOrder([]byte(body)); !errors.Is(err, ErrOrder) {
			t.Errorf("%q: %v", body, err)
		}
	}
	if _, _, err := ParseOrder(make([]byte, MaxOrder+1)); fault.KindOf(err) != fault.TooLarge {
		t.Errorf("too large: %v", err)
	}
}
