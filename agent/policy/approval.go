package policy

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// ApprovalsConfig is how many other people must approve a request, by event, as hsmsign.yaml has it: a mapping with all three
// keys, or the word none.
type ApprovalsConfig struct {
	NewCustomer *int `yaml:"new-customer"` // the customer's first signature
	NewKey      *int `yaml:"new-key"`      // another key of the customer
	SameKey     *int `yaml:"same-key"`     // the customer's key again

	None bool `yaml:"-"` // the word
}

// NoApprovals is the word none.
func NoApprovals() ApprovalsConfig { return ApprovalsConfig{None: true} }

// UnmarshalYAML decodes either form.
func (a *ApprovalsConfig) UnmarshalYAML(unmarshal func(any) error) error {
	var word string
	if unmarshal(&word) == nil {
		if word != "none" {
			return fmt.Errorf("approvals is %q, and not none or a mapping", fault.Clip(word, 32))
		}
		a.None = true
		return nil
	}
	type mapping ApprovalsConfig
	return unmarshal((*mapping)(a))
}

// MarshalJSON returns what the policy's hash covers.
func (a ApprovalsConfig) MarshalJSON() ([]byte, error) {
	return strconv.AppendQuote(nil, a.String()), nil
}

// events are the numbers by event.
func (a ApprovalsConfig) events() map[string]*int {
	return map[string]*int{record.EventNewCustomer: a.NewCustomer, record.EventNewKey: a.NewKey, record.EventSameKey: a.SameKey}
}

// String returns the numbers: "new-customer: 1, new-key: 1, same-key: 0".
func (a ApprovalsConfig) String() string {
	if a.None {
		return "none"
	}
	var all []string
	for _, event := range slices.Sorted(maps.Keys(a.events())) {
		if n := a.events()[event]; n != nil {
			all = append(all, event+": "+strconv.Itoa(*n))
		}
	}
	return strings.Join(all, ", ")
}

const (
	maxApprovers = 16
	defExpiry    = 72 * time.Hour
	minExpiry    = time.Minute
	maxExpiry    = 30 * 24 * time.Hour
)

// newApprovals reads what a role says about approvals.
func (r *Role) newApprovals() error {
	signs, freezes := slices.Contains(r.May, Sign), slices.Contains(r.May, Freeze)
	r.need = map[string]int{record.EventUnfreeze: r.UnfreezeApprovals}
	missing := fault.Usage.Errorf("it may sign, and says nothing about approvals").
		Fix("write approvals: { new-customer: 1, new-key: 1, same-key: 0 }, or approvals: none if no other person has to approve")
	for event, n := range r.Approvals.events() {
		switch {
		case !signs || r.Approvals.None:
		case n == nil && r.Approvals.String() == "":
			return missing
		case n == nil:
			return fault.Usage.Errorf("approvals: %s is missing", event).Fix("write how many other people must approve; 0 is nobody")
		default:
			r.need[event] = *n
		}
	}
	for _, event := range slices.Sorted(maps.Keys(r.need)) {
		if n := r.need[event]; n < 0 || n > maxApprovers {
			return fault.Usage.Errorf("%d approvals for %s", n, event).Fix(fmt.Sprintf("write a number from 0 to %d", maxApprovers))
		}
	}
	if r.UnfreezeApprovals > 0 && !freezes {
		return fault.Usage.Errorf("unfreeze-approvals, and it may not freeze").Fix("remove unfreeze-approvals, or add freeze to may")
	}
	r.expiry = defExpiry
	if r.ApprovalExpiry == "" {
		return nil
	}
	var err error
	if r.expiry, err = time.ParseDuration(r.ApprovalExpiry); err != nil || r.expiry < minExpiry || r.expiry > maxExpiry {
		return fault.Usage.Errorf("approval-expiry is %q", fault.Clip(r.ApprovalExpiry, 64)).Fix(fmt.Sprintf("it is a time from %v to %v, as 72h", minExpiry, maxExpiry))
	}
	return nil
}

// waits returns whether others must approve something that the role's callers ask for.
func (r *Role) waits() bool {
	return slices.ContainsFunc(slices.Collect(maps.Values(r.need)), func(n int) bool { return n > 0 })
}

