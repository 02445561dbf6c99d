package server

import (
	"encoding/json"
	"maps"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/internal/testkit"
)

// as calls the API as a Unix user, and decodes the answer.
func (f *apiFixture) as(t testing.TB, uid int, method, path string, body, into any) int {
	t.Helper()
	header, text := map[string]string{uidHeader: strconv.Itoa(uid)}, ""
	switch b := body.(type) {
	case nil:
	case string:
		text, header["Content-Type"] = b, rawType
	default:
		text, header["Content-Type"] = string(testkit.Must(json.Marshal(b))), asJSON
	}
	a := send(t, f.socket, method, path, header, text)
	if into != nil {
		if err := json.Unmarshal(a.body, into); err != nil {
			t.Fatalf("%s %s: %d %s", method, path, a.status, a.body)
		}
	}
	return a.status
}

// ask asks for a request that others must approve, and returns its id.
func (f *apiFixture) ask(t *testing.T, uid int, customer string) string {
	t.Helper()
	var got api.SignResult
	if status := f.as(t, uid, "POST", "/v1/requests?customer="+customer, newCSR(customer), &got); status != 202 || got.Status != api.StatusPending || got.Approval == nil {
		t.Fatalf("%d %+v", status, got)
	}
	return got.RequestID
}

// decide decides about a request as it is shown, and returns status and rule.
func (f *apiFixture) decide(t *testing.T, uid int, how, id string) (int, string) {
	t.Helper()
	var r api.Request
	if status := f.as(t, careful, "GET", "/v1/requests/"+id, nil, &r); status != 200 {
		t.Fatalf("GET of %s: %d", id, status)
	}
	d := api.Decision{Customer: r.Customer, CSRSHA256: r.CSRSHA256, Vendor: r.Approval.Vendor, Reason: "a test"}
	if about := r.Approval.Freeze; about != nil {
		d.Scope, d.Name = about.Scope, about.Name
	}
	var answer struct{ Rule string }
	return f.as(t, uid, "POST", "/v1/requests/"+id+"/"+how, d, &answer), answer.Rule
}

// state returns the state of a request as somebody sees it.
func (f *apiFixture) state(t *testing.T, uid int, id string) api.Request {
	t.Helper()
	var r api.Request
	if status := f.as(t, uid, "GET", "/v1/requests/"+id, nil, &r); status != 200 {
		t.Fatalf("GET of %s: %d", id, status)
	}
	return r
}

// reload puts a changed policy into force.
func (f *apiFixture) reload(t *testing.T, change func(callers map[string]policy.CallerConfig, roles map[string]policy.RoleConfig)) {
	t.Helper()
	f.policy = apiPolicy(t, change)
	testkit.OK(t, f.load(t.Context(), true))
}

// TestApprovalIssues: the last approval issues, the requester gets the file, and the approver only what it must decide about.
func TestApprovalIssues(t *testing.T) {
	f := newAPIFixture(t)
	id := f.ask(t, careful, "acme")
	shown := f.state(t, fay, id)
	if shown.State != "pending" || shown.CSR != newCSR("acme") || shown.Subject == "" || shown.Approval.Event != "new-customer" || shown.Approval.Need != 2 ||
		shown.Approval.Requester.Caller != "careful" || shown.Approval.Requester.Owners[0] != "ada" {
		t.Errorf("an approver is shown %+v, %+v", shown, shown.Approval)
	}
	if status, _ := f.decide(t, fay, "approve", id); status != 202 {
		t.Errorf("the first of two: %d", status)
	}
	if again := f.ask(t, careful, "acme"); again != id || f.key.Calls.Load() != 0 {
		t.Errorf("asked again: %s, not %s; %d signatures", again, id, f.key.Calls.Load())
	}
	if status, _ := f.decide(t, gus, "approve", id); status != 200 {
		t.Errorf("the last one: %d", status)
	}
	if r := f.state(t, careful, id); r.State != "issued" || r.Request == "" || r.Approval.Have != 2 || len(r.Approval.Given) != 2 {
		t.Errorf("the requester gets %+v", r)
	}
	if r := f.state(t, fay, id); r.State != "issued" || r.Request != "" {
		t.Errorf("an approver gets the file: %+v", r)
	}
	if status := f.as(t, careful, "POST", "/v1/requests?customer=acme", newCSR("acme"), nil); status != 200 || f.key.Calls.Load() != 1 {
		t.Errorf("the same request: %d; %d signatures", status, f.key.Calls.Load())
	}
	var list api.List[api.Request]
	if f.as(t, fay, "GET", "/v1/pending", nil, &list); len(list.Items) != 0 {
		t.Errorf("what waits: %+v", list)
	}
}

