package config

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"hsmsign/fault"
	"hsmsign/internal/suggest"
)

const (
	maxDepth   = 8  // of braces and brackets
	maxVendors = 32 // Apple issues at most three certificates to a vendor
	maxQuote   = 43 // bytes of a text from the file in an error
)

// vendorName matches words that flags, metrics and messages can contain unchanged. It is compiled at its first use.
var vendorName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]{0,63}$`) })

// Parse decodes the text of a config file of at most MaxFile bytes; name is the file's name in errors. Paths do not
// change. An empty file returns the zero Config. Every error is *Error with a line, a column and a fix.
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
	switch {
	case err != nil:
		return decodeError(err)
	case len(file.Docs) > 1:
		return refuse(file.Docs[1].Start, "a second document begins; a config file is one").withFix("remove the line ---")
	case len(file.Docs) == 0 || file.Docs[0].Body == nil:
		return nil
	}
	root := file.Docs[0].Body
	if err := checkNode("the file", root, reflect.TypeFor[Config](), ""); err != nil {
		return err
	}
	if err := yaml.NodeToValue(root, c, yaml.Strict()); err != nil {
		return decodeError(err)
	}
	if err := c.checkProfiles(root.(*ast.MappingNode)); err != nil {
		return err
	}
	return c.checkVendors(root.(*ast.MappingNode))
}

// refuse returns an error at a token; nil means the first line.
func refuse(at *token.Token, format string, args ...any) *Error {
	e := &Error{Line: 1, Column: 1, Message: fmt.Sprintf(format, args...), Fix: "see hsmsign.example.yaml"}
	if at != nil && at.Position != nil {
		e.Line, e.Column = max(at.Position.Line, 1), max(at.Position.Column, 1)
	}
	return e
}

func (e *Error) withFix(fix string) *Error {
	e.Fix = fix
	return e
}

// decodeError returns an error of the YAML library.
func decodeError(err error) *Error {
	if at, ok := errors.AsType[yaml.Error](err); ok {
		return refuse(at.GetToken(), "%s", fault.Clip(at.GetMessage(), 4*maxQuote))
	}
	return refuse(nil, "not YAML")
}

// checkText refuses a text that is too long, is not UTF-8, or contains control characters or tabs.
func checkText(data []byte) *Error {
	e := refuse(nil, "larger than %d bytes", MaxFile)
	if len(data) > MaxFile {
		return e
	}
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			e.Message, e.Fix = "not UTF-8", "save the file as UTF-8"
			return e
		case r == '\t':
			e.Message, e.Fix = "a tab", "write spaces"
			return e
		case r == '\r' && i+1 < len(data) && data[i+1] == '\n': // a line end of Windows
		case r != '\n' && isControl(r):
			e.Message, e.Fix = fmt.Sprintf("control character %U", r), "remove it"
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

// isControl reports whether r is a control character or one of Unicode's line separators.
func isControl(r rune) bool {
	return r < ' ' || 0x7f <= r && r < 0xa0 || r == '\u2028' || r == '\u2029'
}

// checkTokens refuses YAML's references and types, which a list of settings does not need, and deep nesting. It runs
// before the parser because the parser's work grows with the square of the depth.
func checkTokens(tokens token.Tokens) *Error {
	depth, entryLine := 0, 0
	for _, t := range tokens {
		switch t.Type {
		case token.AnchorType, token.AliasType, token.TagType, token.MergeKeyType, token.DirectiveType, token.MappingKeyType:
			return refuse(t, "%q: anchors, aliases, tags, directives and complex keys are not supported", t.Value).withFix("write key: value")
		case token.SequenceStartType, token.MappingStartType:
			depth++
		case token.SequenceEndType, token.MappingEndType:
			depth--
		case token.SequenceEntryType:
			if t.Position.Line == entryLine {
				return refuse(t, "a list in a list")
			}
			entryLine = t.Position.Line
		}
		if depth > maxDepth {
			return refuse(t, "nested too deep")
		}
	}
	return nil
}

// checkNode checks a value against the type that it is decoded into: the decoder would convert a number, a boolean or
// null to a string, and cannot say which keys there are. name is the key of the value, tag that of its field. Types that
// decode themselves (yaml.NodeUnmarshaler) are left to the decoder.
func checkNode(name string, node ast.Node, t reflect.Type, tag reflect.StructTag) *Error {
	if reflect.PointerTo(t).Implements(reflect.TypeFor[yaml.NodeUnmarshaler]()) {
		return nil
	}
	at := node.GetToken()
	switch t.Kind() {
	case reflect.Pointer:
		return checkNode(name, node, t.Elem(), tag)
	case reflect.Struct, reflect.Map:
		if _, text := node.(*ast.StringNode); text && tag.Get("scalar") != "" {
			return checkString(name, node, "")
		}
		mapping, ok := node.(*ast.MappingNode)
		if !ok {
			return refuse(at, "%s must contain keys, not %s", name, kindOf(node)).withFix("write lines of the form key: value, indented below it")
		}
		for _, entry := range mapping.Values {
			if err := checkEntry(entry, t); err != nil {
				return err
			}
		}
	case reflect.Slice:
		sequence, ok := node.(*ast.SequenceNode)
		if !ok {
			return refuse(at, "%s must be a list, not %s", name, kindOf(node)).withFix(fmt.Sprintf("write %s: [ FILE ]", name))
		}
		for _, v := range sequence.Values {
			if err := checkNode(name, v, t.Elem(), tag); err != nil {
				return err
			}
			if text, ok := v.(*ast.StringNode); ok && text.Value == "" {
				return refuse(v.GetToken(), "an empty entry in %s", name).withFix("remove the entry")
			}
		}
	case reflect.String:
		return checkString(name, node, tag)
	case reflect.Bool:
		if node.Type() != ast.BoolType {
			return refuse(at, "%s must be true or false, not %s", name, kindOf(node)).withFix("write true or false")
		}
	case reflect.Int:
		if node.Type() != ast.IntegerType {
			return refuse(at, "%s must be a number, not %s", name, kindOf(node)).withFix("write a number without quotes")
		}
	}
	return nil
}

// checkEntry checks one "key: value" of a struct or map.
func checkEntry(entry *ast.MappingValueNode, t reflect.Type) *Error {
	at := entry.Key.GetToken()
	key, ok := entry.Key.(*ast.StringNode)
	if !ok {
		return refuse(at, "%q is not a string; a key must be one", fault.Clip(at.Value, maxQuote)).withFix("write the key in quotes")
	}
	if t.Kind() == reflect.Map {
		return checkNode(key.Value, entry.Value, t.Elem(), "")
	}
	var known []string
	for _, field := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(field.Tag.Get("yaml"), ",")
		if name == "-" {
			continue
		}
		if name == key.Value {
			return checkNode(name, entry.Value, field.Type, field.Tag)
		}
		known = append(known, name)
	}
	return refuse(at, "unknown key %q", fault.Clip(key.Value, maxQuote)).
		withFix(suggest.Name(key.Value, known, "the keys are: "+strings.Join(known, ", ")))
}

// checkString checks a value that must be a string of one line.
func checkString(name string, node ast.Node, tag reflect.StructTag) *Error {
	text, ok := node.(*ast.StringNode)
	values := tag.Get("values")
	switch at := node.GetToken(); {
	case !ok:
		return refuse(at, "%s must be a string of one line, not %s", name, kindOf(node)).withFix("write the value in quotes")
	case strings.ContainsFunc(text.Value, func(r rune) bool { return isControl(r) || r == utf8.RuneError }):
		return refuse(at, "%s contains a control character or is not UTF-8", name).withFix("remove the character")
	case strings.Contains(strings.ToLower(text.Value), "pin-value"):
		return refuse(at, "%s contains a pin-value; a config file contains no secrets", name).
			withFix("put the PIN in a file of mode 0600 and write pin-source=file:PATH")
	case text.Value == "":
	case values != "" && !slices.Contains(strings.Split(values, " or "), text.Value):
		return refuse(at, "%s is %q", name, fault.Clip(text.Value, maxQuote)).withFix("write " + values)
	case tag.Get("path") == "absolute" && !filepath.IsAbs(text.Value):
		return refuse(at, "%s: %q is not an absolute path", name, fault.Clip(text.Value, maxQuote)).withFix("write the absolute path")
	}
	return nil
}

// kindOf returns the word for the type of a node: "integer", "mapping".
func kindOf(node ast.Node) string { return node.Type().YAMLName() }

// entryOf returns the entry of a key that is there.
func entryOf(root *ast.MappingNode, key string) *ast.MappingValueNode {
	return root.Values[slices.IndexFunc(root.Values, func(e *ast.MappingValueNode) bool { return e.Key.(*ast.StringNode).Value == key })]
}

// checkProfiles refuses profile identities that are not whole, and an active one that does not exist.
func (c *Config) checkProfiles(root *ast.MappingNode) *Error {
	if _, ok := c.Profiles[c.Profile]; c.Profile != "" && !ok {
		return refuse(entryOf(root, "profile").Key.GetToken(), "profile: there is no %q among profiles", fault.Clip(c.Profile, maxQuote)).
			withFix(suggest.Name(c.Profile, slices.Sorted(maps.Keys(c.Profiles)), "write it below profiles:"))
	}
	if len(c.Profiles) == 0 {
		return nil
	}
	profiles := entryOf(root, "profiles")
	if n := len(c.Profiles); n > maxVendors {
		return refuse(profiles.Key.GetToken(), "%d profiles; at most %d are allowed", n, maxVendors).withFix("remove those that are not used")
	}
	for _, v := range profiles.Value.(*ast.MappingNode).Values {
		at, name := v.Key.GetToken(), v.Key.(*ast.StringNode).Value
		switch i := c.Profiles[name]; {
		case !vendorName().MatchString(name):
			return refuse(at, "profiles: %q is not a name", fault.Clip(name, maxQuote)).withFix("begin with a letter, then letters, digits, '.', '_' and '-'")
		case i.Key == "" || i.Cert == "":
			return refuse(at, "profiles: %s has no key or no cert", name).withFix("write key: REFERENCE and cert: FILE below it")
		}
	}
	return nil
}

// checkVendors refuses a vendor identity of the file itself in addition to named ones, and an active vendor that does
// not exist: the file must say which identity signs.
func (c *Config) checkVendors(root *ast.MappingNode) *Error {
	entry := func(key string) *ast.MappingValueNode {
		return root.Values[slices.IndexFunc(root.Values, func(e *ast.MappingValueNode) bool { return e.Key.(*ast.StringNode).Value == key })]
	}
	if c.Vendor != "" {
		if _, ok := c.Vendors[c.Vendor]; !ok {
			return refuse(entry("vendor").Key.GetToken(), "vendor: there is no %q among vendors", fault.Clip(c.Vendor, maxQuote)).
				withFix(SuggestVendor(c.Vendor, slices.Sorted(maps.Keys(c.Vendors))))
		}
	}
	if len(c.Vendors) == 0 {
		return nil
	}
	for _, own := range []struct {
		key string
		set bool
	}{{"key", c.Key != ""}, {"cert", c.Cert != ""}, {"chain", len(c.Chain) > 0}} {
		if own.set {
			return refuse(entry(own.key).Key.GetToken(), "%s and vendors together", own.key).withFix("move it below a name in vendors")
		}
	}
	vendors := entry("vendors")
	if n := len(c.Vendors); n > maxVendors {
		return refuse(vendors.Key.GetToken(), "%d vendors; at most %d are allowed", n, maxVendors).withFix("remove those that have expired")
	}
	for _, v := range vendors.Value.(*ast.MappingNode).Values {
		at := v.Key.GetToken()
		switch name := v.Key.(*ast.StringNode).Value; {
		case !vendorName().MatchString(name):
			return refuse(at, "vendors: %q is not a name", fault.Clip(name, maxQuote)).
				withFix("begin with a letter, then letters, digits, '.', '_' and '-'")
		case c.Vendors[name].Key == "":
			return refuse(at, "vendors: %s has no key", name).withFix("write key: REFERENCE below it")
		}
	}
	return nil
}
