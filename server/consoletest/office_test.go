package consoletest

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/internal/servicekit"
	"hsmsign/internal/testkit"
	"hsmsign/ledger"
	"hsmsign/ledger/sqlite"
	"hsmsign/server"
	"hsmsign/server/authn/oidc"
	"hsmsign/testpki"
)

// clock is the time of an office: it stops while the past is made, and runs from then on.
type clock struct {
	mu    sync.Mutex
	at    time.Time
	since time.Time // of the host; zero: it stops
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.since.IsZero() {
		return c.at
	}
	return c.at.Add(time.Since(c.since))
}

// set stops the clock at a time, or has it run from there.
func (c *clock) set(at time.Time, runs bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at, c.since = at, (time.Time{}); runs {
		c.since = time.Now()
	}
}

// The first day of an office, which is also that of its vendor certificate, and the day on which the tests meet it: 25 days before that
// certificate expires.
var (
	opening = time.Date(2025, 11, 20, 8, 0, 0, 0, time.UTC)
	today   = time.Date(2026, 10, 26, 9, 41, 0, 0, time.UTC)
)

// office is a service with a console, a year of records and an identity provider. Its people are ada (admin), fay (approver) and bo
// (signer); portal is a machine whose requests for new customers and new keys need an approval.
type office struct {
	*servicekit.Service
	clock    *clock
	provider *provider
	tokens   map[string]string // by caller
}

// issuerName is the name of the provider in the configuration.
const issuerName = "example"

// newOffice starts an office.
func newOffice(t testing.TB) *office {
	t.Helper()
	o := &office{clock: &clock{at: opening}, tokens: map[string]string{}}
	o.provider = newProvider(t, o.clock.now)
	store := testkit.Value(sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "ledger.db"), true))(t)
	t.Cleanup(func() { _ = store.DB.Close() })
	store.Name = "sqlite:/var/lib/hsmsign/ledger.db" // in pictures
	o.Service = servicekit.Start(t, servicekit.Options{
		Store: store, Now: o.clock.now, Callers: o.callers(), Roles: officeRoles(), Console: true,
		Issuers:     map[string]policy.OIDCIssuer{issuerName: {URL: o.provider.url, Audience: "https://api.example.com", Kind: "generic"}},
		ConsoleOIDC: []oidc.ClientConfig{{Issuer: issuerName, ClientID: clientID, Secret: func() (string, error) { return clientSecret, nil }}},
		Change: func(cfg *server.Config) {
			l := cfg.Ledger // the service runs before Start returns it
			cfg.Due = func(ctx context.Context, _ time.Time) ([]server.Due, error) { return due(ctx, l) }
		},
	})
	o.history(t)
	return o
}

func officeRoles() map[string]policy.RoleConfig {
	one, none := 1, 0
	role := func(approvals policy.ApprovalsConfig, may ...string) policy.RoleConfig {
		return policy.RoleConfig{May: may, Customers: []string{"*"}, PerSecond: 50, PerDay: 500, Approvals: approvals}
	}
	return map[string]policy.RoleConfig{
		"administrator": role(policy.NoApprovals(), policy.Sign, policy.Read, policy.Customers, policy.Freeze),
		"approver":      {May: []string{policy.Approve, policy.Read, policy.Freeze}, Customers: []string{"*"}},
		"desk":          role(policy.NoApprovals(), policy.Sign),
		"portal":        role(policy.ApprovalsConfig{NewCustomer: &one, NewKey: &one, SameKey: &none}, policy.Sign),
	}
}

// callers returns the callers, each with a token, with which the tests make the past.
func (o *office) callers() map[string]policy.CallerConfig {
	all := map[string]policy.CallerConfig{
		"ada":    {Role: "administrator", Person: "ada"},
		"fay":    {Role: "approver", Person: "fay"},
		"bo":     {Role: "desk", Person: "bo"},
		"portal": {Role: "portal", Owners: []string{"ada"}},
		"host":   {Role: "administrator", Person: "ada", UID: []int{os.Getuid()}},
	}
	for name, caller := range all {
		secret, entry := policy.NewToken(today.AddDate(0, 0, 2))
		o.tokens[name], caller.Tokens = secret, []string{entry}
		if caller.Person != "" && name != "host" {
			caller.OIDC = policy.OIDCConfig{Issuer: issuerName, Claims: map[string]string{"sub": name}}
		}
		all[name] = caller
	}
	return all
}

