// Package mdmcert implements the wire form of mdmcert.download, a service that signs CSRs for users without an MDM vendor:
// the client (NewRecipient, Service.Send, Decrypt) and the server (ParseOrder, Encrypt, Success, Failure).
//
// The client posts an Order as JSON. The server answers at once whether it accepts the order, and mails the Push
// Certificate Request, encrypted to the client's certificate.
//
// The functions depend only on their arguments and are safe for concurrent use.
package mdmcert

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"net/mail"
	"strings"

	"hsmsign/fault"
	"hsmsign/internal/cms"
	"hsmsign/internal/pemtext"
	"hsmsign/internal/strictder"
)

// Order asks a service to sign a CSR as the MDM vendor, and to mail the Push Certificate Request encrypted.
type Order struct {
	CSR        []byte // Send requires DER; ParseOrder returns the client's file, usually PEM, for request.DecodeCSR
	Email      string // as registered with the service, which mails its answer there
	EncryptFor []byte // certificate with an RSA key, DER; see NewRecipient
}

// body is the JSON of an order. CSR and Encrypt are the base64 of PEM.
type body struct {
	CSR     string `json:"csr"`
	Email   string `json:"email"`
	Key     string `json:"key"`
	Encrypt string `json:"encrypt"`
}

// MaxOrder is the size limit of the body of an order, in bytes. Clients send about 5 KB.
const MaxOrder = 256 << 10

// ErrOrder is the error family of ParseOrder and of Encrypt's recipient.
var ErrOrder = fault.Refused.New("unusable order")

// maxEmail is the longest email address, in characters (RFC 5280, ub-emailaddress-length).
const maxEmail = 255

// ParseOrder decodes the body of an order, as a server of mdmcert.download's kind receives it. apiKey is a secret. The CSR
// is unchecked; email address and certificate can be used.
//
// The error wraps ErrOrder; its text is fit for Failure.
func ParseOrder(data []byte) (order *Order, apiKey string, err error) {
	if len(data) > MaxOrder {
		return nil, "", fault.TooLarge.Errorf("%w: larger than %d bytes", ErrOrder, MaxOrder).Fix("send one CSR and one certificate")
	}
	var b body
	if json.Unmarshal(data, &b) != nil {
		return nil, "", fault.Errorf("%w: the body is not a JSON object with the strings csr, email, key and encrypt", ErrOrder).
			Fix("use a client for mdmcert.download")
	}
	csr, err := base64.StdEncoding.Strict().DecodeString(b.CSR)
	if err != nil || len(csr) == 0 {
		return nil, "", fault.Errorf("%w: csr is not base64", ErrOrder).Fix("send the base64 of the CSR in PEM")
	}
	address, err := mail.ParseAddress(b.Email)
	if err != nil || address.Address != b.Email || len(b.Email) > maxEmail || strings.ContainsFunc(b.Email, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, "", fault.Errorf("%w: email is not an email address", ErrOrder).Fix("write it as in mdm@example.com")
	}
	cert, err := base64.StdEncoding.Strict().DecodeString(b.Encrypt)
	if err != nil {
		return nil, "", fault.Errorf("%w: encrypt is not base64", ErrOrder).Fix("send the base64 of the certificate in PEM")
	}
	for block := range pemtext.Scan(string(cert)) {
		if block.Label == "CERTIFICATE" {
			cert, _ = block.DER() // parseRecipient refuses nil
			break
		}
	}
	if _, err := parseRecipient(cert); err != nil {
		return nil, "", err
	}
	return &Order{CSR: csr, Email: b.Email, EncryptFor: cert}, b.Key, nil
}

// parseRecipient returns the certificate to which an answer is encrypted. The error wraps ErrOrder.
func parseRecipient(der []byte) (*x509.Certificate, error) {
	cert, err := strictder.ParseCertificate(der)
	if err != nil {
		return nil, fault.Errorf("%w: encrypt is not a certificate", ErrOrder).Fix("send the base64 of the certificate in PEM")
	}
	if err := cms.CheckRecipient(cert); err != nil {
		return nil, fault.Errorf("%w: the certificate in encrypt: %w", ErrOrder, err).
			Fix("make the recipient's certificate with an RSA-2048 key")
	}
	return cert, nil
}

// result is the JSON of an answer.
type result struct {
	Result string `json:"result"`
	Reason string `json:"reason,omitempty"`
}

// The values of result.Result.
const (
	success = "success"
	failure = "failure"
)

// Success returns the body of the answer that accepts an order.
func Success() []byte { return encode(result{Result: success}) }

// Failure returns the body of the answer that refuses an order. reason is for the client's user and must not contain
// secrets; it is clipped to one line of 200 bytes. The HTTP status of a failure is 200, too: with any other status the
// clients do not read the reason.
func Failure(reason string) []byte { return encode(result{failure, fault.Clip(reason, 200)}) }

func encode(r result) []byte {
	data, _ := json.Marshal(r) // strings always marshal
	return data
}
