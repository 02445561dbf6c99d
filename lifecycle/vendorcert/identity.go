// Package vendorcert is the vendor's way to its certificate: the CSR that Apple's developer portal accepts, and the proof
// that the certificate which comes back belongs to the key.
//
//	der, err := vendorcert.CreateCSR(ctx, key, certreq.Subject{Email: "mdm@example.com", CommonName: "Example", Country: "US"})
//	// days later, with the file that Apple made of it
//	c, err := vendorcert.Import(ctx, key, data, vendorcert.ImportOptions{})
//
// The functions keep nothing between calls and are safe for concurrent use, as far as the Signer is.
package vendorcert

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/signer"
)

// ImportOptions say what Import builds the chain from. The zero value has the file alone.
type ImportOptions struct {
	Extra      []*x509.Certificate // intermediate and root certificates
	TrustRoots []*x509.Certificate // trusted beside Apple's roots
	Fetch      *chain.FetchOptions // gets those of Apple's certificates that are missing; nil: nothing is fetched
}

// Import reads the file that Apple made of the vendor's CSR (PEM, DER or PKCS#7), and proves that its certificate
// is the key's: it holds the public key, it can be the vendor's, its chain is complete and valid, and a signature
// over a random message verifies with it. It gives the chain, vendor certificate first.
//
// A refusal is a *fault.Finding whose ID begins with "chain."; other errors are those of chain.Fetch and the key's.
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
		fetched, err := fetchIssuers(ctx, ownCertificate(certs, key.Public()), *opts.Fetch)
		if err != nil {
			return nil, err
		}
		if c, err = chain.Build(certs, slices.Concat(opts.Extra, fetched), build); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	return c, Prove(ctx, key, c.Leaf())
}

// Prove has the key sign a random message and verifies the signature with the certificate. A certificate of another
// key is a *fault.Finding (chain.key-mismatch); a signature that does not verify wraps signer.ErrBadSignature.
func Prove(ctx context.Context, key signer.Signer, cert *x509.Certificate) error {
	if err := (&chain.Chain{Certs: []*x509.Certificate{cert}}).MatchKey(key.Public()); err != nil {
		return err
	}
	message := make([]byte, 64)
	_, _ = rand.Read(message) // never fails (Go 1.24)
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
	for rest := file; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		// RFC 7468 section 7; older tools write NEW.
		if block.Type == "CERTIFICATE REQUEST" || block.Type == "NEW CERTIFICATE REQUEST" {
			file = block.Bytes
			break
		}
	}
	csr, err := x509.ParseCertificateRequest(file)
	if err != nil {
		return nil
	}
	return csr
}

// uploaded refuses a CSR in the certificate's place.
func uploaded(csr *x509.CertificateRequest, key crypto.PublicKey) error {
	what := "a CSR, and of another key"
	if chain.SPKISHA256(csr.PublicKey) == chain.SPKISHA256(key) {
		what = "the CSR that was sent to Apple"
	}
	return &fault.Finding{
		ID: "chain.csr", Severity: fault.SeverityError,
		Message: "this is " + what + "; vendor import wants the certificate mdm.cer that Apple made from it",
		Fix:     "upload the CSR to Apple's developer portal, and import the file that can be downloaded there",
	}
}

// incomplete is whether a certificate above the vendor's is missing.
func incomplete(err error) bool {
	var f *fault.Finding
	return errors.As(err, &f) && (f.ID == "chain.missing-intermediate" || f.ID == "chain.missing-root")
}

func ownCertificate(certs []*x509.Certificate, key crypto.PublicKey) *x509.Certificate {
	for _, c := range certs {
		if (&chain.Chain{Certs: []*x509.Certificate{c}}).MatchKey(key) == nil {
			return c
		}
	}
	return certs[0]
}

// fetchIssuers gets Apple's certificates above cert, up to the root. Where Apple did not issue it there are none.
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
