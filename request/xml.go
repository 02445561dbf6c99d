package request

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// maxDepth limits the nested elements of a property list; a request has three.
const maxDepth = 16

// doctype matches Apple's DOCTYPE of a property list, with the public identifiers that Apple's tools have had. An internal
// subset, which could declare entities, does not match.
var doctype = regexp.MustCompile(`^DOCTYPE\s+plist\s+PUBLIC\s+["']-//Apple( Computer| Inc)?//DTD PLIST 1\.0//EN["']\s+["']https?://www\.apple\.com/DTDs/PropertyList-1\.0\.dtd["']\s*$`)

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
			m := doctype.FindSubmatch(token)
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
