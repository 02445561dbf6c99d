// Package policy says who may ask a vendor for what. A caller is a person or a machine with its credentials; a role says
// what its callers may: for which customers, with which vendor identities, and how many requests.
//
// New checks a configuration: what is missing denies, and a role that may sign must say for whom and how much. A Policy does
// not change and is safe for concurrent use.
package policy

import (
	"crypto/sha256"
	"crypto/x509/pkix"
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"hsmsign/fault"
	"hsmsign/internal/suggest"
)

// The verbs of a role.
const (
	Sign      = "sign"      // ask for requests
	Read      = "read"      // read the ledger's entries about its customers
	Customers = "customers" // change what is known of customers
	Freeze    = "freeze"    // stop and start signing
	Approve   = "approve"   // approve what others ask for
)

var verbs = []string{Sign, Read, Customers, Freeze, Approve}

// all is the name in a list that means all.
const all = "*"

// CallerConfig is a person or a machine that may ask for requests, with its credentials, as hsmsign.yaml has it.
type CallerConfig struct {
	Role     string   `yaml:"role"`     // name of a role
	Person   string   `yaml:"person"`   // whose credentials these are
	Owners   []string `yaml:"owners"`   // of a machine: names of persons
	Customer string   `yaml:"customer"` // whose requests it asks for if it names none
	UID      []int    `yaml:"uid"`      // Unix users
}

// RoleConfig is what its callers may, as hsmsign.yaml has it.
type RoleConfig struct {
	May       []string          `yaml:"may"`                     // sign, read, customers, freeze, approve
	Customers []string          `yaml:"customers"`               // names, or "*" for all
	Vendors   []string          `yaml:"vendors"`                 // names of vendor identities; nil: all
	Subject   map[string]string `yaml:"subject"`                 // attributes of the CSR's subject that must match a pattern with *
	MustExist bool              `yaml:"must-exist"`              // a request does not add its customer to the ledger
	PerSecond int               `yaml:"per-second"`              // requests of one caller, in one process
	PerDay    int               `yaml:"per-day"`                 // requests of one caller that the ledger authorizes
	Approvals string            `yaml:"approvals" values:"none"` // "none": no other person has to approve
}

// Policy is the callers and roles of a configuration.
type Policy struct {
	callers map[string]*Caller
	roles   map[string]*Role
	uids    map[int]*Caller
	hash    [sha256.Size]byte
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

	from CallerConfig
}

// Role is what its callers may.
type Role struct {
	Name string
	RoleConfig

	subject map[string]*regexp.Regexp
}

