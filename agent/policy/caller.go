package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/suggest"
)

// CallerConfig is a person or a machine that may ask for requests, with its credentials, as hsmsign.yaml has it.
type CallerConfig struct {
	Role     string   `yaml:"role"`     // name of a role
	Person   string   `yaml:"person"`   // whose credentials these are
	Owners   []string `yaml:"owners"`   // of a machine: names of persons
	Customer string   `yaml:"customer"` // whose requests it asks for if it names none
	UID      []int    `yaml:"uid"`      // Unix users
	Tokens   []string `yaml:"tokens"`   // entries that hsmsign caller token prints

	ClientCert ClientCertConfig `yaml:"client-cert"`
	OIDC       OIDCConfig       `yaml:"oidc"` // tokens of an issuer
	AWS        AWSConfig        `yaml:"aws"`
	From       []string         `yaml:"from"` // networks from which everything but Unix users is accepted; nil: any
}

// ClientCertConfig is the client certificates of a caller, as hsmsign.yaml has it.
type ClientCertConfig struct {
	SPKI []string `yaml:"spki-sha256"` // SHA-256 of a SubjectPublicKeyInfo, hex
	// SAN are subject alternative names of certificates of the client-ca: dns:NAME, email:NAME or uri:spiffe://DOMAIN/PATH.
	SAN []string `yaml:"san"`
}

// Caller is somebody who may ask. Its fields do not change.
type Caller struct {
	Name   string
	Role   *Role
	Person string   // whose credentials these are; empty: a machine
	Owners []string // of a machine
	// Customer is whose requests it asks for if it names none; empty: it must name one.
	Customer string
	// Policy is the SHA-256 of the policy that the caller is part of.
	Policy [sha256.Size]byte

	policy   *Policy
	from     CallerConfig
	tokens   []*token
	oidc     *mapping       // nil: none
	networks []netip.Prefix // nil: any
}

// Credential is what a caller identified itself with. It contains no secret.
type Credential struct {
	Caller *Caller
	// Name is "token abcd2345", "certificate 0a1b..." (the first 16 hex digits of the SHA-256 of its key), "oidc github 0a1b..." (the
	// issuer, and those of the claims that the caller has), "aws AROA..." (the unique id) or "uid 1001".
	Name string
}

// maxUID is the highest Unix user; the value after it means "no user" to the kernel.
const maxUID = 1<<32 - 2

// overflowUID is the number that the kernel shows for users of other user namespaces.
const overflowUID = 65534

// add adds a caller.
func (p *Policy) add(name string, from CallerConfig) error {
	refused := func(fix, format string, args ...any) error {
		return fault.Usage.Errorf("caller "+name+": "+format, args...).Fix(fix)
	}
	if err := checkName("caller", name); err != nil {
		return err
	}
	role, names := p.roles[from.Role], p.Roles()
	switch remote := from.remote(); {
	case from.Role == "":
		return refused("write role: and one of "+strings.Join(names, ", "), "it has no role")
	case role == nil:
		return refused(suggest.Name(from.Role, names, "the roles are "+strings.Join(names, ", ")), "there is no role %q", fault.Clip(from.Role, 64))
	case (from.Person == "") == (len(from.Owners) == 0):
		return refused("write person: for a person, or owners: for a machine", "it needs a person or owners, and not both")
	case len(from.UID)+remote == 0:
		return refused("write tokens:, client-cert:, oidc:, aws: or uid:", "it has no credentials")
	case len(from.From) > 0 && remote == 0:
		return refused("remove from:, which is not about Unix users", "it has networks and no credential for a network")
	case from.Customer != "" && !role.Covers(from.Customer):
		return refused("add it to the customers of the role", "its role %s does not have its customer %q", role.Name, from.Customer)
	}
	for _, person := range append(slices.Clone(from.Owners), from.Person) {
		if person == "" {
			continue
		}
		if err := checkName("person", person); err != nil {
			return err
		}
	}
	c := &Caller{Name: name, Role: role, Person: from.Person, Owners: from.Owners, Customer: from.Customer, Policy: p.hash, policy: p, from: from}
	for _, add := range []func(c *Caller) error{p.addUIDs, p.addTokens, p.addCertificates, p.addOIDC, p.addAWS, (*Caller).addNetworks} {
		if err := add(c); err != nil {
			return refused(fault.Hint(err), "%w", err)
		}
	}
	p.callers[name] = c
	return nil
}

// remote returns the number of credentials that come over a network.
func (c CallerConfig) remote() int {
	n := len(c.Tokens) + len(c.ClientCert.SPKI) + len(c.ClientCert.SAN)
	if c.OIDC.set() {
		n++
	}
	if c.AWS.isSet() {
		n++
	}
	return n
}

// oneCaller is the error for a credential that is in the configuration twice.
func oneCaller(credential string, other *Caller) error {
	return fault.Usage.Errorf("%s is that of %s", credential, other.Name).Fix("a credential names one caller; remove it from the other place")
}

func (p *Policy) addUIDs(c *Caller) error {
	for _, uid := range c.from.UID {
		if uid < 0 || uid > maxUID || uid == overflowUID {
			return fault.Usage.Errorf("uid %d is not that of a user", uid).Fix("write the number that id -u prints")
		}
		if other := p.uids[uid]; other != nil {
			return oneCaller("uid "+strconv.Itoa(uid), other)
		}
		p.uids[uid] = c
	}
	return nil
}

