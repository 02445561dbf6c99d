package request

import (
	"bytes"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"slices"
	"unicode/utf16"

	"hsmsign/internal/filekind"
	"hsmsign/internal/pemtext"
)

// csrDER returns the DER inside the encodings of a CSR, unchanged and unparsed.
func csrDER(data []byte) ([]byte, error) {
	if len(data) > MaxCSR {
		return nil, refuseCSR("csr.size", "larger than %d bytes, the limit for a CSR", MaxCSR)
	}
	if filekind.IsDER(data) {
		return data, nil
	}
	text := plainText(data)
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, refuseCSR("csr.empty", "the file is empty")
	}
	if bytes.Contains(text, pemBegin) {
		return csrPEM(text)
	}
	inner, err := decodeBase64(text)
	switch {
	case err == nil && filekind.IsDER(inner):
		return inner, nil
	case err == nil && bytes.Contains(inner, pemBegin):
		return csrPEM(inner)
	}
	return nil, refuseCSR("csr.encoding", "neither PEM nor DER nor base64 of them: this is %s", filekind.Of(text))
}

// notCSR returns the error about a file that cannot be read as a CSR: err, or what the file is instead.
func notCSR(data []byte, err error) error {
	switch kind := filekind.Of(plainText(data)); {
	case kind == filekind.PrivateKey:
		return refuseCSR("csr.private-key", "the file contains a private key, so its owner is not the only one who has it").WithFix(fixExposed)
	case kind == filekind.CSR || kind.Use() == "":
		return err
	default:
		return refuseCSR("csr.kind", "this is %s, not a certificate signing request", kind).WithFix(kind.Use() + "; " + fixAskCSR)
	}
}

var pemBegin = []byte("-----BEGIN ")

const fixExposed = "tell the customer to make a new key and CSR and to send the CSR alone"

// csrPEM returns the content of the only PEM block; text before and after it is allowed, as in the output of openssl req
// -text. It counts BEGIN lines, because pem.Decode does not find blocks without a newline between them, and a second CSR or
// a private key must not be overlooked.
func csrPEM(text []byte) ([]byte, error) {
	if n := bytes.Count(text, pemBegin); n > 1 {
		return nil, refuseCSR("csr.count", "found %d PEM blocks, want one CSR", n).WithFix("split the file: one CSR per file")
	}
	block, _ := pem.Decode(text) // requires that BEGIN and END are on separate lines
	blocks := slices.Collect(pemtext.Scan(string(text)))
	var der []byte
	err := errors.New("no block")
	if block != nil && len(blocks) == 1 {
		der, err = blocks[0].DER()
	}
	if err != nil {
		return nil, refuseCSR("csr.pem", "the PEM block is damaged: its END line or its base64 is missing or broken")
	}
	if block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
		return nil, refuseCSR("csr.kind", "this is %s, not a certificate signing request", filekind.Of(text))
	}
	return der, nil
}

// oneDER checks that data is exactly one DER element.
func oneDER(data []byte) error {
	var element asn1.RawValue
	rest, err := asn1.Unmarshal(data, &element)
	if err != nil {
		return refuseCSR("csr.truncated", "the DER is cut short or damaged: %v", err)
	}
	if len(rest) > 0 {
		return refuseCSR("csr.trailing", "%d bytes follow the CSR", len(rest)).WithFix("remove everything after the CSR")
	}
	return nil
}

// plainText returns a text in UTF-8 without a byte order mark. It converts UTF-16, which PowerShell's ">" writes.
func plainText(data []byte) []byte {
	var order binary.ByteOrder
	switch {
	case bytes.HasPrefix(data, []byte{0xef, 0xbb, 0xbf}):
		return data[3:]
	case bytes.HasPrefix(data, []byte{0xff, 0xfe}):
		order = binary.LittleEndian
	case bytes.HasPrefix(data, []byte{0xfe, 0xff}):
		order = binary.BigEndian
	default:
		return data
	}
	units := make([]uint16, 0, len(data)/2)
	for data = data[2:]; len(data) >= 2; data = data[2:] {
		units = append(units, order.Uint16(data))
	}
	return []byte(string(utf16.Decode(units)))
}

// decodeBase64 decodes padded standard base64 (RFC 4648 section 4) with any white space in it.
func decodeBase64(text []byte) ([]byte, error) {
	compact := make([]byte, 0, len(text))
	for _, c := range text {
		if c != ' ' && c != '\t' && c != '\r' && c != '\n' {
			compact = append(compact, c)
		}
	}
	n, err := base64.StdEncoding.Strict().Decode(compact, compact)
	return compact[:n], err
}
