package server

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hsmsign/agent"
	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/ledger"
	"hsmsign/ledger/open"
	"hsmsign/server/authn"
	"hsmsign/signer"
	"hsmsign/testpki"
)

// The Unix users of the callers of an apiFixture.
const (
	stranger = 1000 // no caller
	backend  = 1001 // signs for all customers
	ops      = 1002 // may everything, for all customers
	acmeOps  = 1003 // may everything, for the customer acme
	reader   = 1004 // reads what is about acme
	approver = 1005 // has none of the verbs of the API
	tight    = 1006 // signs once a second
	daily    = 1007 // signs once a day
	careful  = 1008 // signs and unfreezes what others approve; a machine of ada
	fay      = 1009 // approves for all customers
	gus      = 1010 // likewise
	ada      = 1011 // likewise; the owner of machines
	robot    = 1012 // likewise, but a machine
	fay2     = 1013 // another caller of fay
)

// apiFixture is a server with a real vendor and a real ledger. Requests reach its handler over a socket; the Unix user that the
// server is told is that of the request.
type apiFixture struct {
	*Server
	ledger *ledger.Ledger
	store  *ledger.Store
	config ledger.Config
	key    *testkit.Signer
	policy *policy.Policy   // that the next load has
	socket *httptest.Server // of the Unix channel
	http   *httptest.Server // of the loopback channel
}

// uidHeader has the Unix user of a test's request.
const uidHeader = "Test-Uid"

// newAPIFixture starts a server. This is the one place that knows how server, policy and callers are made.
func newAPIFixture(t testing.TB) *apiFixture {
	t.Helper()
	ctx := t.Context()
	store := testkit.Value(open.Store(ctx, "sqlite:"+filepath.Join(t.TempDir(), "ledger.db"), true))(t)
	t.Cleanup(func() { _ = store.DB.Close() })
	signerKey, verifierKey, err := ledger.GenerateKey("example.com/mdm")
	testkit.OK(t, err)
	cfg := ledger.Config{Store: store, Key: signerKey, Verifier: verifierKey}
	testkit.Value(ledger.Init(ctx, cfg))(t)
	return startAPI(t, cfg, testkit.NewSigner(testkit.GoldenKey(t)), apiPolicy(t, nil))
}

// replica starts another server with the same ledger and key.
func (f *apiFixture) replica(t *testing.T) *apiFixture {
	t.Helper()
	cfg := f.config
	cfg.Store = testkit.Value(open.Store(t.Context(), f.store.Name, false))(t)
	t.Cleanup(func() { _ = cfg.Store.DB.Close() })
	return startAPI(t, cfg, f.key, f.policy)
}

// startAPI starts a server with a ledger, the golden vendor's key and a policy.
func startAPI(t testing.TB, cfg ledger.Config, key *testkit.Signer, p *policy.Policy) *apiFixture {
	t.Helper()
	ctx := t.Context()
	l := testkit.Value(ledger.Open(ctx, cfg))(t)
	t.Cleanup(func() { _ = l.Close() })
	certs := testkit.Value(chain.Parse(testkit.File(t, "golden/chain.pem")))(t)
	roots := testkit.Value(chain.Parse(testkit.File(t, "golden/root.pem")))(t)
	f := &apiFixture{ledger: l, store: cfg.Store, config: cfg, key: key, policy: p}
	vendor := testkit.Value(agent.NewVendor(ctx, agent.Config{Key: goldenStore{f.key}, Recorder: l,
		Certificates: func(context.Context) (agent.Certificates, error) {
			return agent.Certificates{Name: "chain.pem", Vendor: certs, TrustRoots: roots}, nil
		}}))(t)
	t.Cleanup(vendor.Close)
	authority := testkit.Authority(time.Now().Truncate(24 * time.Hour))
	certificate := testkit.Value(authority.IssueProfileSigner(testkit.CSR(testkit.Key("profile")), testpki.LeafOptions{}))(t)
	profiles := testkit.Value(agent.NewProfileSigner(ctx, agent.ProfileConfig{
		Name: "main", Key: goldenStore{testkit.NewSigner(testkit.Key("profile"))}, Recorder: l, Vendors: certs[:1],
		Certificates: func(context.Context) ([]*x509.Certificate, error) {
			return []*x509.Certificate{certificate, authority.Root}, nil
		},
	}))(t)
	t.Cleanup(profiles.Close)
	s := testkit.Value(New(Config{
		Ledger: l, Listen: []Address{{Kind: authn.Unix, Path: "/run/test.sock"}}, Replica: "replica", Log: slog.New(slog.DiscardHandler),
		Load: func(context.Context, bool) (*State, error) {
			return &State{Console: &Console{URL: "https://sign.example.com:8443"}, Policy: f.policy, Vendors: map[string]*agent.Vendor{"": vendor}, Roots: roots,
				Profiles: map[string]*agent.ProfileSigner{"main": profiles}, Profile: "main"}, nil
		},
		Due: func(context.Context, time.Time) ([]Due, error) {
			at := time.Now().Add(time.Hour)
			return []Due{{LedgerDue: api.LedgerDue{What: "push certificate", Customer: "acme", Certificate: "CN=APSP:1", At: api.Time(at)}, Deadline: at},
				{LedgerDue: api.LedgerDue{What: "watched certificate", Source: "mdm.example.com:443", At: api.Time(at), Error: api.NewError(fault.Unavailable.New("it does not answer"))}, Open: true}}, nil
		},
	}))(t)
	f.Server = s
	testkit.OK(t, s.load(ctx, true)) // it does not listen
	f.socket = httptest.NewServer(asUnixUser(s.handler(authn.Unix)))
	f.http = httptest.NewServer(s.handler(authn.HTTP))
	t.Cleanup(f.socket.Close)
	t.Cleanup(f.http.Close)
	return f
}

