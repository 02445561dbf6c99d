package request

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"strings"

	"howett.net/plist"

	"hsmsign/fault"
)

// Parse reads a Push Certificate Request in any shape seen in the wild: base64 in one line or wrapped, or the
// bare XML; keys in any order; a chain in any order, with PEM blocks run together or lines too long. It decodes
// and checks nothing: see Verify. An error is a *fault.Finding whose ID starts with "request.".
func Parse(data []byte) (*Request, error) {
	r, _, err := parse(data)
	return r, err
}

// parse also gives what it tolerated, as findings.
func parse(data []byte) (*Request, []fault.Finding, error) {
	xml, found, err := unwrap(data)
	if err != nil {
		return nil, nil, err
	}
	dict, plistFound, err := parsePlist(xml)
	if err != nil {
		return nil, nil, err
	}
	found = append(found, plistFound...)
	r := &Request{}
	if r.CSR, err = decodeKey(dict, keyCSR, fault.PortalInvalidCSR); err != nil {
		return nil, nil, err
	}
	if r.Signature, err = decodeKey(dict, keySignature, fault.PortalSignature); err != nil {
		return nil, nil, err
	}
	chain, chainFound, err := parseChain(dict[keyChain])
	if err != nil {
		return nil, nil, err
	}
	r.Chain = chain
	return r, append(found, chainFound...), nil
}

// The keys of the property list.
const (
	keyCSR       = "PushCertRequestCSR"
	keyChain     = "PushCertCertificateChain"
	keySignature = "PushCertSignature"
)

const fixSignAgain = "make the request again with hsmsign sign"

func bad(id, message, fix, portal string) *fault.Finding {
	return &fault.Finding{ID: id, Severity: fault.SeverityError, Message: message, Fix: fix, Portal: portal}
}

func tolerated(id, message, fix string) fault.Finding {
	return fault.Finding{ID: id, Severity: fault.SeverityWarning, Message: message, Fix: fix}
}

// unwrap gives the XML inside data.
func unwrap(data []byte) ([]byte, []fault.Finding, error) {
	if len(data) > MaxRequest {
		return nil, nil, bad("request.size", fmt.Sprintf("larger than %d bytes, which no request is", MaxRequest),
			"check that this is the file that the vendor sent", fault.PortalInvalidCSR)
	}
	text := bytes.TrimSpace(plainText(data))
	if isXML(text) {
		return text, []fault.Finding{tolerated("request.not-base64",
			"the bare XML property list: Apple asks for the base64 of it", "encode it: base64 -w0 FILE")}, nil
	}
	var found []fault.Finding
	if bytes.ContainsAny(text, " \t\r\n") {
		found = append(found, fault.Finding{ID: "request.wrapped", Severity: fault.SeverityNote,
			Message: "the base64 is wrapped into lines, which the portal is known to take"})
	}
	xml, err := decodeBase64(text)
	if err != nil {
		return nil, nil, bad("request.encoding", "neither base64 nor an XML property list: "+describe(text), fixSignAgain, fault.PortalInvalidCSR)
	}
	if xml = bytes.TrimSpace(xml); !isXML(xml) {
		return nil, nil, bad("request.encoding", "base64 of something that is no XML property list: "+describe(xml), fixSignAgain, fault.PortalInvalidCSR)
	}
	return xml, found, nil
}

// isXML keeps the other property list formats out: the library would take them, Apple's portal does not.
func isXML(text []byte) bool {
	return bytes.HasPrefix(text, []byte("<?xml")) || bytes.HasPrefix(text, []byte("<!DOCTYPE plist")) || bytes.HasPrefix(text, []byte("<plist"))
}

