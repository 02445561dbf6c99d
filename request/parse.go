package request

import (
	"bytes"
	"cmp"
	"encoding/pem"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"

	"howett.net/plist"

	"hsmsign/fault"
	"hsmsign/internal/filekind"
	"hsmsign/internal/pemtext"
)

// Parse decodes a Push Certificate Request in every form that tools write: base64 in one line or wrapped, or the bare XML;
// keys in any order; a chain in any order, with long lines or without a newline between PEM blocks. It checks nothing: see
// Verify. The error is a *fault.Finding whose ID starts with "request.".
func Parse(data []byte) (*Request, error) {
	r, _, err := parse(data)
	return r, err
}

// parse also returns findings about what it tolerates.
func parse(data []byte) (*Request, []fault.Finding, error) {
	xml, findings, err := unwrap(data)
	if err != nil {
		return nil, nil, err
	}
	dict, plistFound, err := parsePlist(xml)
	if err != nil {
		return nil, nil, err
	}
	findings = append(findings, plistFound...)
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
	return r, append(findings, chainFound...), nil
}

// The keys of the property list.
const (
	keyCSR       = "PushCertRequestCSR"
	keyChain     = "PushCertCertificateChain"
	keySignature = "PushCertSignature"
)

const fixSignAgain = "make the request again with hsmsign sign"

// refuse returns a finding of severity error about a request that Apple's portal would not read, with the fix fixSignAgain.
func refuse(id, format string, args ...any) *fault.Finding {
	return fault.Refuse(id, format, args...).WithFix(fixSignAgain).WithPortal(fault.PortalInvalidCSR)
}

// unwrap returns the XML inside data.
func unwrap(data []byte) ([]byte, []fault.Finding, error) {
	if len(data) > MaxRequest {
		return nil, nil, refuse("request.size", "larger than %d bytes, the limit for a request", MaxRequest).
			WithFix("check that this is the file from the vendor")
	}
	text := bytes.TrimSpace(plainText(data))
	if isXML(text) {
		return text, []fault.Finding{*fault.Warn("request.not-base64", "the bare XML property list; Apple requires its base64").
			WithFix("encode it: base64 -w0 FILE")}, nil
	}
	var findings []fault.Finding
	if bytes.ContainsAny(text, " \t\r\n") {
		findings = append(findings, *fault.Note("request.wrapped", "the base64 is wrapped into lines, which the portal accepts"))
	}
	xml, err := decodeBase64(text)
	if xml = bytes.TrimSpace(xml); err != nil || !isXML(xml) {
		kind := filekind.Of(text)
		return nil, nil, refuse("request.encoding", "this is %s, not a Push Certificate Request (base64 of an XML property list)", kind).
			WithFix(cmp.Or(kind.Use(), fixSignAgain))
	}
	return xml, findings, nil
}

// isXML excludes the other property list formats, which the library accepts and Apple's portal does not.
func isXML(text []byte) bool {
	return bytes.HasPrefix(text, []byte("<?xml")) || bytes.HasPrefix(text, []byte("<!DOCTYPE plist")) || bytes.HasPrefix(text, []byte("<plist"))
}

func parsePlist(xml []byte) (map[string]any, []fault.Finding, error) {
	malformed := func(format string, args ...any) error {
		return refuse("request.plist", "not a property list with three strings: "+format, args...)
	}
	doc, err := readXML(xml)
	if err != nil {
		return nil, nil, malformed("%v", err)
	}
	var dict map[string]any
	if _, err := plist.Unmarshal(xml, &dict); err != nil {
		return nil, nil, malformed("%v", err)
	}
	for _, key := range []string{keyCSR, keyChain, keySignature} {
		value, ok := dict[key]
		if !ok {
			return nil, nil, malformed("%s is missing", key)
		}
		if _, ok := value.(string); !ok {
			return nil, nil, malformed("%s is not a string", key)
		}
		if doc.keys[key] != 1 {
			return nil, nil, malformed("it contains %s more than once", key)
		}
	}
	var findings []fault.Finding
	if len(dict) > 3 {
		findings = append(findings, *fault.Warn("request.extra-key", "the property list has %d keys; Apple defines three", len(dict)).WithFix(fixSignAgain))
	}
	if doc.olderDoctype {
		findings = append(findings, *fault.Note("request.doctype",
			"the DOCTYPE of the property list is not -//Apple//DTD PLIST 1.0//EN; older tools write -//Apple Inc//DTD"))
	}
	return dict, findings, nil
}

func decodeKey(dict map[string]any, key, portal string) ([]byte, error) {
	text := dict[key].(string)
	der, err := decodeBase64([]byte(text))
	if err == nil && len(der) > 0 {
		return der, nil
	}
	problem := "is empty"
	switch {
	case strings.Contains(text, "-----BEGIN"):
		problem = "contains PEM; it must be the base64 of the binary, without BEGIN and END lines"
	case err != nil:
		problem = "is not base64"
	}
	return nil, refuse("request.value", "%s %s", key, problem).WithPortal(portal)
}

