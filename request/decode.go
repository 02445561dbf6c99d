package request

import (
	"bytes"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"unicode/utf16"

	"hsmsign/fault"
	"hsmsign/internal/pemtext"
)

// csrDER returns the DER inside the encodings of a CSR, unchanged and unparsed.
func csrDER(data []byte) ([]byte, error) {
	if len(data) > MaxCSR {
		return nil, refuseCSR("csr.size", "larger than %d bytes, the limit for a CSR", MaxCSR)
	}
	if looksDER(data) {
		return data, nil
	}
	text := plainText(data)
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, refuseCSR("csr.empty", "the file is empty")
	}
	if isXML(bytes.TrimSpace(text)) {
		return nil, alreadyRequest()
	}
	if bytes.Contains(text, pemBegin) {
		return csrPEM(text)
	}
	inner, err := decodeBase64(text)
	switch {
	case isXML(bytes.TrimSpace(inner)):
		return nil, alreadyRequest()
	case err != nil:
		return nil, refuseCSR("csr.encoding", "neither PEM nor DER nor base64 of them: %s", describe(text))
	case looksDER(inner):
		return inner, nil
	case bytes.Contains(inner, pemBegin):
		return csrPEM(inner)
	}
	return nil, refuseCSR("csr.encoding", "base64 of something that is neither PEM nor DER: %s", describe(inner))
}

func alreadyRequest() error {
	return refuseCSR("csr.kind", "this is already a Push Certificate Request (or another property list), not a CSR").
		WithFix("check it with hsmsign verify, or name the CSR")
}

var pemBegin = []byte("-----BEGIN ")

const fixExposed = "tell the customer to make a new key and CSR and to send the CSR alone"

// csrPEM returns the content of the only PEM block; text before and after it is allowed, as in the output of openssl req
// -text. It counts BEGIN lines, because pem.Decode does not find blocks without a newline between them, and a second CSR or
// a private key must not be overlooked.
func csrPEM(text []byte) ([]byte, error) {
	if n := bytes.Count(text, pemBegin); n > 1 {
		if bytes.Contains(text, []byte("PRIVATE KEY-----")) {
			return nil, refuseCSR("csr.private-key", "the file contains a private key in addition to the CSR, so its owner is not the only one who has it").
				WithFix(fixExposed)
		}
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
	switch {
	case block.Type == "CERTIFICATE REQUEST" || block.Type == "NEW CERTIFICATE REQUEST":
		return der, nil
	case strings.Contains(block.Type, "PRIVATE KEY"):
		return nil, refuseCSR("csr.private-key", "this is a private key, not a certificate signing request").WithFix(fixExposed)
	}
	return nil, refuseCSR("csr.kind", "this is a PEM %q, not a certificate signing request", fault.Clip(block.Type, 128))
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

// looksDER reports whether data begins as a SEQUENCE (X.690 section 8.9) whose length has several bytes. No text does.
func looksDER(data []byte) bool { return len(data) >= 2 && data[0] == 0x30 && data[1] >= 0x80 }

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

// describe returns in a few words the kind of an unexpected file. It does not quote the content.
func describe(data []byte) string {
	data = bytes.TrimSpace(data)
	head := bytes.ToLower(data[:min(len(data), 512)])
	switch {
	case len(data) == 0:
		return "it is empty"
	case bytes.HasPrefix(head, []byte("<!doctype html")) || bytes.HasPrefix(head, []byte("<html")):
		return "it is a web page"
	case bytes.HasPrefix(head, []byte("bplist")):
		return "it is a binary property list"
	case bytes.HasPrefix(head, []byte("pk\x03\x04")):
		return "it is a ZIP archive"
	case bytes.HasPrefix(data, []byte("\xfe\xed\xfe\xed")) || bytes.HasPrefix(data, []byte("\xce\xce\xce\xce")):
		return "it is a Java keystore"
	case bytes.HasPrefix(head, []byte("ssh-")):
		return "it is an SSH public key"
	case bytes.IndexByte(data, 0) >= 0:
		return "it is binary data"
	}
	return "it is some other text"
}