// addNetworks reads the networks of a caller.
func (c *Caller) addNetworks() error {
	for _, text := range c.from.From {
		network, err := netip.ParsePrefix(text)
		switch {
		case err != nil || network.Addr().Is4In6():
			return fault.Usage.Errorf("from: %q is not a network", fault.Clip(text, 64)).Fix("write it as 10.1.0.0/16, 10.1.2.3/32 or 2001:db8::/32")
		case network != network.Masked():
			return fault.Usage.Errorf("from: %s is an address with a length of a network", network).Fix("write " + network.Masked().String() + ", or the whole address with its full length")
		}
		c.networks = append(c.networks, network)
	}
	return nil
}

// From returns whether the caller's credentials, but Unix users, are accepted from an address. An address that is not valid, as
// that of a Unix socket, is in no network; without networks every address is accepted.
func (c *Caller) From(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	return c.networks == nil || slices.ContainsFunc(c.networks, func(network netip.Prefix) bool { return network.Contains(addr) })
}

// UID returns the caller that a Unix user is; the error is of kind unauthenticated.
func (p *Policy) UID(uid int) (Credential, error) {
	if c := p.uids[uid]; c != nil {
		return Credential{Caller: c, Name: "uid " + strconv.Itoa(uid)}, nil
	}
	return Credential{}, fault.Unauthenticated.Errorf("Unix user %d is no caller of the configuration", uid).Fix("ask whoever writes the configuration to add it to callers")
}

// Listed is one credential of a caller as the configuration has it.
type Listed struct {
	// Name is that of the Credential. A SAN, which can be in many certificates, is "san dns:portal.example".
	Name    string
	Expires time.Time // of a token; zero: the configuration does not say
	State   string    // of a token: StateValid, StateExpired or StateTooLong
	// Claims are those of an OIDC token.
	Claims map[string]string
}

// Describe returns the name of the credential, with the claims of an OIDC token.
func (l Listed) Describe() string {
	if l.Claims == nil {
		return l.Name
	}
	return l.Name + " (" + explainClaims(l.Claims) + ")"
}

// The states of a token.
const (
	StateValid   = "valid"
	StateExpired = "expired"
	StateTooLong = "too long" // it expires so late that it is not accepted
)

// Credentials returns the credentials of a caller in the order of tokens, client certificates, OIDC tokens, AWS identities and
// Unix users.
func (c *Caller) Credentials(now time.Time) []Listed {
	var all []Listed
	for _, t := range c.tokens {
		all = append(all, Listed{Name: t.name(), Expires: t.expires, State: t.state(now)})
	}
	for _, pin := range c.from.ClientCert.SPKI {
		hash, _ := hex.DecodeString(pin) // addCertificates has read it
		all = append(all, Listed{Name: certificateName(hash)})
	}
	for _, san := range c.from.ClientCert.SAN {
		all = append(all, Listed{Name: "san " + san})
	}
	if c.oidc != nil {
		all = append(all, Listed{Name: c.oidc.name, Claims: maps.Clone(c.oidc.claims)})
	}
	if c.from.AWS.isSet() {
		all = append(all, Listed{Name: awsName(c.from.AWS.UniqueID)})
	}
	for _, uid := range c.from.UID {
		all = append(all, Listed{Name: "uid " + strconv.Itoa(uid)})
	}
	return all
}

// Holds returns whether a credential, by the name that Credential has, is still one of the caller's; a token must be valid at now. A
// client certificate that is accepted by its subject alternative name cannot be told by the name of its credential: each one is the
// caller's if the caller has such names, and whoever asks checks the certificate itself, too.
func (c *Caller) Holds(credential string, now time.Time) bool {
	l, ok := c.listed(credential, now)
	return ok && (l.State == "" || l.State == StateValid)
}

// has is Holds for a credential that was used before: a token may have expired since.
func (c *Caller) has(credential string) bool {
	_, ok := c.listed(credential, time.Time{})
	return ok
}

// listed returns a credential as the configuration has it.
func (c *Caller) listed(credential string, now time.Time) (Listed, bool) {
	if strings.HasPrefix(credential, certificatePrefix) && len(c.from.ClientCert.SAN) > 0 {
		return Listed{Name: credential}, true
	}
	all := c.Credentials(now)
	i := slices.IndexFunc(all, func(l Listed) bool { return l.Name == credential })
	if i < 0 {
		return Listed{}, false
	}
	return all[i], true
}

// Networks returns the networks from which the caller's credentials, but Unix users, are accepted; nil: any.
func (c *Caller) Networks() []string { return c.from.From }

// Explain returns a caller in a sentence; now decides which tokens have expired.
func (p *Policy) Explain(name string, now time.Time) string {
	c := p.callers[name]
	text := "role " + c.Role.Name + ", "
	if c.Person != "" {
		text += "person " + c.Person
	} else {
		text += "a machine of " + strings.Join(c.Owners, ", ")
	}
	if c.Customer != "" {
		text += ", for " + c.Customer
	}
	for _, credential := range c.Credentials(now) {
		text += "; " + credential.Describe()
		if v := credential.Validity(); v != "" {
			text += " " + v
		}
	}
	if len(c.from.From) > 0 {
		text += "; from " + strings.Join(c.from.From, ", ")
	}
	return text
}

// Validity returns until when a token is accepted, in words; "" for other credentials.
func (l Listed) Validity() string {
	day := l.Expires.Format(time.DateOnly)
	switch l.State {
	case StateValid:
		return "until " + day
	case StateExpired:
		return "expired " + day
	case StateTooLong:
		return "not accepted: it expires " + day + ", in more than " + strconv.Itoa(MaxTokenDays) + " days"
	}
	return ""
}
