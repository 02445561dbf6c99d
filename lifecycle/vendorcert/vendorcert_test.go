package vendorcert

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/lifecycle/certreq"
	"hsmsign/signer"
	"hsmsign/testpki"
)

// world is a test authority with two keys.
type world struct {
	*testpki.Authority
	key, other *rsa.PrivateKey
}

var begin = time.Now().AddDate(-2, 0, 0)

func newWorld() world {
	return world{testkit.Authority(begin), testkit.Key("vendor"), testkit.Key("other")}
}

var subject = certreq.Subject{Email: "mdm@example.com", CommonName: "Example MDM", Organization: "Exämple", Country: "US"}

func csrOf(key crypto.Signer) *x509.CertificateRequest {
	der := testkit.Must(CreateCSR(context.Background(), testkit.NewSigner(key), subject))
	return testkit.Must(x509.ParseCertificateRequest(der))
}

// issue returns a vendor certificate for the key.
func (w world) issue(key crypto.Signer) *x509.Certificate {
	return testkit.Must(w.IssueVendor(csrOf(key), testpki.VendorOptions{}))
}

// CreateCSR returns certreq's CSR, for keys that the portal accepts.
func TestCreateCSR(t *testing.T) {
	w := newWorld()
	want := testkit.Must(certreq.Create(t.Context(), testkit.NewSigner(w.key), subject))
	if got, err := CreateCSR(t.Context(), testkit.NewSigner(w.key), subject); err != nil || !bytes.Equal(got, want) {
		t.Errorf("not the CSR of certreq: %v", err)
	}
	for want, key := range map[string]crypto.Signer{"RSA of 3072 bits": testkit.KeyOf(3072, "big"), "*ecdsa.PublicKey": testkit.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))} {
		der, err := CreateCSR(t.Context(), testkit.NewSigner(key), subject)
		if der != nil || !errors.Is(err, signer.ErrBadKey) || !strings.Contains(err.Error(), want) || !strings.Contains(fault.Hint(err), "--bits 2048") {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestImport(t *testing.T) {
	w := newWorld()
	roots := []*x509.Certificate{w.Root}
	issuers := []*x509.Certificate{w.WWDR, w.Root}
	vendor := w.issue(w.key)
	csr := csrOf(w.key)
	pemOf := func(label string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der}) }
	for _, tt := range []struct {
		name  string
		file  []byte
		extra []*x509.Certificate
		id    string // of the refusal; "": none
		want  string
	}{
		{"DER", vendor.Raw, issuers, "", ""},
		{"PEM", pemOf("CERTIFICATE", vendor.Raw), issuers, "", ""},
		{"whole chain", []byte(chain.PEM([]*x509.Certificate{w.Root, vendor, w.WWDR})), nil, "", ""},
		{"the CSR, PEM", certreq.EncodePEM(csr.Raw), issuers, "chain.csr", "this is the CSR for Apple; vendor import needs the certificate mdm.cer that Apple issues for it"},
		{"the CSR, DER", csr.Raw, issuers, "chain.csr", "this is the CSR for Apple"},
		{"the CSR, older label", append([]byte("text\n"), pemOf("NEW CERTIFICATE REQUEST", csr.Raw)...), issuers, "chain.csr", "this is the CSR for Apple"},
		{"another CSR", certreq.EncodePEM(csrOf(w.other).Raw), issuers, "chain.csr", "this is a CSR of another key"},
		{"damaged CSR", pemOf("CERTIFICATE REQUEST", csr.Raw[:100]), issuers, "chain.unreadable", ""},
		{"another key's", w.issue(w.other).Raw, issuers, "chain.key-mismatch", ""},
		{"no issuers", vendor.Raw, nil, "chain.missing-intermediate", ""},
	} {
		// Apple issued none of these, so Import does not ask the server.
		fetch := &chain.FetchOptions{BaseURL: "https://127.0.0.1:9"}
		c, err := Import(t.Context(), testkit.NewSigner(w.key), tt.file, ImportOptions{Extra: tt.extra, TrustRoots: roots, Fetch: fetch})
		if testkit.FindingID(err) != tt.id || (err == nil) != (tt.id == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %s %q", tt.name, err, tt.id, tt.want)
		} else if err == nil && !cmp.Equal([][]byte{vendor.Raw, w.WWDR.Raw, w.Root.Raw}, c.Raw()) {
			t.Errorf("%s: another chain: %v", tt.name, c.Certs)
		}
	}
}

// Certificate and public key match, but another key signs.
func TestProve(t *testing.T) {
	w := newWorld()
	cert := w.issue(w.key)
	if err := Prove(t.Context(), &testkit.Signer{Signer: w.other, Other: w.key.Public()}, cert); !errors.Is(err, signer.ErrBadSignature) {
		t.Errorf("another key signs: %v", err)
	}
	if err := Prove(t.Context(), testkit.NewSigner(w.other), cert); testkit.FindingID(err) != "chain.key-mismatch" {
		t.Errorf("another key: %v", err)
	}
	_, err := Import(t.Context(), &testkit.Signer{Signer: w.other, Other: w.key.Public()}, cert.Raw, ImportOptions{Extra: []*x509.Certificate{w.WWDR}, TrustRoots: []*x509.Certificate{w.Root}})
	if !errors.Is(err, signer.ErrBadSignature) {
		t.Errorf("import with another key signs: %v", err)
	}
}