// TestApprovalByOneself: nobody approves what it asked for, with any credential, nor as an owner of the machine, as a machine, as
// root, or twice as one person.
func TestApprovalByOneself(t *testing.T) {
	f := newAPIFixture(t)
	f.reload(t, func(callers map[string]policy.CallerConfig, roles map[string]policy.RoleConfig) {
		both := roles["careful"]
		both.May, both.UnfreezeApprovals = []string{policy.Sign, policy.Approve}, 0
		roles["both"] = both
		callers["careful"] = policy.CallerConfig{Role: "both", Person: "ian", UID: []int{careful}}
		callers["ian2"] = policy.CallerConfig{Role: "approving", Person: "ian", UID: []int{2001}}
		callers["machine"] = policy.CallerConfig{Role: "both", Owners: []string{"ada", "ian"}, UID: []int{2002}}
	})
	own, machine := f.ask(t, careful, "acme"), f.ask(t, 2002, "bolt")
	for _, refused := range []struct {
		who string
		uid int
		id  string
	}{
		{"the requester", careful, own}, {"another caller of the requester", 2001, own}, {"a machine", robot, own}, {"root", 0, own},
		{"the machine itself", 2002, machine}, {"an owner of the machine", ada, machine}, {"another owner", 2001, machine},
	} {
		for _, how := range []string{"approve", "reject"} {
			if status, rule := f.decide(t, refused.uid, how, refused.id); status != 403 || rule != policy.RulePerson {
				t.Errorf("%s may %s: %d %s", refused.who, how, status, rule)
			}
		}
	}
	if status, _ := f.decide(t, fay, "approve", own); status != 202 {
		t.Errorf("another person: %d", status)
	}
	if status, _ := f.decide(t, fay2, "approve", own); status != 409 {
		t.Errorf("the same person with another credential: %d", status)
	}
	if status := f.as(t, approver, "GET", "/v1/requests/"+machine, nil, nil); status != 404 {
		t.Errorf("an approver of other customers sees it: %d", status)
	}
	// The configuration of today does not make somebody another person than it was when it asked.
	f.reload(t, func(callers map[string]policy.CallerConfig, roles map[string]policy.RoleConfig) {
		callers["machine"] = policy.CallerConfig{Role: "careful", Owners: []string{"zoe"}, UID: []int{2002}}
	})
	if status, rule := f.decide(t, ada, "approve", machine); status != 403 || rule != policy.RulePerson {
		t.Errorf("a former owner: %d %s", status, rule)
	}
}

// TestApprovalEntitled: an approval counts only while its approver may approve, and somebody else than administrators must.
func TestApprovalEntitled(t *testing.T) {
	for name, change := range map[string]func(callers map[string]policy.CallerConfig, roles map[string]policy.RoleConfig){
		"removed": func(callers map[string]policy.CallerConfig, _ map[string]policy.RoleConfig) { delete(callers, "fay") },
		"another role": func(callers map[string]policy.CallerConfig, _ map[string]policy.RoleConfig) {
			callers["fay"] = policy.CallerConfig{Role: "reader", Person: "fay", UID: []int{fay}}
		},
		"another customer": func(callers map[string]policy.CallerConfig, _ map[string]policy.RoleConfig) {
			callers["fay"] = policy.CallerConfig{Role: "approver", Person: "fay", UID: []int{fay}}
		},
		"another person": func(callers map[string]policy.CallerConfig, _ map[string]policy.RoleConfig) {
			callers["fay"] = policy.CallerConfig{Role: "approving", Person: "gus", UID: []int{fay}}
		},
		"another credential": func(callers map[string]policy.CallerConfig, _ map[string]policy.RoleConfig) {
			callers["fay"] = policy.CallerConfig{Role: "approving", Person: "fay", UID: []int{3000}}
		},
		"the requester's": func(callers map[string]policy.CallerConfig, _ map[string]policy.RoleConfig) {
			callers["careful"] = policy.CallerConfig{Role: "careful", Owners: []string{"fay"}, UID: []int{careful}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newAPIFixture(t)
			id := f.ask(t, careful, "bolt")
			f.decide(t, fay, "approve", id)
			f.reload(t, change)
			if status, _ := f.decide(t, gus, "approve", id); status != 202 || f.key.Calls.Load() != 0 {
				t.Errorf("the approval counts: %d", status)
			}
			if r := f.state(t, careful, id); r.Approval.Have != 1 || r.State != "approved" {
				t.Errorf("%+v", r.Approval)
			}
			f.reload(t, nil)
			if r := f.state(t, careful, id); r.State != "issued" {
				t.Errorf("when it counts again: %+v", r)
			}
		})
	}
	f := newAPIFixture(t)
	f.reload(t, func(callers map[string]policy.CallerConfig, roles map[string]policy.RoleConfig) {
		admin := roles["admin"]
		admin.May = append([]string{policy.Approve}, admin.May...)
		roles["admin"] = admin
		callers["ops2"] = policy.CallerConfig{Role: "admin", Person: "kim", UID: []int{2003}}
	})
	id := f.ask(t, careful, "acme")
	for _, uid := range []int{ops, 2003} {
		if status, _ := f.decide(t, uid, "approve", id); status != 202 {
			t.Errorf("administrators alone: %d", status)
		}
	}
	if status, _ := f.decide(t, gus, "approve", id); status != 200 {
		t.Errorf("with another person: %d", status)
	}
}

