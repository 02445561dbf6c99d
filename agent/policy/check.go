package policy

import (
	"context"
	"crypto/x509/pkix"
	"maps"
	"slices"

	"hsmsign/agent/policy/hook"
	"hsmsign/fault"
)

// Order is what a caller asks to sign.
type Order struct {
	Customer string
	Vendor   string // name of the vendor identity; empty: the only one
	Subject  pkix.Name
	Channel  string // how it came: Local, or that of a service
	SHA1     bool   // the signature is to be one over a SHA-1
}

// Local is the channel of the command line.
const Local = "local"

// The rules that refuse an order. docs/cli.md explains them.
const (
	RuleVerb     = "policy.may"
	RuleCustomer = "policy.customers"
	RuleVendor   = "policy.vendors"
	RuleSubject  = "policy.subject"
	RuleDigest   = "policy.digest"

	RuleEntitlement = "policy.entitlement"
)

// Check returns nil if the caller may have the order signed. Otherwise rule is what refuses it, and the error is of kind
// forbidden.
func (c *Caller) Check(o Order) (rule string, err error) {
	refused := func(rule, format string, args ...any) (string, error) {
		return rule, fault.Forbidden.Errorf("caller %s "+format, append([]any{c.Name}, args...)...).Rule(rule).Fix(ask)
	}
	r := c.Role
	switch {
	case !r.Allows(Sign):
		return refused(RuleVerb, "may not ask for requests: its role is %s", r.Name)
	case !r.Covers(o.Customer):
		return refused(RuleCustomer, "may not ask for requests of the customer %q", fault.Clip(o.Customer, 64))
	case !r.Uses(o.Vendor):
		return refused(RuleVendor, "may not use the vendor identity %q", o.Vendor)
	case o.SHA1 && o.Channel != Local:
		return refused(RuleDigest, "may not ask for signatures with SHA-1, which only the command line makes")
	}
	for _, attribute := range slices.Sorted(maps.Keys(r.subject)) {
		if !slices.ContainsFunc(attributes[attribute](o.Subject), r.subject[attribute].MatchString) {
			return refused(RuleSubject, "may not ask for requests whose %s is not %q", attribute, r.Subject[attribute])
		}
	}
	return "", nil
}

// CheckProfile returns nil if the caller may have a profile signed for a customer, "" if it is nobody's. Otherwise rule is what
// refuses it, and the error is of kind forbidden. Approvals, subjects and entitlement programs are about requests only.
func (c *Caller) CheckProfile(customer string) (rule string, err error) {
	switch {
	case !c.Role.Allows(Profiles):
		return RuleVerb, fault.Forbidden.Errorf("caller %s may not ask for signatures of profiles: its role is %s", c.Name, c.Role.Name).Rule(RuleVerb).Fix(ask)
	case !c.Role.Covers(customer):
		return RuleCustomer, fault.Forbidden.Errorf("caller %s may not ask for signatures of profiles of the customer %q", c.Name, fault.Clip(customer, 64)).
			Rule(RuleCustomer).Fix(ask)
	}
	return "", nil
}

// ask is what to do about a refusal of the policy.
const ask = "ask whoever writes the configuration; hsmsign check-config explains the roles"

// Entitled asks the program of the caller's role. The answer is nil, without an error, if the role has no program. If the
// program denies, rule is RuleEntitlement and the error of kind forbidden; another error means that it did not answer, and
// that nothing may be signed.
func (c *Caller) Entitled(ctx context.Context, question []byte) (answer *hook.Answer, rule string, err error) {
	if c.Role.program == nil {
		return nil, "", nil
	}
	got, err := c.Role.program.Ask(ctx, question)
	if err != nil {
		return nil, "", err
	}
	if got.Allowed() {
		return &got, "", nil
	}
	reason := got.Line
	if reason == "" {
		reason = "it printed no reason"
	}
	return &got, RuleEntitlement, fault.Forbidden.Errorf("caller %s: the program of its role %s denies the request: %s", c.Name, c.Role.Name, reason).Rule(RuleEntitlement).Fix(ask)
}

// Manage returns nil if the caller may change what is known of a customer, otherwise the rule and an error as Check.
func (c *Caller) Manage(customer string) (rule string, err error) {
	if c.Role.Allows(Customers) && c.Role.Covers(customer) {
		return "", nil
	}
	return RuleCustomer, fault.Forbidden.Errorf("caller %s may not change the customer %q", c.Name, fault.Clip(customer, 64)).Rule(RuleCustomer).Fix(ask)
}

// Freezes returns nil if the caller may freeze and unfreeze signing for a customer; "" is anything that is not one customer, such
// as a caller or a vendor identity, and needs customers "*". Otherwise the error is of kind forbidden.
func (c *Caller) Freezes(customer string) error {
	switch {
	case !c.Role.Allows(Freeze):
		return fault.Forbidden.Errorf("caller %s may not freeze or unfreeze: its role is %s", c.Name, c.Role.Name).Rule(RuleVerb).Fix(ask)
	case !c.Role.Covers(customer):
		return fault.Forbidden.Errorf("caller %s may freeze and unfreeze its own customers only", c.Name).Rule(RuleCustomer).Fix(ask)
	}
	return nil
}

// Read returns whether the caller may read what is about a customer; "" is what is about no customer, which needs customers "*".
func (c *Caller) Read(customer string) bool { return c.Role.Allows(Read) && c.Role.Covers(customer) }

// Scope returns the customers of which the caller may read; all means every customer, and what is about none.
func (c *Caller) Scope() (customers []string, all bool) {
	switch {
	case !c.Role.Allows(Read):
		return nil, false
	case c.Role.Covers(""):
		return nil, true
	}
	return slices.Clone(c.Role.Customers), false
}
