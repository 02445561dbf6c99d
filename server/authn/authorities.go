package authn

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"hsmsign/fault"
)

// Authorities are the CAs of callers' certificates, with what they have revoked. They do not change.
type Authorities struct {
	pool *x509.CertPool
	// lists are the revocations by the DER of the CA; nil: revocation is not checked.
	lists map[string]revocations
}

// revocations are what one CRL says.
type revocations struct {
	until   time.Time // zero: for ever
	serials map[string]bool
}

// NewAuthorities returns the CAs of the given certificates. crl are X.509 CRLs, PEM or DER, one of each CA; nil: revocation is
// not checked. The error is of kind usage.
func NewAuthorities(cas []*x509.Certificate, crl []byte) (*Authorities, error) {
	a := &Authorities{pool: x509.NewCertPool()}
	for _, ca := range cas {
		if !ca.IsCA || !ca.BasicConstraintsValid {
			return nil, fault.Usage.Errorf("client-ca: %q is not a CA certificate", name(ca)).Fix("name the file with the CA certificates of the callers")
		}
		a.pool.AddCert(ca)
	}
	if crl == nil {
		return a, nil
	}
	a.lists = map[string]revocations{}
	for _, der := range blocks(crl) {
		if err := a.add(cas, der); err != nil {
			return nil, fault.Usage.Errorf("crl: %w", err).Fix("name a file with one CRL of each CA in client-ca, PEM or DER")
		}
	}
	for _, ca := range cas {
		if _, ok := a.lists[string(ca.Raw)]; !ok {
			return nil, fault.Usage.Errorf("crl: the file has no CRL of %q", name(ca)).Fix("add it: with crl, a CA without a CRL is refused")
		}
	}
	return a, nil
}

func name(c *x509.Certificate) string { return fault.Clip(c.Subject.String(), 128) }

// blocks returns the CRLs of a file.
func blocks(data []byte) (all [][]byte) {
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type == "X509 CRL" {
			all = append(all, block.Bytes)
		}
	}
	if all == nil {
		all = [][]byte{data}
	}
	return all
}

// add adds a CRL, which one of the CAs must have signed.
func (a *Authorities) add(cas []*x509.Certificate, der []byte) error {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return err
	}
	for _, ca := range cas {
		if !bytes.Equal(ca.RawSubject, list.RawIssuer) || list.CheckSignatureFrom(ca) != nil {
			continue
		}
		if _, ok := a.lists[string(ca.Raw)]; ok {
			return fmt.Errorf("two CRLs of %q", name(ca))
		}
		r := revocations{until: list.NextUpdate, serials: make(map[string]bool, len(list.RevokedCertificateEntries))}
		for _, entry := range list.RevokedCertificateEntries {
			r.serials[entry.SerialNumber.String()] = true
		}
		a.lists[string(ca.Raw)] = r
		return nil
	}
	return errors.New("a CRL that no CA of client-ca has signed")
}

// Verify returns nil if the first certificate is one for clients under a CA and is not revoked; the others are intermediate
// certificates.
func (a *Authorities) Verify(peer []*x509.Certificate, now time.Time) error {
	if a == nil {
		return errors.New("there is no client-ca")
	}
	options := x509.VerifyOptions{Roots: a.pool, Intermediates: x509.NewCertPool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, c := range peer[1:] {
		options.Intermediates.AddCert(c)
	}
	chains, err := peer[0].Verify(options)
	if err != nil || a.lists == nil {
		return err
	}
	for _, chain := range chains {
		if err = a.revoked(chain, now); err == nil {
			return nil
		}
	}
	return err
}

// NextUpdate returns when the first CRL expires; zero: there is none, or none expires.
func (a *Authorities) NextUpdate() (next time.Time) {
	if a == nil {
		return next
	}
	for _, list := range a.lists {
		if !list.until.IsZero() && (next.IsZero() || list.until.Before(next)) {
			next = list.until
		}
	}
	return next
}

// revoked returns nil if no certificate of a chain is revoked. A CA without a current CRL is an error.
func (a *Authorities) revoked(chain []*x509.Certificate, now time.Time) error {
	for i, c := range chain[:len(chain)-1] {
		issuer := chain[i+1]
		list, ok := a.lists[string(issuer.Raw)]
		switch {
		case !ok:
			return fmt.Errorf("there is no CRL of %q", name(issuer))
		case !list.until.IsZero() && now.After(list.until):
			return fmt.Errorf("the CRL of %q expired at %s", name(issuer), list.until.UTC().Format(time.RFC3339))
		case list.serials[c.SerialNumber.String()]:
			return fmt.Errorf("the certificate %x is revoked", c.SerialNumber)
		}
	}
	return nil
}
