// Package pemtext finds the PEM blocks of a text (RFC 7468), also those that do not begin at the start of a line, which
// encoding/pem does not find. Its work grows with the length of the text, whatever the text contains.
//
// Everything here is safe for concurrent use.
package pemtext

import (
	"encoding/base64"
	"iter"
	"strings"
)

const begin, dashes = "-----BEGIN ", "-----"

// Block is one PEM block.
type Block struct {
	Label string // "CERTIFICATE"
	Text  string // between the BEGIN line and the END line, or the next BEGIN
	Line  int    // of BEGIN, from 1
	Whole bool   // an END with the same label follows
}

// Scan returns the blocks of a text in their order. It skips a BEGIN without a label on one line.
func Scan(text string) iter.Seq[Block] {
	return func(yield func(Block) bool) {
		before, rest, ok := strings.Cut(text, begin)
		for line := 1; ok; {
			line += strings.Count(before, "\n")
			before, rest, ok = strings.Cut(rest, begin) // an END is searched for up to the next BEGIN only
			if label, inner, found := strings.Cut(before, dashes); found && !strings.ContainsAny(label, "\r\n") {
				b := Block{Label: label, Line: line}
				b.Text, _, b.Whole = strings.Cut(inner, dashes+"END "+label+dashes)
				if !yield(b) {
					return
				}
			}
		}
	}
}

// DER returns the content. It skips white space and the header lines of RFC 1421. The base64 is strict: each content has
// one form.
func (b Block) DER() ([]byte, error) {
	text := strings.TrimLeft(b.Text, " \t\r\n")
	for {
		line, rest, _ := strings.Cut(text, "\n")
		if !strings.Contains(line, ":") {
			break
		}
		text = rest
	}
	der, err := base64.StdEncoding.Strict().DecodeString(strings.Join(strings.Fields(text), ""))
	if err != nil {
		return nil, err // without what was decoded before the error
	}
	return der, nil
}