// due returns what the ledger says is due, and the vendor's certificate.
func due(ctx context.Context, l *ledger.Ledger) (all []server.Due, err error) {
	list, err := l.Due(ctx)
	expires := opening.AddDate(1, 0, 0)
	all = append(all, server.Due{LedgerDue: api.LedgerDue{What: "vendor certificate", Certificate: "CN=MDM Vendor: hsmsign TEST Vendor", At: api.Time(expires)}, Deadline: expires})
	for _, d := range list {
		all = append(all, server.Due{
			LedgerDue: api.LedgerDue{
				What: d.What, Customer: d.Customer.Name, Contact: d.Customer.Contact, Account: d.Customer.Account, At: api.Time(d.At),
				Request: d.Request, UseBefore: api.Time(d.UseBefore),
			},
			Deadline: d.Deadline(), Open: d.What == ledger.DueRequest,
		})
	}
	slices.SortStableFunc(all, func(a, b server.Due) int { return a.Deadline.Compare(b.Deadline) })
	return all, err
}

// customers are those of the past: when a request was signed for one, and when its push certificate expires. An empty date: there is none.
var customers = []struct{ name, company, signed, expires string }{
	{"cobalt-press", "Cobalt Press", "2025-11-21", "2026-10-20"},
	{"brook-dental", "Brook Dental Group", "2025-11-24", "2026-11-01"},
	{"alder-logistics", "Alder Logistics", "2025-11-25", "2026-11-25"},
	{"dune-hotels", "Dune Hotels", "2026-02-11", "2027-02-11"},
	{"elm-schools", "Elm District Schools", "2026-03-17", "2027-03-17"},
	{"fjord-energy", "Fjord Energy", "2026-06-30", "2027-06-30"},
	{"grove-clinics", "Grove Clinics", "2026-10-20", ""},
}

// history makes the past of the office, by its API.
func (o *office) history(t testing.TB) {
	t.Helper()
	o.keys()
	for _, c := range customers {
		o.clock.set(day(t, c.signed).Add(9*time.Hour), false)
		o.must(t, "ada", http.MethodPost, "/v1/customers", api.CustomerChange{
			Name: &c.name, Contact: text("it@" + c.name + ".example"), Account: text("mdm@" + c.name + ".example"),
		}, nil)
		o.must(t, "ada", http.MethodPost, "/v1/requests?customer="+c.name, csr(c.name, c.company), nil)
		if c.expires == "" {
			continue
		}
		o.clock.set(day(t, c.signed).Add(10*time.Hour), false)
		o.must(t, "ada", http.MethodPost, "/v1/customers/"+o.id(t, c.name)+"/push-certificates", o.push(t, c.name, day(t, c.expires).Add(10*time.Hour)), nil)
	}
	o.clock.set(day(t, "2026-10-22").Add(14*time.Hour), false)
	o.reject(t, o.ask(t, "ivory-media", csr("ivory-media", "Ivory Media")), "not a customer of ours")
	o.clock.set(day(t, "2026-10-23").Add(15*time.Hour), false)
	o.ask(t, "elm-schools", csr("elm-schools-new", "Elm District Schools"))
	o.clock.set(day(t, "2026-10-26").Add(8*time.Hour), false)
	o.ask(t, "harbor-foods", csr("harbor-foods", "Harbor Foods"))
	o.clock.set(today, true)
	o.must(t, "ada", http.MethodPost, "/v1/requests?customer=juniper-retail", csr("juniper-retail", "Juniper Retail"), nil)
	if os.Getenv(picturesVariable) != "" { // after the next probe of the key, half a minute later, the service is ready
		testkit.Eventually(t, "the service is ready", func() bool {
			time.Sleep(time.Second)
			return servicekit.Do(t, o.Client(t, nil), "", http.MethodGet, o.URL+"/readyz", "").StatusCode == http.StatusOK
		})
		o.clock.set(today, true)
	}
}

// tab opens a tab of the browser for the console.
func (o *office) tab(t testing.TB) *tab {
	t.Helper()
	b := newTab(t, o.URL, o.provider.url)
	b.expect("BounceTrackingIssue") // a provider that remembers its user sends the browser back at once
	return b
}

// signIn signs a person in, by the provider, and returns the tab, which shows the start page.
func (o *office) signIn(t testing.TB, person string) *tab {
	t.Helper()
	b := o.tab(t)
	o.signInAt(b, person, "/console/")
	return b
}

