package vendorcert

import (
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
	"os"
	"path/filepath"
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

func TestImport(t *testing.T) {
	w := newWorld(t)
	roots := []*x509.Certificate{w.Root}
	issuers := []*x509.Certificate{w.WWDR, w.Root}
	now := time.Now()
	vendor := w.issue(t, w.key, testpki.VendorOptions{})
	csr := csrOf(t, w.key)
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
		{"the CSR, PEM", certreq.EncodePEM(csr.Raw), issuers, "chain.csr", "this is the CSR that was sent to Apple; vendor import wants the certificate mdm.cer that Apple made from it"},
		{"the CSR, DER", csr.Raw, issuers, "chain.csr", "this is the CSR that was sent to Apple"},
		{"the CSR, older label", append([]byte("text\n"), pemOf("NEW CERTIFICATE REQUEST", csr.Raw)...), issuers, "chain.csr", "this is the CSR that was sent to Apple"},
		{"another CSR", certreq.EncodePEM(csrOf(t, w.other).Raw), issuers, "chain.csr", "this is a CSR, and of another key"},
		{"damaged CSR", pemOf("CERTIFICATE REQUEST", csr.Raw[:100]), issuers, "chain.unreadable", ""},
		{"page", []byte("<html>"), issuers, "chain.unreadable", ""},
		{"empty", nil, issuers, "chain.empty", ""},
		{"another key's", w.issue(t, w.other, testpki.VendorOptions{}).Raw, issuers, "chain.key-mismatch", ""},
		{"push certificate", w.issue(t, w.key, testpki.VendorOptions{UID: "com.apple.mgmt.External.6a3f"}).Raw, issuers, "chain.push-certificate", ""},
		{"expired", w.issue(t, w.key, testpki.VendorOptions{NotBefore: now.AddDate(-1, 0, -2), NotAfter: now.AddDate(0, 0, -2)}).Raw, issuers, "chain.expired", ""},
		{"CA", w.issue(t, w.key, testpki.VendorOptions{IsCA: true}).Raw, issuers, "chain.leaf-is-ca", ""},
		{"no issuers", vendor.Raw, nil, "chain.missing-intermediate", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// Apple did not issue any of these, so there is nothing to fetch, and the server is not asked.
			fetch := &chain.FetchOptions{BaseURL: "https://127.0.0.1:9"}
			c, err := Import(t.Context(), testkit.NewSigner(w.key), tt.file, ImportOptions{Extra: tt.extra, TrustRoots: roots, Fetch: fetch})
			if tt.id == "" {
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff([][]byte{vendor.Raw, w.WWDR.Raw, w.Root.Raw}, c.Raw()); diff != "" {
					t.Errorf("-want +got:\n%s", diff)
				}
				return
			}
			var f *fault.Finding
			if !errors.As(err, &f) || f.ID != tt.id || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %s %q", err, tt.id, tt.want)
			}
		})
	}
}

// The certificate and the key's public half agree, and the key signs with another one.
func TestProve(t *testing.T) {
	w := newWorld(t)
	cert := w.issue(t, w.key, testpki.VendorOptions{})
	if err := Prove(t.Context(), testkit.NewSigner(w.key), cert); err != nil {
		t.Error(err)
	}
	if err := Prove(t.Context(), &testkit.Signer{Signer: w.other, Other: w.key.Public()}, cert); !errors.Is(err, signer.ErrBadSignature) {
		t.Errorf("a key that lies: %v", err)
	}
	var f *fault.Finding
	if err := Prove(t.Context(), testkit.NewSigner(w.other), cert); !errors.As(err, &f) || f.ID != "chain.key-mismatch" {
		t.Errorf("another key: %v", err)
	}
	file := cert.Raw
	_, err := Import(t.Context(), &testkit.Signer{Signer: w.other, Other: w.key.Public()}, file, ImportOptions{Extra: []*x509.Certificate{w.WWDR}, TrustRoots: []*x509.Certificate{w.Root}})
	if !errors.Is(err, signer.ErrBadSignature) {
		t.Errorf("import with a key that lies: %v", err)
	}
}

