package policy

import (
	"crypto/x509/pkix"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
)

func signerRole() RoleConfig {
	return RoleConfig{May: []string{Sign}, Customers: []string{all}, PerSecond: 5, PerDay: 500, Approvals: NoApprovals()}
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
			r.Approvals = ApprovalsConfig{}
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
		`caller ada: uid -1 is not that of a user`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, c *CallerConfig, _ *RoleConfig) {
			c.UID = []int{-1}
		},
		`caller ada: uid 65534 is not that of a user`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, c *CallerConfig, _ *RoleConfig) {
			c.UID = []int{0, 65534}
		},
		`caller ada: uid 4294967295 is not that of a user`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, c *CallerConfig, _ *RoleConfig) {
			c.UID = []int{1<<32 - 1}
		},
		`caller ada: the token abcdefgh is that of ada; a credential names one caller`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, c *CallerConfig, _ *RoleConfig) {
			c.Tokens = []string{anEntry, anEntry}
		},
		`caller bo: the token abcdefgh is that of ada`: func(m map[string]CallerConfig, _ map[string]RoleConfig, c *CallerConfig, _ *RoleConfig) {
			c.Tokens = []string{anEntry}
			m["bo"] = CallerConfig{Role: "signer", Person: "bo", Tokens: []string{anEntry}}
		},
		`caller ada: tokens: not an entry`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, c *CallerConfig, _ *RoleConfig) {
			c.Tokens = []string{"x"}
		},
		`caller ada: tokens: a token instead of its entry; the token is a secret`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, c *CallerConfig, _ *RoleConfig) {
			c.Tokens = []string{aSecret}
		},
		`caller ada: client-cert: "AB" is not the SHA-256 of a public key`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, c *CallerConfig, _ *RoleConfig) {
			c.ClientCert.SPKI = []string{"AB"}
		},
		`is not the SHA-256 of a public key, 64 hex digits in lower case`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, c *CallerConfig, _ *RoleConfig) {
			c.ClientCert.SPKI = []string{strings.Repeat("AB", 32)}
		},
		`caller bo: the certificate 0000000000000000 is that of ada`: func(m map[string]CallerConfig, _ map[string]RoleConfig, c *CallerConfig, _ *RoleConfig) {
			c.ClientCert.SPKI = []string{strings.Repeat("00", 32)}
			m["bo"] = CallerConfig{Role: "signer", Person: "bo", ClientCert: c.ClientCert}
		},
		`caller bo: the name dns:a.example is that of ada`: func(m map[string]CallerConfig, _ map[string]RoleConfig, c *CallerConfig, _ *RoleConfig) {
			c.ClientCert.SAN = []string{"dns:a.example"}
			m["bo"] = CallerConfig{Role: "signer", Person: "bo", ClientCert: c.ClientCert}
		},
		`caller ada: from: "10.0.0.1" is not a network; write it as 10.1`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, c *CallerConfig, _ *RoleConfig) {
			c.Tokens, c.From = []string{anEntry}, []string{"10.0.0.1"}
		},
		`caller ada: from: "::ffff:10.0.0.0/104" is not a network`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, c *CallerConfig, _ *RoleConfig) {
			c.Tokens, c.From = []string{anEntry}, []string{"::ffff:10.0.0.0/104"}
		},
		`caller ada: from: 10.0.0.1/8 is an address with a length of a network; write 10.0.0.0/8`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, c *CallerConfig, _ *RoleConfig) {
			c.Tokens, c.From = []string{anEntry}, []string{"10.0.0.1/8"}
		},
		`caller ada: it has networks and no credential for a network`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, c *CallerConfig, _ *RoleConfig) {
			c.From = []string{"10.0.0.0/8"}
		},
		`role signer: entitlement: program "x": not an absolute path`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, _ *CallerConfig, r *RoleConfig) {
			r.Entitlement = &EntitlementConfig{Program: "x"}
		},
		`role signer: entitlement: program "/no/such": no such file`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, _ *CallerConfig, r *RoleConfig) {
			r.Entitlement = &EntitlementConfig{Program: "/no/such"}
		},
		`role signer: entitlement: timeout is "31s"; it is a time from 100ms to 30s`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, _ *CallerConfig, r *RoleConfig) {
			r.Entitlement = &EntitlementConfig{Program: "/no/such", Timeout: "31s"}
		},
		`role signer: entitlement: timeout is "99ms"`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, _ *CallerConfig, r *RoleConfig) {
			r.Entitlement = &EntitlementConfig{Program: "/no/such", Timeout: "99ms"}
		},
		`caller ada: its role signer does not have its customer "bolt"`: func(_ map[string]CallerConfig, _ map[string]RoleConfig, c *CallerConfig, r *RoleConfig) {
			c.Customer, r.Customers = "bolt", []string{"acme"}
		},
	} {
		caller, role := ada(), signerRole()
		callers, roles := map[string]CallerConfig{}, map[string]RoleConfig{}
		change(callers, roles, &caller, &role)
		callers["ada"], roles["signer"] = caller, role
		_, err := New(callers, roles, Environment{Vendors: []string{"old"}})
		if err == nil {
			t.Errorf("accepted; want %s", want)
			continue
		}
		if text := err.Error() + "; " + fault.Hint(err); fault.KindOf(err) != fault.Usage || !strings.Contains(text, want) || strings.Contains(text, aSecret) {
			t.Errorf("%s; want %s", text, want)
		}
	}
}

