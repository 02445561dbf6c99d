// Package request is Apple's Push Certificate Request: a customer's CSR comes in (DecodeCSR), the signed
// request goes out (Encode), and a request that anyone made is read back (Parse) and examined (Verify).
//
//	csr, err := request.DecodeCSR(file)            // refused unless sound
//	sig, err := signer.Sign(ctx, key, csr.DER, crypto.SHA256)
//	out, err := (&request.Request{CSR: csr.DER, Chain: chain, Signature: sig}).Encode(request.Base64)
//
// What the customer uploads to Apple is the base64 of an XML property list with three strings; see Apple,
// "Setting Up Push Notifications for Your MDM Customers". Everything here is a function of its arguments: safe
// for concurrent use, and the same input gives the same bytes.
package request

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	"howett.net/plist"
)

// MaxRequest is the most that is read of a Push Certificate Request, in bytes.
const MaxRequest = 1 << 20

// Request is what a Push Certificate Request carries, decoded. Nothing in it has been checked.
type Request struct {
	CSR       []byte   // PushCertRequestCSR: the customer's CSR, DER
	Chain     [][]byte // PushCertCertificateChain: vendor certificate, intermediates, root, each DER
	Signature []byte   // PushCertSignature: RSASSA-PKCS1-v1_5 over CSR by the vendor's key
}

// Format is how a request is written.
type Format string

// The formats. Base64 is what Apple's portal takes; Plist is the XML inside.
const (
	Base64 Format = "base64"
	Plist  Format = "plist"
)

// ParseFormat reads the name of a format.
func ParseFormat(s string) (Format, error) {
	switch f := Format(s); f {
	case Base64, Plist:
		return f, nil
	}
	return "", fmt.Errorf("unknown format %q; it is base64 or plist", s)
}

// wire is the property list; the keys are Apple's.
type wire struct {
	CSR       string `plist:"PushCertRequestCSR"`
	Chain     string `plist:"PushCertCertificateChain"`
	Signature string `plist:"PushCertSignature"`
}

// Encode writes the request: one line of base64 without a newline, or the XML, which ends with one.
func (r *Request) Encode(f Format) ([]byte, error) {
	var chain strings.Builder
	for _, der := range r.Chain {
		// pem.Encode wraps at the 64 columns that Apple demands.
		if err := pem.Encode(&chain, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			return nil, err
		}
	}
	xml, err := plist.MarshalIndent(wire{
		CSR:       base64.StdEncoding.EncodeToString(r.CSR),
		Chain:     chain.String(),
		Signature: base64.StdEncoding.EncodeToString(r.Signature),
	}, plist.XMLFormat, "\t")
	if err != nil {
		return nil, err
	}
	if xml, err = asApple(xml); err != nil {
		return nil, err
	}
	if f == Plist {
		return xml, nil
	}
	out := make([]byte, base64.StdEncoding.EncodedLen(len(xml)))
	base64.StdEncoding.Encode(out, xml)
	return out, nil
}

// asApple gives the library's XML the form of Apple's sample: newlines inside a string as they are, and the CSR
// before the chain (the library writes them as &#xA; and sorts the keys). Both replacements are exact, since
// the strings hold nothing but base64 and PEM.
func asApple(xml []byte) ([]byte, error) {
	xml = bytes.ReplaceAll(xml, []byte("&#xA;"), []byte("\n"))
	chain := bytes.Index(xml, []byte("\t\t<key>PushCertCertificateChain"))
	csr := bytes.Index(xml, []byte("\t\t<key>PushCertRequestCSR"))
	rest := bytes.Index(xml, []byte("\t\t<key>PushCertSignature"))
	if chain < 0 || csr < chain || rest < csr {
		return nil, errors.New("the plist library changed its layout")
	}
	return slices.Concat(xml[:chain], xml[csr:rest], xml[chain:csr], xml[rest:], []byte("\n")), nil
}
