package config

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"hsmsign/fault"
	"hsmsign/internal/suggest"
)

// setting is one key of the file: where its text goes, its list, or its vendors.
type setting struct {
	name    string
	text    *string
	list    *[]string
	values  []string // the only ones allowed; nil: any
	vendors *map[string]Vendor
}

func (c *Config) settings() []setting {
	return []setting{
		{name: "key", text: &c.Key},
		{name: "cert", text: &c.Cert},
		{name: "chain", list: &c.Chain},
		{name: "trust-root", list: &c.TrustRoot},
		{name: "format", text: &c.Format, values: []string{"base64", "plist"}},
		{name: "digest", text: &c.Digest, values: []string{"sha256", "sha1"}},
		{name: "out-dir", text: &c.OutDir},
		{name: "modules", list: &c.Modules},
		{name: "vendor", text: &c.Vendor},
		{name: "vendors", vendors: &c.Vendors},
	}
}

// Parse reads the text of a config file of at most MaxFile bytes; name is what errors call it. Paths stay as
// they are written. An empty file gives the zero Config. Every error is *Error with a line and a column.
func Parse(name string, data []byte) (*Config, error) {
	c := &Config{}
	if err := c.parse(data); err != nil {
		err.File = name
		return nil, err
	}
	return c, nil
}

func (c *Config) parse(data []byte) *Error {
	if err := checkText(data); err != nil {
		return err
	}
	tokens := lexer.Tokenize(string(bytes.TrimPrefix(data, []byte("\ufeff"))))
	if err := checkTokens(tokens); err != nil {
		return err
	}
	file, err := parser.Parse(tokens, 0)
	if err != nil {
		var at yaml.Error
		if errors.As(err, &at) {
			return refuse(at.GetToken(), "", "%s", at.GetMessage())
		}
		return refuse(nil, "", "not YAML")
	}
	if len(file.Docs) == 0 || file.Docs[0].Body == nil && len(file.Docs) == 1 {
		return nil
	}
	if len(file.Docs) > 1 {
		return refuse(file.Docs[1].Start, "", "a second document begins; a config file is one")
	}
	mapping, ok := file.Docs[0].Body.(*ast.MappingNode)
	if !ok {
		return refuse(file.Docs[0].Body.GetToken(), "write lines of the form key: value", "it holds no keys")
	}
	for _, entry := range mapping.Values {
		if err := set(entry, c.settings()); err != nil {
			return err
		}
	}
	return c.checkVendors(mapping)
}

// refuse is an error at a token; nil is the first line.
func refuse(at *token.Token, fix, format string, args ...any) *Error {
	e := &Error{Line: 1, Column: 1, Fix: fix, Message: fmt.Sprintf(format, args...)}
	if at != nil && at.Position != nil {
		e.Line, e.Column = max(at.Position.Line, 1), max(at.Position.Column, 1)
	}
	return e
}

// checkText refuses what no config file holds: too much, text that is not UTF-8, and control characters, tabs
// among them, which look like spaces and are none.
func checkText(data []byte) *Error {
	e := &Error{Line: 1, Column: 1}
	if len(data) > MaxFile {
		e.Message = fmt.Sprintf("larger than %d bytes", MaxFile)
		return e
	}
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			e.Message = "not UTF-8"
			return e
		case r == '\t':
			e.Message, e.Fix = "a tab", "write spaces"
			return e
		case r == '\r' && i+1 < len(data) && data[i+1] == '\n': // a line may end as on Windows
		case r < ' ' && r != '\n', 0x7f <= r && r < 0xa0, r == '\u2028', r == '\u2029':
			e.Message = fmt.Sprintf("control character %U", r)
			return e
		}
		e.Column++
		if r == '\n' {
			e.Line, e.Column = e.Line+1, 1
		}
		i += size
	}
	return nil
}

