package vaulttest

import (
	"net/http"
	"strings"
	"time"
)

// Lease is how long a token is valid.
type Lease struct {
	TTL       time.Duration // 0: for ever
	MaxTTL    time.Duration // renewals end with it; 0: no limit
	Renewable bool
}

// Role is a role of a login method.
type Role struct {
	Lease
	Namespace string
	Mount     string // of the method; "": "approle" or "kubernetes"
	Name      string // role id, or name of the Kubernetes role
	Secret    string // secret id, or token of the service account
}

// issued is a valid token.
type issued struct {
	Lease
	namespace   string
	began, ends time.Time // ends is zero without a TTL
}

func (l Lease) issue(namespace string) *issued {
	t := &issued{Lease: l, namespace: namespace, began: time.Now()}
	if l.TTL > 0 {
		t.ends = t.began.Add(l.TTL)
	}
	return t
}

// AddToken makes a token valid in a namespace, "" for root.
func (s *Server) AddToken(token, namespace string, lease Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens[token] = lease.issue(namespace)
}

// Revoke makes a token invalid; "" means all that were issued by a login.
func (s *Server) Revoke(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for value := range s.tokens {
		if value == token || token == "" && strings.HasPrefix(value, loginPrefix) {
			delete(s.tokens, value)
		}
	}
}

// loginPrefix begins the tokens of logins.
const loginPrefix = "hvs.double-"

// AddAppRole adds or changes a role of AppRole.
func (s *Server) AddAppRole(role Role) { s.addRole(role, "approle") }

// AddKubernetesRole adds or changes a role of the Kubernetes method. The double accepts the one token of its Secret and asks
// no cluster.
func (s *Server) AddKubernetesRole(role Role) { s.addRole(role, "kubernetes") }

func (s *Server) addRole(role Role, mount string) {
	if role.Mount == "" {
		role.Mount = mount
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.roles[role.Namespace+"|auth/"+role.Mount+"/login|"+role.Name] = role
}

// login answers a login. AppRole sends role_id and secret_id, Kubernetes role and jwt.
func (s *Server) login(c call) (map[string]any, error) {
	name, secret := c.text("role_id"), c.text("secret_id")
	if name == "" {
		name, secret = c.text("role"), c.text("jwt")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	role, ok := s.roles[c.namespace+"|"+c.path+"|"+name]
	if !ok || secret != role.Secret {
		return nil, &Error{http.StatusBadRequest, "invalid role or secret ID"}
	}
	value := loginPrefix + random()
	t := role.issue(c.namespace)
	s.tokens[value] = t
	return map[string]any{"request_id": c.id, "data": nil, "warnings": nil, "auth": t.auth(value)}, nil
}

// authenticate returns the token of a request.
func (s *Server) authenticate(c call) (*issued, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tokens[c.token]
	switch {
	case c.token == "":
		return nil, &Error{http.StatusBadRequest, "missing client token"}
	case t == nil || !t.ends.IsZero() && time.Now().After(t.ends):
		return nil, refusals()[Expired]
	case t.namespace != c.namespace:
		return nil, refusals()[Denied]
	}
	return t, nil
}

// seconds returns how long the token is still valid.
func (t *issued) seconds() int64 {
	if t.ends.IsZero() {
		return 0
	}
	return int64(time.Until(t.ends).Round(time.Second) / time.Second)
}

func (t *issued) info() map[string]any {
	return map[string]any{
		"accessor": "double", "creation_time": t.began.Unix(), "creation_ttl": int64(t.TTL / time.Second), "ttl": t.seconds(), "renewable": t.Renewable,
		"policies": []string{"default", "hsmsign"}, "num_uses": 0, "orphan": true, "type": "service",
	}
}

func (t *issued) auth(value string) map[string]any {
	return map[string]any{
		"client_token": value, "accessor": "double", "policies": []string{"default", "hsmsign"}, "lease_duration": t.seconds(), "renewable": t.Renewable,
		"token_type": "service", "orphan": true,
	}
}

// renew extends the lease of a token, up to its maximum TTL.
func (t *issued) renew(value string) (map[string]any, error) {
	if !t.Renewable || t.ends.IsZero() {
		return nil, &Error{http.StatusBadRequest, "lease is not renewable"}
	}
	t.ends = time.Now().Add(t.TTL)
	if limit := t.began.Add(t.MaxTTL); t.MaxTTL > 0 && t.ends.After(limit) {
		t.ends = limit
	}
	return t.auth(value), nil
}
