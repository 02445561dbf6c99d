package policy

import (
	"encoding/json"
	"maps"
	"strconv"
	"strings"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
)

// claims of callers that their kinds of issuers accept.
var (
	ofGitHub     = map[string]string{"repository_id": "74", "repository_owner_id": "65", "ref": "refs/heads/main"}
	ofGitLab     = map[string]string{"project_id": "20", "ref_protected": "true"}
	ofKubernetes = map[string]string{"kubernetes.io/namespace": "build", "kubernetes.io/serviceaccount/name": "signer", "kubernetes.io/serviceaccount/uid": "14ee"}
	ofEntra      = map[string]string{"tid": "aaaabbbb", "oid": "cccc"}
	ofGoogle     = map[string]string{"sub": "113"}
)

func issuersOf(url, kind string) map[string]OIDCIssuer {
	return map[string]OIDCIssuer{"issuer": {URL: url, Kind: kind, Audience: "https://sign.example.com"}}
}

func oidcCaller(claims map[string]string) CallerConfig {
	return CallerConfig{Role: "signer", Owners: []string{"ada"}, OIDC: OIDCConfig{Issuer: "issuer", Claims: claims}}
}

// changed returns claims with others; an empty value removes one.
func changed(claims map[string]string, change map[string]string) map[string]string {
	all := maps.Clone(claims)
	for name, value := range change {
		if all[name] = value; value == "" {
			delete(all, name)
		}
	}
	return all
}