func policyOf(t *testing.T, caller CallerConfig, role RoleConfig) *Policy {
	t.Helper()
	return testkit.Value(New(map[string]CallerConfig{"ada": caller}, map[string]RoleConfig{"signer": role}, Environment{Vendors: []string{"old", "new"}}))(t)
}

// callerOf returns the caller ada with a role.
func callerOf(t *testing.T, role RoleConfig) *Caller {
	t.Helper()
	return testkit.Value(policyOf(t, ada(), role).UID(1001))(t).Caller
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
		RuleDigest:   func(o *Order, _ *RoleConfig) { o.SHA1, o.Channel = true, "tls" },
	} {
		order, changed := fits, role
		change(&order, &changed)
		c := testkit.Value(policyOf(t, ada(), changed).UID(1001))(t).Caller
		got, err := c.Check(order)
		if got != rule || (err != nil) != (rule != "") || err != nil && (fault.KindOf(err) != fault.Forbidden || !strings.Contains(err.Error(), "["+rule+"]")) {
			t.Errorf("%q: %q, %v", rule, got, err)
		}
	}
	old := fits
	old.SHA1, old.Channel = true, Local
	if rule, err := callerOf(t, role).Check(old); err != nil {
		t.Errorf("SHA-1 at the command line: %q, %v", rule, err)
	}
	for _, customer := range []string{"", all} { // no customer has these names
		order := fits
		order.Customer = customer
		if rule, _ := callerOf(t, role).Check(order); rule != RuleCustomer {
			t.Errorf("customer %q: %q", customer, rule)
		}
	}
}

func TestManage(t *testing.T) {
	role := signerRole()
	role.May, role.Customers = []string{Customers}, []string{"acme"}
	c := callerOf(t, role)
	if _, err := c.Manage("acme"); err != nil {
		t.Error(err)
	}
	if _, err := c.Manage("bolt"); fault.KindOf(err) != fault.Forbidden {
		t.Errorf("another customer: %v", err)
	}
	c = callerOf(t, signerRole())
	if _, err := c.Manage("acme"); fault.KindOf(err) != fault.Forbidden {
		t.Errorf("without the verb: %v", err)
	}
}