// parseChain returns the DER of concatenated PEM certificates, unparsed.
func parseChain(value any) ([][]byte, []fault.Finding, error) {
	text := strings.TrimSpace(value.(string))
	if text == "" {
		return nil, nil, refuse("request.chain-empty", "%s is empty", keyChain).WithPortal(fault.PortalChainMissing)
	}
	var findings []fault.Finding
	if apart := strings.ReplaceAll(text, "----------BEGIN", "-----\n-----BEGIN"); apart != text {
		findings = append(findings, *fault.Warn("request.pem-run-together",
			"there is no newline between PEM blocks (-----END CERTIFICATE----------BEGIN CERTIFICATE-----): many readers find only the first one").WithFix(fixSignAgain))
		text = apart
	}
	blocks := slices.Collect(pemtext.Scan(text))
	if wide := widestLine(blocks); wide != "" {
		findings = append(findings, *fault.Warn("request.pem-width", "%s", wide).WithFix(fixSignAgain))
	}
	var chain [][]byte
	begins := strings.Count(text, "-----BEGIN ")
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, nil, refuse("request.chain-pem", "%s contains a PEM %q, want certificates only", keyChain, fault.Clip(block.Type, 128)).WithPortal(fault.PortalChainMissing)
		}
		chain = append(chain, block.Bytes)
	}
	// pem.Decode accepts base64 with bits after the last byte.
	same := slices.EqualFunc(chain, blocks, func(der []byte, b pemtext.Block) bool {
		strict, err := b.DER()
		return err == nil && bytes.Equal(strict, der)
	})
	if len(chain) != begins || begins == 0 || !same {
		return nil, nil, refuse("request.chain-pem", "%s has %d PEM blocks, of which %d can be read", keyChain, begins, len(chain)).WithPortal(fault.PortalChainMissing)
	}
	return chain, findings, nil
}

// widestLine returns which line of a PEM block breaks Apple's rule: "each line except the last contains exactly 64
// printable characters, and the last line contains 64 or fewer". It returns "" if there is none. The rule does not apply to
// text before and after the blocks, such as OpenSSL's "Bag Attributes".
func widestLine(blocks []pemtext.Block) string {
	for _, b := range blocks {
		lines := strings.Split(b.Text, "\n")
		for i, line := range lines {
			line = strings.TrimSuffix(line, "\r")
			if line == "" {
				continue
			}
			last := i+2 >= len(lines) // the text ends with a newline
			if len(line) > 64 || len(line) < 64 && !last {
				return fmt.Sprintf("line %d of %s has %d characters; Apple requires 64 in every line but the last of a certificate", b.Line+i, keyChain, len(line))
			}
		}
	}
	return ""
}

// maxDepth limits the nested elements of a property list; a request has three.
const maxDepth = 16

// doctype matches Apple's DOCTYPE of a property list, with the public identifiers that Apple's tools have had. An internal
// subset, which could declare entities, does not match.
var doctype = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^DOCTYPE\s+plist\s+PUBLIC\s+["']-//Apple( Computer| Inc)?//DTD PLIST 1\.0//EN["']\s+["']https?://www\.apple\.com/DTDs/PropertyList-1\.0\.dtd["']\s*$`)
})

// document is what parsePlist needs to know about the XML of a property list in addition to the library's result.
type document struct {
	keys         map[string]int // how often each <key> occurs, decoded, anywhere
	olderDoctype bool
}

// readXML checks the structure of a property list: one document element with one child, at most one DOCTYPE, which is
// Apple's and comes first, and no elements inside <key> and <string>. The plist library checks none of this: it keeps the
// last of two equal keys and stops reading after the first value, and the portal may do otherwise.
func readXML(data []byte) (document, error) {
	doc := document{keys: map[string]int{}}
	var open []string // the names of the open elements
	var text strings.Builder
	doctypes, roots, values := 0, 0, 0
	decoder := xml.NewDecoder(bytes.NewReader(data))
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return doc, err
		}
		switch token := token.(type) {
		case xml.Directive:
			m := doctype().FindSubmatch(token)
			doctypes++
			if m == nil || doctypes > 1 || roots > 0 {
				return doc, errors.New("a declaration is not Apple's DOCTYPE, or not the only one")
			}
			doc.olderDoctype = len(m[1]) > 0
		case xml.StartElement:
			if inner := last(open); inner == "key" || inner == "string" {
				return doc, fmt.Errorf("<%s> contains an element", inner)
			}
			switch len(open) {
			case 0:
				roots++
			case 1:
				values++
			case maxDepth:
				return doc, errors.New("it is nested too deep")
			}
			open = append(open, token.Name.Local)
			text.Reset()
		case xml.EndElement:
			if last(open) == "key" {
				doc.keys[text.String()]++
			}
			open = open[:len(open)-1]
		case xml.CharData:
			text.Write(token)
			if len(open) < 2 && len(bytes.TrimSpace(token)) > 0 {
				return doc, errors.New("there is text outside the elements")
			}
		}
	}
	if roots != 1 || values != 1 {
		return doc, errors.New("it contains more than one value")
	}
	return doc, nil
}

// last returns the last of the names, or "".
func last(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return names[len(names)-1]
}
