package policy

import (
	"maps"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/suggest"
)

// OIDCIssuer is an issuer of OIDC tokens as the policy sees it. How its keys are fetched has no effect here.
type OIDCIssuer struct {
	URL      string // as in the claim iss
	Audience string // the only one that its tokens have
	Kind     string // one of OIDCKinds; empty: that of the URL
	MaxAge   string // of a token, as ParseMaxAge reads it
}

// The age of a token since the claim iat. The default is what most issuers sign for; an issuer that signs for a year does not
// make tokens that are accepted for a year.
const (
	DefMaxAge = time.Hour
	minMaxAge = time.Minute
	maxMaxAge = 24 * time.Hour
)

// maxIssuers is the number of issuers of a configuration.
const maxIssuers = 32

// issuer is an issuer with what its callers have.
type issuer struct {
	name     string
	kind     string
	rules    claimRules
	from     OIDCIssuer
	mappings map[string][]*mapping // by the value of the first exact claim
}

// claimRules are the claims that a caller of a kind of issuer must name. Names are given to somebody else after a repository, an
// account or a user was deleted; these ids are not.
type claimRules struct {
	exact   []string // the first one selects the mapping
	oneOf   []string // one of them; nil: none is needed
	is      map[string]string
	explain string // why
}

var kinds = map[string]claimRules{
	"github": {
		exact: []string{"repository_id", "repository_owner_id"}, oneOf: []string{"ref", "environment"},
		explain: "a repository or an owner that was deleted can be made again by somebody else, and every branch can run a workflow",
	},
	"gitlab": {
		exact: []string{"project_id"}, is: map[string]string{"ref_protected": "true"},
		explain: "a project that was deleted can be made again by somebody else, and every developer can push an unprotected branch",
	},
	"kubernetes": {
		exact:   []string{"kubernetes.io/serviceaccount/uid", "kubernetes.io/serviceaccount/name", "kubernetes.io/namespace"},
		explain: "a service account that was deleted can be made again by somebody else",
	},
	"entra":   {exact: []string{"oid", "tid"}, explain: "other claims of a token can be changed, or are of several tenants"},
	"google":  {exact: []string{"sub"}, explain: "an email address can be given to another account"},
	"generic": {exact: []string{"sub"}, explain: "sub is the only claim that every issuer keeps unique"},
}

// OIDCKinds are the kinds of issuers.
var OIDCKinds = []string{"github", "gitlab", "kubernetes", "entra", "google", "generic"}

// kindOfHost are the hosts of issuers whose kind is known.
var kindOfHost = sync.OnceValue(func() map[string]*regexp.Regexp {
	return map[string]*regexp.Regexp{
		"github":     regexp.MustCompile(`^token\.actions\.(githubusercontent\.com|[a-z0-9-]+\.ghe\.com)$`),
		"gitlab":     regexp.MustCompile(`^gitlab\.com$`),
		"kubernetes": regexp.MustCompile(`^(kubernetes\.default(\.svc(\.cluster\.local)?)?|container\.googleapis\.com|oidc\.eks\.[a-z0-9-]+\.amazonaws\.com(\.cn)?|oidc-eks\.[a-z0-9-]+\.api\.aws|([a-z0-9-]+\.)?oic\.prod-aks\.azure\.com)$`),
		"entra":      regexp.MustCompile(`^(login\.microsoftonline\.(com|us)|login\.partner\.microsoftonline\.cn|sts\.windows\.net)$`),
		"google":     regexp.MustCompile(`^accounts\.google\.com$`),
	}
})

// addIssuer adds an issuer.
func (p *Policy) addIssuer(name string, from OIDCIssuer) error {
	refused := func(fix, format string, args ...any) error {
		return fault.Usage.Errorf("oidc: "+name+": "+format, args...).Fix(fix)
	}
	if err := checkName("issuer", name); err != nil {
		return err
	}
	if len(p.issuers) >= maxIssuers {
		return refused("remove those that no caller has", "there are more than %d issuers", maxIssuers)
	}
	u, err := issuerURL(from.URL)
	if err != nil {
		return refused(fault.Hint(err), "%w", err)
	}
	for _, other := range p.issuers {
		if other.from.URL == from.URL {
			return refused("remove one: an issuer has one audience", "%s has the same issuer", other.name)
		}
	}
	switch {
	case from.Audience == "" || strings.ContainsAny(from.Audience, " \t"):
		return refused("write audience: and what your callers ask a token for, as https://sign.example.com", "it has no audience")
	case from.Audience == from.URL:
		return refused("write one of your service, as https://sign.example.com, and ask the issuer for tokens with it", "its audience is the issuer, so that tokens for the issuer itself would be accepted")
	}
	if _, err := ParseMaxAge(from.MaxAge); err != nil {
		return refused(fault.Hint(err), "%w", err)
	}
	i := &issuer{name: name, from: from, mappings: map[string][]*mapping{}}
	if i.kind, err = kindOf(u, from.Kind); err != nil {
		return refused(fault.Hint(err), "%w", err)
	}
	i.rules = kinds[i.kind]
	p.issuers[name] = i
	return nil
}

