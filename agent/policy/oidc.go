package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"

	"hsmsign/fault"
	"hsmsign/internal/suggest"
)

// OIDCConfig is the OIDC tokens of a caller, as hsmsign.yaml has it. A value is the whole value of a claim, or the beginning of
// one: refs/tags/* or repo:acme/portal:*, with a * at the end and after a separator only. The claim of an object is written
// with its path, as kubernetes.io/serviceaccount/uid.
type OIDCConfig struct {
	Issuer string            `yaml:"issuer"` // a name in oidc:
	Claims map[string]string `yaml:"claims"`
}

// set returns whether the caller has OIDC tokens.
func (c OIDCConfig) set() bool { return c.Issuer != "" || len(c.Claims) > 0 }

// The limits of a mapping.
const (
	maxClaims = 16
	maxClaim  = 512 // bytes of a name or a value
)

// mapping is the claims that the token of a caller has.
type mapping struct {
	caller *Caller
	name   string // of the credential
	claims map[string]string
}

// registered are claims that are checked for every token, so that a caller cannot have other ones.
var registered = []string{"iss", "aud", "exp", "nbf", "iat", "jti"}

// addOIDC reads the mapping of a caller.
func (p *Policy) addOIDC(c *Caller) error {
	if !c.from.OIDC.set() {
		return nil
	}
	i := p.issuers[c.from.OIDC.Issuer]
	if i == nil {
		names := slices.Sorted(maps.Keys(p.issuers))
		if len(names) == 0 {
			return fault.Usage.Errorf("oidc: there is no issuer %q", fault.Clip(c.from.OIDC.Issuer, 64)).Fix("write oidc: { NAME: { issuer: URL, audience: TEXT } } at the top of the configuration")
		}
		return fault.Usage.Errorf("oidc: there is no issuer %q", fault.Clip(c.from.OIDC.Issuer, 64)).
			Fix(suggest.Name(c.from.OIDC.Issuer, names, "the issuers are "+strings.Join(names, ", ")))
	}
	m := &mapping{caller: c, claims: c.from.OIDC.Claims, name: mappingName(i.name, c.from.OIDC.Claims)}
	if len(m.claims) > maxClaims {
		return fault.Usage.Errorf("oidc: %d claims; at most %d are allowed", len(m.claims), maxClaims).Fix("name those that identify the caller")
	}
	for _, name := range slices.Sorted(maps.Keys(m.claims)) {
		if err := checkClaim(name, m.claims[name]); err != nil {
			return err
		}
	}
	if err := i.require(m.claims); err != nil {
		return err
	}
	key := m.claims[i.rules.exact[0]]
	for _, other := range i.mappings[key] {
		if !disjoint(m.claims, other.claims) {
			return fault.Usage.Errorf("oidc: one token could have its claims and those of %s", other.caller.Name).
				Fix("a credential names one caller; add a claim to both that has different values")
		}
	}
	i.mappings[key] = append(i.mappings[key], m)
	c.oidc = m
	return nil
}

// mappingName returns the name of a credential: the same claims have the same name, and it contains none of them.
func mappingName(issuer string, claims map[string]string) string {
	text, _ := json.Marshal(claims) // a map of strings is always marshaled, with sorted keys
	hash := sha256.Sum256(text)
	return "oidc " + issuer + " " + hex.EncodeToString(hash[:8])
}

// checkClaim returns an error, of kind usage, for a claim that a caller cannot have.
func checkClaim(name, value string) error {
	before, _ := strings.CutSuffix(value, "*")
	switch {
	case name == "" || len(name) > maxClaim || len(value) > maxClaim:
		return fault.Usage.Errorf("oidc: the claim %q has no name, or is longer than %d bytes", fault.Clip(name, 64), maxClaim).Fix("write the name of a claim and its value")
	case slices.Contains(registered, name):
		return fault.Usage.Errorf("oidc: the claim %q is checked for every token", name).Fix("remove it; issuer, audience and max-age are those of oidc:")
	case value == "":
		return fault.Usage.Errorf("oidc: the claim %q has no value", fault.Clip(name, 64)).Fix("write the value that the token has")
	case strings.Contains(before, "*") || before != value && !separated(before):
		return fault.Usage.Errorf("oidc: the claim %q is %q", fault.Clip(name, 64), fault.Clip(value, 64)).Fix("write a * at the end only, and only after a / or a :, as refs/tags/*")
	}
	return nil
}

