package agent_test

import (
	"context"
	"crypto/x509"
	"errors"
	"sync"
	"testing"
	"time"

	"hsmsign/agent"
	"hsmsign/agent/policy"
	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/ledger/record"
	"hsmsign/lifecycle/profile"
	"hsmsign/signer"
	"hsmsign/testpki"
)

// profileStore opens a key in memory, and counts.
type profileStore struct {
	mu     sync.Mutex
	opened int
	key    func() *testkit.Signer
}

func (s *profileStore) Open(context.Context, signer.OpenOptions) (signer.Signer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened++
	return s.key(), nil
}

// profileBook records what it is told, in order, and can fail.
type profileBook struct {
	events               []string
	authorized, released error
	outcome              record.Outcome
}

func (b *profileBook) AuthorizeProfile(_ context.Context, u record.ProfileUse) (record.Permit, error) {
	b.events = append(b.events, "authorize "+u.Profile.Identifier+" "+u.Identity)
	return record.Permit{Request: "id"}, b.authorized
}

func (b *profileBook) ConcludeProfile(ctx context.Context, _ record.Permit, o record.Outcome) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	b.events, b.outcome = append(b.events, "conclude"), o
	return b.released
}

func (b *profileBook) RefuseProfile(_ context.Context, _ record.ProfileUse, rule string) error {
	b.events = append(b.events, "refuse "+rule)
	return nil
}

// profileSigner returns a signer with a book and a store; change may change its configuration before.
func profileSigner(t *testing.T, change func(cfg *agent.ProfileConfig)) (*agent.ProfileSigner, *profileBook, *profileStore) {
	t.Helper()
	now := time.Now().Truncate(24 * time.Hour)
	authority := testkit.Authority(now)
	leaf := testkit.Value(authority.IssueProfileSigner(testkit.CSR(testkit.Key("profile")), testpki.LeafOptions{NotBefore: now}))(t)
	book, store := &profileBook{}, &profileStore{key: func() *testkit.Signer { return testkit.NewSigner(testkit.Key("profile")) }}
	cfg := agent.ProfileConfig{Name: "main", Key: store, Recorder: book, Certificates: func(context.Context) ([]*x509.Certificate, error) {
		return []*x509.Certificate{leaf, authority.Root}, nil
	}}
	if change != nil {
		change(&cfg)
	}
	s := testkit.Value(agent.NewProfileSigner(t.Context(), cfg))(t)
	t.Cleanup(s.Close)
	return s, book, store
}

func wifi(t *testing.T) agent.ProfileOrder {
	t.Helper()
	return agent.ProfileOrder{Profile: testkit.File(t, "golden/wifi.mobileconfig")}
}

// A signature is authorized before it is made, and concluded before it is released.
func TestProfileSigner(t *testing.T) {
	s, book, store := profileSigner(t, nil)
	signed := testkit.Value(s.Sign(t.Context(), agent.Caller{}, wifi(t)))(t)
	if report := profile.Verify(signed.File, profile.VerifyOptions{Now: time.Now()}); !report.OK() || signed.RequestID != "id" || string(book.outcome.File) != string(signed.File) {
		t.Errorf("%+v, request %q", report.Findings, signed.RequestID)
	}
	testkit.Value(s.Sign(t.Context(), agent.Caller{}, wifi(t)))(t)
	if want := []string{"authorize com.example.wifi profiles/main", "conclude"}; len(book.events) != 4 || book.events[0] != want[0] || book.events[1] != want[1] || store.opened != 1 {
		t.Errorf("%q, opened %d times", book.events, store.opened)
	}
}

// Without a record nothing is signed or released.
func TestProfileSignerFailsClosed(t *testing.T) {
	down := errors.New("the ledger is down")
	s, book, store := profileSigner(t, nil)
	book.authorized = down
	if signed, err := s.Sign(t.Context(), agent.Caller{}, wifi(t)); !errors.Is(err, down) || signed != nil || store.opened != 0 {
		t.Errorf("not authorized: %v, %v, opened %d times", signed, err, store.opened)
	}
	book.authorized, book.released = nil, down
	if signed, err := s.Sign(t.Context(), agent.Caller{}, wifi(t)); !errors.Is(err, down) || signed != nil {
		t.Errorf("not concluded: %v, %v", signed, err)
	}
	if signed, err := s.Sign(t.Context(), agent.Caller{}, agent.ProfileOrder{Profile: []byte("text")}); testkit.FindingID(err) != "profile.form" || signed != nil {
		t.Errorf("no profile: %v", err)
	}
}