// explainApprovals returns who must approve requests, in words.
func (r *Role) explainApprovals() string {
	var parts []string
	for _, event := range []struct{ name, text string }{
		{record.EventNewCustomer, "a new customer"}, {record.EventNewKey, "a new key"}, {record.EventSameKey, "a key that the customer has used"},
	} {
		if n := r.need[event.name]; n > 0 {
			parts = append(parts, people(n)+" for "+event.text)
		}
	}
	if len(parts) == 0 {
		return "without approval"
	}
	return "after the approval of " + strings.Join(parts, ", of ") + ", within " + r.expiry.String()
}

func people(n int) string {
	if n == 1 {
		return "another person"
	}
	return strconv.Itoa(n) + " other people"
}

// Ask returns who must approve what the caller asks for with a credential; nil: nobody.
func (c Credential) Ask() *record.Ask {
	if c.Caller == nil || !c.Caller.Role.waits() {
		return nil
	}
	return &record.Ask{
		Need: c.Caller.Role.need, Expiry: c.Caller.Role.expiry, Approvers: c.Caller.policy,
		Requester: record.Requester{Caller: c.Caller.Name, Credential: c.Name, Person: c.Caller.Person, Owners: c.Caller.Owners},
	}
}

// The rules that refuse an approver.
const (
	// RulePerson refuses whoever is not another person than the one who asked.
	RulePerson = "approval.person"
)

// Approves returns nil if the caller may approve or reject, with a credential, what was asked about a customer ("" if it is about
// none). Otherwise the error is of kind forbidden, and names the rule.
//
// Whoever decides must be another person than the requester: not the requester itself with any credential, not an owner of the
// machine that asked, not a machine (whose credentials several people share), and not uid 0, which can be anybody. What the
// configuration says of the requester now counts, and what it said then.
func (c Credential) Approves(asked record.Asked, customer string) error {
	refused := func(rule, format string, args ...any) error {
		return fault.Forbidden.Errorf("caller %s may not decide: "+format, append([]any{c.Caller.Name}, args...)...).Rule(rule).Fix("another person must, whose role has approve")
	}
	person := c.Caller.Person
	persons := append(slices.Clone(asked.Owners), asked.Person)
	if now := c.Caller.policy.callers[asked.Caller]; now != nil {
		persons = append(append(persons, now.Owners...), now.Person)
	}
	verb := Approve
	switch {
	case !c.Caller.Role.Allows(verb):
		return refused(RuleVerb, "its role is %s", c.Caller.Role.Name)
	case !c.Caller.Role.Covers(customer):
		return refused(RuleCustomer, "its role %s does not have the customer", c.Caller.Role.Name)
	case asked.Event != record.EventUnfreeze && !c.Caller.Role.Uses(asked.Vendor):
		return refused(RuleVendor, "its role %s does not have the vendor identity %q", c.Caller.Role.Name, asked.Vendor)
	case person == "":
		return refused(RulePerson, "it is a machine, and not a person")
	case c.Name == "uid 0":
		return refused(RulePerson, "uid 0 can be anybody on the host")
	case c.Caller.Name == asked.Caller || c.Name == asked.Credential:
		return refused(RulePerson, "it asked itself")
	case slices.Contains(persons, person):
		return refused(RulePerson, "%s asked, or owns the machine that asked", person)
	}
	return nil
}

// administrator returns whether a role could bring about alone what needs approval: its callers sign without approval, or change
// what is known of customers.
func (r *Role) administrator() bool {
	return r.Allows(Customers) || r.Allows(Sign) && r.need[record.EventNewCustomer] == 0
}

// Count implements record.Approvers. An approval counts if the approver is still a caller of the same person with the credential
// it had then, and may still approve; each person counts once. Approvals of administrators alone are not enough: one must be
// that of somebody who cannot bring it about alone.
func (p *Policy) Count(asked record.Asked, customer string, given []record.Approval, need int) (have int, enough bool) {
	persons, other := map[string]bool{}, false
	for _, one := range given {
		c := p.callers[one.Caller]
		if c == nil || c.Person != one.Person || !c.has(one.Credential) || (Credential{c, one.Credential}).Approves(asked, customer) != nil {
			continue
		}
		persons[c.Person] = true
		other = other || !c.Role.administrator()
	}
	return len(persons), len(persons) >= need && (other || need == 0)
}