// Claims that are not those of one caller for good are refused, and the error names the claim.
func TestOIDCRefused(t *testing.T) {
	const github, gitlab, cluster, entra, google = "https://token.actions.githubusercontent.com", "https://gitlab.com", "https://kubernetes.default.svc.cluster.local", "https://login.microsoftonline.com/aaaabbbb/v2.0", "https://accounts.google.com"
	for _, tt := range []struct {
		url, kind string
		claims    map[string]string
		want      string
	}{
		{github, "", changed(ofGitHub, map[string]string{"repository_id": ""}), "the claim repository_id is missing, which callers of an issuer of kind github need; write claims: { repository_id: VALUE }: a repository"},
		{github, "", changed(ofGitHub, map[string]string{"repository_owner_id": ""}), "the claim repository_owner_id is missing"},
		{github, "", changed(ofGitHub, map[string]string{"ref": ""}), "the claims ref and environment are missing, one of which"},
		{github, "", changed(ofGitHub, map[string]string{"ref": "", "environment": "production"}), ""},
		{github, "", changed(ofGitHub, map[string]string{"repository_id": "7/*"}), `the claim repository_id is "7/*"`},
		{github, "", changed(ofGitHub, map[string]string{"ref": "refs/*"}), `the claim ref is "refs/*"; begin it with refs/heads/`},
		{github, "", changed(ofGitHub, map[string]string{"ref": "refs/pull/*"}), `the claim ref is "refs/pull/*"`},
		{github, "", changed(ofGitHub, map[string]string{"ref": "refs/tags/*", "sub": "repo:acme/portal:*"}), ""},
		{github, "", changed(ofGitHub, map[string]string{"ref": "refs/tags/v*"}), "write a * at the end only, and only after a / or a :"},
		{github, "", changed(ofGitHub, map[string]string{"sub": "repo:acme/*:x"}), `the claim "sub" is "repo:acme/*:x"`},
		{github, "", changed(ofGitHub, map[string]string{"sub": "*"}), `the claim "sub" is "*"`},
		{github, "", changed(ofGitHub, map[string]string{"sub": ":*"}), `the claim "sub" is ":*"`},
		{github, "", changed(ofGitHub, map[string]string{"sub": "a/**"}), `the claim "sub" is "a/**"`},
		{github, "", changed(ofGitHub, map[string]string{"aud": "x"}), `the claim "aud" is checked for every token`},
		{github, "", changed(ofGitHub, map[string]string{"exp": "1"}), `the claim "exp" is checked for every token`},
		{github, "", changed(ofGitHub, map[string]string{"actor": strings.Repeat("a", 513)}), "longer than 512 bytes"},
		{github, "generic", ofGoogle, "kind is generic, and the issuer is of kind github; remove kind:"},
		{"https://token.actions.acme.ghe.com", "", ofGoogle, "the claim repository_id is missing"},
		{"https://github.example.com/_services/token", "github", ofGitHub, ""},
		{gitlab, "", changed(ofGitLab, map[string]string{"project_id": ""}), "the claim project_id is missing"},
		{gitlab, "", changed(ofGitLab, map[string]string{"ref_protected": ""}), `the claim ref_protected is missing or not "true"`},
		{gitlab, "", changed(ofGitLab, map[string]string{"ref_protected": "false"}), `the claim ref_protected is missing or not "true"`},
		{"https://gitlab.example.com", "gitlab", ofGitLab, ""},
		{"https://gitlab.example.com", "gitlab", changed(ofGitLab, map[string]string{"project_id": ""}), "the claim project_id is missing"},
		{"https://gitlab.example.com", "", ofGitLab, "its kind does not follow from the issuer https://gitlab.example.com; write kind: and one of github,"},
		{"https://gitlab.example.com", "gitlb", ofGitLab, `kind is "gitlb"; did you mean "gitlab"?`},
		{cluster, "", changed(ofKubernetes, map[string]string{"kubernetes.io/serviceaccount/uid": ""}), "the claim kubernetes.io/serviceaccount/uid is missing"},
		{cluster, "", changed(ofKubernetes, map[string]string{"kubernetes.io/namespace": ""}), "the claim kubernetes.io/namespace is missing"},
		{cluster, "", changed(ofKubernetes, map[string]string{"kubernetes.io/serviceaccount/name": ""}), "the claim kubernetes.io/serviceaccount/name is missing"},
		{cluster, "", changed(ofKubernetes, map[string]string{"kubernetes.io/namespace": "team:*"}), `the claim kubernetes.io/namespace is "team:*"`},
		{"https://oidc.eks.eu-west-1.amazonaws.com/id/0A", "", ofGoogle, "of kind kubernetes need"},
		{"https://oidc.eks.eu-west-1.amazonaws.com.evil.example/id/0A", "", ofGoogle, "its kind does not follow"},
		{entra, "", changed(ofEntra, map[string]string{"tid": ""}), "the claim tid is missing"},
		{entra, "", changed(ofEntra, map[string]string{"oid": ""}), "the claim oid is missing"},
		{entra, "", changed(ofEntra, map[string]string{"tid": "other"}), `the claim tid is "other", and the issuer is https://login`},
		{"https://login.microsoftonline.com/common/v2.0", "", ofEntra, "is the issuer of no tenant"},
		{"https://sts.windows.net/aaaabbbb/", "", ofEntra, ""},
		{google, "", map[string]string{"email": "a@example.com"}, "the claim sub is missing"},
		{google, "", ofGoogle, ""},
		{"https://sso.example.com", "generic", map[string]string{"client_id": "x"}, "the claim sub is missing, which callers of an issuer of kind generic need"},
		{"https://sso.example.com", "generic", map[string]string{"sub": "team/*"}, `the claim sub is "team/*"; write its whole value`},
		{"https://sso.example.com", "generic", nil, "the claim sub is missing"},
		{"http://sso.example.com", "generic", ofGoogle, "is not an https URL; write https://"},
		{"https://sso.example.com?x=1", "generic", ofGoogle, "is not the URL of an issuer"},
		{"https://user:pass@sso.example.com", "generic", ofGoogle, "is not the URL of an issuer"},
		{"", "generic", ofGoogle, "is not the URL of an issuer"},
		{"http://127.0.0.1:1234", "generic", ofGoogle, ""},
		{"http://[::1]:1234", "generic", ofGoogle, ""},
	} {
		_, err := New(map[string]CallerConfig{"ci": oidcCaller(tt.claims)}, map[string]RoleConfig{"signer": signerRole()}, Environment{Issuers: issuersOf(tt.url, tt.kind)})
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%s, %v: %v", tt.url, tt.claims, err)
		case tt.want != "" && (err == nil || fault.KindOf(err) != fault.Usage || !strings.Contains(err.Error()+"; "+fault.Hint(err), tt.want)):
			t.Errorf("%s, %v: %v; %s; want %q", tt.url, tt.claims, err, fault.Hint(err), tt.want)
		}
	}
	for want, change := range map[string]func(i *OIDCIssuer, c *CallerConfig){
		"it has no audience":         func(i *OIDCIssuer, _ *CallerConfig) { i.Audience = "" },
		"its audience is the issuer": func(i *OIDCIssuer, _ *CallerConfig) { i.Audience = i.URL },
		`max-age is "25h"`:           func(i *OIDCIssuer, _ *CallerConfig) { i.MaxAge = "25h" },
		`max-age is "1s"`:            func(i *OIDCIssuer, _ *CallerConfig) { i.MaxAge = "1s" },
		`there is no issuer "isuer"; did you mean "issuer"`: func(_ *OIDCIssuer, c *CallerConfig) { c.OIDC.Issuer = "isuer" },
		`there is no issuer ""`:                             func(_ *OIDCIssuer, c *CallerConfig) { c.OIDC.Issuer = "" },
	} {
		issuers, caller := issuersOf(google, ""), oidcCaller(ofGoogle)
		i := issuers["issuer"]
		change(&i, &caller)
		issuers["issuer"] = i
		if _, err := New(map[string]CallerConfig{"ci": caller}, map[string]RoleConfig{"signer": signerRole()}, Environment{Issuers: issuers}); err == nil || !strings.Contains(err.Error()+"; "+fault.Hint(err), want) {
			t.Errorf("%v; want %q", err, want)
		}
	}
	many, crowd := maps.Clone(ofGoogle), map[string]OIDCIssuer{}
	for n := range maxClaims {
		many["claim"+strconv.Itoa(n)] = "x"
	}
	if _, err := New(map[string]CallerConfig{"ci": oidcCaller(many)}, map[string]RoleConfig{"signer": signerRole()}, Environment{Issuers: issuersOf(google, "")}); err == nil || !strings.Contains(err.Error(), "17 claims; at most 16") {
		t.Errorf("many claims: %v", err)
	}
	for n := range maxIssuers + 1 {
		crowd["issuer"+strconv.Itoa(n)] = OIDCIssuer{URL: "https://sso.example.com/" + strconv.Itoa(n), Kind: "generic", Audience: "a"}
	}
	if _, err := New(nil, nil, Environment{Issuers: crowd}); err == nil || !strings.Contains(err.Error(), "there are more than 32 issuers") {
		t.Errorf("many issuers: %v", err)
	}
	two := issuersOf(google, "")
	two["other"] = two["issuer"]
	if _, err := New(nil, nil, Environment{Issuers: two}); err == nil || !strings.Contains(err.Error(), "has the same issuer") {
		t.Errorf("an issuer twice: %v", err)
	}
}

