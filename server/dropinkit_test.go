package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmsign/agent"
	"hsmsign/agent/policy"
	"hsmsign/chain"
	"hsmsign/internal/testkit"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/lifecycle/mdmcert"
	"hsmsign/server/authn/awsiam"
	"hsmsign/server/authn/awsiam/awsiamtest"
	"hsmsign/server/notify"
	"hsmsign/signer"
)

// The AWS role of the caller "acme", and that of "far", which is accepted from another network only.
const (
	zentralRole, zentralID = "arn:aws:iam::111122223333:role/zentral", "AROAEXAMPLEZENTRAL01"
	farRole, farID         = "arn:aws:iam::111122223333:role/far", "AROAEXAMPLEFAR000001"
)

// syncedLog is a log. A request is logged after it was answered.
type syncedLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *syncedLog) Write(data []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(data)
}

func (l *syncedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// await waits until something is logged.
func (l *syncedLog) await(t *testing.T, text string) {
	t.Helper()
	testkit.Until(t, "the log has "+text, func() bool { return strings.Contains(l.String(), text) })
}

// dropInFixture is an apiFixture that answers every wire form. A double of STS knows the role of acme. Its callers with tokens are "acme", whose customer is its own name, "bolt" for
// the customer "bolt-inc", "far" from another network, "slow" once a second, and "reader".
type dropInFixture struct {
	*apiFixture
	tokens map[string]string
	log    syncedLog
	sts    *awsiamtest.Server
	role   awsiamtest.Credentials // of acme
}

func newDropIns(t *testing.T) *dropInFixture {
	t.Helper()
	f := &dropInFixture{apiFixture: newAPIFixture(t), tokens: map[string]string{}, role: awsiamtest.Role("111122223333", "zentral", zentralID, "i-0123456789abcdef0")}
	f.sts = awsiamtest.Start(f.role)
	t.Cleanup(f.sts.Close)
	entry := func(name string) []string {
		secret, entry := policy.NewToken(time.Now().Add(time.Hour))
		f.tokens[name] = secret
		return []string{entry}
	}
	role := func(customer string, perSecond int) policy.RoleConfig {
		return policy.RoleConfig{May: []string{policy.Sign}, Customers: []string{customer}, PerSecond: perSecond, PerDay: 1000, Approvals: policy.NoApprovals()}
	}
	one, none := 1, 0
	asks := role("acme", 1000)
	asks.Approvals = policy.ApprovalsConfig{NewCustomer: &one, NewKey: &one, SameKey: &none}
	next := *f.Server.state.Load()
	next.Policy = testkit.Value(policy.New(map[string]policy.CallerConfig{
		"acme":    {Role: "acme", Owners: []string{"ada"}, Tokens: entry("acme"), AWS: policy.AWSConfig{ARN: zentralRole, UniqueID: zentralID}},
		"bolt":    {Role: "any", Owners: []string{"ada"}, Customer: "bolt-inc", Tokens: entry("bolt")},
		"far":     {Role: "any", Owners: []string{"ada"}, Tokens: entry("far"), From: []string{"203.0.113.0/24"}, AWS: policy.AWSConfig{ARN: farRole, UniqueID: farID}},
		"slow":    {Role: "slow", Owners: []string{"ada"}, Tokens: entry("slow")},
		"lost":    {Role: "acme", Owners: []string{"ada"}, Tokens: entry("lost")},                    // its role does not have its customer
		"waits":   {Role: "asks", Owners: []string{"ada"}, Customer: "acme", Tokens: entry("waits")}, // until fay approves
		"fay":     {Role: "approving", Person: "fay", Tokens: entry("fay")},
		"auditor": {Role: "reader", Person: "di", Tokens: entry("auditor"), UID: []int{reader}},
	}, map[string]policy.RoleConfig{
		"acme": role("acme", 1000), "any": role("*", 1000), "slow": role("*", 1), "reader": {May: []string{policy.Read}, Customers: []string{"*"}},
		"asks": asks, "approving": {May: []string{policy.Approve, policy.Read}, Customers: []string{"*"}},
	}, policy.Environment{Vendors: []string{""}}))(t)
	next.DropIn, next.Channels = DropIn{Fleet: true, Zentral: true, MDMCert: true}, notify.Channels{Spool: t.TempDir()}
	next.AWS = f.verifierAt(t, f.sts.URL)
	f.cfg.Log = slog.New(slog.NewJSONHandler(&f.log, nil))
	testkit.OK(t, f.check(&next))
	f.Server.state.Store(&next)
	testkit.OK(t, f.ledger.AddCustomer(t.Context(), "test", "local", ledger.Customer{Name: "acme", Contact: "mdm@acme.example"}))
	return f
}

// verifierAt returns what asks the double of STS, and remembers signatures in the ledger.
func (f *apiFixture) verifierAt(t *testing.T, endpoint string) *awsiam.Verifier {
	t.Helper()
	return testkit.Value(awsiam.New(awsiam.Config{Endpoint: endpoint, Once: func(ctx context.Context, hash [sha256.Size]byte, until time.Time) (bool, error) {
		return f.ledger.Once(ctx, hash, until)
	}}))(t)
}

// taken takes the messages for mdmcert.download's clients from the outbox, the oldest first.
func (f *dropInFixture) taken(t *testing.T) (all []ledger.Message) {
	t.Helper()
	for {
		m := testkit.Value(f.ledger.Take(t.Context(), time.Hour, ledger.MessageMDMCert))(t)
		if m == nil {
			return all
		}
		all = append(all, *m)
	}
}

// recorded returns the bytes that a client sent, with a token, and the address of the server.
func (f *dropInFixture) recorded(t *testing.T, name, caller string) string {
	t.Helper()
	text := string(testkit.Value(os.ReadFile(filepath.Join("testdata", "dropin", name+".http")))(t))
	token := f.tokens[caller]
	return strings.NewReplacer("HOST", f.http.Listener.Addr().String(), "BASIC", base64.StdEncoding.EncodeToString([]byte(caller+":"+token)),
		strings.Repeat("T", len(token)), token).Replace(text)
}

// post sends a body with a token to a path.
func (f *dropInFixture) post(t *testing.T, caller, path, body string) answered {
	t.Helper()
	header := map[string]string{}
	if caller != "" {
		header["Authorization"] = "Bearer " + f.tokens[caller]
	}
	return send(t, f.http, http.MethodPost, path, header, body)
}

func b64(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

func fleetBody(csr string) string { return `{"unsignedCsrData":"` + b64(csr) + `"}` }

// order returns the body of an order for mdmcert.download.
func (f *dropInFixture) order(t *testing.T, caller, csr, email string) string {
	t.Helper()
	recipient := testkit.Value(mdmcert.NewRecipient(t.Context(), testkit.NewSigner(testkit.Key("recipient")), time.Now()))(t)
	return string(testkit.Value(json.Marshal(map[string]string{"csr": b64(csr), "email": email, "key": f.tokens[caller], "encrypt": b64(string(recipient))}))(t))
}

// setVendor replaces the vendor of a fixture by the golden one with another key or ledger.
func (f *dropInFixture) setVendor(t *testing.T, key interface {
	Open(ctx context.Context, opts signer.OpenOptions) (signer.Signer, error)
}, recorder record.Recorder) {
	t.Helper()
	certs := testkit.Value(chain.Parse(testkit.File(t, "golden/chain.pem")))(t)
	roots := testkit.Value(chain.Parse(testkit.File(t, "golden/root.pem")))(t)
	vendor := testkit.Value(agent.NewVendor(t.Context(), agent.Config{Key: key, Recorder: recorder,
		Certificates: func(context.Context) (agent.Certificates, error) {
			return agent.Certificates{Name: "chain.pem", Vendor: certs, TrustRoots: roots}, nil
		}}))(t)
	t.Cleanup(vendor.Close)
	next := *f.Server.state.Load()
	next.Vendors = map[string]*agent.Vendor{"": vendor}
	f.Server.state.Store(&next)
}

// slowKey lets every signature wait until the channel is closed.
func (f *dropInFixture) slowKey(t *testing.T) chan struct{} {
	t.Helper()
	key, release := testkit.NewSigner(testkit.GoldenKey(t)), make(chan struct{})
	key.Fail = func() error {
		<-release
		return nil
	}
	f.setVendor(t, goldenStore{key}, f.ledger)
	return release
}