// apiPolicy returns the policy of the fixture; change may change it before.
func apiPolicy(t testing.TB, change func(callers map[string]policy.CallerConfig, roles map[string]policy.RoleConfig)) *policy.Policy {
	t.Helper()
	role := func(perSecond, perDay int, customers string, may ...string) policy.RoleConfig {
		return policy.RoleConfig{May: may, Customers: []string{customers}, PerSecond: perSecond, PerDay: perDay, Approvals: policy.NoApprovals()}
	}
	everything := []string{policy.Sign, policy.Read, policy.Customers, policy.Freeze, policy.Profiles}
	roles := map[string]policy.RoleConfig{
		"signer": role(1000, 1000, "*", policy.Sign), "admin": role(1000, 1000, "*", everything...), "acme-admin": role(1000, 1000, "acme", everything...),
		"reader": role(0, 0, "acme", policy.Read), "approver": role(0, 0, "acme", policy.Approve), "tight": role(1, 1000, "*", policy.Sign),
		"daily": role(1000, 1, "*", policy.Sign), "careful": role(1000, 1000, "*", policy.Sign, policy.Freeze), "approving": role(0, 0, "*", policy.Approve),
	}
	need, people := roles["careful"], [3]int{2, 1, 0}
	need.Approvals, need.UnfreezeApprovals = policy.ApprovalsConfig{NewCustomer: &people[0], NewKey: &people[1], SameKey: &people[2]}, 1
	roles["careful"] = need
	callers := map[string]policy.CallerConfig{
		"backend": {Role: "signer", Owners: []string{"ada"}, UID: []int{backend}}, "ops": {Role: "admin", Person: "bo", UID: []int{ops}},
		"acme-ops": {Role: "acme-admin", Person: "cy", Customer: "acme", UID: []int{acmeOps}}, "auditor": {Role: "reader", Person: "di", UID: []int{reader}},
		"eve": {Role: "approver", Person: "eve", UID: []int{approver}}, "tight": {Role: "tight", Owners: []string{"ada"}, UID: []int{tight}},
		"daily": {Role: "daily", Owners: []string{"ada"}, UID: []int{daily}}, "careful": {Role: "careful", Owners: []string{"ada"}, UID: []int{careful}},
		"fay": {Role: "approving", Person: "fay", UID: []int{fay}}, "gus": {Role: "approving", Person: "gus", UID: []int{gus}}, "ada": {Role: "approving", Person: "ada", UID: []int{ada}},
		"robot": {Role: "approving", Owners: []string{"gus"}, UID: []int{robot}}, "fay2": {Role: "approving", Person: "fay", UID: []int{fay2}},
		"root": {Role: "approving", Person: "hal", UID: []int{0}},
	}
	if change != nil {
		change(callers, roles)
	}
	return testkit.Value(policy.New(callers, roles, policy.Environment{Vendors: []string{""}}))(t)
}

// goldenStore is a key store with the golden vendor key.
type goldenStore struct{ key *testkit.Signer }

func (s goldenStore) Open(context.Context, signer.OpenOptions) (signer.Signer, error) {
	return s.key, nil
}

// asUnixUser gives a request the connection of the Unix user in its header.
func asUnixUser(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		uid := 0
		for _, digit := range r.Header.Get(uidHeader) {
			uid = uid*10 + int(digit-'0')
		}
		conn := &connection{Connection: authn.Connection{Kind: authn.Unix, UID: uid}}
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), connectionKey{}, conn)))
	})
}

// newCSR returns the CSR of a customer's key as PEM.
func newCSR(key string) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: testkit.CSR(testkit.Key(key)).Raw}))
}

// newPush returns a push certificate for a customer's key as PEM.
func newPush(t *testing.T, key string) string {
	t.Helper()
	cert := testkit.Value(testkit.Authority(time.Now().Truncate(24*time.Hour)).IssuePush(testkit.CSR(testkit.Key(key)), testpki.PushOptions{}))(t)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
}

// answered is what the server answered.
type answered struct {
	request *http.Request // as it was sent, with its body
	sent    []byte
	status  int
	header  http.Header
	body    []byte
}

// send sends a request to one of the sockets.
func send(t testing.TB, at *httptest.Server, method, path string, header map[string]string, body string) answered {
	t.Helper()
	r := testkit.Value(http.NewRequestWithContext(t.Context(), method, at.URL+path, strings.NewReader(body)))(t)
	for name, value := range header {
		r.Header.Set(name, value)
	}
	answer := testkit.Value(at.Client().Do(r))(t)
	defer func() { _ = answer.Body.Close() }()
	data := testkit.Value(io.ReadAll(answer.Body))(t)
	r.Body = io.NopCloser(bytes.NewReader([]byte(body)))
	return answered{r, []byte(body), answer.StatusCode, answer.Header, data}
}

// sendTo is send with another Host, which the client of a test server does not send.
func sendTo(t *testing.T, at *httptest.Server, method, path, host string) answered {
	t.Helper()
	r := testkit.Value(http.NewRequestWithContext(t.Context(), method, at.URL+path, http.NoBody))(t)
	r.Host = host
	answer := testkit.Value(at.Client().Do(r))(t)
	defer func() { _ = answer.Body.Close() }()
	return answered{r, nil, answer.StatusCode, answer.Header, testkit.Value(io.ReadAll(answer.Body))(t)}
}
