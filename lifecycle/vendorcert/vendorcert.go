// Package vendorcert gets the MDM vendor its certificate: CreateCSR makes the CSR for Apple's developer portal, and Import
// checks that the certificate from Apple matches the key, and builds its chain.
//
// The functions depend only on their arguments and are safe for concurrent use if the Signer is.
package vendorcert

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/internal/pemtext"
	"hsmsign/internal/strictder"
	"hsmsign/lifecycle/certreq"
	"hsmsign/signer"
)

// KeyBits is the only size of RSA key that Apple's developer portal accepts in a vendor's CSR.
const KeyBits = 2048

// CreateCSR is certreq.Create with CheckKey.
func CreateCSR(ctx context.Context, key signer.Signer, subject certreq.Subject) ([]byte, error) {
	if err := CheckKey(key.Public()); err != nil {
		return nil, err
	}
	return certreq.Create(ctx, key, subject)
}

// CheckKey returns an error that wraps signer.ErrBadKey unless Apple's developer portal accepts the key in a vendor's CSR:
// RSA of 2048 bits.
func CheckKey(pub crypto.PublicKey) error {
	what := fmt.Sprintf("%T", pub)
	if key, ok := pub.(*rsa.PublicKey); ok {
		if key.N.BitLen() == KeyBits {
			return nil
		}
		what = fmt.Sprintf("RSA of %d bits", key.N.BitLen())
	}
	return fault.Errorf("%w: it is %s; Apple's developer portal accepts RSA of %d bits only", signer.ErrBadKey, what, KeyBits).
		Fix(fmt.Sprintf("make a key with hsmsign key generate --bits %d", KeyBits))
}

// ImportOptions are the sources of the chain in addition to the file. The zero value has none.
type ImportOptions struct {
	Extra      []*x509.Certificate // intermediate and root certificates
	TrustRoots []*x509.Certificate // trusted in addition to Apple's roots
	Fetch      *chain.FetchOptions // downloads Apple's certificates that are missing; nil: never
}

// Import returns the chain of the certificate that Apple issued for the vendor's CSR (PEM, DER or PKCS#7), vendor
// certificate first. It checks that the certificate contains the key's public key and can be the vendor's, that the chain is
// complete and valid, and that the certificate verifies a signature of the key over signer.ProbeMessage.
//
// The error is a *fault.Finding whose ID begins with "chain.", or an error of chain.Fetch or of the key.
func Import(ctx context.Context, key signer.Signer, file []byte, opts ImportOptions) (*chain.Chain, error) {
	certs, err := chain.Parse(file)
	if err != nil {
		if csr := FindCSR(file); csr != nil {
			return nil, uploaded(csr, key.Public())
		}
		return nil, err
	}
	build := chain.Options{TrustRoots: opts.TrustRoots, Key: key.Public()}
	c, err := chain.Build(certs, opts.Extra, build)
	if opts.Fetch != nil && incomplete(err) {
		var fetched []*x509.Certificate
		if fetched, err = fetchIssuers(ctx, ownCertificate(certs, key.Public()), *opts.Fetch); err == nil {
			c, err = chain.Build(certs, slices.Concat(opts.Extra, fetched), build)
		}
	}
	if err != nil {
		return nil, err
	}
	return c, Prove(ctx, key, c.Leaf())
}

// Prove checks that the certificate verifies a signature of the key over signer.ProbeMessage. For a certificate of another
// key the error is a *fault.Finding (chain.key-mismatch); for a wrong signature it wraps signer.ErrBadSignature.
func Prove(ctx context.Context, key signer.Signer, cert *x509.Certificate) error {
	if err := (&chain.Chain{Certs: []*x509.Certificate{cert}}).MatchKey(key.Public()); err != nil {
		return err
	}
	message := []byte(signer.ProbeMessage)
	signature, err := signer.Sign(ctx, key, message, crypto.SHA256)
	if err != nil {
		return err
	}
	if err := cert.CheckSignature(x509.SHA256WithRSA, message, signature); err != nil {
		return fmt.Errorf("%w: the certificate does not verify it: %w", signer.ErrBadSignature, err)
	}
	return nil
}

// FindCSR returns the certificate signing request in a file, PEM or DER, or nil.
func FindCSR(file []byte) *x509.CertificateRequest {
	for block := range pemtext.Scan(string(file)) {
		// RFC 7468 section 7; older tools write NEW.
		if block.Label == "CERTIFICATE REQUEST" || block.Label == "NEW CERTIFICATE REQUEST" {
			file, _ = block.DER() // the parser refuses nil
			break
		}
	}
	csr, err := strictder.ParseCertificateRequest(file)
	if err != nil {
		return nil
	}
	return csr
}

// uploaded returns the finding for a CSR instead of the certificate.
func uploaded(csr *x509.CertificateRequest, key crypto.PublicKey) error {
	what := "a CSR of another key"
	if chain.SPKISHA256(csr.PublicKey) == chain.SPKISHA256(key) {
		what = "the CSR for Apple"
	}
	return fault.Refuse("chain.csr", "this is %s; vendor import needs the certificate mdm.cer that Apple issues for it", what).
		WithFix("upload the CSR to Apple's developer portal, and import the file that you download there")
}

// incomplete reports whether a certificate above the vendor's is missing.
func incomplete(err error) bool {
	f, ok := errors.AsType[*fault.Finding](err)
	return ok && (f.ID == "chain.missing-intermediate" || f.ID == "chain.missing-root")
}

// ownCertificate returns the certificate of the key, or the first one.
func ownCertificate(certs []*x509.Certificate, key crypto.PublicKey) *x509.Certificate {
	own := slices.IndexFunc(certs, func(c *x509.Certificate) bool { return chain.SPKISHA256(c.PublicKey) == chain.SPKISHA256(key) })
	return certs[max(own, 0)]
}

// fetchIssuers downloads Apple's certificates above cert, up to the root. It returns none if Apple did not issue cert.
func fetchIssuers(ctx context.Context, cert *x509.Certificate, opts chain.FetchOptions) ([]*x509.Certificate, error) {
	var got []*x509.Certificate
	known := opts.Known()
	for top := cert; len(got) < chain.MaxPath; top = got[len(got)-1] {
		i := slices.IndexFunc(known, func(p chain.Pin) bool {
			return p.Subject == top.Issuer.CommonName && p.KeyID == hex.EncodeToString(top.AuthorityKeyId) && !p.Retired
		})
		if i < 0 {
			break
		}
		opts.Names = []string{known[i].File}
		fetched, err := chain.Fetch(ctx, opts)
		if err != nil {
			return nil, err
		}
		got = append(got, fetched[0].Cert)
		if known[i].Root {
			break
		}
	}
	return got, nil
}
