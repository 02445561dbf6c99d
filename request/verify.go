package request

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"hsmsign/chain"
	"hsmsign/fault"
)

// VerifyOptions says what a request is held against. The zero value: Apple's roots, now, any CSR.
type VerifyOptions struct {
	CSR        *CSR                // the CSR that the request must hold; nil: any
	TrustRoots []*x509.Certificate // accepted beside Apple's pinned roots
	Now        time.Time           // zero: time.Now()
}

// Report is what Verify found. The decoded parts are nil where the request could not be read that far.
type Report struct {
	Findings []fault.Finding
	Request  *Request
	CSR      *x509.CertificateRequest
	Chain    []*x509.Certificate // in the request's order
	Digest   crypto.Hash         // what the signature was made with; 0 when it does not verify
}

// OK is whether the request can be uploaded: no finding of severity Error.
func (r *Report) OK() bool { return fault.First(r.Findings) == nil }

// Verify examines a Push Certificate Request as Apple's portal would, and goes on after a defect, so that one run
// names them all. The request may be any tool's.
func Verify(data []byte, opts VerifyOptions) *Report {
	if opts.Now.IsZero() {
		opts.Now = time.Now()
	}
	r := &Report{}
	req, found, err := parse(data)
	if err != nil {
		r.add(err)
		return r
	}
	r.Request, r.Findings = req, found
	r.readCSR(opts.CSR)
	r.readChain(opts)
	r.checkSignature(opts.CSR)
	return r
}

// add takes in an error that is a *fault.Finding, as every error of this package and of chain is.
func (r *Report) add(err error) {
	var f *fault.Finding
	if !errors.As(err, &f) {
		f = bad("request.unreadable", err.Error(), fixSignAgain, fault.PortalInvalidCSR)
	}
	r.Findings = append(r.Findings, *f)
}

func (r *Report) readCSR(want *CSR) {
	der := r.Request.CSR
	parsed, err := parseCSR(der)
	switch {
	case err == nil:
		r.CSR = parsed
		r.Findings = append(r.Findings, CheckCSR(parsed)...)
	case bytes.Contains(der, pemBegin):
		r.add(bad("request.csr-pem", keyCSR+" is the base64 of a PEM file; it must be that of the DER inside", fixSignAgain, fault.PortalInvalidCSR))
	default:
		r.add(err)
	}
	if want == nil || bytes.Equal(der, want.DER) {
		return
	}
	message := "the request holds another CSR than the one given: another customer's, perhaps"
	if parsed != nil && bytes.Equal(parsed.RawSubjectPublicKeyInfo, want.Parsed.RawSubjectPublicKeyInfo) {
		message = "the request holds another CSR than the one given, over the same key"
	}
	r.add(bad("request.csr-differs", message, "sign the CSR that the customer sent", ""))
}

func (r *Report) readChain(opts VerifyOptions) {
	for i, der := range r.Request.Chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			r.add(bad("request.chain-certificate", fmt.Sprintf("certificate %d of the chain is unreadable: %v", i+1, err), fixSignAgain, fault.PortalChainMissing))
			continue
		}
		r.Chain = append(r.Chain, cert)
	}
	r.Findings = append(r.Findings, chain.Check(r.Chain, chain.Options{TrustRoots: opts.TrustRoots, Now: opts.Now})...)
	if vendor := r.Vendor(); vendor != nil && r.CSR != nil && bytes.Equal(vendor.RawSubjectPublicKeyInfo, r.CSR.RawSubjectPublicKeyInfo) {
		r.add(VendorCSR())
	}
}

// VendorCSR is the refusal of the vendor's own CSR in a customer's place.
func VendorCSR() error {
	return refuse("csr.vendor-key", "this is the vendor's own CSR (its key is the vendor certificate's), not a customer's", fixAskCSR)
}

// Vendor is the certificate whose key must have made the signature: the first that is no CA, or nil.
func (r *Report) Vendor() *x509.Certificate {
	for _, cert := range r.Chain {
		if !cert.IsCA {
			return cert
		}
	}
	return nil
}

// sha1Until: Apple's page asked for SHA-1 until vendor certificates of 2021.
var sha1Until = time.Date(2021, 1, 1, 0, 0, 0, 0, time.UTC)

// checkSignature says whether the signature is right and, when it is not, what it was made with and over.
func (r *Report) checkSignature(want *CSR) {
	vendor := r.Vendor()
	if vendor == nil {
		return // chain.Check said why there is none
	}
	der, sig := r.Request.CSR, r.Request.Signature
	wrong := func(what string) {
		r.add(bad("request.signature", "the signature "+what, fixSignAgain, fault.PortalSignature))
	}
	pub, ok := vendor.PublicKey.(*rsa.PublicKey)
	if !ok {
		return // chain.Check refuses such a leaf
	}
	if r.Digest = madeWith(pub, der, sig); r.Digest == crypto.SHA256 {
		return
	}
	if r.Digest == crypto.SHA1 {
		f := bad("request.signature-sha1", "the signature was made with SHA-1; Apple wants SHA-256", "make the request again with --digest sha256", fault.PortalSignature)
		if vendor.NotBefore.Before(sha1Until) {
			f.Severity, f.Portal = fault.SeverityWarning, ""
		}
		r.add(f)
		return
	}
	for _, text := range pemTexts(der, want) {
		if h := madeWith(pub, text, sig); h != 0 {
			wrong("was made over the PEM text of the CSR; it must be made over the DER")
			return
		}
	}
	for i, cert := range r.Chain {
		other, ok := cert.PublicKey.(*rsa.PublicKey)
		if ok && cert != vendor && madeWith(other, der, sig) != 0 {
			wrong(fmt.Sprintf("was made by another key of the chain: that of certificate %d, %q", i+1, cert.Subject.CommonName))
			return
		}
	}
	if len(sig) != pub.Size() {
		wrong(fmt.Sprintf("has %d bytes where the vendor's key makes %d: another key made it, or it was cut", len(sig), pub.Size()))
		return
	}
	wrong("does not verify with the vendor certificate's key: another key made it, or the CSR was changed afterwards")
}

// madeWith is the hash with which sig verifies over message, or 0.
func madeWith(pub *rsa.PublicKey, message, sig []byte) crypto.Hash {
	for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA1} {
		hash := h.New()
		hash.Write(message)
		if rsa.VerifyPKCS1v15(pub, h, hash.Sum(nil), sig) == nil {
			return h
		}
	}
	return 0
}

// pemTexts are the texts that a tool may have signed in the DER's place.
func pemTexts(der []byte, want *CSR) [][]byte {
	var texts [][]byte
	if want != nil {
		texts = append(texts, want.File)
	}
	for _, label := range []string{"CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"} {
		text := pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der})
		dos := bytes.ReplaceAll(text, []byte("\n"), []byte("\r\n"))
		texts = append(texts, text, bytes.TrimSpace(text), dos, bytes.TrimSpace(dos))
	}
	return append(texts, []byte(base64.StdEncoding.EncodeToString(der)))
}
