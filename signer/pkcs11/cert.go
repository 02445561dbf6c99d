//go:build cgo

package pkcs11

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"

	"hsmsign/fault"
	"hsmsign/signer"
)

// The limits: certificates of one search, and bytes of one certificate.
const (
	maxCertificates = 64
	maxCertificate  = 64 << 10
)

const (
	opLoadCert   = "load the certificate of"
	opImportCert = "import a certificate to"
)

// loadCertificates returns the certificates that the reference names; see signer.CertificateStore. The reference may have
// type=cert (RFC 7512 section 2.3). Certificates are public objects: it logs in only if the reference has a PIN.
func (o Options) loadCertificates(ctx context.Context, ref signer.Ref) ([]*x509.Certificate, error) {
	attrs := slices.DeleteFunc(strings.Split(ref.Path, ";"), func(a string) bool { return a == "type=cert" })
	ref.Path = strings.Join(attrs, ";")
	return operate(ctx, o, opLoadCert, ref, func(r reference) ([]*x509.Certificate, error) {
		as := public
		if r.pinSource != "" || r.pinValue != "" {
			as = loggedIn
		}
		return withToken(ctx, r, o, as, func(f finder, t foundToken) ([]*x509.Certificate, error) {
			certs, err := f.certificates(f.template(pkcs11.CKO_CERTIFICATE)[1:]...)
			if err == nil && len(certs) == 0 {
				return nil, fault.Errorf("%w: no certificate in %s matches", signer.ErrKeyNotFound, t.id).
					Fix(cmp.Or(f.ref.path.HexHint(), "store it with hsmsign key import-cert; correct object= and id="))
			}
			return certs, err
		})
	}, nil)
}

// importCertificate stores a certificate with the key that the reference names; see signer.CertificateStore.
func (o Options) importCertificate(ctx context.Context, ref signer.Ref, cert *x509.Certificate) error {
	_, err := operate(ctx, o, opImportCert, ref, func(r reference) (none struct{}, err error) {
		return withToken(ctx, r, o, writer, func(f finder, _ foundToken) (struct{}, error) { return none, f.importCertificate(cert) })
	}, nil)
	return err
}

// importCertificate stores cert with the private key that the reference names, with its label and id.
func (f finder) importCertificate(cert *x509.Certificate) error {
	object, pub, err := f.privateKey()
	if err != nil {
		return err
	}
	if !pub.Equal(cert.PublicKey) {
		return fault.Errorf("%w: the certificate %q belongs to another key", signer.ErrBadKey, cert.Subject.CommonName).
			Fix("name the key that the certificate was issued for")
	}
	attrs, err := f.attributes(object, pkcs11.CKA_LABEL, pkcs11.CKA_ID)
	if err != nil {
		return err
	}
	existing, err := f.certificates(pkcs11.NewAttribute(pkcs11.CKA_ID, attrs[1]))
	if err != nil || slices.ContainsFunc(existing, cert.Equal) {
		return err
	}
	_, err = f.lib.CreateObject(f.sh, certificateTemplate(cert, attrs[0], attrs[1]))
	return call("C_CreateObject", err)
}

// certificateTemplate returns an X.509 certificate object (PKCS#11 3.0 section 4.6.3): names and serial number are DER.
func certificateTemplate(cert *x509.Certificate, label, id []byte) []*pkcs11.Attribute {
	serial, _ := asn1.Marshal(cert.SerialNumber) // never fails for a certificate that was parsed
	attr := pkcs11.NewAttribute
	return []*pkcs11.Attribute{
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_CERTIFICATE), attr(pkcs11.CKA_CERTIFICATE_TYPE, pkcs11.CKC_X_509),
		attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_PRIVATE, false), attr(pkcs11.CKA_LABEL, label), attr(pkcs11.CKA_ID, id),
		attr(pkcs11.CKA_SUBJECT, cert.RawSubject), attr(pkcs11.CKA_ISSUER, cert.RawIssuer), attr(pkcs11.CKA_SERIAL_NUMBER, serial),
		attr(pkcs11.CKA_VALUE, cert.Raw),
	}
}

// certificates returns the X.509 certificates with these attributes, each once.
func (f finder) certificates(template ...*pkcs11.Attribute) ([]*x509.Certificate, error) {
	objects, err := f.objectsUpTo(maxCertificates+1, append([]*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_CERTIFICATE), pkcs11.NewAttribute(pkcs11.CKA_CERTIFICATE_TYPE, pkcs11.CKC_X_509),
	}, template...))
	if err != nil {
		return nil, err
	}
	if len(objects) > maxCertificates {
		return nil, fmt.Errorf("%w: more than %d certificates match", signer.ErrAmbiguousKey, maxCertificates)
	}
	var certs []*x509.Certificate
	for _, o := range objects {
		cert, err := f.certificate(o)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(certs, cert.Equal) {
			certs = append(certs, cert)
		}
	}
	return certs, nil
}

// certificate returns the certificate in an object.
func (f finder) certificate(o pkcs11.ObjectHandle) (*x509.Certificate, error) {
	values, err := f.attributes(o, pkcs11.CKA_VALUE)
	if err != nil {
		return nil, err
	}
	if len(values[0]) > maxCertificate {
		return nil, fmt.Errorf("%w: a certificate of %d bytes", signer.ErrBadKey, len(values[0]))
	}
	cert, err := x509.ParseCertificate(values[0])
	if err != nil {
		return nil, fmt.Errorf("%w: a certificate object cannot be read: %w", signer.ErrBadKey, err)
	}
	return cert, nil
}
