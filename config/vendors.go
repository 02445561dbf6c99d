package config

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"

	"hsmsign/internal/suggest"
)

// maxVendors bounds how many identities there can be; Apple gives a vendor three certificates at most.
const maxVendors = 32

// vendorName: a word, so that it can stand in a flag, a metric and a message as it is.
var vendorName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]{0,63}$`)

func (v *Vendor) settings() []setting {
	return []setting{
		{name: "key", text: &v.Key},
		{name: "cert", text: &v.Cert},
		{name: "chain", list: &v.Chain},
		{name: "trust-root", list: &v.TrustRoot},
	}
}

// setVendors reads the mapping of names to identities.
func (s setting) setVendors(value ast.Node) *Error {
	mapping, ok := value.(*ast.MappingNode)
	if !ok {
		return refuse(value.GetToken(), "write vendors: and below it NAME: with key: and cert:", "vendors is a mapping")
	}
	if len(mapping.Values) > maxVendors {
		return refuse(value.GetToken(), "", "%d vendors; at most %d are read", len(mapping.Values), maxVendors)
	}
	vendors := map[string]Vendor{}
	for _, entry := range mapping.Values {
		at := entry.Key.GetToken()
		name, ok := entry.Key.(*ast.StringNode)
		if !ok || !vendorName.MatchString(name.Value) {
			return refuse(at, "begin with a letter, then letters, digits, '.', '_' and '-'", "vendors: %q is not a name", shorten(at.Value))
		}
		identity, ok := entry.Value.(*ast.MappingNode)
		if !ok {
			return refuse(entry.Value.GetToken(), "write key: and cert: below it", "vendors: %s is a mapping", name.Value)
		}
		var v Vendor
		for _, entry := range identity.Values {
			if err := set(entry, v.settings()); err != nil {
				return err
			}
		}
		if v.Key == "" {
			return refuse(at, "write key: REFERENCE below it", "vendors: %s has no key", name.Value)
		}
		vendors[name.Value] = v
	}
	if len(vendors) > 0 {
		*s.vendors = vendors
	}
	return nil
}

// checkVendors refuses an identity of the file itself beside named ones, and an active one that is not there: which of
// them signs must not hang on what somebody remembers.
func (c *Config) checkVendors(mapping *ast.MappingNode) *Error {
	at := func(key string) *token.Token {
		for _, entry := range mapping.Values {
			if name, ok := entry.Key.(*ast.StringNode); ok && name.Value == key {
				return entry.Key.GetToken()
			}
		}
		return nil
	}
	if c.Vendor != "" {
		if _, ok := c.Vendors[c.Vendor]; !ok {
			names := slices.Sorted(maps.Keys(c.Vendors))
			return refuse(at("vendor"), SuggestVendor(c.Vendor, names), "vendor: there is no %q among vendors", shorten(c.Vendor))
		}
	}
	if len(c.Vendors) == 0 {
		return nil
	}
	for _, own := range []struct {
		key string
		set bool
	}{{"key", c.Key != ""}, {"cert", c.Cert != ""}, {"chain", c.Chain != nil}} {
		if own.set {
			return refuse(at(own.key), "move it below a name in vendors", "%s and vendors together", own.key)
		}
	}
	return nil
}

// SuggestVendor is the hint for a name that is none of the names: which was most likely meant, or what there is.
func SuggestVendor(name string, names []string) string {
	if len(names) == 0 {
		return "there are no vendors in the configuration"
	}
	return suggest.Name(name, names, "there are "+strings.Join(names, ", "))
}