// checkTokens refuses what YAML has and a list of settings does not need, before the parser sees it: its work
// grows with the square of the nesting, and an alias can stand for more than the file holds.
func checkTokens(tokens token.Tokens) *Error {
	depth, entryLine := 0, 0
	for _, t := range tokens {
		switch t.Type {
		case token.AnchorType, token.AliasType, token.TagType, token.MergeKeyType, token.DirectiveType, token.MappingKeyType:
			return refuse(t, "", "%q: anchors, aliases, tags, directives and complex keys are not read here", t.Value)
		case token.SequenceStartType, token.MappingStartType:
			depth++
		case token.SequenceEndType, token.MappingEndType:
			depth--
		case token.SequenceEntryType:
			if t.Position.Line == entryLine {
				return refuse(t, "", "a list in a list")
			}
			entryLine = t.Position.Line
		}
		if depth > 4 { // { vendors: { a: { chain: [ x ] } } } has four
			return refuse(t, "", "nested too deep")
		}
	}
	return nil
}

// set takes one "key: value", of the file or of a vendor.
func set(entry *ast.MappingValueNode, settings []setting) *Error {
	at := entry.Key.GetToken()
	name, ok := entry.Key.(*ast.StringNode)
	if !ok {
		return refuse(at, "", "a key that is not a word")
	}
	i := slices.IndexFunc(settings, func(s setting) bool { return s.name == name.Value })
	if i < 0 {
		var known []string
		for _, s := range settings {
			known = append(known, s.name)
		}
		return refuse(at, suggest.Name(name.Value, known, "the keys are: "+strings.Join(known, ", ")), "unknown key %q", shorten(name.Value))
	}
	s := settings[i]
	switch {
	case s.list != nil:
		return s.setList(entry.Value)
	case s.vendors != nil:
		return s.setVendors(entry.Value)
	}
	text, err := s.read(entry.Value)
	if err != nil {
		return err
	}
	if text != "" && s.values != nil && !slices.Contains(s.values, text) {
		return refuse(entry.Value.GetToken(), "write "+strings.Join(s.values, " or "), "%s is %q", s.name, shorten(text))
	}
	*s.text = text
	return nil
}

func (s setting) setList(value ast.Node) *Error {
	sequence, ok := value.(*ast.SequenceNode)
	if !ok {
		return refuse(value.GetToken(), fmt.Sprintf("write %s: [ FILE ]", s.name), "%s is a list", s.name)
	}
	var list []string
	for _, v := range sequence.Values {
		text, err := s.read(v)
		if err != nil {
			return err
		}
		if text == "" {
			return refuse(v.GetToken(), "", "an empty entry in %s", s.name)
		}
		if s.name == "modules" && !filepath.IsAbs(text) {
			return refuse(v.GetToken(), "write the whole path", "modules: %q is not an absolute path", shorten(text))
		}
		list = append(list, text)
	}
	*s.list = list
	return nil
}

// read takes a text of one line.
func (s setting) read(value ast.Node) (string, *Error) {
	text, ok := value.(*ast.StringNode)
	if !ok {
		return "", refuse(value.GetToken(), "write a text, in quotes where it looks like something else", "%s: %s is not a text",
			s.name, strings.ToLower(value.Type().String()))
	}
	if strings.ContainsFunc(text.Value, func(r rune) bool { return r < ' ' || 0x7f <= r && r < 0xa0 || r == utf8.RuneError }) {
		return "", refuse(value.GetToken(), "", "%s holds a control character or is not UTF-8", s.name)
	}
	if strings.Contains(strings.ToLower(text.Value), "pin-value") {
		return "", refuse(value.GetToken(), "put the PIN in a file of mode 0600 and write pin-source=file:PATH",
			"%s holds a pin-value; a config file holds no secrets", s.name)
	}
	return text.Value, nil
}

// shorten bounds a text from the file in an error.
func shorten(s string) string { return fault.Clip(s, 43) }