// appleLike returns a certificate that names one of Apple's as its issuer, without its signature.
func appleLike(key *rsa.PrivateKey, name string) *x509.Certificate {
	i := slices.IndexFunc(chain.Pins(), func(p chain.Pin) bool { return p.Name == name })
	pin := chain.Pins()[i]
	issuer := &x509.Certificate{
		Subject:      pkix.Name{CommonName: pin.Subject, OrganizationalUnit: []string{pin.Unit}},
		SubjectKeyId: testkit.Must(hex.DecodeString(pin.KeyID)),
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "MDM Vendor: Example"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
	}
	return testkit.Must(x509.ParseCertificate(testkit.Must(x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), key))))
}

// Import fetches the missing certificates, up to the root. The pins are those of a test PKI, because only Apple can issue a
// vendor certificate below its own.
func TestImportFetches(t *testing.T) {
	w := newWorld()
	vendor := w.issue(w.key)
	var pins []chain.Pin
	files := map[string][]byte{}
	for _, cert := range []*x509.Certificate{w.Integration, w.Root, w.WWDR} {
		sum := sha256.Sum256(cert.Raw)
		pins = append(pins, chain.Pin{
			Name: cert.Subject.CommonName, File: hex.EncodeToString(cert.SubjectKeyId) + ".cer", SHA256: hex.EncodeToString(sum[:]),
			Subject: cert.Subject.CommonName, KeyID: hex.EncodeToString(cert.SubjectKeyId), Root: cert == w.Root,
		})
		files["/"+pins[len(pins)-1].File] = cert.Raw
	}
	var asked []string
	server := httptest.NewTLSServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Path)
		_, _ = out.Write(files[r.URL.Path])
	}))
	defer server.Close()
	c, err := Import(t.Context(), testkit.NewSigner(w.key), vendor.Raw, ImportOptions{
		TrustRoots: []*x509.Certificate{w.Root}, Fetch: &chain.FetchOptions{BaseURL: server.URL, Client: server.Client(), Pins: pins},
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([][]byte{vendor.Raw, w.WWDR.Raw, w.Root.Raw}, c.Raw()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if diff := cmp.Diff([]string{"/" + pins[2].File, "/" + pins[1].File}, asked); diff != "" {
		t.Errorf("-want +asked:\n%s", diff)
	}
}

// Apple's root names itself as its issuer; Import fetches it once.
func TestImportFetchesRootOnce(t *testing.T) {
	wwdr, root := testkit.Apple(t, "AppleWWDRCAG3.cer"), testkit.Apple(t, "AppleIncRootCertificate.cer")
	var asked []string
	server := httptest.NewTLSServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Path)
		_, _ = out.Write(map[string][]byte{"/AppleWWDRCAG3.cer": wwdr.Raw, "/AppleIncRootCertificate.cer": root.Raw}[r.URL.Path])
	}))
	defer server.Close()
	fetch := &chain.FetchOptions{BaseURL: server.URL, Client: server.Client()}
	key := newWorld().key
	if _, err := Import(t.Context(), testkit.NewSigner(key), appleLike(key, "WWDR G3").Raw, ImportOptions{Fetch: fetch}); testkit.FindingID(err) == "" {
		t.Errorf("%v, want a finding: Apple did not issue the certificate", err)
	}
	if diff := cmp.Diff([]string{"/AppleWWDRCAG3.cer", "/AppleIncRootCertificate.cer"}, asked); diff != "" {
		t.Errorf("-want +asked:\n%s", diff)
	}
}

// Import refuses other bytes than Apple's, fetches nothing without FetchOptions, and does not ask for the expired WWDR G1.
func TestImportFetchPinned(t *testing.T) {
	w := newWorld()
	server := httptest.NewTLSServer(http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) { _, _ = out.Write(w.WWDR.Raw) }))
	defer server.Close()
	fetch := &chain.FetchOptions{BaseURL: server.URL, Client: server.Client()}
	_, err := Import(t.Context(), testkit.NewSigner(w.key), appleLike(w.key, "WWDR G3").Raw, ImportOptions{Fetch: fetch})
	if !errors.Is(err, chain.ErrPin) {
		t.Errorf("other bytes: %v", err)
	}
	for issuer, options := range map[string]ImportOptions{"WWDR G3": {}, "WWDR G1": {Fetch: fetch}} {
		_, err := Import(t.Context(), testkit.NewSigner(w.key), appleLike(w.key, issuer).Raw, options)
		if testkit.FindingID(err) != "chain.missing-intermediate" {
			t.Errorf("%s: %v", issuer, err)
		}
	}
}