// wwdr has what a certificate says of its issuer, one of Apple's.
func wwdr(t *testing.T, name string) *x509.Certificate {
	t.Helper()
	i := slices.IndexFunc(chain.Pins(), func(p chain.Pin) bool { return p.Name == name })
	pin := chain.Pins()[i]
	id, err := hex.DecodeString(pin.KeyID)
	if err != nil {
		t.Fatal(err)
	}
	return &x509.Certificate{Subject: pkix.Name{CommonName: pin.Subject, OrganizationalUnit: []string{pin.Unit}}, SubjectKeyId: id}
}

// appleLike is a certificate that says one of Apple's issued it.
func appleLike(t *testing.T, key *rsa.PrivateKey, issuer *x509.Certificate) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "MDM Vendor: Example"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// What is missing is fetched, up to the root, and completes the chain; here with a test PKI's certificates pinned in the
// place of Apple's, under which nobody but Apple can issue a vendor certificate.
func TestImportFetchesTheRest(t *testing.T) {
	w := newWorld(t)
	vendor := w.issue(t, w.key, testpki.VendorOptions{})
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

// What is missing is fetched: the intermediate that the certificate names, then its root. It is Apple's own, so it
// did not sign the test's certificate, and that is found.
func TestImportFetches(t *testing.T) {
	dir := filepath.Join("..", "..", "shared", "apple")
	if _, err := os.Stat(dir); err != nil {
		t.Skip("Apple's certificates are not here")
	}
	w := newWorld(t)
	der, err := os.ReadFile(filepath.Join(dir, "AppleWWDRCAG3.cer"))
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	var asked []string
	files := http.FileServer(http.Dir(dir))
	server := httptest.NewTLSServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Path)
		files.ServeHTTP(out, r)
	}))
	defer server.Close()
	_, err = Import(t.Context(), testkit.NewSigner(w.key), appleLike(t, w.key, &x509.Certificate{RawSubject: issuer.RawSubject, SubjectKeyId: issuer.SubjectKeyId}).Raw, ImportOptions{Fetch: &chain.FetchOptions{BaseURL: server.URL, Client: server.Client()}})
	var f *fault.Finding
	if !errors.As(err, &f) || f.ID != "chain.signature" {
		t.Errorf("%v, want chain.signature", err)
	}
	if diff := cmp.Diff([]string{"/AppleWWDRCAG3.cer", "/AppleIncRootCertificate.cer"}, asked); diff != "" {
		t.Errorf("-want +asked:\n%s", diff)
	}
}

// What somebody else serves in Apple's place is refused, also where Apple's certificates are not here.
func TestImportFetchPinned(t *testing.T) {
	w := newWorld(t)
	server := httptest.NewTLSServer(http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) { _, _ = out.Write(w.WWDR.Raw) }))
	defer server.Close()
	options := ImportOptions{Fetch: &chain.FetchOptions{BaseURL: server.URL, Client: server.Client()}}
	if _, err := Import(t.Context(), testkit.NewSigner(w.key), appleLike(t, w.key, wwdr(t, "WWDR G3")).Raw, options); !errors.Is(err, chain.ErrPin) {
		t.Errorf("%v", err)
	}
	options.Fetch = nil
	var f *fault.Finding
	if _, err := Import(t.Context(), testkit.NewSigner(w.key), appleLike(t, w.key, wwdr(t, "WWDR G3")).Raw, options); !errors.As(err, &f) || f.ID != "chain.missing-intermediate" {
		t.Errorf("without fetching: %v", err)
	}
	// The expired WWDR G1 is not asked for: with it the chain would be no better.
	options.Fetch = &chain.FetchOptions{BaseURL: "https://127.0.0.1:9"}
	if _, err := Import(t.Context(), testkit.NewSigner(w.key), appleLike(t, w.key, wwdr(t, "WWDR G1")).Raw, options); !errors.As(err, &f) || f.ID != "chain.missing-intermediate" {
		t.Errorf("of WWDR G1: %v", err)
	}
}
