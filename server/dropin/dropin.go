// Package dropin has the wire forms in which other products ask for Push Certificate Requests: Fleet's deliver-apple-csr,
// Zentral's CSR signer, and the mail of mdmcert.download, whose orders package mdmcert reads.
//
//	csr, err := dropin.DecodeFleet(body)
//	answer := dropin.EncodeFleet(request)
//
// It decides nothing: who asks, and what is signed, is the business of package server. Everything that a body says besides the
// CSR and the credential is a claim, which chooses nothing.
//
// The functions depend only on their arguments. A Deliveries is safe for concurrent use.
package dropin

import (
	"encoding/base64"
	"encoding/json"
	"strings"

	"hsmsign/fault"
	"hsmsign/request"
)

// MaxBody is the size limit of a body of Fleet and Zentral, in bytes: a CSR in base64, and what else Zentral signs.
const MaxBody = 2*request.MaxCSR + 16<<10

// maxLine is the length of a refusal, in bytes.
const maxLine = 400

// Line returns a refusal as one plain line, with what to do about it.
func Line(detail, fix string) string {
	if fix != "" {
		detail += "; " + fix
	}
	return fault.Clip(detail, maxLine)
}

// Waiting returns the line for a request that others have to approve.
func Waiting(id string) string { return "waiting for approval " + id + ", ask again" }

// ask is what to do about a body that cannot be read.
const ask = "check that the URL is that of this product's endpoint; docs/dropin.md describes them"

// decode reads a JSON object. Members that are not known are ignored, because other versions of a product may send more.
func decode(data []byte, v any, members string) error {
	if json.Unmarshal(data, v) != nil {
		return fault.Usage.Errorf("the body is not a JSON object with %s", members).Fix(ask)
	}
	return nil
}

// decodeCSR decodes the base64 of a CSR, which is not checked.
func decodeCSR(member, text string) ([]byte, error) {
	csr, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(csr) == 0 {
		return nil, fault.Usage.Errorf("%s is not the base64 of a CSR", member).Fix(ask)
	}
	return csr, nil
}

// encode returns a JSON object; strings always marshal.
func encode(v any) []byte {
	data, _ := json.Marshal(v)
	return data
}

// oneLine returns a request file without the newline at its end.
func oneLine(file []byte) string { return strings.TrimSpace(string(file)) }