// TestApprovalElsewhere: a request that is approved on one replica is issued by another one, after the key store was down; the
// requester who is gone gets nothing.
func TestApprovalElsewhere(t *testing.T) {
	f := newAPIFixture(t)
	id := f.ask(t, careful, "acme")
	f.decide(t, fay, "approve", id)
	var down atomic.Bool
	down.Store(true)
	f.key.Fail = func() error {
		if down.Load() {
			return fault.Unavailable.Errorf("the key store is down")
		}
		return nil
	}
	var r api.Request
	d := api.Decision{Customer: "acme", CSRSHA256: f.state(t, gus, id).CSRSHA256}
	if status := f.as(t, gus, "POST", "/v1/requests/"+id+"/approve", d, &r); status != 202 || r.State != "failed" || r.Problem == nil || r.Problem.Status != 503 || strings.Contains(r.Problem.Detail, "down") {
		t.Errorf("with the key store down: %d %+v, %+v", status, r, r.Problem)
	}
	down.Store(false)
	tried := f.key.Calls.Load()
	if r := f.state(t, careful, id); r.State != "failed" || r.Problem != nil || f.key.Calls.Load() != tried {
		t.Errorf("a look just after a failure tries again: %+v", r)
	}
	other := f.replica(t)
	other.cfg.Now = func() time.Time { return time.Now().Add(retryPause + time.Second) }
	if status := other.as(t, reader, "GET", "/v1/requests/"+id, nil, nil); status != 200 || f.key.Calls.Load() != tried {
		t.Errorf("a reader's look tries again: %d", status)
	}
	if r := other.state(t, careful, id); r.State != "issued" || r.Request == "" {
		t.Errorf("the requester's look at another replica: %+v, %+v", r, r.Problem)
	}
	gone := f.ask(t, careful, "bolt")
	f.decide(t, fay, "approve", gone)
	f.reload(t, func(callers map[string]policy.CallerConfig, _ map[string]policy.RoleConfig) {
		maps.DeleteFunc(callers, func(name string, _ policy.CallerConfig) bool { return name == "careful" })
	})
	d = api.Decision{Customer: "bolt", CSRSHA256: api.SHA256(testkit.CSR(testkit.Key("bolt")).Raw)}
	if status := f.as(t, gus, "POST", "/v1/requests/"+gone+"/approve", d, &r); status != 202 || r.Problem == nil || r.Problem.Status != 403 || f.key.Calls.Load() != tried+1 {
		t.Errorf("a requester who is gone: %d %+v, %+v", status, r, r.Problem)
	}
}

// TestUnfreezeApproval: the end of a freeze waits for another person.
func TestUnfreezeApproval(t *testing.T) {
	f := newAPIFixture(t)
	order := api.FreezeOrder{Scope: "all", Reason: "a test"}
	if status := f.as(t, careful, "POST", "/v1/freeze", order, nil); status != 200 {
		t.Fatalf("freeze: %d", status)
	}
	var asked api.Request
	if status := f.as(t, careful, "POST", "/v1/unfreeze", order, &asked); status != 202 || asked.Approval.Freeze.Scope != "all" {
		t.Fatalf("unfreeze: %d %+v", status, asked)
	}
	if status := f.as(t, careful, "POST", "/v1/requests?customer=acme", newCSR("acme"), nil); status != 403 {
		t.Errorf("while it waits: %d", status)
	}
	if status, _ := f.decide(t, fay, "approve", asked.ID); status != 200 {
		t.Errorf("approved: %d", status)
	}
	if f.ask(t, careful, "acme") == "" {
		t.Error("it is still frozen")
	}
	if r := f.state(t, careful, asked.ID); r.State != "unfrozen" {
		t.Errorf("%+v", r)
	}
}

// TestUnfreezeIsNotIssued: a look at the end of a freeze that one of two has approved tries nothing, and who neither reads nor
// approves does not see it.
func TestUnfreezeIsNotIssued(t *testing.T) {
	f := newAPIFixture(t)
	f.reload(t, func(callers map[string]policy.CallerConfig, roles map[string]policy.RoleConfig) {
		two := roles["careful"]
		two.UnfreezeApprovals = 2
		roles["careful"] = two
		roles["freezing"] = policy.RoleConfig{May: []string{policy.Freeze}, Customers: []string{"*"}}
		callers["cold"] = policy.CallerConfig{Role: "freezing", Person: "cold", UID: []int{2004}}
	})
	order := api.FreezeOrder{Scope: "all", Reason: "a test"}
	f.as(t, careful, "POST", "/v1/freeze", order, nil)
	var asked api.Request
	if status := f.as(t, careful, "POST", "/v1/unfreeze", order, &asked); status != 202 {
		t.Fatalf("unfreeze: %d", status)
	}
	if status, _ := f.decide(t, fay, "approve", asked.ID); status != 202 {
		t.Errorf("the first of two: %d", status)
	}
	if r := f.state(t, careful, asked.ID); r.State != "approved" || r.Problem != nil {
		t.Errorf("%+v, %+v", r, r.Problem)
	}
	if status := f.as(t, 2004, "GET", "/v1/requests/"+asked.ID, nil, nil); status != 404 {
		t.Errorf("who may freeze only sees it: %d", status)
	}
}