// signInAt opens a page without a session, and signs a person in.
func (o *office) signInAt(b *tab, person, path string) {
	b.Helper()
	o.provider.signsIn(person)
	b.open(path)
	if status := b.press(`a[href*="/console/sign-in/oidc"]`); status != 200 || b.where() != o.URL+path {
		log := o.Log()
		b.Fatalf("signed in as %s: status %d at %s\n%s\n%s", person, status, b.where(), b.text(), log[max(0, len(log)-1000):])
	}
}

// keys generates the customers' keys, several at once.
func (o *office) keys() {
	var all sync.WaitGroup
	for _, c := range customers {
		all.Go(func() { testkit.Key(c.name) })
	}
	for _, name := range []string{"ivory-media", "elm-schools-new", "harbor-foods", "juniper-retail"} {
		all.Go(func() { testkit.Key(name) })
	}
	all.Wait()
}

func text(s string) *string { return &s }

func day(t testing.TB, date string) time.Time {
	t.Helper()
	return testkit.Value(time.Parse(time.DateOnly, date))(t)
}

// csr returns the CSR of a company with the key of a name, PEM.
func csr(key, company string) string {
	return csrOf(key, pkix.Name{CommonName: company + " MDM", Organization: []string{company}, Country: []string{"US"}})
}

// csrOf returns a CSR with a subject, PEM.
func csrOf(key string, subject pkix.Name) string {
	der := testkit.Must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject}, testkit.Key(key)))
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// push returns a push certificate for the key of a name, PEM. The topic is that of the customer.
func (o *office) push(t testing.TB, name string, expires time.Time) string {
	t.Helper()
	cert := testkit.Value(o.PKI.IssuePush(testkit.CSR(testkit.Key(name)), testpki.PushOptions{
		Topic: "com.apple.mgmt.External." + name, NotBefore: o.clock.now(), NotAfter: expires,
	}))(t)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
}

// must sends a request to the API as a caller, and decodes the answer, which is no error. A body that is not a string is sent as JSON.
func (o *office) must(t testing.TB, caller, method, path string, body, into any) {
	t.Helper()
	content, kind := "", "application/octet-stream"
	switch b := body.(type) {
	case nil:
	case string:
		content = b
	default:
		content, kind = string(testkit.Value(json.Marshal(b))(t)), "application/json"
	}
	a := servicekit.Do(t, o.Client(t, nil), o.tokens[caller], method, o.URL+path, content, "Content-Type", kind, "Accept", "application/json")
	if a.StatusCode >= 300 {
		t.Fatalf("%s %s as %s: %s %s", method, path, caller, a.Status, a.Body)
	}
	if into != nil {
		testkit.OK(t, json.Unmarshal([]byte(a.Body), into))
	}
}

// id returns the id of a customer.
func (o *office) id(t testing.TB, name string) string {
	t.Helper()
	var list api.List[api.Customer]
	o.must(t, "ada", http.MethodGet, "/v1/customers", nil, &list)
	for _, c := range list.Items {
		if c.Name == name {
			return c.ID
		}
	}
	t.Fatalf("there is no customer %q", name)
	return ""
}

// ask has the portal ask for a request that needs an approval, and returns its id.
func (o *office) ask(t testing.TB, customer, csr string) string {
	t.Helper()
	var result api.SignResult
	if o.must(t, "portal", http.MethodPost, "/v1/requests?customer="+customer, csr, &result); result.Status != api.StatusPending {
		t.Fatalf("%s does not wait: %+v", customer, result)
	}
	return result.RequestID
}

// reject has fay reject a request.
func (o *office) reject(t testing.TB, id, reason string) {
	t.Helper()
	r := o.request(t, id)
	o.must(t, "fay", http.MethodPost, "/v1/requests/"+id+"/reject", api.Decision{Customer: r.Customer, CSRSHA256: r.CSRSHA256, Reason: reason}, nil)
}

// request returns a request as ada sees it.
func (o *office) request(t testing.TB, id string) (r api.Request) {
	t.Helper()
	o.must(t, "ada", http.MethodGet, "/v1/requests/"+id, nil, &r)
	return r
}

// TestOffice: the past is recorded at its time.
func TestOffice(t *testing.T) {
	o := newOffice(t)
	var list api.List[api.Request]
	if o.must(t, "fay", http.MethodGet, "/v1/pending", nil, &list); len(list.Items) != 2 || list.Items[1].Customer != "elm-schools" {
		t.Errorf("what waits: %+v", list)
	}
	var due api.List[api.LedgerDue]
	if o.must(t, "ada", http.MethodGet, "/v1/due", nil, &due); len(due.Items) != 5 || due.Items[0].Customer != "cobalt-press" {
		t.Errorf("what is due: %+v", due)
	}
}
