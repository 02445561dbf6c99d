package policy

import (
	"crypto/x509/pkix"
	"strings"
	"testing"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
)

func signerRole() RoleConfig {
	return RoleConfig{May: []string{Sign}, Customers: []string{all}, PerSecond: 5, PerDay: 500, Approvals: "none"}
}

func ada() CallerConfig { return CallerConfig{Role: "signer", Person: "ada", UID: []int{1001}} }

// What is missing denies: a configuration that leaves it open who may do how much is refused, and the error says where.
func TestRefused(t *testing.T) {
	for want, change := range map[string]func(c map[string]CallerConfig, r map[string]RoleConfig, caller *CallerConfig, role *RoleConfig){
		`role signer: it may nothing`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, _ *CallerConfig, r *RoleConfig) {
			r.May = nil
		},
		`role signer: may: "sing" is unknown; did you mean "sign"`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, _ *CallerConfig, r *RoleConfig) {
			r.May = []string{"sing"}
		},
		`role signer: it may sign, and names no customers`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, _ *CallerConfig, r *RoleConfig) {
			r.Customers = nil
		},
		`role signer: it may sign without a limit`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, _ *CallerConfig, r *RoleConfig) {
			r.PerDay = 0
		},
		`role signer: it may sign without a limit; write per-s`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, _ *CallerConfig, r *RoleConfig) {
			r.PerSecond = 0
		},
		`role signer: a limit is negative`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, _ *CallerConfig, r *RoleConfig) {
			r.PerDay = -1
		},
		`role signer: it may sign, and says nothing about app`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, _ *CallerConfig, r *RoleConfig) {
			r.Approvals = ""
		},
		`role signer: vendors: there is no "new"`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, _ *CallerConfig, r *RoleConfig) {
			r.Vendors = []string{"new"}
		},
		`role signer: subject: "X" is unknown`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, _ *CallerConfig, r *RoleConfig) {
			r.Subject = map[string]string{"X": "y"}
		},
		`role "a b" is not a name`: func(_ map[string]CallerConfig, m map[string]RoleConfig, _ *CallerConfig, _ *RoleConfig) {
			m["a b"] = signerRole()
		},
		`caller "a b" is not a name`: func(m map[string]CallerConfig, _ map[string]RoleConfig, _ *CallerConfig, _ *RoleConfig) {
			m["a b"] = ada()
		},
		`person "a b" is not a name`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, c *CallerConfig, _ *RoleConfig) {
			c.Person = "a\nb"
		},
		`caller ada: it has no role`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, c *CallerConfig, _ *RoleConfig) {
			c.Role = ""
		},
		`caller ada: there is no role "singer"; did you mean "sign`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, c *CallerConfig, _ *RoleConfig) {
			c.Role = "singer"
		},
		`caller ada: it needs a person or owners`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, c *CallerConfig, _ *RoleConfig) {
			c.Person = ""
		},
		`caller ada: it needs a person or owners, and not both`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, c *CallerConfig, _ *RoleConfig) {
			c.Owners = []string{"bo"}
		},
		`caller ada: it has no credentials`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, c *CallerConfig, _ *RoleConfig) {
			c.UID = nil
		},
		`caller bo: uid 1001 is that of ada`: func(m map[string]CallerConfig, _ map[string]RoleConfig, _ *CallerConfig, _ *RoleConfig) {
			m["bo"] = ada()
		},
		`caller ada: uid -1 is that of nobody`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, c *CallerConfig, _ *RoleConfig) {
			c.UID = []int{-1}
		},
		`caller ada: its role signer does not have its customer "bolt"`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, c *CallerConfig, r *RoleConfig) {
			c.Customer, r.Customers = "bolt", []string{"acme"}
		},
	} {
		caller, role := ada(), signerRole()
		callers, roles := map[string]CallerConfig{}, map[string]RoleConfig{}
		change(callers, roles, &caller, &role)
		callers["ada"], roles["signer"] = caller, role
		_, err := New(callers, roles, []string{"old"})
		if err == nil {
			t.Errorf("accepted; want %s", want)
			continue
		}
		if text := err.Error() + "; " + fault.Hint(err); fault.KindOf(err) != fault.Usage || !strings.Contains(text, want) {
			t.Errorf("%s; want %s", text, want)
		}
	}
}

func policyOf(t *testing.T, caller CallerConfig, role RoleConfig) *Policy {
	t.Helper()
	return testkit.Value(New(map[string]CallerConfig{"ada": caller}, map[string]RoleConfig{"signer": role}, []string{"old", "new"}))(t)
}