// What a caller may read and stop follows from its role.
func TestRead(t *testing.T) {
	role := signerRole()
	for _, tt := range []struct {
		may, customers []string
		acme, bolt     bool
		none, freezes  bool
		scope          string
		all            bool
	}{
		{[]string{Sign, Customers}, []string{all}, false, false, false, false, "", false},
		{[]string{Read}, []string{"acme"}, true, false, false, false, "acme", false},
		{[]string{Read}, nil, false, false, false, false, "", false},
		{[]string{Read, Freeze}, []string{all, "acme"}, true, true, true, true, "", true},
		{[]string{Freeze}, []string{all}, false, false, false, true, "", false},
	} {
		role.May, role.Customers = tt.may, tt.customers
		if tt.customers == nil {
			role.May = append([]string{Read}, Approve)
		}
		c := callerOf(t, role)
		names, all := c.Scope()
		if c.Read("acme") != tt.acme || c.Read("bolt") != tt.bolt || c.Read("") != tt.none || all != tt.all || strings.Join(names, " ") != tt.scope {
			t.Errorf("%+v: %v %v %v, %v %v", tt, c.Read("acme"), c.Read("bolt"), c.Read(""), names, all)
		}
		if err := c.Freezes(""); (err == nil) != tt.freezes || err != nil && (fault.KindOf(err) != fault.Forbidden || fault.Rule(err) != RuleVerb) {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}

// A role with customers freezes those only.
func TestFreezesCustomers(t *testing.T) {
	role := signerRole()
	role.May, role.Customers = []string{Freeze}, []string{"acme"}
	c := callerOf(t, role)
	for customer, want := range map[string]bool{"acme": true, "bolt": false, "": false} {
		if err := c.Freezes(customer); (err == nil) != want || err != nil && fault.Rule(err) != RuleCustomer {
			t.Errorf("%q: %v", customer, err)
		}
	}
}

func TestFrom(t *testing.T) {
	caller := ada()
	c := testkit.Value(policyOf(t, caller, signerRole()).Caller("ada"))(t)
	if !c.From(netip.MustParseAddr("192.0.2.1")) || !c.From(netip.Addr{}) {
		t.Error("without networks not every address is accepted")
	}
	caller.Tokens, caller.From = []string{anEntry}, []string{"10.1.0.0/16", "2001:db8::/32", "192.0.2.7/32"}
	c = testkit.Value(policyOf(t, caller, signerRole()).Caller("ada"))(t)
	for text, want := range map[string]bool{
		"10.1.255.255": true, "10.2.0.0": false, "::ffff:10.1.2.3": true, "2001:db8::1": true, "2001:db9::1": false, "192.0.2.7": true, "192.0.2.8": false, "fe80::1%eth0": false,
		"2001:db8::1%eth0": true,
	} {
		if got := c.From(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
	if c.From(netip.Addr{}) {
		t.Error("a Unix socket is in no network")
	}
}

func TestUID(t *testing.T) {
	if _, err := policyOf(t, ada(), signerRole()).UID(0); fault.KindOf(err) != fault.Unauthenticated || !strings.Contains(err.Error(), "Unix user 0") {
		t.Errorf("%v", err)
	}
	if c, err := policyOf(t, ada(), signerRole()).UID(1001); err != nil || c.Name != "uid 1001" || c.Caller.Name != "ada" {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := policyOf(t, ada(), signerRole()).Caller("adda"); fault.KindOf(err) != fault.NotFound || !strings.Contains(fault.Hint(err), `"ada"`) {
		t.Errorf("%v", err)
	}
}

// The hash changes with whatever changes what is signed, and with nothing else.
func TestHash(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	write := func(text string) {
		t.Helper()
		testkit.OK(t, os.WriteFile(program, []byte(text), 0o700))
	}
	write("#!/bin/sh\n")
	seen := map[[32]byte]string{}
	for name, change := range map[string]func(c *CallerConfig, r *RoleConfig, env *Environment){
		"nothing": func(*CallerConfig, *RoleConfig, *Environment) {},
		"role":    func(_ *CallerConfig, r *RoleConfig, _ *Environment) { r.PerDay++ },
		"caller":  func(c *CallerConfig, _ *RoleConfig, _ *Environment) { c.UID = []int{1002} },
		"token":   func(c *CallerConfig, _ *RoleConfig, _ *Environment) { c.Tokens = []string{anEntry} },
		"certificate": func(c *CallerConfig, _ *RoleConfig, _ *Environment) {
			c.ClientCert.SAN = []string{"dns:a.example"}
		},
		"networks": func(c *CallerConfig, _ *RoleConfig, _ *Environment) {
			c.Tokens, c.From = []string{anEntry}, []string{"10.0.0.0/8"}
		},
		"fact": func(_ *CallerConfig, _ *RoleConfig, env *Environment) { env.Facts = map[string]string{"key": "file:a"} },
		"program": func(_ *CallerConfig, r *RoleConfig, _ *Environment) {
			r.Entitlement = &EntitlementConfig{Program: program}
		},
		"time limit": func(_ *CallerConfig, r *RoleConfig, _ *Environment) {
			r.Entitlement = &EntitlementConfig{Program: program, Timeout: "1s"}
		},
		"content of the program": func(_ *CallerConfig, r *RoleConfig, _ *Environment) {
			write("#!/bin/sh\nexit 1\n")
			r.Entitlement = &EntitlementConfig{Program: program}
		},
	} {
		var again [32]byte
		for range 2 {
			write("#!/bin/sh\n")
			caller, role, env := ada(), signerRole(), Environment{}
			change(&caller, &role, &env)
			p := testkit.Value(New(map[string]CallerConfig{"ada": caller}, map[string]RoleConfig{"signer": role}, env))(t)
			if c := testkit.Value(p.Caller("ada"))(t); c.Policy != p.Hash() {
				t.Errorf("%s: the caller has the policy %x", name, c.Policy)
			}
			if again != ([32]byte{}) && again != p.Hash() {
				t.Errorf("%s: the hash of one policy differs", name)
			}
			again = p.Hash()
		}
		if other, ok := seen[again]; ok {
			t.Errorf("%s and %s have the same hash", name, other)
		}
		seen[again] = name
	}
}

func TestExplain(t *testing.T) {
	role := signerRole()
	role.MustExist, role.PerSecond, role.Customers, role.Subject = true, 1, []string{"acme", "bolt"}, map[string]string{"O": "Acme*"}
	caller := CallerConfig{
		Role: "signer", Owners: []string{"bo"}, Customer: "acme", UID: []int{7}, Tokens: []string{anEntry}, From: []string{"10.0.0.0/8", "::1/128"},
		ClientCert: ClientCertConfig{SPKI: []string{strings.Repeat("0a", 32)}, SAN: []string{"dns:a.example"}},
	}
	p := policyOf(t, caller, role)
	want := "may sign; for acme, bolt; with any vendor identity; only if the subject's O is Acme*; only for customers in the ledger; at most 1 request a second and 500 requests a day; without approval"
	if got := p.callers["ada"].Role.Explain(); got != want {
		t.Error(got)
	}
	role.Entitlement = &EntitlementConfig{Program: "/bin/x"}
	if got := (&Role{RoleConfig: role}).Explain(); !strings.Contains(got, "; only if /bin/x allows it; at most") {
		t.Error(got)
	}
	const first = "role signer, a machine of bo, for acme; token abcdefgh "
	const rest = "; certificate 0a0a0a0a0a0a0a0a; san dns:a.example; uid 7; from 10.0.0.0/8, ::1/128"
	for at, validity := range map[time.Time]string{
		expiry: "expired 2026-06-01", expiry.Add(-time.Second): "until 2026-06-01", expiry.AddDate(0, 0, -367): "until 2026-06-01",
		expiry.AddDate(0, 0, -368): "not accepted: it expires 2026-06-01, in more than 366 days",
	} {
		if got := p.Explain("ada", at); got != first+validity+rest {
			t.Errorf("%s: %s", at, got)
		}
	}
	if got := Attributes(pkix.Name{CommonName: "a", Country: []string{"DE", "", "FR"}}); len(got) != 2 || got["CN"][0] != "a" || strings.Join(got["C"], " ") != "DE FR" {
		t.Errorf("%v", got)
	}
}
