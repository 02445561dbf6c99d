package agent

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"hsmsign/agent/policy"
	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/ledger/record"
)

// recorder records in memory, and fails where it is told to.
type recorder struct {
	uses      []record.Use
	outcomes  []record.Outcome
	refused   []string
	stored    []byte
	authorize error
	conclude  error
	release   error
}

func (r *recorder) Release(context.Context, record.Permit) error { return r.release }

func (r *recorder) Authorize(_ context.Context, u record.Use) (record.Permit, error) {
	r.uses = append(r.uses, u)
	return record.Permit{Request: "7", Stored: r.stored}, r.authorize
}

func (r *recorder) Refuse(_ context.Context, u record.Use, rule string) error {
	r.uses, r.refused = append(r.uses, u), append(r.refused, rule)
	return r.authorize
}

func (r *recorder) Conclude(_ context.Context, _ *record.Permit, o record.Outcome) error {
	r.outcomes = append(r.outcomes, o)
	return r.conclude
}

// Nothing is signed or released without both records, and the recorder is not trusted.
func TestRecorder(t *testing.T) {
	down := fault.Unavailable.New("the ledger is down")
	for _, tt := range []struct {
		name   string
		r      recorder
		sign   error
		opens  int64 // of the key
		want   error
		issued bool
	}{
		{"recorded", recorder{}, nil, 1, nil, true},
		{"not authorized", recorder{authorize: down}, nil, 0, down, false},
		{"not concluded", recorder{conclude: down}, nil, 1, down, false},
		{"not released", recorder{release: down}, nil, 1, down, false},
		{"stored, not released", recorder{stored: testkit.File(t, "golden/customer.req"), release: down}, nil, 0, down, false},
		{"the key fails", recorder{}, errors.New("no key"), 1, nil, false},
		{"stored", recorder{stored: testkit.File(t, "golden/customer.req")}, nil, 0, nil, true},
		{"stored, damaged", recorder{stored: []byte("x")}, nil, 0, nil, false},
	} {
		key := golden(t)
		if tt.sign != nil {
			key.fail = func() error { return tt.sign }
		}
		v := newVendor(t, Config{Key: key, Recorder: &tt.r})
		order := customer(t)
		order.Customer = "acme"
		issued, err := v.Issue(t.Context(), prepare(t, v, order))
		if (err == nil) != tt.issued || tt.want != nil && !errors.Is(err, tt.want) || tt.sign != nil && !errors.Is(err, tt.sign) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if tt.issued && (string(issued.Request) != string(testkit.File(t, "golden/customer.req")) || issued.RequestID != "7" || issued.Stored != (tt.r.stored != nil)) {
			t.Errorf("%s: %+v", tt.name, issued)
		}
		if !tt.issued && issued != nil {
			t.Errorf("%s: a request was released", tt.name)
		}
		if n := key.opens.Load(); n != tt.opens {
			t.Errorf("%s: the key was opened %d times", tt.name, n)
		}
		u := tt.r.uses[0]
		if len(tt.r.uses) != 1 || u.Customer != "acme" || u.Actor != "tester" || u.Digest != "SHA-256" || len(u.CSR) == 0 || len(u.SPKI) == 0 || len(u.Vendor) == 0 || len(u.Chain) <= len(u.Vendor) {
			t.Errorf("%s: uses %+v", tt.name, tt.r.uses)
		}
		if tt.opens == 1 && (len(tt.r.outcomes) != 1 || (tt.r.outcomes[0].Err != nil) != (tt.sign != nil) || (tt.r.outcomes[0].File != nil) != (tt.sign == nil)) {
			t.Errorf("%s: outcomes %+v", tt.name, tt.r.outcomes)
		}
	}
}

// A caller that leaves while the key signs leaves a record of the outcome.
func TestRecorderAfterInterruption(t *testing.T) {
	r := &recorder{}
	key := golden(t)
	ctx, cancel := context.WithCancel(t.Context())
	key.fail = func() error {
		cancel()
		return ctx.Err()
	}
	v := newVendor(t, Config{Key: key, Recorder: r})
	if _, err := v.Issue(ctx, prepare(t, v, customer(t))); !errors.Is(err, context.Canceled) || len(r.outcomes) != 1 || r.outcomes[0].Err == nil {
		t.Errorf("%v, outcomes %+v", err, r.outcomes)
	}
}

// A caller gets what its role allows; a refusal is recorded, and the key is not used.
func TestPolicy(t *testing.T) {
	roles := map[string]policy.RoleConfig{"signer": {May: []string{policy.Sign}, Customers: []string{"acme"}, MustExist: true, PerSecond: 1, PerDay: 7, Approvals: policy.NoApprovals()}}
	found := testkit.Value(policy.New(map[string]policy.CallerConfig{"ada": {Role: "signer", Person: "ada", UID: []int{7}}}, roles, policy.Environment{}))(t)
	r, key := &recorder{}, golden(t)
	v := newVendor(t, Config{Key: key, Recorder: r})
	issue := func(ctx context.Context, customerName string) error {
		order := customer(t)
		order.Customer = customerName
		caller := Caller{Name: "ada", Channel: "local", Rules: testkit.Value(found.UID(7))(t).Caller}
		_, err := v.Issue(ctx, testkit.Value(v.Prepare(ctx, caller, order))(t))
		return err
	}
	if err := issue(t.Context(), "bolt"); fault.KindOf(err) != fault.Forbidden || key.opens.Load() != 0 || len(r.refused) != 1 || r.refused[0] != policy.RuleCustomer {
		t.Errorf("another customer: %v, refused %v", err, r.refused)
	}
	r.authorize = errors.New("the ledger is down")
	if err := issue(t.Context(), "bolt"); !errors.Is(err, r.authorize) || !strings.Contains(err.Error(), policy.RuleCustomer) {
		t.Errorf("a refusal that is not recorded: %v", err)
	}
	r.authorize = nil
	if err := issue(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	if u := r.uses[len(r.uses)-1]; u.Policy != found.Hash() || !u.MustExist || u.PerDay != 7 || u.Actor != "ada" {
		t.Errorf("%+v", u)
	}
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := issue(short, "acme"); fault.KindOf(err) != fault.Limited {
		t.Errorf("two in a second: %v", err)
	}
	// Without a recorder it is the same.
	bare := newVendor(t, Config{Key: key})
	order := customer(t)
	order.Customer = "bolt"
	prepared := testkit.Value(bare.Prepare(t.Context(), Caller{Rules: testkit.Value(found.UID(7))(t).Caller}, order))(t)
	if _, err := bare.Issue(t.Context(), prepared); fault.KindOf(err) != fault.Forbidden {
		t.Errorf("without a recorder: %v", err)
	}
}
