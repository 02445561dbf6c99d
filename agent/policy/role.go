package policy

import (
	"crypto/x509/pkix"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"hsmsign/agent/policy/hook"
	"hsmsign/fault"
	"hsmsign/internal/suggest"
	"hsmsign/ledger/record"
)

// The verbs of a role.
const (
	Sign      = "sign"      // ask for requests
	Read      = "read"      // read the ledger's entries about its customers
	Customers = "customers" // change what is known of customers
	Freeze    = "freeze"    // stop and start signing
	Approve   = "approve"   // approve what others ask for
	Profiles  = "profiles"  // ask for signatures of configuration profiles
)

var verbs = []string{Sign, Read, Customers, Freeze, Approve, Profiles}

// all is the name in a list that means all.
const all = "*"

// RoleConfig is what its callers may, as hsmsign.yaml has it.
type RoleConfig struct {
	May       []string          `yaml:"may"`                     // sign, read, customers, freeze, approve, profiles
	Customers []string          `yaml:"customers"`               // names, or "*" for all
	Vendors   []string          `yaml:"vendors"`                 // names of vendor identities; nil: all
	Subject   map[string]string `yaml:"subject"`                 // attributes of the CSR's subject that must match a pattern with *
	MustExist bool              `yaml:"must-exist"`              // a request does not add its customer to the ledger
	PerSecond int               `yaml:"per-second"`              // requests of one caller, in one process
	PerDay    int               `yaml:"per-day"`                 // requests of one caller that the ledger authorizes
	Approvals ApprovalsConfig   `yaml:"approvals" scalar:"none"` // how many other people must approve, by event
	// ApprovalExpiry is the time for the approvals, 1m to 720h; empty: 72h.
	ApprovalExpiry string `yaml:"approval-expiry"`
	// UnfreezeApprovals is how many other people must approve that a freeze ends.
	UnfreezeApprovals int `yaml:"unfreeze-approvals"`

	Entitlement *EntitlementConfig `yaml:"entitlement"` // a program that is asked, too; nil: none
}

// EntitlementConfig is a program that decides whether a request may be signed, as hsmsign.yaml has it. Package hook runs it.
type EntitlementConfig struct {
	Program string `yaml:"program" path:"absolute"`
	Timeout string `yaml:"timeout"` // 100ms to 30s; empty: 5s
}

// Role is what its callers may.
type Role struct {
	Name string
	RoleConfig

	subject map[string]*regexp.Regexp
	program *hook.Program // nil: none
	need    map[string]int
	expiry  time.Duration // of questions
}

func (p *Policy) newRole(name string, from RoleConfig, vendors []string) (*Role, error) {
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
	case !r.Allows(Sign) && !r.Allows(Profiles):
	case len(r.Customers) == 0:
		return refused("write customers: [\"*\"], or their names", "it may sign, and names no customers")
	case r.PerSecond == 0 || r.PerDay == 0:
		return refused("write per-second and per-day", "it may sign without a limit")
	}
	if err := r.newApprovals(); err != nil {
		return refused(fault.Hint(err), "%w", err)
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
	var err error
	if r.program, err = p.open(from.Entitlement); err != nil {
		return refused(fault.Hint(err), "entitlement: %w", err)
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

// Attributes returns the attributes of a subject that roles and programs know, by name; those that it lacks are left out.
func Attributes(subject pkix.Name) map[string][]string {
	all := map[string][]string{}
	for name, values := range attributes {
		if list := slices.DeleteFunc(slices.Clone(values(subject)), func(value string) bool { return value == "" }); len(list) > 0 {
			all[name] = list
		}
	}
	return all
}

// Uses returns whether the role has a vendor identity, by its name.
func (r *Role) Uses(vendor string) bool {
	return r.Vendors == nil || slices.Contains(r.Vendors, vendor)
}

// Allows returns whether the role has a verb.
func (r *Role) Allows(verb string) bool { return slices.Contains(r.May, verb) }

// Covers returns whether a customer is one of the role's.
func (r *Role) Covers(customer string) bool {
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
	if n := r.need[record.EventUnfreeze]; n > 0 {
		text += "; a freeze ends after the approval of " + people(n)
	}
	if !r.Allows(Sign) && !r.Allows(Profiles) {
		return text
	}
	limits := "; at most " + plural(r.PerSecond, "request") + " a second and " + plural(r.PerDay, "request") + " a day"
	if !r.Allows(Sign) {
		return text + limits
	}
	if r.MustExist {
		text += "; only for customers in the ledger"
	}
	if r.Entitlement != nil {
		text += "; only if " + r.Entitlement.Program + " allows it"
	}
	return text + limits + "; " + r.explainApprovals()
}

func plural(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return strconv.Itoa(n) + " " + what
}

// The time limits of a program.
const (
	defTimeout = 5 * time.Second
	minTimeout = 100 * time.Millisecond
	maxTimeout = 30 * time.Second
)

// open checks the program of a role; nil if there is none.
func (p *Policy) open(from *EntitlementConfig) (*hook.Program, error) {
	if from == nil {
		return nil, nil
	}
	timeout := defTimeout
	if from.Timeout != "" {
		var err error
		if timeout, err = time.ParseDuration(from.Timeout); err != nil || timeout < minTimeout || timeout > maxTimeout {
			return nil, fault.Usage.Errorf("timeout is %q", fault.Clip(from.Timeout, 64)).Fix(fmt.Sprintf("it is a time from %v to %v, as 5s", minTimeout, maxTimeout))
		}
	}
	return p.programs.Open(from.Program, timeout)
}
