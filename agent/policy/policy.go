// Package policy says who may ask a vendor for what. A caller is a person or a machine with its credentials: tokens, client
// certificates, OIDC tokens, AWS identities and Unix users. A role says what its callers may: for which customers, with which vendor
// identities, how many requests, and whether other people must approve them or a program of the operator is asked too.
//
//	p, err := policy.New(config.Callers, config.Roles, policy.Environment{Vendors: names})
//	credential, err := p.Token(secret, time.Now()) // or Certificate, OIDC, AWS, or UID
//	rule, err := credential.Caller.Check(order)
//
// New checks a configuration: what is missing denies, and a role that may sign must say for whom and how much. A credential
// names one caller. A Policy does not change and is safe for concurrent use. It contains no secret: of a token it has the
// SHA-256.
package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"

	"hsmsign/agent/policy/hook"
	"hsmsign/fault"
	"hsmsign/internal/suggest"
)

// Policy is the callers and roles of a configuration.
type Policy struct {
	callers  map[string]*Caller
	roles    map[string]*Role
	uids     map[int]*Caller
	tokens   map[string]*token             // by id
	pins     map[[sha256.Size]byte]*Caller // by the SHA-256 of the SubjectPublicKeyInfo
	sans     map[string]*Caller            // by kind and value: "dns:portal.example"
	issuers  map[string]*issuer            // of OIDC tokens, by name
	aws      map[string]awsIdentity        // by unique id
	vendors  []string                      // names of the vendor identities
	programs *hook.Programs
	hash     [sha256.Size]byte
}

// Environment is what a policy needs from the rest of the configuration.
type Environment struct {
	Vendors []string // names of the vendor identities
	// Facts are the other settings that decide what is signed: the keys and certificates of the vendor identities, trusted
	// roots, witnesses. They are part of the policy's hash and have no other effect.
	Facts map[string]string
	// Issuers are those of OIDC tokens, by the names that callers use.
	Issuers map[string]OIDCIssuer
}

// New returns the policy of a configuration's callers and roles. The error is of kind usage, and names the caller or role.
func New(callers map[string]CallerConfig, roles map[string]RoleConfig, env Environment) (*Policy, error) {
	p := &Policy{
		callers: map[string]*Caller{}, roles: map[string]*Role{}, uids: map[int]*Caller{}, tokens: map[string]*token{},
		pins: map[[sha256.Size]byte]*Caller{}, sans: map[string]*Caller{}, issuers: map[string]*issuer{}, aws: map[string]awsIdentity{}, vendors: env.Vendors,
		programs: hook.New(),
	}
	for _, name := range slices.Sorted(maps.Keys(roles)) {
		r, err := p.newRole(name, roles[name], env.Vendors)
		if err != nil {
			return nil, err
		}
		p.roles[name] = r
	}
	if err := p.setHash(callers, roles, env); err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(env.Issuers)) {
		if err := p.addIssuer(name, env.Issuers[name]); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(callers)) {
		if err := p.add(name, callers[name]); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// setHash computes the hash of everything that decides what is signed.
func (p *Policy) setHash(callers map[string]CallerConfig, roles map[string]RoleConfig, env Environment) error {
	programs := map[string]string{} // SHA-256 by role
	for name, r := range p.roles {
		if r.program != nil {
			hash := r.program.Hash()
			programs[name] = hex.EncodeToString(hash[:])
		}
	}
	effective, err := json.Marshal(struct {
		Callers     map[string]CallerConfig
		Roles       map[string]RoleConfig
		Programs    map[string]string
		Environment Environment
	}{callers, roles, programs, env}) // encoding/json sorts the keys of maps
	p.hash = sha256.Sum256(effective)
	return err
}

// validName matches the names of callers, roles and persons.
var validName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$`) })

func checkName(what, name string) error {
	if !validName().MatchString(name) {
		return fault.Usage.Errorf("%s %q is not a name", what, fault.Clip(name, 64)).Fix("write letters, digits, '.', '_', '@' and '-', at most 64")
	}
	return nil
}

// Hash returns the SHA-256 of the effective policy: callers, roles, the programs of the roles, and the environment.
func (p *Policy) Hash() [sha256.Size]byte { return p.hash }

// Roles returns the names of the roles, sorted.
func (p *Policy) Roles() []string { return slices.Sorted(maps.Keys(p.roles)) }

// ExplainRole returns what a role may, in a sentence.
func (p *Policy) ExplainRole(name string) string { return p.roles[name].Explain() }

// Names returns the names of the callers, sorted.
func (p *Policy) Names() []string { return slices.Sorted(maps.Keys(p.callers)) }

// Caller returns the caller of a name; the error is of kind not found.
func (p *Policy) Caller(name string) (*Caller, error) {
	if c := p.callers[name]; c != nil {
		return c, nil
	}
	return nil, fault.NotFound.Errorf("there is no caller %q", fault.Clip(name, 64)).Fix(suggest.Name(name, p.Names(), "the callers are "+strings.Join(p.Names(), ", ")))
}
