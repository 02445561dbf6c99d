package policy

import (
	"maps"
	"strings"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/ledger/record"
)

// approvers are a machine of ada whose requests need two people, and two who may approve them.
func approvers() (callers map[string]CallerConfig, roles map[string]RoleConfig) {
	none, two := 0, 2
	careful := RoleConfig{
		May: []string{Sign, Freeze}, Customers: []string{all}, PerSecond: 5, PerDay: 500, Approvals: ApprovalsConfig{NewCustomer: &two, NewKey: &none, SameKey: &none}, UnfreezeApprovals: 1,
	}
	return map[string]CallerConfig{
			"ci": {Role: "careful", Owners: []string{"ada"}, UID: []int{1001}},
			"bo": {Role: "approver", Person: "bo", UID: []int{1002}}, "cy": {Role: "approver", Person: "cy", UID: []int{1003}},
		}, map[string]RoleConfig{
			"careful": careful, "approver": {May: []string{Approve}, Customers: []string{all}},
			"acme": {May: []string{Approve}, Customers: []string{"acme"}}, "old": {May: []string{Approve}, Customers: []string{all}, Vendors: []string{"old"}},
			"admin": {May: []string{Approve, Customers}, Customers: []string{all}},
		}
}

// TestNeverApproved: a configuration whose requests nobody could approve is refused, and the error says whose and why.
func TestNeverApproved(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(c map[string]CallerConfig, r map[string]RoleConfig)
		want   string // "": it is accepted
	}{
		"enough":         {func(map[string]CallerConfig, map[string]RoleConfig) {}, ""},
		"one is missing": {func(c map[string]CallerConfig, _ map[string]RoleConfig) { delete(c, "cy") }, "role careful: new-customer of caller ci with the vendor identity new can never be approved: it needs 2 other people, and only bo may approve it"},
		"an owner": {func(c map[string]CallerConfig, _ map[string]RoleConfig) {
			c["cy"] = CallerConfig{Role: "approver", Person: "ada", UID: []int{1003}}
		}, "only bo may"},
		"a machine": {func(c map[string]CallerConfig, _ map[string]RoleConfig) {
			c["cy"] = CallerConfig{Role: "approver", Owners: []string{"cy"}, UID: []int{1003}}
		}, "only bo may"},
		"one person": {func(c map[string]CallerConfig, _ map[string]RoleConfig) {
			c["cy"] = CallerConfig{Role: "approver", Person: "bo", UID: []int{1003}}
		}, "only bo may"},
		"root": {func(c map[string]CallerConfig, _ map[string]RoleConfig) {
			c["cy"] = CallerConfig{Role: "approver", Person: "cy", UID: []int{0}}
		}, "only bo may"},
		"an old token": {func(c map[string]CallerConfig, _ map[string]RoleConfig) {
			_, entry := NewToken(time.Now().Add(-time.Hour))
			c["cy"] = CallerConfig{Role: "approver", Person: "cy", Tokens: []string{entry}}
		}, "only bo may"},
		"administrators": {func(c map[string]CallerConfig, _ map[string]RoleConfig) {
			c["bo"] = CallerConfig{Role: "admin", Person: "bo", UID: []int{1002}}
			c["cy"] = CallerConfig{Role: "admin", Person: "cy", UID: []int{1003}}
		}, "can never be approved: only administrators may (bo, cy)"},
		"another identity": {func(c map[string]CallerConfig, _ map[string]RoleConfig) {
			c["cy"] = CallerConfig{Role: "old", Person: "cy", UID: []int{1003}}
		}, "with the vendor identity new can never"},
		"customers of an approver": {func(c map[string]CallerConfig, r map[string]RoleConfig) {
			for name, uid := range map[string]int{"bo": 1002, "cy": 1003} {
				c[name] = CallerConfig{Role: "acme", Person: name, UID: []int{uid}}
			}
			careful := r["careful"]
			careful.UnfreezeApprovals = 0
			r["careful"] = careful
		}, ""},
		"the end of a freeze of everything": {func(c map[string]CallerConfig, _ map[string]RoleConfig) {
			for name, uid := range map[string]int{"bo": 1002, "cy": 1003} {
				c[name] = CallerConfig{Role: "acme", Person: name, UID: []int{uid}}
			}
		}, "unfreeze of caller ci can never be approved: it needs another person, and nobody may approve it"},
		"other customers": {func(c map[string]CallerConfig, r map[string]RoleConfig) {
			careful := r["careful"]
			careful.Customers = []string{"acme", "bolt"}
			r["careful"] = careful
			c["cy"] = CallerConfig{Role: "acme", Person: "cy", UID: []int{1003}}
		}, "new-customer of caller ci for the customer bolt with the vendor identity new can never be approved"},
	} {
		callers, roles := approvers()
		tt.change(callers, roles)
		p := testkit.Value(New(callers, roles, Environment{Vendors: []string{"new", "old"}}))(t)
		err := p.CheckApprovals(time.Now())
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestApprovalHeld: an approval counts while its approver has the credential that it was given with.
func TestApprovalHeld(t *testing.T) {
	pin := strings.Repeat("ab", 32)
	callers, roles := approvers()
	delete(roles, "old")
	secret, entry := NewToken(time.Now().Add(time.Hour))
	callers["bo"] = CallerConfig{Role: "approver", Person: "bo", UID: []int{1002}, Tokens: []string{entry}, ClientCert: ClientCertConfig{SPKI: []string{pin}}}
	before := testkit.Value(New(callers, roles, Environment{}))(t)
	token := testkit.Value(before.Token(secret, time.Now()))(t).Name
	counts := func(p *Policy, credential string) bool {
		have, _ := p.Count(record.Asked{Requester: record.Requester{Caller: "ci"}}, "acme", []record.Approval{{Caller: "bo", Person: "bo", Credential: credential}}, 1)
		return have == 1
	}
	for _, name := range []string{token, "uid 1002", "certificate " + pin[:16]} {
		if !counts(before, name) {
			t.Errorf("%s does not count", name)
		}
		removed := maps.Clone(callers)
		one := CallerConfig{Role: "approver", Person: "bo"}
		switch { // the other kind of credential remains
		case strings.HasPrefix(name, "uid"):
			one.Tokens = []string{entry}
		default:
			one.UID = []int{1002}
		}
		removed["bo"] = one
		if counts(testkit.Value(New(removed, roles, Environment{}))(t), name) {
			t.Errorf("%s counts after it was removed", name)
		}
	}
	callers["bo"] = CallerConfig{Role: "approver", Person: "bo", ClientCert: ClientCertConfig{SAN: []string{"email:bo@example.com"}}}
	if !counts(testkit.Value(New(callers, roles, Environment{}))(t), "certificate "+pin[:16]) {
		t.Error("a certificate with a name of the caller does not count")
	}
}

// TestApprovalLimits: numbers and times that nobody means are refused.
func TestApprovalLimits(t *testing.T) {
	number := func(n int) func(r *RoleConfig) { return func(r *RoleConfig) { r.Approvals.NewKey = &n } }
	expiry := func(text string) func(r *RoleConfig) { return func(r *RoleConfig) { r.ApprovalExpiry = text } }
	for name, tt := range map[string]struct {
		change func(r *RoleConfig)
		want   string
	}{
		"-1": {number(-1), "-1 approvals for new-key"}, "0": {number(0), ""}, "16": {number(16), ""}, "17": {number(17), "17 approvals for new-key"},
		"59s": {expiry("59s"), `approval-expiry is "59s"`}, "1m": {expiry("1m"), ""}, "720h": {expiry("720h"), ""}, "721h": {expiry("721h"), "approval-expiry is"}, "soon": {expiry("soon"), "approval-expiry is"},
		"no freeze": {func(r *RoleConfig) { r.May = []string{Sign} }, "unfreeze-approvals, and it may not freeze"},
		"missing":   {func(r *RoleConfig) { r.Approvals.SameKey = nil }, "approvals: same-key is missing"},
	} {
		_, roles := approvers()
		careful := roles["careful"]
		tt.change(&careful)
		_, err := New(nil, map[string]RoleConfig{"careful": careful}, Environment{})
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestAdministratorsAlone: those who could bring it about by themselves do not approve it alone: whoever changes customers, and
// whoever signs new customers without approval.
func TestAdministratorsAlone(t *testing.T) {
	callers, roles := approvers()
	delete(roles, "old")
	signs := roles["careful"]
	signs.May, signs.UnfreezeApprovals = []string{Sign, Approve}, 0
	roles["second"] = signs // needs approvals itself, so it is no administrator
	signs.Approvals = NoApprovals()
	roles["signs"] = signs
	given := []record.Approval{{Caller: "x", Person: "x", Credential: "uid 2000"}}
	for role, enough := range map[string]bool{"approver": true, "second": true, "admin": false, "signs": false} {
		callers["x"] = CallerConfig{Role: role, Person: "x", UID: []int{2000}}
		p := testkit.Value(New(callers, roles, Environment{}))(t)
		if have, is := p.Count(record.Asked{Requester: record.Requester{Caller: "ci"}}, "acme", given, 1); have != 1 || is != enough {
			t.Errorf("%s: %d, %v", role, have, is)
		}
	}
}

// TestApproves: each rule about who decides refuses by itself.
func TestApproves(t *testing.T) {
	callers, roles := approvers()
	callers["old"] = CallerConfig{Role: "old", Person: "old", UID: []int{2001}}
	callers["acme"] = CallerConfig{Role: "acme", Person: "acme", UID: []int{2002}}
	callers["robot"] = CallerConfig{Role: "approver", Owners: []string{"zoe"}, UID: []int{2003}}
	callers["root"] = CallerConfig{Role: "approver", Person: "root", UID: []int{0}}
	p := testkit.Value(New(callers, roles, Environment{Vendors: []string{"new", "old"}}))(t)
	machine := record.Asked{Vendor: "new", Requester: record.Requester{Caller: "ci", Credential: "uid 1001", Owners: []string{"ada"}}}
	was := machine
	was.Owners = []string{"bo"}
	for name, tt := range map[string]struct {
		uid      int
		asked    record.Asked
		customer string
		rule     string // "": it may
	}{
		"an approver": {1002, machine, "bolt", ""}, "no approver": {1001, record.Asked{Vendor: "new", Requester: record.Requester{Caller: "bo"}}, "bolt", RuleVerb},
		"of another identity": {2001, machine, "bolt", RuleVendor}, "of its identity": {2001, record.Asked{Vendor: "old", Requester: machine.Requester}, "bolt", ""},
		"of any identity, an unfreeze": {2001, record.Asked{Event: record.EventUnfreeze, Requester: machine.Requester}, "bolt", ""},
		"of another customer":          {2002, machine, "bolt", RuleCustomer}, "of its customer": {2002, machine, "acme", ""}, "a machine": {2003, machine, "bolt", RulePerson},
		"root": {0, machine, "bolt", RulePerson}, "itself": {1002, record.Asked{Vendor: "new", Requester: record.Requester{Caller: "bo", Person: "someone"}}, "bolt", RulePerson},
		"its credential, of another name then": {1002, record.Asked{Vendor: "new", Requester: record.Requester{Caller: "gone", Credential: "uid 1002"}}, "bolt", RulePerson},
		"a former owner":                       {1002, was, "bolt", RulePerson},
	} {
		credential := testkit.Value(p.UID(tt.uid))(t)
		if err := credential.Approves(tt.asked, tt.customer); fault.Rule(err) != tt.rule || (err == nil) != (tt.rule == "") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
