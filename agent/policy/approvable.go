package policy

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// Need returns how many other people must approve what the role's callers ask for, by event; events that need nobody are left out.
func (r *Role) Need() map[string]int {
	need := maps.Clone(r.need)
	maps.DeleteFunc(need, func(_ string, n int) bool { return n == 0 })
	return need
}

// Asks returns whether other people must approve something that a caller asks for.
func (p *Policy) Asks() bool {
	return slices.ContainsFunc(slices.Collect(maps.Values(p.callers)), func(c *Caller) bool { return c.Role.waits() })
}

// CheckApprovals returns an error of kind usage if a caller may ask for what can never be approved: because too few persons may
// approve it who are not the caller itself or an owner of it, or administrators only. now decides which tokens have expired.
func (p *Policy) CheckApprovals(now time.Time) error {
	for _, name := range p.Names() {
		c := p.callers[name]
		for _, event := range slices.Sorted(maps.Keys(c.Role.Need())) {
			if err := p.checkEvent(c, event, now); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkEvent checks one event of one caller, for each vendor identity and customer of its role. Of a role with all customers, it is
// enough that there is one whose requests can be approved.
func (p *Policy) checkEvent(c *Caller, event string, now time.Time) error {
	vendors := slices.Clone(c.Role.Vendors)
	if vendors == nil {
		vendors = slices.Clone(p.vendors)
	}
	if len(vendors) == 0 || event == record.EventUnfreeze {
		vendors = []string{""}
	}
	everything := c.Role.Covers("")
	customers := c.Role.Customers
	switch {
	case everything && event == record.EventUnfreeze: // of all signing, say, which is about no customer
		customers, everything = []string{""}, false
	case everything:
		customers = p.approvedCustomers()
	}
	for _, vendor := range vendors {
		var failed []error
		for _, customer := range customers {
			if err := p.approvable(c, event, vendor, customer, now); err != nil {
				failed = append(failed, err)
			}
		}
		if len(failed) > 0 && (!everything || len(failed) == len(customers)) {
			return failed[0]
		}
	}
	return nil
}

// approvedCustomers returns the customers that roles which approve name, and one that none of them names.
func (p *Policy) approvedCustomers() []string {
	found := []string{""}
	for _, name := range p.Roles() {
		if r := p.roles[name]; r.Allows(Approve) {
			found = append(found, slices.DeleteFunc(slices.Clone(r.Customers), func(customer string) bool { return customer == all })...)
		}
	}
	return found
}

// approvable returns an error unless enough persons can approve what a caller asks for.
func (p *Policy) approvable(c *Caller, event, vendor, customer string, now time.Time) error {
	asked := record.Asked{Event: event, Vendor: vendor, Requester: record.Requester{Caller: c.Name, Person: c.Person, Owners: c.Owners}}
	need, persons, other := c.Role.need[event], map[string]bool{}, false
	for _, one := range p.callers {
		may := slices.ContainsFunc(one.Credentials(now), func(l Listed) bool {
			return (l.State == "" || l.State == StateValid) && Credential{one, l.Name}.Approves(asked, customer) == nil
		})
		if may {
			persons[one.Person] = true
			other = other || !one.Role.administrator()
		}
	}
	about := ""
	if customer != "" {
		about = " for the customer " + customer
	}
	if vendor != "" {
		about += " with the vendor identity " + vendor
	}
	names := slices.Sorted(maps.Keys(persons))
	const fix = "give approve to persons who neither own the caller nor are administrators, or ask for fewer approvals"
	switch {
	case len(names) < need:
		return fault.Usage.Errorf("role %s: %s of caller %s%s can never be approved: it needs %s, and %s may approve it",
			c.Role.Name, event, c.Name, about, people(need), anyOf(names)).Fix(fix)
	case !other:
		return fault.Usage.Errorf("role %s: %s of caller %s%s can never be approved: only administrators may (%s)",
			c.Role.Name, event, c.Name, about, strings.Join(names, ", ")).Fix(fix)
	}
	return nil
}

// anyOf names persons: "nobody", "only ada", "only 2 (ada, bo)".
func anyOf(names []string) string {
	switch len(names) {
	case 0:
		return "nobody"
	case 1:
		return "only " + names[0]
	}
	return "only " + strconv.Itoa(len(names)) + " (" + strings.Join(names, ", ") + ")"
}
