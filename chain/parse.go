package chain

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"unicode"

	"hsmsign/fault"
	"hsmsign/internal/filekind"
	"hsmsign/internal/pemtext"
	"hsmsign/internal/strictder"
)

// Parse returns all certificates of one file, in their order. It reads PEM (any number, with other text, and blocks without
// a newline between them, which encoding/pem does not find), DER (one or several, concatenated), and PKCS#7 bundles (.p7b,
// .p7c) of both forms. It ignores other PEM blocks, including private keys.
//
// The error is a *fault.Finding: chain.unreadable, chain.empty or chain.too-many. It says what the file contains instead
// of a certificate, or which block is damaged. It does not quote the file.
func Parse(data []byte) ([]*x509.Certificate, error) {
	if len(data) > MaxFile {
		return nil, unreadable("larger than %d bytes", MaxFile)
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff")) // a byte order mark
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, empty("the file is empty")
	}
	var certs []*x509.Certificate
	var err error
	if filekind.IsDER(data) {
		certs, err = parseDER(data)
	} else {
		certs, err = parsePEM(data)
	}
	switch {
	case err != nil:
		return nil, err
	case len(certs) == 0:
		return nil, unreadable("it is %s, not a certificate", filekind.Of(data))
	case len(certs) > MaxCerts:
		return nil, tooMany(len(certs))
	}
	return certs, nil
}

func unreadable(format string, args ...any) *fault.Finding {
	return fault.Refuse("chain.unreadable", format, args...).
		WithFix("give a certificate in PEM, DER or PKCS#7 form").WithPortal(fault.PortalChainMissing)
}

func parsePEM(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	n := 0
	for b := range pemtext.Scan(string(data)) {
		var parse func([]byte) ([]*x509.Certificate, error)
		switch b.Label {
		case "CERTIFICATE", "X509 CERTIFICATE":
			parse = parseOne
		case "PKCS7", "CMS":
			parse = parsePKCS7
		default:
			continue
		}
		n++
		if !b.Whole {
			return nil, unreadable("certificate block %d, at line %d, has no END line", n, b.Line)
		}
		der, err := b.DER()
		if err != nil {
			return nil, unreadable("certificate block %d, at line %d, is not base64", n, b.Line)
		}
		more, err := parse(der)
		if err != nil {
			return nil, unreadable("certificate block %d, at line %d, is damaged: %v", n, b.Line, err)
		}
		certs = append(certs, more...)
	}
	return certs, nil
}

func parseOne(der []byte) ([]*x509.Certificate, error) {
	c, err := strictder.ParseCertificate(der)
	return []*x509.Certificate{c}, err
}

// parseDER reads concatenated certificates, or a PKCS#7 bundle. For anything else it returns no certificates and no error.
func parseDER(data []byte) ([]*x509.Certificate, error) {
	if certs, err := parsePKCS7(data); err == nil {
		return certs, nil
	}
	var certs []*x509.Certificate
	for len(data) > 0 {
		var raw asn1.RawValue
		rest, err := asn1.Unmarshal(data, &raw)
		if err != nil {
			return nil, unreadable("DER element %d is damaged or cut off: %v", len(certs)+1, err)
		}
		c, err := strictder.ParseCertificate(raw.FullBytes)
		if err != nil && len(certs) == 0 && !looksLikeCertificate(raw.FullBytes) {
			return nil, nil
		}
		if err != nil {
			return nil, unreadable("DER certificate %d is damaged: %v", len(certs)+1, err)
		}
		certs = append(certs, c)
		data = bytes.TrimLeftFunc(rest, unicode.IsSpace) // an editor appends a newline
	}
	return certs, nil
}

// parsePKCS7 returns the certificates of a SignedData (RFC 5652 section 5.1) in DER, the encoding of certificate bundles.
// It ignores the signatures, which say nothing about the certificates.
func parsePKCS7(der []byte) ([]*x509.Certificate, error) {
	var info struct {
		ContentType asn1.ObjectIdentifier
		Content     asn1.RawValue // [0] EXPLICIT
	}
	if _, err := asn1.Unmarshal(der, &info); err != nil {
		return nil, err
	}
	if !info.ContentType.Equal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}) {
		return nil, fmt.Errorf("PKCS#7 of type %v, not SignedData", info.ContentType)
	}
	var signed asn1.RawValue
	if _, err := asn1.Unmarshal(info.Content.Bytes, &signed); err != nil {
		return nil, err
	}
	for rest := signed.Bytes; len(rest) > 0; {
		var field asn1.RawValue
		var err error
		if rest, err = asn1.Unmarshal(rest, &field); err != nil {
			return nil, err
		}
		if field.Class == asn1.ClassContextSpecific && field.Tag == 0 { // certificates [0] IMPLICIT, optional
			return parseSet(field.Bytes)
		}
	}
	return nil, errors.New("PKCS#7 without certificates")
}

// parseSet returns the certificates of a CertificateSet (RFC 5652 section 10.2.3).
func parseSet(der []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for len(der) > 0 {
		var raw asn1.RawValue
		var err error
		if der, err = asn1.Unmarshal(der, &raw); err != nil {
			return nil, err
		}
		c, err := strictder.ParseCertificate(raw.FullBytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	return certs, nil
}

// looksLikeCertificate reports whether DER begins as SEQUENCE { TBSCertificate with an explicit version, ... } (RFC 5280
// section 4.1). No other object of the field does.
func looksLikeCertificate(der []byte) bool {
	var outer struct{ TBS, Algorithm, Signature asn1.RawValue }
	if _, err := asn1.Unmarshal(der, &outer); err != nil {
		return false
	}
	return bytes.HasPrefix(outer.TBS.Bytes, []byte{0xa0, 0x03, 0x02, 0x01})
}