// A failure is recorded, also when the caller is gone, and a key that is lost is opened again.
func TestProfileSignerFailures(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var fail func() error
	s, book, store := profileSigner(t, nil)
	store.key = func() *testkit.Signer {
		key := testkit.NewSigner(testkit.Key("profile"))
		key.Fail = fail
		return key
	}
	fail = func() error { cancel(); return signer.ErrClosed }
	if _, err := s.Sign(ctx, agent.Caller{}, wifi(t)); !errors.Is(err, signer.ErrClosed) || !errors.Is(book.outcome.Err, signer.ErrClosed) || book.outcome.File != nil {
		t.Errorf("a lost key: %v, recorded %v", err, book.outcome.Err)
	}
	fail = nil
	testkit.Value(s.Sign(t.Context(), agent.Caller{}, wifi(t)))(t)
	if store.opened != 2 {
		t.Errorf("opened %d times, want 2", store.opened)
	}
	store.key = func() *testkit.Signer { return testkit.NewSigner(testkit.Key("other")) }
	other, _, _ := profileSigner(t, func(cfg *agent.ProfileConfig) { cfg.Key = store })
	if _, err := other.Sign(t.Context(), agent.Caller{}, wifi(t)); fault.KindOf(err) != fault.Vendor {
		t.Errorf("another key: %v", err)
	}
	s.Close()
	if _, err := s.Sign(t.Context(), agent.Caller{}, wifi(t)); !errors.Is(err, signer.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// The role decides, and its refusal is recorded.
func TestProfileSignerRole(t *testing.T) {
	role := policy.RoleConfig{May: []string{policy.Profiles}, Customers: []string{"acme"}, PerSecond: 1000, PerDay: 7}
	signing := policy.RoleConfig{May: []string{policy.Sign}, Customers: []string{"*"}, PerSecond: 1000, PerDay: 7, Approvals: policy.NoApprovals()}
	p := testkit.Value(policy.New(map[string]policy.CallerConfig{"mdm": {Role: "mdm", Person: "ada", UID: []int{1}}, "backend": {Role: "signer", Owners: []string{"ada"}, UID: []int{2}}},
		map[string]policy.RoleConfig{"mdm": role, "signer": signing}, policy.Environment{Vendors: []string{""}}))(t)
	s, book, store := profileSigner(t, nil)
	for _, tt := range []struct{ caller, customer, rule string }{{"mdm", "acme", ""}, {"mdm", "", "policy.customers"}, {"mdm", "bolt", "policy.customers"}, {"backend", "acme", "policy.may"}} {
		before := store.opened
		caller := agent.Caller{Name: tt.caller, Rules: testkit.Value(p.Caller(tt.caller))(t)}
		order := wifi(t)
		order.Customer = tt.customer
		_, err := s.Sign(t.Context(), caller, order)
		if fault.Rule(err) != tt.rule || tt.rule != "" && (book.events[len(book.events)-1] != "refuse "+tt.rule || store.opened != before) {
			t.Errorf("%s for %q: %v, %q", tt.caller, tt.customer, err, book.events)
		}
	}
}

// A key of a vendor certificate is refused, whatever the certificate for profiles says.
func TestProfileSignerVendorKey(t *testing.T) {
	now := time.Now().Truncate(24 * time.Hour)
	vendor := testkit.Value(testkit.Authority(now).IssueVendor(testkit.CSR(testkit.Key("profile")), testpki.VendorOptions{}))(t)
	_, err := agent.NewProfileSigner(t.Context(), agent.ProfileConfig{Vendors: []*x509.Certificate{vendor}, Certificates: func(context.Context) ([]*x509.Certificate, error) {
		leaf := testkit.Value(testkit.Authority(now).IssueProfileSigner(testkit.CSR(testkit.Key("profile")), testpki.LeafOptions{}))(t)
		return []*x509.Certificate{leaf, testkit.Authority(now).Root}, nil
	}})
	if fault.KindOf(err) != fault.Usage {
		t.Errorf("%v", err)
	}
}
