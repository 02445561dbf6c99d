package request

import (
	"bytes"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"strings"
	"unicode/utf16"
)

// csrDER takes the encoding off a CSR and gives the DER bytes inside, unchanged and not yet parsed.
func csrDER(data []byte) ([]byte, error) {
	if len(data) > MaxCSR {
		return nil, refuse("csr.size", fmt.Sprintf("larger than %d bytes, which no CSR is", MaxCSR), fixAskCSR)
	}
	if looksDER(data) {
		return data, nil
	}
	text := plainText(data)
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, refuse("csr.empty", "the file is empty", fixAskCSR)
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
		return nil, refuse("csr.encoding", "neither PEM nor DER nor base64 of them: "+describe(text), fixAskCSR)
	case looksDER(inner):
		return inner, nil
	case bytes.Contains(inner, pemBegin):
		return csrPEM(inner)
	}
	return nil, refuse("csr.encoding", "base64 of something that is neither PEM nor DER: "+describe(inner), fixAskCSR)
}

func alreadyRequest() error {
	return refuse("csr.kind", "this is a Push Certificate Request already (or another property list), not a CSR", "verify it with hsmsign verify, or name the CSR")
}

var pemBegin = []byte("-----BEGIN ")

// csrPEM finds the one PEM block, text before and after it allowed, as openssl req -text prints it. Blocks are
// counted by their BEGIN lines: pem.Decode loses those that are run together, and a second CSR or a private key
// must not slip by.
func csrPEM(text []byte) ([]byte, error) {
	if n := bytes.Count(text, pemBegin); n > 1 {
		if bytes.Contains(text, []byte("PRIVATE KEY-----")) {
			return nil, refuse("csr.private-key", "a private key stands beside the CSR, so others than its owner have it",
				"tell the customer to make a new key and CSR and to send the CSR alone")
		}
		return nil, refuse("csr.count", fmt.Sprintf("%d PEM blocks where exactly one CSR is taken", n), "split the file: one CSR a file")
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, refuse("csr.pem", "the PEM block is damaged: its END line, or base64 inside, is missing or broken", fixAskCSR)
	}
	switch {
	case block.Type == "CERTIFICATE REQUEST" || block.Type == "NEW CERTIFICATE REQUEST":
		return block.Bytes, nil
	case strings.Contains(block.Type, "PRIVATE KEY"):
		return nil, refuse("csr.private-key", "this is a private key, not a certificate signing request",
			"tell the customer to make a new key and CSR and to send the CSR alone")
	}
	return nil, refuse("csr.kind", fmt.Sprintf("this is a PEM %q, not a certificate signing request", block.Type), fixAskCSR)
}

// oneDER checks that data is one DER element and nothing after it.
func oneDER(data []byte) error {
	var element asn1.RawValue
	rest, err := asn1.Unmarshal(data, &element)
	if err != nil {
		return refuse("csr.truncated", "the DER is cut short or damaged: "+err.Error(), fixAskCSR)
	}
	if len(rest) > 0 {
		return refuse("csr.trailing", fmt.Sprintf("%d bytes follow the CSR; exactly one CSR is taken", len(rest)), "remove what follows the CSR")
	}
	return nil
}

// looksDER: a SEQUENCE (X.690 8.9) whose length takes more than one byte. No text starts so.
func looksDER(data []byte) bool { return len(data) >= 2 && data[0] == 0x30 && data[1] >= 0x80 }

// plainText takes off a byte order mark and turns UTF-16, as PowerShell's ">" writes it, into UTF-8.
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

// decodeBase64 decodes standard base64 (RFC 4648 section 4, padded) with any white space in it.
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

// describe says in a few words what a file is that is not what was asked for. It never repeats its content.
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
	case bytes.HasPrefix(head, []byte("ssh-")):
		return "it is an SSH public key"
	case bytes.IndexByte(data, 0) >= 0:
		return "it is binary data"
	}
	return "it is some other text"
}