func TestCheck(t *testing.T) {
	role := signerRole()
	role.Customers, role.Vendors, role.Subject = []string{"acme", "bolt"}, []string{"old"}, map[string]string{"O": "Acme*", "C": "DE"}
	fits := Order{Customer: "acme", Vendor: "old", Subject: pkix.Name{Organization: []string{"Other", "Acme (Europe) GmbH"}, Country: []string{"DE"}}}
	for rule, change := range map[string]func(o *Order, r *RoleConfig){
		"":           func(*Order, *RoleConfig) {},
		RuleVerb:     func(_ *Order, r *RoleConfig) { r.May = []string{Read} },
		RuleCustomer: func(o *Order, _ *RoleConfig) { o.Customer = "coil" },
		RuleVendor:   func(o *Order, _ *RoleConfig) { o.Vendor = "new" },
		RuleSubject:  func(o *Order, _ *RoleConfig) { o.Subject.Organization = []string{"The Acme"} },
	} {
		order, changed := fits, role
		change(&order, &changed)
		c := testkit.Value(policyOf(t, ada(), changed).UID(1001))(t)
		got, err := c.Check(order)
		if got != rule || (err != nil) != (rule != "") || err != nil && (fault.KindOf(err) != fault.Forbidden || !strings.Contains(err.Error(), "["+rule+"]")) {
			t.Errorf("%q: %q, %v", rule, got, err)
		}
	}
	for _, customer := range []string{"", all} { // no customer has these names
		order := fits
		order.Customer = customer
		if rule, _ := testkit.Value(policyOf(t, ada(), role).UID(1001))(t).Check(order); rule != RuleCustomer {
			t.Errorf("customer %q: %q", customer, rule)
		}
	}
}

func TestManage(t *testing.T) {
	role := signerRole()
	role.May, role.Customers = []string{Customers}, []string{"acme"}
	c := testkit.Value(policyOf(t, ada(), role).UID(1001))(t)
	if _, err := c.Manage("acme"); err != nil {
		t.Error(err)
	}
	if _, err := c.Manage("bolt"); fault.KindOf(err) != fault.Forbidden {
		t.Errorf("another customer: %v", err)
	}
	c = testkit.Value(policyOf(t, ada(), signerRole()).UID(1001))(t)
	if _, err := c.Manage("acme"); fault.KindOf(err) != fault.Forbidden {
		t.Errorf("without the verb: %v", err)
	}
}

func TestUID(t *testing.T) {
	if _, err := policyOf(t, ada(), signerRole()).UID(0); fault.KindOf(err) != fault.Unauthenticated || !strings.Contains(err.Error(), "Unix user 0") {
		t.Errorf("%v", err)
	}
	if _, err := policyOf(t, ada(), signerRole()).Caller("adda"); fault.KindOf(err) != fault.NotFound || !strings.Contains(fault.Hint(err), `"ada"`) {
		t.Errorf("%v", err)
	}
}

// The hash changes with whatever changes what a caller may.
func TestHash(t *testing.T) {
	seen := map[[32]byte]bool{}
	for range 2 {
		seen[policyOf(t, ada(), signerRole()).Hash()] = true
	}
	if len(seen) != 1 {
		t.Error("the hash of one policy differs")
	}
	role := signerRole()
	role.PerDay++
	seen[policyOf(t, ada(), role).Hash()] = true
	caller := ada()
	caller.UID = []int{1002}
	p := policyOf(t, caller, signerRole())
	seen[p.Hash()] = true
	if c := testkit.Value(p.UID(1002))(t); len(seen) != 3 || c.Policy != p.Hash() {
		t.Errorf("%d hashes, caller's %x", len(seen), c.Policy)
	}
}

func TestExplain(t *testing.T) {
	role := signerRole()
	role.MustExist, role.PerSecond, role.Customers, role.Subject = true, 1, []string{"acme", "bolt"}, map[string]string{"O": "Acme*"}
	caller := CallerConfig{Role: "signer", Owners: []string{"bo"}, Customer: "acme", UID: []int{7}}
	p := policyOf(t, caller, role)
	want := "may sign; for acme, bolt; with any vendor identity; only if the subject's O is Acme*; only for customers in the ledger; at most 1 request a second and 500 requests a day; without approval"
	if got := p.callers["ada"].Role.Explain(); got != want {
		t.Error(got)
	}
	want = "role signer, a machine of bo, for acme; Unix user 7"
	if got := p.Explain("ada"); got != want {
		t.Error(got)
	}
}
