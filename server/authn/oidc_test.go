package authn

import (
	"errors"
	"maps"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"hsmsign/agent/policy"
	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/server/authn/oidc"
	"hsmsign/server/authn/oidc/oidctest"
)

const audience = "https://sign.example.com"

// kinds are callers of each kind of issuer, with the path of the issuer's URL.
var kinds = map[string]struct {
	path   string
	maxAge string
	claims map[string]string
	// changes are claims of other identities, each of which looks like that of the caller.
	changes []map[string]any
}{
	"github": {"", "", map[string]string{"repository_id": "74", "repository_owner_id": "65", "environment": "production", "sub": "repo:octo-org/octo-repo:*"}, []map[string]any{
		{"repository_id": "75"}, {"repository_owner_id": "66"}, {"environment": "staging"}, {"environment": nil}, {"sub": "repo:octo-org/octo-repo2:x"},
	}},
	"gitlab": {"", "", map[string]string{"project_id": "20", "ref_protected": "true", "environment": "production", "runner_id": "1"}, []map[string]any{
		{"project_id": "21"}, {"ref_protected": "false"}, {"environment": "staging"}, {"runner_id": 2}, {"project_id": nil},
	}},
	"kubernetes": {"", "", map[string]string{"kubernetes.io/namespace": "build", "kubernetes.io/serviceaccount/name": "signer", "kubernetes.io/serviceaccount/uid": oidctest.ServiceAccount}, []map[string]any{
		{"kubernetes.io": map[string]any{"namespace": "build", "serviceaccount": map[string]any{"name": "signer", "uid": "made-again"}}},
		{"kubernetes.io": map[string]any{"namespace": "other", "serviceaccount": map[string]any{"name": "signer", "uid": oidctest.ServiceAccount}}},
		{"kubernetes.io": "build"}, {"kubernetes.io": nil},
	}},
	"entra": {"/" + oidctest.Tenant + "/v2.0", "24h", map[string]string{"tid": oidctest.Tenant, "oid": oidctest.ObjectID}, []map[string]any{
		{"tid": "another-tenant"}, {"oid": "another-object"}, {"oid": nil},
	}},
	"google":  {"", "", map[string]string{"sub": "113774264463038321964"}, []map[string]any{{"sub": "113774264463038321965"}, {"sub": 113774264463038.0}}},
	"generic": {"", "", map[string]string{"sub": "service-7"}, []map[string]any{{"sub": "service-70"}, {"sub": "Service-7"}}},
}

// Tokens with the claims that each kind of issuer sends are those of its caller; those of another identity are nobody's.
func TestOIDC(t *testing.T) {
	doubles, issuers, callers := map[string]*oidctest.Issuer{}, map[string]policy.OIDCIssuer{}, map[string]policy.CallerConfig{}
	var configs []oidc.Config
	for kind, k := range kinds {
		double := oidctest.New(t, k.path)
		doubles[kind] = double
		issuers[kind] = policy.OIDCIssuer{URL: double.URL, Audience: audience, Kind: kind, MaxAge: k.maxAge}
		configs = append(configs, oidc.Config{Name: kind, URL: double.URL, Audience: audience, MaxAge: testkit.Value(policy.ParseMaxAge(k.maxAge))(t)})
		callers[kind+"-caller"] = policy.CallerConfig{Role: "reader", Owners: []string{"ada"}, From: []string{"10.0.0.0/8"}, OIDC: policy.OIDCConfig{Issuer: kind, Claims: k.claims}}
	}
	hsmsign, entry := policy.NewToken(time.Now().Add(time.Hour))
	callers["bo"] = policy.CallerConfig{Role: "reader", Person: "bo", Tokens: []string{entry}}
	p := testkit.Value(policy.New(callers, map[string]policy.RoleConfig{"reader": {May: []string{policy.Read}, Customers: []string{"*"}}}, policy.Environment{Issuers: issuers}))(t)
	checker := Checker{Policy: p, OIDC: testkit.Value(oidc.New(configs, oidc.Options{}, nil))(t), Now: time.Now()}
	near := Connection{Kind: HTTP, Remote: netip.MustParseAddr("10.1.2.3")}
	identify := func(conn Connection, header string) (string, error) {
		found, err := checker.Identify(t.Context(), &http.Request{Header: http.Header{"Authorization": {header}}}, conn)
		if err != nil {
			return "", err
		}
		return found.Caller.Name + " by " + found.Name[:strings.LastIndex(found.Name, " ")], nil
	}
	refused := func(what string, conn Connection, header, reason string) {
		t.Helper()
		who, err := identify(conn, header)
		refusal, ok := errors.AsType[*Refusal](err)
		if who != "" || !ok || fault.KindOf(err) != fault.Unauthenticated || err.Error() != ErrUnknown.Error() || !strings.Contains(refusal.Reason.Error(), reason) {
			t.Errorf("%s: %q, %v", what, who, err)
			if ok {
				t.Error(refusal.Reason)
			}
		}
	}
	for kind, k := range kinds {
		double := doubles[kind]
		claims := oidctest.Claims(kind, double.URL, audience, checker.Now)
		token := double.Sign(claims)
		if who, err := identify(near, "Bearer "+token); err != nil || who != kind+"-caller by oidc "+kind {
			t.Errorf("%s: %q, %v", kind, who, err)
		}
		refused(kind+" as a password", near, basic("", token), "the token is not accepted")
		refused(kind+" from elsewhere", Connection{Kind: TLS, Remote: netip.MustParseAddr("192.0.2.1")}, "Bearer "+token, "may not use oidc")
		refused(kind+" on a Unix socket", Connection{Kind: Unix, UID: 7}, "Bearer "+token, "no caller")
		for _, change := range k.changes {
			other := maps.Clone(claims)
			maps.Copy(other, change)
			for name, value := range change {
				if value == nil {
					delete(other, name)
				}
			}
			refused(kind, near, "Bearer "+double.Sign(other), "")
		}
		// A token of one issuer with the name of another.
		for _, another := range doubles {
			if another != double {
				forged := maps.Clone(claims)
				forged["iss"] = another.URL
				refused(kind+" of another issuer", near, "Bearer "+oidctest.NewKey(t, "stranger", "RS256").Sign(forged, map[string]any{"kid": "1"}), "failed to verify")
			}
		}
	}
	if who, err := identify(near, "Bearer "+hsmsign); err != nil || who != "bo by token" {
		t.Errorf("%q, %v", who, err)
	}
	checker.OIDC = nil
	refused("without issuers", near, "Bearer "+doubles["google"].Sign(oidctest.Claims("google", doubles["google"].URL, audience, checker.Now)), "has no issuers")
}