// separated returns whether a text has something before a separator at its end.
func separated(text string) bool {
	return len(text) > 1 && (strings.HasSuffix(text, "/") || strings.HasSuffix(text, ":"))
}

// matches returns whether the value of a claim is the wanted one, or begins as the wanted one and has more.
func matches(want, value string) bool {
	if prefix, ok := strings.CutSuffix(want, "*"); ok {
		return len(value) > len(prefix) && strings.HasPrefix(value, prefix)
	}
	return value == want
}

// disjoint returns whether no token can have the claims of both: there is a claim whose values exclude each other.
func disjoint(a, b map[string]string) bool {
	for name, one := range a {
		if other, ok := b[name]; ok && !overlap(one, other) {
			return true
		}
	}
	return false
}

// overlap returns whether a value can be both.
func overlap(a, b string) bool {
	begin, isPrefix := strings.CutSuffix(a, "*")
	other, otherIsPrefix := strings.CutSuffix(b, "*")
	switch {
	case isPrefix && otherIsPrefix:
		return strings.HasPrefix(begin, other) || strings.HasPrefix(other, begin)
	case isPrefix:
		return matches(a, b)
	}
	return matches(b, a)
}

// OIDC returns the credential that the claims of a token are; issuer is its name in the configuration. The token was verified, and
// numbers are json.Number. The error is of kind unauthenticated. The caller of OIDC compares the address with Caller.From.
func (p *Policy) OIDC(issuer string, claims map[string]any) (Credential, error) {
	i := p.issuers[issuer]
	if i == nil {
		return refuseClaims("there is no issuer %q", fault.Clip(issuer, 64))
	}
	key := i.rules.exact[0]
	id, ok := claimText(claims, key)
	if !ok {
		return refuseClaims("the token has no claim %q", key)
	}
	var found *mapping
	var reasons []string
	for _, m := range i.mappings[id] {
		name := m.mismatch(claims)
		switch {
		case name != "" && len(reasons) < 3:
			value, _ := claimText(claims, name)
			reasons = append(reasons, "of caller "+m.caller.Name+" the claim "+name+" is "+strconv.Quote(m.claims[name])+", and the token has "+strconv.Quote(fault.Clip(value, 64)))
		case name != "":
		case found != nil:
			return refuseClaims("the token is that of the callers %s and %s", found.caller.Name, m.caller.Name)
		default:
			found = m
		}
	}
	switch {
	case found != nil:
		return Credential{Caller: found.caller, Name: found.name}, nil
	case len(reasons) > 0:
		return refuseClaims("issuer %s: %s", i.name, strings.Join(reasons, "; "))
	}
	return refuseClaims("issuer %s: no caller has the %s %q", i.name, key, fault.Clip(id, 64))
}

func refuseClaims(format string, args ...any) (Credential, error) {
	return Credential{}, fault.Unauthenticated.Errorf(format, args...).Fix("compare the claims of the token with oidc: of the caller")
}

// mismatch returns the first claim of the mapping that the token does not have; "": it has all.
func (m *mapping) mismatch(claims map[string]any) string {
	for _, name := range slices.Sorted(maps.Keys(m.claims)) {
		if value, ok := claimText(claims, name); !ok || !matches(m.claims[name], value) {
			return name
		}
	}
	return ""
}

// claimText returns the text of a claim: a string, or a number or boolean as the token has it. A name with a / can be that of a
// claim or a path into objects; if the token has both, there is none.
func claimText(claims map[string]any, name string) (string, bool) {
	values := readings(claims, name)
	if len(values) != 1 {
		return "", false
	}
	switch value := values[0].(type) {
	case string:
		return value, true
	case json.Number:
		return value.String(), true
	case bool:
		return strconv.FormatBool(value), true
	}
	return "", false
}

// readings returns what a name can mean in an object.
func readings(claims map[string]any, name string) (all []any) {
	if value, ok := claims[name]; ok {
		all = append(all, value)
	}
	for i := range len(name) {
		if name[i] != '/' {
			continue
		}
		if inner, ok := claims[name[:i]].(map[string]any); ok {
			all = append(all, readings(inner, name[i+1:])...)
		}
	}
	return all
}

// explainClaims returns claims in words, sorted.
func explainClaims(claims map[string]string) string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(claims)) {
		all = append(all, name+"="+claims[name])
	}
	return strings.Join(all, ", ")
}