func parsePlist(xml []byte) (map[string]any, []fault.Finding, error) {
	malformed := func(why string) error {
		return bad("request.plist", "not a property list with three strings: "+why, fixSignAgain, fault.PortalInvalidCSR)
	}
	var dict map[string]any
	if _, err := plist.Unmarshal(xml, &dict); err != nil {
		return nil, nil, malformed(err.Error())
	}
	for _, key := range []string{keyCSR, keyChain, keySignature} {
		value, ok := dict[key]
		if !ok {
			return nil, nil, malformed(key + " is missing")
		}
		if _, ok := value.(string); !ok {
			return nil, nil, malformed(key + " is not a string")
		}
		// Of two values the library keeps one, and the portal perhaps the other.
		if bytes.Count(xml, []byte("<key>"+key+"</key>")) != 1 {
			return nil, nil, malformed(key + " stands more than once")
		}
	}
	var found []fault.Finding
	if len(dict) > 3 {
		found = append(found, tolerated("request.extra-key", fmt.Sprintf("the property list has %d keys; Apple names three", len(dict)), fixSignAgain))
	}
	if bytes.Contains(xml, []byte("-//Apple//DTD PLIST 1.0//EN")) || !bytes.Contains(xml, []byte("<!DOCTYPE")) {
		return dict, found, nil
	}
	return dict, append(found, fault.Finding{ID: "request.doctype", Severity: fault.SeverityNote,
		Message: "the property list has another DOCTYPE than -//Apple//DTD PLIST 1.0//EN; older tools write -//Apple Inc//DTD"}), nil
}

func decodeKey(dict map[string]any, key, portal string) ([]byte, error) {
	text := dict[key].(string)
	der, err := decodeBase64([]byte(text))
	if err == nil && len(der) > 0 {
		return der, nil
	}
	why := "is empty"
	switch {
	case strings.Contains(text, "-----BEGIN"):
		why = "holds PEM; it must be the base64 of the binary, without BEGIN and END lines"
	case err != nil:
		why = "is not base64"
	}
	return nil, bad("request.value", key+" "+why, fixSignAgain, portal)
}

// parseChain reads concatenated PEM certificates. Nothing in it is parsed further.
func parseChain(value any) ([][]byte, []fault.Finding, error) {
	text := strings.TrimSpace(value.(string))
	if text == "" {
		return nil, nil, bad("request.chain-empty", keyChain+" is empty", fixSignAgain, fault.PortalChainMissing)
	}
	var found []fault.Finding
	if apart := strings.ReplaceAll(text, "----------BEGIN", "-----\n-----BEGIN"); apart != text {
		found = append(found, tolerated("request.pem-run-together",
			"PEM blocks stand on one line (-----END CERTIFICATE----------BEGIN CERTIFICATE-----), which many readers cut short", fixSignAgain))
		text = apart
	}
	if wide := widestLine(text); wide != "" {
		found = append(found, tolerated("request.pem-width", wide, fixSignAgain))
	}
	var chain [][]byte
	begins := strings.Count(text, "-----BEGIN ")
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, nil, bad("request.chain-pem", fmt.Sprintf("%s holds a PEM %q where certificates belong", keyChain, block.Type), fixSignAgain, fault.PortalChainMissing)
		}
		chain = append(chain, block.Bytes)
	}
	if len(chain) != begins || begins == 0 {
		return nil, nil, bad("request.chain-pem", fmt.Sprintf("%s has %d PEM blocks of which %d can be read", keyChain, begins, len(chain)), fixSignAgain, fault.PortalChainMissing)
	}
	return chain, found, nil
}

// widestLine says which PEM line breaks Apple's rule: "each line except the last contains exactly 64 printable
// characters, and the last line contains 64 or fewer". Empty when none does.
func widestLine(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		line = strings.TrimSuffix(line, "\r")
		if strings.HasPrefix(line, "-----") || line == "" {
			continue
		}
		last := i+1 == len(lines) || strings.HasPrefix(lines[i+1], "-----")
		if len(line) > 64 || len(line) < 64 && !last {
			return fmt.Sprintf("line %d of %s has %d characters; Apple wants 64 in every line but a certificate's last", i+1, keyChain, len(line))
		}
	}
	return ""
}