// issuerURL reads the URL of an issuer.
func issuerURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Hostname() != strings.ToLower(u.Hostname()) || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.Opaque != "" {
		return nil, fault.Usage.Errorf("issuer: %q is not the URL of an issuer", fault.Clip(text, 128)).Fix("write it as the claim iss of a token has it")
	}
	if u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())) {
		return nil, fault.Usage.Errorf("issuer: %q is not an https URL", fault.Clip(text, 128)).Fix("write https://; http is for loopback addresses only")
	}
	return u, nil
}

// loopback returns whether a host of a URL is localhost or a loopback address.
func loopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// ParseMaxAge reads how old a token may be: 1m to 24h; empty: DefMaxAge. The error is of kind usage.
func ParseMaxAge(text string) (time.Duration, error) {
	if text == "" {
		return DefMaxAge, nil
	}
	age, err := time.ParseDuration(text)
	if err != nil || age < minMaxAge || age > maxMaxAge {
		return 0, fault.Usage.Errorf("max-age is %q", fault.Clip(text, 64)).Fix("it is a time from 1m to 24h, as 1h")
	}
	return age, nil
}

// kindOf returns the kind of an issuer. Its host decides, if it is known.
func kindOf(u *url.URL, kind string) (string, error) {
	known := ""
	for name, hosts := range kindOfHost() {
		if hosts.MatchString(u.Hostname()) {
			known = name
		}
	}
	all := strings.Join(OIDCKinds, ", ")
	switch {
	case kind != "" && !slices.Contains(OIDCKinds, kind):
		return "", fault.Usage.Errorf("kind is %q", fault.Clip(kind, 64)).Fix(suggest.Name(kind, OIDCKinds, "it is one of "+all))
	case known == "" && kind == "":
		return "", fault.Usage.Errorf("its kind does not follow from the issuer %s", u).Fix("write kind: and one of " + all)
	case known != "" && kind != "" && kind != known:
		return "", fault.Usage.Errorf("kind is %s, and the issuer is of kind %s", kind, known).Fix("remove kind:")
	case known == "":
		known = kind
	}
	if first, _, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/"); known == "entra" && (first == "" || slices.Contains([]string{"common", "organizations", "consumers"}, first)) {
		return "", fault.Usage.Errorf("%s is the issuer of no tenant", u).Fix("write the id of your tenant in the URL, as https://login.microsoftonline.com/TENANT-ID/v2.0")
	}
	return known, nil
}

// require returns an error, of kind usage, for claims that do not identify one caller for good.
func (i *issuer) require(claims map[string]string) error {
	refused := func(fix, format string, args ...any) error {
		return fault.Usage.Errorf("oidc: "+format, args...).Fix(fix + ": " + i.rules.explain)
	}
	for _, name := range i.rules.exact {
		switch value, ok := claims[name]; {
		case !ok:
			return refused("write claims: { "+name+": VALUE }", "the claim %s is missing, which callers of an issuer of kind %s need", name, i.kind)
		case strings.HasSuffix(value, "*"):
			return refused("write its whole value", "the claim %s is %q", name, fault.Clip(value, 64))
		}
	}
	for name, value := range i.rules.is {
		if claims[name] != value {
			return refused("write "+name+": \""+value+"\"", "the claim %s is missing or not %q, which callers of an issuer of kind %s need", name, value, i.kind)
		}
	}
	if i.rules.oneOf != nil && !slices.ContainsFunc(i.rules.oneOf, func(name string) bool { return claims[name] != "" }) {
		return refused("write one of "+strings.Join(i.rules.oneOf, ", "), "the claims %s are missing, one of which callers of an issuer of kind %s need", strings.Join(i.rules.oneOf, " and "), i.kind)
	}
	switch ref := claims["ref"]; {
	case i.kind == "github" && strings.HasSuffix(ref, "*") && !strings.HasPrefix(ref, "refs/heads/") && !strings.HasPrefix(ref, "refs/tags/"):
		return refused("begin it with refs/heads/ or refs/tags/", "the claim ref is %q", fault.Clip(ref, 64))
	case i.kind == "entra" && !strings.Contains(i.from.URL, "/"+claims["tid"]):
		return refused("write the tenant that the URL of the issuer has", "the claim tid is %q, and the issuer is %s", fault.Clip(claims["tid"], 64), i.from.URL)
	}
	return nil
}

// Issuers returns the names of the issuers, sorted.
func (p *Policy) Issuers() []string { return slices.Sorted(maps.Keys(p.issuers)) }

// ExplainIssuer returns an issuer in a sentence.
func (p *Policy) ExplainIssuer(name string) string {
	i := p.issuers[name]
	age, _ := ParseMaxAge(i.from.MaxAge) // addIssuer has read it
	return i.from.URL + " (" + i.kind + "), tokens for " + i.from.Audience + " that are at most " + strings.NewReplacer("h0m0s", "h", "m0s", "m").Replace(age.String()) + " old"
}