// New returns the policy of a configuration's callers and roles. vendors are the names of its vendor identities. The error is
// of kind usage, and names the caller or role.
func New(callers map[string]CallerConfig, roles map[string]RoleConfig, vendors []string) (*Policy, error) {
	p := &Policy{callers: map[string]*Caller{}, roles: map[string]*Role{}, uids: map[int]*Caller{}}
	for _, name := range slices.Sorted(maps.Keys(roles)) {
		r, err := newRole(name, roles[name], vendors)
		if err != nil {
			return nil, err
		}
		p.roles[name] = r
	}
	effective, err := json.Marshal(struct {
		Callers map[string]CallerConfig
		Roles   map[string]RoleConfig
	}{callers, roles}) // encoding/json sorts the keys of maps
	if err != nil {
		return nil, err
	}
	p.hash = sha256.Sum256(effective)
	for _, name := range slices.Sorted(maps.Keys(callers)) {
		if err := p.add(name, callers[name]); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// validName matches the names of callers, roles and persons.
var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$`)

func checkName(what, name string) error {
	if !validName.MatchString(name) {
		return fault.Usage.Errorf("%s %q is not a name", what, fault.Clip(name, 64)).Fix("write letters, digits, '.', '_', '@' and '-', at most 64")
	}
	return nil
}

func newRole(name string, from RoleConfig, vendors []string) (*Role, error) {
	refused := func(fix, format string, args ...any) (*Role, error) {
		return nil, fault.Usage.Errorf("role "+name+": "+format, args...).Fix(fix)
	}
	if err := checkName("role", name); err != nil {
		return nil, err
	}
	r := &Role{Name: name, RoleConfig: from, subject: map[string]*regexp.Regexp{}}
	for _, verb := range r.May {
		if !slices.Contains(verbs, verb) {
			return refused(suggest.Name(verb, verbs, "it is one of "+strings.Join(verbs, ", ")), "may: %q is unknown", verb)
		}
	}
	switch {
	case len(r.May) == 0:
		return refused("write what its callers may: "+strings.Join(verbs, ", "), "it may nothing")
	case r.PerSecond < 0 || r.PerDay < 0:
		return refused("write a number above 0", "a limit is negative")
	case !slices.Contains(r.May, Sign):
	case len(r.Customers) == 0:
		return refused("write customers: [\"*\"], or their names", "it may sign, and names no customers")
	case r.PerSecond == 0 || r.PerDay == 0:
		return refused("write per-second and per-day", "it may sign without a limit")
	case r.Approvals != "none":
		return refused("write approvals: none if no other person has to approve", "it may sign, and says nothing about approvals")
	}
	for _, vendor := range r.Vendors {
		if !slices.Contains(vendors, vendor) {
			return refused(suggest.Name(vendor, vendors, "there are "+strings.Join(vendors, ", ")), "vendors: there is no %q", vendor)
		}
	}
	for attribute, pattern := range r.Subject {
		if _, ok := attributes[attribute]; !ok {
			names := slices.Sorted(maps.Keys(attributes))
			return refused(suggest.Name(attribute, names, "it is one of "+strings.Join(names, ", ")), "subject: %q is unknown", attribute)
		}
		r.subject[attribute] = regexp.MustCompile(`^` + strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, `.*`) + `$`)
	}
	return r, nil
}

// attributes returns the values of an attribute of a subject.
var attributes = map[string]func(s pkix.Name) []string{
	"CN": func(s pkix.Name) []string { return []string{s.CommonName} },
	"O":  func(s pkix.Name) []string { return s.Organization },
	"OU": func(s pkix.Name) []string { return s.OrganizationalUnit },
	"C":  func(s pkix.Name) []string { return s.Country },
	"L":  func(s pkix.Name) []string { return s.Locality },
	"ST": func(s pkix.Name) []string { return s.Province },
}

// add adds a caller.
func (p *Policy) add(name string, from CallerConfig) error {
	refused := func(fix, format string, args ...any) error {
		return fault.Usage.Errorf("caller "+name+": "+format, args...).Fix(fix)
	}
	if err := checkName("caller", name); err != nil {
		return err
	}
	role, names := p.roles[from.Role], p.Roles()
	switch {
	case from.Role == "":
		return refused("write role: and one of "+strings.Join(names, ", "), "it has no role")
	case role == nil:
		return refused(suggest.Name(from.Role, names, "the roles are "+strings.Join(names, ", ")), "there is no role %q", fault.Clip(from.Role, 64))
	case (from.Person == "") == (len(from.Owners) == 0):
		return refused("write person: for a person, or owners: for a machine", "it needs a person or owners, and not both")
	case len(from.UID) == 0:
		return refused("write uid:", "it has no credentials")
	case from.Customer != "" && !role.covers(from.Customer):
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
	c := &Caller{Name: name, Role: role, Person: from.Person, Owners: from.Owners, Customer: from.Customer, Policy: p.hash, from: from}
	p.callers[name] = c
	for _, uid := range from.UID {
		if other := p.uids[uid]; other != nil || uid < 0 {
			return refused("a credential names one caller", "uid %d is that of %s", uid, orNobody(other))
		}
		p.uids[uid] = c
	}
	return nil
}

func orNobody(c *Caller) string {
	if c == nil {
		return "nobody"
	}
	return c.Name
}

// Hash returns the SHA-256 of the effective policy.
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

// UID returns the caller that a Unix user is; the error is of kind unauthenticated.
func (p *Policy) UID(uid int) (*Caller, error) {
	if c := p.uids[uid]; c != nil {
		return c, nil
	}
	return nil, fault.Unauthenticated.Errorf("Unix user %d is no caller of the configuration", uid).Fix("ask whoever writes the configuration to add it to callers")
}

// Order is what a caller asks to sign.
type Order struct {
	Customer string
	Vendor   string // name of the vendor identity; empty: the only one
	Subject  pkix.Name
}

// The rules that refuse an order. docs/cli.md explains them.
const (
	RuleVerb     = "policy.may"
	RuleCustomer = "policy.customers"
	RuleVendor   = "policy.vendors"
	RuleSubject  = "policy.subject"
)

// Check returns nil if the caller may have the order signed. Otherwise rule is what refuses it, and the error is of kind
// forbidden.
func (c *Caller) Check(o Order) (rule string, err error) {
	refused := func(rule, format string, args ...any) (string, error) {
		return rule, fault.Forbidden.Errorf("caller %s "+format+" [%s]", append(append([]any{c.Name}, args...), rule)...).
			Fix("ask whoever writes the configuration; hsmsign check-config explains the roles")
	}
	r := c.Role
	switch {
	case !r.Allows(Sign):
		return refused(RuleVerb, "may not ask for requests: its role is %s", r.Name)
	case !r.covers(o.Customer):
		return refused(RuleCustomer, "may not ask for requests of the customer %q", fault.Clip(o.Customer, 64))
	case r.Vendors != nil && !slices.Contains(r.Vendors, o.Vendor):
		return refused(RuleVendor, "may not use the vendor identity %q", o.Vendor)
	}
	for _, attribute := range slices.Sorted(maps.Keys(r.subject)) {
		if !slices.ContainsFunc(attributes[attribute](o.Subject), r.subject[attribute].MatchString) {
			return refused(RuleSubject, "may not ask for requests whose %s is not %q", attribute, r.Subject[attribute])
		}
	}
	return "", nil
}

// Manage returns nil if the caller may change what is known of a customer, otherwise the rule and an error as Check.
func (c *Caller) Manage(customer string) (rule string, err error) {
	if c.Role.Allows(Customers) && c.Role.covers(customer) {
		return "", nil
	}
	return RuleCustomer, fault.Forbidden.Errorf("caller %s may not change the customer %q [%s]", c.Name, fault.Clip(customer, 64), RuleCustomer).
		Fix("ask whoever writes the configuration; hsmsign check-config explains the roles")
}

// Allows returns whether the role has a verb.
func (r *Role) Allows(verb string) bool { return slices.Contains(r.May, verb) }

// covers returns whether a customer is one of the role's.
func (r *Role) covers(customer string) bool {
	return slices.Contains(r.Customers, all) || customer != "" && slices.Contains(r.Customers, customer)
}

// Explain returns the role in a sentence.
func (r *Role) Explain() string {
	text := "may " + strings.Join(r.May, ", ")
	list := func(names []string, everything string) string {
		if names == nil || slices.Contains(names, all) {
			return everything
		}
		return strings.Join(names, ", ")
	}
	customers := "no customer"
	if len(r.Customers) > 0 {
		customers = list(r.Customers, "any customer")
	}
	text += "; for " + customers + "; with " + list(r.Vendors, "any vendor identity")
	for _, attribute := range slices.Sorted(maps.Keys(r.Subject)) {
		text += "; only if the subject's " + attribute + " is " + r.Subject[attribute]
	}
	if !r.Allows(Sign) {
		return text
	}
	if r.MustExist {
		text += "; only for customers in the ledger"
	}
	return text + "; at most " + plural(r.PerSecond, "request") + " a second and " + plural(r.PerDay, "request") + " a day; without approval"
}

// Explain returns a caller in a sentence.
func (p *Policy) Explain(name string) string {
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
	for _, uid := range c.from.UID {
		text += "; Unix user " + strconv.Itoa(uid)
	}
	return text
}

func plural(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return strconv.Itoa(n) + " " + what
}
