package request

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"time"

	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/internal/strictder"
)

// VerifyOptions are the expectations of Verify. The zero value accepts any CSR and uses Apple's roots and the current time.
type VerifyOptions struct {
	CSR        *CSR                // the CSR that the request must contain; nil: any
	TrustRoots []*x509.Certificate // trusted in addition to Apple's pinned roots
	Now        time.Time           // zero: time.Now()
}

// Report is the result of Verify. The decoded parts are nil if the request could not be read so far.
type Report struct {
	Findings []fault.Finding
	Request  *Request
	CSR      *x509.CertificateRequest
	Chain    []*x509.Certificate // in the request's order
	Digest   crypto.Hash         // of the signature; 0 if it does not verify
}

// OK reports whether the request can be uploaded: it has no finding of severity error.
func (r *Report) OK() bool { return fault.First(r.Findings) == nil }

// Verify checks a Push Certificate Request of any tool as Apple's portal would. It continues after a defect, so that one
// run reports them all.
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

// add appends an error, which is a *fault.Finding if it comes from this package or chain.
func (r *Report) add(err error) {
	f, ok := errors.AsType[*fault.Finding](err)
	if !ok {
		f = refuse("request.unreadable", "%v", err)
	}
	r.Findings = append(r.Findings, *f)
}

func (r *Report) readCSR(want *CSR) {
	der := r.Request.CSR
	parsed, err := parseCSR(der)
	inner, innerErr := csrDER(der)
	switch {
	case err == nil:
		r.CSR = parsed
		r.Findings = append(r.Findings, CheckCSR(parsed)...)
	case bytes.Contains(der, pemBegin):
		r.add(refuse("request.csr-pem", "%s is the base64 of a PEM file; it must be the base64 of the DER inside", keyCSR))
	case innerErr == nil && !bytes.Equal(inner, der):
		r.add(refuse("request.csr-pem", "%s is encoded in base64 twice; it must be the base64 of the DER", keyCSR))
	default:
		r.add(notCSR(der, err))
	}
	if parsed == nil && innerErr == nil { // the CSR in another encoding is not another CSR
		der = inner
		parsed, _ = parseCSR(inner)
	}
	if want == nil || bytes.Equal(der, want.DER) {
		return
	}
	message := "the request contains another CSR than the given one, possibly of another customer"
	if parsed != nil && bytes.Equal(parsed.RawSubjectPublicKeyInfo, want.Parsed.RawSubjectPublicKeyInfo) {
		message = "the request contains another CSR than the given one, over the same key"
	}
	r.add(fault.Refuse("request.csr-differs", "%s", message).WithFix("sign the CSR that the customer sent"))
}

func (r *Report) readChain(opts VerifyOptions) {
	for i, der := range r.Request.Chain {
		cert, err := strictder.ParseCertificate(der)
		if err != nil {
			r.add(refuse("request.chain-certificate", "certificate %d of the chain is unreadable: %v", i+1, err).WithPortal(fault.PortalChainMissing))
			continue
		}
		r.Chain = append(r.Chain, cert)
	}
	r.Findings = append(r.Findings, chain.Check(r.Chain, chain.Options{TrustRoots: opts.TrustRoots, Now: opts.Now})...)
	if vendor := r.Vendor(); vendor != nil && r.CSR != nil && bytes.Equal(vendor.RawSubjectPublicKeyInfo, r.CSR.RawSubjectPublicKeyInfo) {
		r.add(VendorCSR())
	}
}

// VendorCSR returns the finding for the vendor's own CSR, given instead of a customer's.
func VendorCSR() error {
	return refuseCSR("csr.vendor-key", "this is the vendor's own CSR (its key is the vendor certificate's), not a customer's")
}

// Vendor returns the certificate whose key must have made the signature: the first that is not a CA, or nil.
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

// checkSignature verifies the signature. If it is wrong, it finds out what was signed, and with which key.
func (r *Report) checkSignature(want *CSR) {
	vendor := r.Vendor()
	if vendor == nil {
		return // chain.Check reports it
	}
	der, sig := r.Request.CSR, r.Request.Signature
	wrong := func(format string, args ...any) {
		r.add(refuse("request.signature", "the signature "+format, args...).WithPortal(fault.PortalSignature))
	}
	pub, ok := vendor.PublicKey.(*rsa.PublicKey)
	if !ok {
		return // chain.Check refuses such a leaf
	}
	if r.Digest = madeWith(pub, der, sig); r.Digest == crypto.SHA256 {
		return
	}
	if r.Digest == crypto.SHA1 {
		f := refuse("request.signature-sha1", "the signature was made with SHA-1; Apple requires SHA-256").WithPortal(fault.PortalSignature).
			WithFix("make the request again with --digest sha256")
		if vendor.NotBefore.Before(sha1Until) {
			f.Severity, f.Portal = fault.SeverityWarning, ""
		}
		r.add(f)
		return
	}
	if inner, err := csrDER(der); err == nil && madeWith(pub, inner, sig) != 0 {
		wrong("was made over the DER of the CSR, and %s contains another encoding of it", keyCSR)
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
			wrong("was made by another key of the chain: that of certificate %d, %q", i+1, fault.Clip(cert.Subject.CommonName, 128))
			return
		}
	}
	if len(sig) != pub.Size() {
		wrong("has %d bytes, those of the vendor's key have %d: another key made it, or it was cut", len(sig), pub.Size())
		return
	}
	wrong("does not verify with the vendor certificate's key: another key made it, or the CSR was changed afterwards")
}

// madeWith returns the hash with which sig verifies over message, or 0.
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

// pemTexts returns the texts that a tool may have signed instead of the DER.
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