// decodedClaims reads claims as a token has them.
func decodedClaims(t *testing.T, text string) map[string]any {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var all map[string]any
	testkit.OK(t, d.Decode(&all))
	return all
}

// A token is that of the caller whose claims it all has, exactly. A repository of the same name that was made again is another one.
func TestOIDC(t *testing.T) {
	p := testkit.Value(New(map[string]CallerConfig{
		"release": oidcCaller(changed(ofGitHub, map[string]string{"ref": "refs/tags/*", "sub": "repo:acme/portal:*"})),
		"main":    oidcCaller(changed(ofGitHub, map[string]string{"a/b": "x", "n": "12345678901234567890", "e": "1e3", "yes": "true"})),
		"other":   oidcCaller(changed(ofGitHub, map[string]string{"repository_id": "75"})),
	}, map[string]RoleConfig{"signer": signerRole()}, Environment{Issuers: issuersOf("https://token.actions.githubusercontent.com", "")}))(t)
	const main = `"repository_id":"74","repository_owner_id":"65","ref":"refs/heads/main","a/b":"x","n":12345678901234567890,"e":1e3,"yes":true`
	for text, want := range map[string]string{
		main: "main",
		`"repository_id":74,"repository_owner_id":65,"ref":"refs/heads/main","a":{"b":"x"},"n":"12345678901234567890","e":"1e3","yes":"true"`: "main",
		`"repository_id":"75","repository_owner_id":"65","ref":"refs/heads/main"`:                                                             "other",
		`"repository_id":"74","repository_owner_id":"65","ref":"refs/tags/v1","sub":"repo:acme/portal:ref:refs/tags/v1"`:                      "release",

		strings.Replace(main, `"74"`, `"76"`, 1):                                                                    `no caller has the repository_id "76"`, // made again
		strings.Replace(main, `"65"`, `"66"`, 1):                                                                    `the claim repository_owner_id is "65", and the token has "66"`,
		strings.Replace(main, "heads/main", "heads/main2", 1):                                                       `of caller main the claim ref is "refs/heads/main", and the token has "refs/heads/main2"`,
		strings.Replace(main, "heads/main", "pull/1/merge", 1):                                                      "the claim ref is",
		strings.Replace(main, "refs/heads", "REFS/heads", 1):                                                        "the claim ref is",
		strings.Replace(main, "12345678901234567890", "12345678901234567891", 1):                                    "the claim n is",
		strings.Replace(main, "1e3", "1000", 1):                                                                     "the claim e is",
		strings.Replace(main, "true", "false", 1):                                                                   "the claim yes is",
		strings.Replace(main, "true", "null", 1):                                                                    "the claim yes is",
		strings.Replace(main, `"x"`, `["x"]`, 1):                                                                    "the claim a/b is",
		main + `,"a":{"b":"x"}`:                                                                                     "the claim a/b is", // two readings
		`"ref":"refs/heads/main"`:                                                                                   `the token has no claim "repository_id"`,
		`"repository_id":["74"]`:                                                                                    `the token has no claim "repository_id"`,
		`"repository_id":"74","repository_owner_id":"65","ref":"refs/tags/","sub":"repo:acme/portal:x"`:             "the claim ref is",
		`"repository_id":"74","repository_owner_id":"65","ref":"refs/tags/v1","sub":"repo:acme/portal2:ref:x"`:      "the claim sub is",
		`"repository_id":"74","repository_owner_id":"65","ref":"refs/tagsx/v1","sub":"repo:acme/portal:ref:x"`:      "the claim ref is",
		`"repository_id":"74","repository_owner_id":"65","environment":"refs/tags/v1","sub":"repo:acme/portal:ref"`: "the claim ref is",
	} {
		found, err := p.OIDC("issuer", decodedClaims(t, "{"+text+"}"))
		switch {
		case err == nil && (found.Caller.Name != want || !strings.HasPrefix(found.Name, "oidc issuer ") || len(found.Name) != len("oidc issuer ")+16):
			t.Errorf("%s: %s, %q", text, found.Caller.Name, found.Name)
		case err != nil && (found.Caller != nil || fault.KindOf(err) != fault.Unauthenticated || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v; want %s", text, err, want)
		}
	}
	if _, err := p.OIDC("another", decodedClaims(t, "{"+main+"}")); err == nil {
		t.Error("an issuer that is not there")
	}
}

// Two callers that one token could be are refused when they are read; and if they were not, the token would be.
func TestOIDCOneCaller(t *testing.T) {
	for _, tt := range []struct {
		a, b map[string]string
		want bool // one token cannot be both
	}{
		{ofGitHub, ofGitHub, false},
		{ofGitHub, changed(ofGitHub, map[string]string{"ref": "refs/heads/other"}), true},
		{ofGitHub, changed(ofGitHub, map[string]string{"repository_id": "75"}), true},
		{ofGitHub, changed(ofGitHub, map[string]string{"ref": "refs/heads/*"}), false},
		{changed(ofGitHub, map[string]string{"ref": "refs/heads/*"}), ofGitHub, false},
		{ofGitHub, changed(ofGitHub, map[string]string{"ref": "refs/tags/*"}), true},
		{ofGitHub, changed(ofGitHub, map[string]string{"ref": "refs/heads/main/*"}), true},
		{changed(ofGitHub, map[string]string{"ref": "refs/heads/*"}), changed(ofGitHub, map[string]string{"ref": "refs/heads/release/*"}), false},
		{changed(ofGitHub, map[string]string{"ref": "refs/heads/a/*"}), changed(ofGitHub, map[string]string{"ref": "refs/heads/b/*"}), true},
		{ofGitHub, changed(ofGitHub, map[string]string{"ref": "", "environment": "production"}), false},
		{ofGitHub, changed(ofGitHub, map[string]string{"environment": "production"}), false},
	} {
		_, err := New(map[string]CallerConfig{"a": oidcCaller(tt.a), "b": oidcCaller(tt.b)}, map[string]RoleConfig{"signer": signerRole()}, Environment{Issuers: issuersOf("https://token.actions.githubusercontent.com", "")})
		if (err == nil) != tt.want || err != nil && !strings.Contains(err.Error(), "caller b: oidc: one token could have its claims and those of a") {
			t.Errorf("%v and %v: %v", tt.a, tt.b, err)
		}
	}
	p := testkit.Value(New(map[string]CallerConfig{"a": oidcCaller(ofGoogle)}, map[string]RoleConfig{"signer": signerRole()}, Environment{Issuers: issuersOf("https://accounts.google.com", "")}))(t)
	twice := *p.issuers["issuer"].mappings["113"][0]
	twice.caller = &Caller{Name: "b"}
	p.issuers["issuer"].mappings["113"] = append(p.issuers["issuer"].mappings["113"], &twice)
	if found, err := p.OIDC("issuer", map[string]any{"sub": "113"}); err == nil || found.Caller != nil || !strings.Contains(err.Error(), "is that of the callers a and b") {
		t.Errorf("%+v, %v", found, err)
	}
}

// What is listed and explained; and what is part of the policy's hash.
func TestOIDCExplained(t *testing.T) {
	caller := oidcCaller(ofEntra)
	caller.From = []string{"10.0.0.0/8"}
	load := func(c CallerConfig, i OIDCIssuer) *Policy {
		return testkit.Value(New(map[string]CallerConfig{"ci": c}, map[string]RoleConfig{"signer": signerRole()}, Environment{Issuers: map[string]OIDCIssuer{"issuer": i}}))(t)
	}
	issuer := OIDCIssuer{URL: "https://sts.windows.net/aaaabbbb/", Audience: "api://sign", MaxAge: "24h"}
	p := load(caller, issuer)
	found := testkit.Value(p.OIDC("issuer", map[string]any{"tid": "aaaabbbb", "oid": "cccc"}))(t)
	listed := found.Caller.Credentials(time.Now())
	if len(listed) != 1 || listed[0].Name != found.Name || listed[0].Describe() != found.Name+" (oid=cccc, tid=aaaabbbb)" || listed[0].Validity() != "" || strings.Contains(found.Name, "cccc") {
		t.Errorf("%+v", listed)
	}
	if got, want := p.Explain("ci", time.Now()), "role signer, a machine of ada; "+found.Name+" (oid=cccc, tid=aaaabbbb); from 10.0.0.0/8"; got != want {
		t.Errorf("%s; want %s", got, want)
	}
	if got, want := p.ExplainIssuer("issuer"), "https://sts.windows.net/aaaabbbb/ (entra), tokens for api://sign that are at most 24h old"; got != want {
		t.Errorf("%s; want %s", got, want)
	}
	for age, want := range map[string]string{"": "1h old", "10m": "10m old", "90m": "1h30m old", "90s": "1m30s old"} {
		if got := load(caller, OIDCIssuer{issuer.URL, issuer.Audience, "", age}).ExplainIssuer("issuer"); !strings.HasSuffix(got, "at most "+want) {
			t.Errorf("%s; want %s", got, want)
		}
	}
	again := testkit.Value(load(caller, issuer).OIDC("issuer", map[string]any{"tid": "aaaabbbb", "oid": "cccc"}))(t)
	if again.Name != found.Name || load(caller, issuer).Hash() != p.Hash() {
		t.Error("the same configuration has another name or hash")
	}
	if ci := found.Caller; !ci.has(found.Name) || ci.has("oidc issuer 0000000000000000") || ci.has("oidc other "+found.Name[len("oidc issuer "):]) {
		t.Error("the caller does not have its own claims, or has others")
	}
	other := caller
	other.OIDC.Claims = changed(ofEntra, map[string]string{"oid": "dddd"})
	for what, next := range map[string]*Policy{
		"claims": load(other, issuer), "audience": load(caller, OIDCIssuer{issuer.URL, "x", "", "24h"}), "max-age": load(caller, OIDCIssuer{issuer.URL, issuer.Audience, "", "1h"}),
	} {
		if next.Hash() == p.Hash() {
			t.Errorf("%s are not part of the hash", what)
		}
	}
}
