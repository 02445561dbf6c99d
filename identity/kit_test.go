package identity

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"sync"
	"testing"
	"time"

	"hsmsign/certreq"
	"hsmsign/testpki"
)

// fake is a signer.Signer over any crypto.Signer.
type fake struct {
	crypto.Signer
	public crypto.PublicKey // nil: the signer's own
}

func (f fake) Public() crypto.PublicKey {
	if f.public != nil {
		return f.public
	}
	return f.Signer.Public()
}
func (f fake) Close() error { return nil }
func (f fake) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return f.Sign(rand.Reader, digest, opts)
}

// world is what the tests start from: an authority, and two keys.
type world struct {
	*testpki.Authority
	key, other *rsa.PrivateKey
}

// madeOnce: RSA keys take a while.
var madeOnce = sync.OnceValues(func() (world, error) {
	var w world
	var err error
	if w.Authority, err = testpki.New(time.Now().AddDate(-2, 0, 0)); err != nil {
		return w, err
	}
	if w.key, err = rsa.GenerateKey(rand.Reader, KeyBits); err != nil {
		return w, err
	}
	w.other, err = rsa.GenerateKey(rand.Reader, KeyBits)
	return w, err
})

func newWorld(t testing.TB) world {
	t.Helper()
	w, err := madeOnce()
	if err != nil {
		t.Fatal(err)
	}
	return w
}

var subject = certreq.Subject{Email: "mdm@example.com", CommonName: "Example MDM", Organization: "Exämple", Country: "US"}

func csrOf(t testing.TB, key crypto.Signer) *x509.CertificateRequest {
	t.Helper()
	der, err := CreateCSR(t.Context(), fake{Signer: key}, subject)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// issue gives a vendor certificate for the key.
func (w world) issue(t testing.TB, key crypto.Signer, opts testpki.VendorOptions) *x509.Certificate {
	t.Helper()
	cert, err := w.IssueVendor(csrOf(t, key), opts)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
