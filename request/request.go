// Package request reads customers' CSRs (DecodeCSR), writes Apple's Push Certificate Request (Encode), and reads and checks
// requests of any tool (Parse, Verify).
//
// The customer uploads the base64 of an XML property list with three strings to Apple: the CSR, the vendor's certificate
// chain, and the vendor's signature over the DER of the CSR. See Apple, "Setting Up Push Notifications for Your MDM
// Customers".
//
// The functions depend only on their arguments: they are safe for concurrent use, and the same input gives the same bytes.
package request

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"howett.net/plist"
)

// MaxRequest is the size limit of a Push Certificate Request, in bytes.
const MaxRequest = 1 << 20

// Request is the decoded content of a Push Certificate Request, unchecked.
type Request struct {
	CSR       []byte   // PushCertRequestCSR: the customer's CSR, DER
	Chain     [][]byte // PushCertCertificateChain: vendor certificate, intermediates, root, each DER
	Signature []byte   // PushCertSignature: RSASSA-PKCS1-v1_5 over CSR by the vendor's key
}

// Format is the form of a request file.
type Format string

// The formats. Apple's portal accepts Base64; Plist is the XML inside.
const (
	Base64 Format = "base64"
	Plist  Format = "plist"
)

// ParseFormat returns the format of this name.
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

// Encode returns the request file: one line of base64 without a newline, or the XML, which ends with a newline.
func (r *Request) Encode(f Format) ([]byte, error) {
	e, err := NewEncoder(r.Chain)
	if err != nil {
		return nil, err
	}
	return e.Encode(r.CSR, r.Signature, f), nil
}

// Encoder encodes the requests of one vendor. It encodes the chain once. It is safe for concurrent use.
type Encoder struct {
	head, middle, tail []byte // of the XML: before the CSR, up to the signature, after it
}

// Placeholders for the values; base64 has no parentheses.
const (
	markCSR       = "(csr)"
	markChain     = "(chain)"
	markSignature = "(signature)"
)

// NewEncoder returns an Encoder for a chain of DER certificates.
func NewEncoder(chain [][]byte) (*Encoder, error) {
	var text []byte
	for _, der := range chain { // 64 columns, as Apple requires
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	xml, err := plist.MarshalIndent(wire{CSR: markCSR, Chain: markChain, Signature: markSignature}, plist.XMLFormat, "\t")
	if err != nil {
		return nil, err
	}
	// The form of Apple's sample: the CSR first (the library sorts the keys), and literal newlines in the chain (the library
	// would write &#xA;). PEM and base64 need no escape in XML.
	keys := bytes.Index(xml, []byte("\t\t<key>PushCertCertificateChain"))
	csr := bytes.Index(xml, []byte("\t\t<key>PushCertRequestCSR"))
	signature := bytes.Index(xml, []byte("\t\t<key>PushCertSignature"))
	if keys < 0 || csr < keys || signature < csr {
		return nil, errors.New("the plist library changed its layout")
	}
	xml = slices.Concat(xml[:keys], xml[csr:signature], xml[keys:csr], xml[signature:], []byte("\n"))
	head, rest, _ := bytes.Cut(xml, []byte(markCSR))
	middle, tail, _ := bytes.Cut(rest, []byte(markSignature))
	return &Encoder{head, bytes.Replace(middle, []byte(markChain), text, 1), tail}, nil
}

// Encode returns the request file for a DER CSR and its signature, as Request.Encode does.
func (e *Encoder) Encode(csr, signature []byte, f Format) []byte {
	b64 := base64.StdEncoding
	xml := make([]byte, 0, len(e.head)+b64.EncodedLen(len(csr))+len(e.middle)+b64.EncodedLen(len(signature))+len(e.tail))
	xml = b64.AppendEncode(append(xml, e.head...), csr)
	xml = b64.AppendEncode(append(xml, e.middle...), signature)
	xml = append(xml, e.tail...)
	if f == Plist {
		return xml
	}
	return b64.AppendEncode(nil, xml)
}
