//go:build cgo

package pkcs11

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
)

// The bounds of what is read: certificates of one search, and bytes of one.
const (
	maxCertificates = 64
	maxCertificate  = 64 << 10
)

// The operations, as errors name them.
const (
	opLoadCert   = "load the certificate of"
	opImportCert = "import a certificate to"
)

// loadCertificates gives the certificates that the reference names; see signer.CertificateStore. The reference may
// say type=cert (RFC 7512 section 2.3).
func (o Options) loadCertificates(ctx context.Context, ref signer.Ref) ([]*x509.Certificate, error) {
	attrs := slices.DeleteFunc(strings.Split(ref.Path, ";"), func(a string) bool { return a == "type=cert" })
	ref.Path = strings.Join(attrs, ";")
	r, err := o.reference(opLoadCert, ref)
	if err != nil {
		return nil, err
	}
	return await(ctx, r, opLoadCert, func() ([]*x509.Certificate, error) { return loadCertificates(ctx, r, o) }, func([]*x509.Certificate) {})
}

// importCertificate stores a certificate beside the key that the reference names; see signer.CertificateStore.
func (o Options) importCertificate(ctx context.Context, ref signer.Ref, cert *x509.Certificate) error {
	r, err := o.reference(opImportCert, ref)
	if err != nil {
		return err
	}
	_, err = await(ctx, r, opImportCert, func() (struct{}, error) { return struct{}{}, importCertificate(ctx, r, o, cert) }, func(struct{}) {})
	return err
}

// loadCertificates gives the X.509 certificates that r names. They are public objects: it logs in only where the
// reference itself brings a PIN.
func loadCertificates(ctx context.Context, r reference, opts Options) (certs []*x509.Certificate, err error) {
	as := stranger
	if r.pinSource != "" || r.pinValue != "" {
		as = user
	}
	err = visitToken(ctx, r, opLoadCert, opts, as, func(_ *module, f finder, t foundToken) error {
		if certs, err = f.certificates(f.template(pkcs11.CKO_CERTIFICATE)[1:]); err != nil {
			return r.fail(opLoadCert, err, "")
		}
		if len(certs) == 0 {
			return r.fail(opLoadCert, fmt.Errorf("%w: no certificate in %s matches", signer.ErrKeyNotFound, t.id),
				"put it there with hsmsign key import-cert; correct object= and id=")
		}
		return nil
	})
	return certs, err
}

// importCertificate stores cert beside the private key that r names, with its label and id.
func importCertificate(ctx context.Context, r reference, opts Options, cert *x509.Certificate) error {
	return visitToken(ctx, r, opImportCert, opts, writer, func(_ *module, f finder, _ foundToken) error {
		object, pub, err := f.privateKey()
		if err != nil {
			return err
		}
		if !pub.Equal(cert.PublicKey) {
			return r.fail(opImportCert, fmt.Errorf("%w: the certificate %q is another key's", signer.ErrBadKey, cert.Subject.CommonName),
				"name the key that the certificate was issued for")
		}
		attrs, err := f.attributes(object, pkcs11.CKA_LABEL, pkcs11.CKA_ID)
		if err != nil {
			return r.fail(opImportCert, err, "")
		}
		there, err := f.certificates([]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, attrs[1])})
		if err != nil {
			return r.fail(opImportCert, err, "")
		}
		if slices.ContainsFunc(there, cert.Equal) {
			return nil
		}
		template, err := certificateTemplate(cert, attrs[0], attrs[1])
		if err != nil {
			return r.fail(opImportCert, err, "")
		}
		if _, err := f.lib.CreateObject(f.sh, template); err != nil {
			return r.fail(opImportCert, call("C_CreateObject", err), "")
		}
		return nil
	})
}

// certificateTemplate is an X.509 certificate object (PKCS#11 3.0 section 4.6.3): names and serial number in DER.
func certificateTemplate(cert *x509.Certificate, label, id []byte) ([]*pkcs11.Attribute, error) {
	serial, err := asn1.Marshal(cert.SerialNumber)
	if err != nil {
		return nil, fmt.Errorf("%w: serial number: %w", signer.ErrBadKey, err)
	}
	attr := pkcs11.NewAttribute
	return []*pkcs11.Attribute{
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_CERTIFICATE), attr(pkcs11.CKA_CERTIFICATE_TYPE, pkcs11.CKC_X_509),
		attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_PRIVATE, false), attr(pkcs11.CKA_LABEL, label), attr(pkcs11.CKA_ID, id),
		attr(pkcs11.CKA_SUBJECT, cert.RawSubject), attr(pkcs11.CKA_ISSUER, cert.RawIssuer), attr(pkcs11.CKA_SERIAL_NUMBER, serial),
		attr(pkcs11.CKA_VALUE, cert.Raw),
	}, nil
}

// certificates finds the X.509 certificates with these attributes, each once.
func (f finder) certificates(template []*pkcs11.Attribute) ([]*x509.Certificate, error) {
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
		values, err := f.attributes(o, pkcs11.CKA_VALUE)
		if err != nil {
			return nil, err
		}
		if len(values[0]) > maxCertificate {
			return nil, fmt.Errorf("%w: a certificate of %d bytes", signer.ErrBadKey, len(values[0]))
		}
		if slices.ContainsFunc(certs, func(c *x509.Certificate) bool { return bytes.Equal(c.Raw, values[0]) }) {
			continue
		}
		cert, err := x509.ParseCertificate(values[0])
		if err != nil {
			return nil, fmt.Errorf("%w: a certificate object that is none: %w", signer.ErrBadKey, err)
		}
		certs = append(certs, cert)
	}
	return certs, nil
}
