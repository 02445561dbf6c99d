package server_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/internal/servicekit"
	"hsmsign/internal/testkit"
	"hsmsign/ledger"
	"hsmsign/ledger/witnesstest"
	"hsmsign/server"
	"hsmsign/server/authn"
	"hsmsign/signer"
)

// watched returns options with a listener for metrics.
func watched(change func(cfg *server.Config)) servicekit.Options {
	return servicekit.Options{Change: func(cfg *server.Config) {
		cfg.Metrics, cfg.Version = "127.0.0.1:0", "v0.0.1"
		if change != nil {
			change(cfg)
		}
	}}
}

// scraped are the values of a scrape by series: "name{label=value,...}"; of a histogram its count.
type scraped map[string]float64

func scrape(t testing.TB, s *servicekit.Service) (scraped, map[string]*dto.MetricFamily) {
	t.Helper()
	answer := servicekit.Do(t, http.DefaultClient, "", http.MethodGet, s.Metrics+"/metrics", "")
	if answer.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", answer.StatusCode, answer.Body)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families := testkit.Value(parser.TextToMetricFamilies(strings.NewReader(answer.Body)))(t)
	all := scraped{}
	for name, family := range families {
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			series := name
			if len(labels) > 0 {
				series += "{" + strings.Join(labels, ",") + "}"
			}
			all[series] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return all, families
}

// want compares series of a scrape.
func (all scraped) want(t testing.TB, want scraped) {
	t.Helper()
	for series, value := range want {
		if got, ok := all[series]; !ok || got != value {
			t.Errorf("%s is %v (%v), want %v", series, got, ok, value)
		}
	}
	if t.Failed() {
		t.Log(strings.Join(slices.Sorted(maps.Keys(all)), "\n"))
	}
}

// The listener for metrics has three paths, whatever the host, and needs no caller.
func TestMetricsListener(t *testing.T) {
	s := servicekit.Start(t, watched(nil))
	testkit.Until(t, "ready", func() bool {
		return servicekit.Do(t, http.DefaultClient, "", http.MethodGet, s.Metrics+"/readyz", "").StatusCode == http.StatusOK
	})
	for _, tt := range []struct {
		method, path string
		want         int
	}{
		{"GET", "/metrics", 200}, {"GET", "/livez", 200}, {"GET", "/readyz", 200}, {"HEAD", "/livez", 200}, {"GET", "/", 404}, {"GET", "/v1/me", 404}, {"GET", "/v1/requests", 404},
		{"POST", "/v1/requests", 404}, {"POST", "/metrics", 405}, {"DELETE", "/readyz", 405}, {"GET", "/metrics/x", 404}, {"GET", "/debug/pprof/", 404}, {"GET", "//metrics", 307},
	} {
		client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		answer := servicekit.Do(t, client, s.Tokens["backend"], tt.method, s.Metrics+tt.path, "", "Host", "evil.example")
		if answer.StatusCode != tt.want && (tt.want != 307 || answer.StatusCode/100 != 3) {
			t.Errorf("%s %s: %d, want %d", tt.method, tt.path, answer.StatusCode, tt.want)
		}
	}
	if answer := servicekit.Do(t, s.Client(t, nil), s.Tokens["backend"], http.MethodGet, s.URL+"/metrics", ""); answer.StatusCode != http.StatusNotFound {
		t.Errorf("metrics on the listener of the API: %d", answer.StatusCode)
	}
}

// Each request is counted once, by its route, outcome and rule, and each signature by its key store.
func TestMetrics(t *testing.T) {
	s := servicekit.Start(t, watched(nil))
	client := s.Client(t, nil)
	testkit.Until(t, "the probe has signed", func() bool {
		all, _ := scrape(t, s)
		return all["hsmsign_ready"] == 1 && all["hsmsign_ledger_entries"] > 0
	})
	csr := servicekit.CSR(testkit.Key("metrics"))
	for _, tt := range []struct {
		token, method, path, body string
		want                      int
	}{
		{"backend", "POST", "/v1/requests?customer=acme", csr, 200},
		{"backend", "POST", "/v1/requests?customer=acme", servicekit.CSR(testkit.Key("metrics 2")), 200}, // a new key of a known customer
		{"backend", "POST", "/v1/requests?customer=bolt", csr, 409},
		{"acme", "POST", "/v1/requests?customer=bolt", csr, 403},
		{"reader", "POST", "/v1/requests?customer=acme", csr, 403},
		{"backend", "POST", "/v1/requests?customer=acme", "no CSR", 422},
		{"", "GET", "/v1/me", "", 401},
		{"backend", "GET", "/v1/nothing", "", 404},
		{"backend", "DELETE", "/v1/me", "", 405},
	} {
		if answer := servicekit.Do(t, client, s.Tokens[tt.token], tt.method, s.URL+tt.path, tt.body); answer.StatusCode != tt.want {
			t.Fatalf("%s %s: %d %s", tt.method, tt.path, answer.StatusCode, answer.Body)
		}
	}
	servicekit.Do(t, client, s.Tokens["backend"], http.MethodGet, s.URL+"/v1/me", "", "Host", "evil.example")
	all, families := scrape(t, s)
	all.want(t, scraped{
		"hsmsign_http_requests_total{kind=usage,route=none,rule=server.host,status=400}":                        1,
		"hsmsign_http_requests_total{kind=none,route=POST /v1/requests,rule=none,status=200}":                   2,
		"hsmsign_http_requests_total{kind=conflict,route=POST /v1/requests,rule=ledger.foreign-key,status=409}": 1,
		"hsmsign_http_requests_total{kind=forbidden,route=POST /v1/requests,rule=policy.customers,status=403}":  1,
		"hsmsign_http_requests_total{kind=forbidden,route=POST /v1/requests,rule=policy.may,status=403}":        1,
		"hsmsign_http_requests_total{kind=refused,route=POST /v1/requests,rule=csr.encoding,status=422}":        1,
		"hsmsign_http_requests_total{kind=unauthenticated,route=GET /v1/me,rule=none,status=401}":               1,
		"hsmsign_http_requests_total{kind=not-found,route=none,rule=none,status=404}":                           1,
		"hsmsign_http_requests_total{kind=usage,route=none,rule=none,status=405}":                               1,
		"hsmsign_http_request_seconds{route=POST /v1/requests}":                                                 6,
		"hsmsign_stage_seconds{stage=prepare}":                                                                  6,
		"hsmsign_stage_seconds{stage=queue}":                                                                    5,
		"hsmsign_stage_seconds{stage=authorize}":                                                                3,
		"hsmsign_stage_seconds{stage=sign}":                                                                     3, // one is the probe
		"hsmsign_stage_seconds{stage=conclude}":                                                                 2,
		"hsmsign_stage_seconds{stage=release}":                                                                  2,
		"hsmsign_stage_seconds{stage=open}":                                                                     1,
		"hsmsign_signature_seconds{backend=none,kind=none}":                                                     3,
		"hsmsign_new_keys_total":                                                                                1,
		"hsmsign_build_info{replica=test:1,version=v0.0.1}":                                                     1,
		"hsmsign_queue_running":                                                                                 0,
		"hsmsign_queue_waiting":                                                                                 0,
		"hsmsign_policy_differs":                                                                                0,
		"hsmsign_reload_failed":                                                                                 0,
		"hsmsign_reloads_total{result=failed}":                                                                  0,
		"hsmsign_draining":                                                                                      0,
		"hsmsign_frozen{scope=all}":                                                                             0,
		"hsmsign_key_open{backend=none,vendor=}":                                                                1,
		"hsmsign_connections":                                                                                   1,
	})
	for _, name := range []string{"go_goroutines", "process_open_fds"} {
		if families[name] == nil {
			t.Errorf("no %s", name)
		}
	}
	if age := all["hsmsign_last_signature_age_seconds"]; age < 0 || age > 60 {
		t.Errorf("the last signature was %v seconds ago", age)
	}
	if _, ok := all["hsmsign_ledger_cosigned_entries"]; ok {
		t.Error("cosigned entries without witnesses")
	}
}

// figured is a key with figures, as those of key stores in the network.
type figured struct{ key *testkit.Signer }

func (f figured) Scheme() string { return "awskms" }

func (f figured) Open(context.Context, signer.OpenOptions) (signer.Signer, error) {
	return figures{f.key}, nil
}

type figures struct{ *testkit.Signer }

func (figures) Stats() signer.Stats {
	return signer.Stats{Open: 5, Idle: 3, InUse: 2, Evicted: 1, Reconnects: 4, Reinitialized: 6, Restarts: 7, Breaker: "half-open"}
}

// full starts a service with everything that has metrics: witnesses, a copy, figures of the key, CRLs, dates.
func full(t testing.TB) (*servicekit.Service, *witnesstest.Witness) {
	t.Helper()
	ca := testkit.NewCA(t, "clients")
	now := time.Now()
	due := func(what, customer string, in time.Duration) server.Due {
		return server.Due{LedgerDue: api.LedgerDue{What: what, Customer: customer}, Deadline: now.Add(in)}
	}
	const day = 24 * time.Hour
	options := watched(func(cfg *server.Config) {
		cfg.Due = func(context.Context, time.Time) ([]server.Due, error) {
			return []server.Due{
				due(ledger.DuePush, "expired customer", -day), due(ledger.DuePush, "customer b", 5*day), due(ledger.DuePush, "customer c", 20*day), due(ledger.DuePush, "customer d", 400*day),
				due(ledger.DueRequest, "customer e", 60*day), due("watched certificate", "", 6*day), due("vendor certificate", "", day),
			}, nil
		}
	})
	options.Key = figured{testkit.NewSigner(testkit.Key("vendor of the service"))}
	options.Clients = testkit.Value(authn.NewAuthorities([]*x509.Certificate{ca.Cert}, ca.CRL(t, now.Add(3*day))))(t)
	_, expired := policy.NewToken(now.Add(-day))
	options.Callers = map[string]policy.CallerConfig{"old": {Role: "signer", Owners: []string{"ada"}, Tokens: []string{expired}}}
	var w *witnesstest.Witness
	options.Ledger = func(cfg *ledger.Config) {
		w = testkit.Value(witnesstest.Start("witness.example/w", witnesstest.Ed25519, cfg.Verifier))(t)
		t.Cleanup(w.Stop)
		cfg.Witnesses = []ledger.Witness{{Name: "w", URL: w.URL, Verifier: w.Key}}
		cfg.Copies = []string{t.TempDir() + "/copy"}
	}
	return servicekit.Start(t, options), w
}

// The gauges of key, dates, ledger and witnesses.
func TestGauges(t *testing.T) {
	s, w := full(t)
	testkit.Until(t, "figures", func() bool {
		all, _ := scrape(t, s)
		return all["hsmsign_ledger_entries"] > 0 && all["hsmsign_ready"] == 1 && all["hsmsign_due{what=push-certificate,within=90d}"] > 0
	})
	testkit.Until(t, "the copy is written", func() bool {
		s.Server.ReadFigures(t.Context())
		all, _ := scrape(t, s)
		return all["hsmsign_ledger_copies_failing"] == 0 && all["hsmsign_ledger_uncosigned_entries"] == 0
	})
	all, _ := scrape(t, s)
	all.want(t, scraped{
		"hsmsign_key_open{backend=awskms,vendor=}":            1,
		"hsmsign_key_sessions{state=open,vendor=}":            5,
		"hsmsign_key_sessions{state=idle,vendor=}":            3,
		"hsmsign_key_sessions{state=in-use,vendor=}":          2,
		"hsmsign_key_recoveries_total{vendor=,what=session}":  1,
		"hsmsign_key_recoveries_total{vendor=,what=login}":    4,
		"hsmsign_key_recoveries_total{vendor=,what=module}":   6,
		"hsmsign_key_recoveries_total{vendor=,what=worker}":   7,
		"hsmsign_key_breaker{vendor=}":                        1,
		"hsmsign_due{what=push-certificate,within=0d}":        1,
		"hsmsign_due{what=push-certificate,within=7d}":        2,
		"hsmsign_due{what=push-certificate,within=30d}":       3,
		"hsmsign_due{what=push-certificate,within=90d}":       3,
		"hsmsign_due{what=request,within=90d}":                1,
		"hsmsign_due{what=watched-certificate,within=7d}":     1,
		"hsmsign_witness_alarm{witness=w}":                    0,
		"hsmsign_ledger_copies_failing":                       0,
		"hsmsign_signature_seconds{backend=awskms,kind=none}": 1,
		"hsmsign_queue_capacity{state=running}":               256,
	})
	for what, want := range map[string]float64{
		"push-certificate": 5, "watched-certificate": 6, "crl": 3, "token": 1,
	} {
		series := "hsmsign_expiry_days{position=0,vendor=,what=" + what + "}"
		if got := all[series]; got < want-0.1 || got > want+0.1 {
			t.Errorf("%s is %v, want %v", series, got, want)
		}
	}
	for i := range 3 { // the vendor's chain
		if days := all[fmt.Sprintf("hsmsign_expiry_days{position=%d,vendor=,what=vendor-certificate}", i)]; days < 30 {
			t.Errorf("certificate %d: %v days", i, days)
		}
	}
	if all["hsmsign_expiry_days{position=0,vendor=,what=tls-certificate}"] <= 0 {
		t.Error("no TLS certificate")
	}
	if entries := all["hsmsign_ledger_entries"]; all["hsmsign_ledger_uncosigned_entries"] != entries-all["hsmsign_ledger_cosigned_entries"] {
		t.Errorf("%v entries, %v cosigned, %v not", entries, all["hsmsign_ledger_cosigned_entries"], all["hsmsign_ledger_uncosigned_entries"])
	}
	w.Stop()
	testkit.OK(t, s.Ledger.Freeze(t.Context(), "uid 0", "local", ledger.Freeze{Scope: ledger.FreezeAll, Reason: "x"}))
	testkit.Until(t, "the witness failed", func() bool {
		s.Server.ReadFigures(t.Context())
		all, _ = scrape(t, s)
		return all["hsmsign_witness_failures_total{witness=w}"] > 0 && all["hsmsign_witness_failing{witness=w}"] > 0
	})
	all.want(t, scraped{"hsmsign_witness_failing{witness=w}": 1, "hsmsign_frozen{scope=customer}": 0, "hsmsign_frozen{scope=all}": 1})
	if all["hsmsign_ledger_uncosigned_entries"] < 1 {
		t.Error("an entry without a witness is cosigned")
	}
}

// A reload that fails is seen until one succeeds.
func TestReloadMetrics(t *testing.T) {
	s := servicekit.Start(t, watched(nil))
	role := s.Roles["signer"]
	bad := role
	bad.Customers = nil
	s.Roles["signer"] = bad
	if s.Server.Reload(t.Context(), true) == nil {
		t.Fatal("a role without customers is accepted")
	}
	all, _ := scrape(t, s)
	all.want(t, scraped{"hsmsign_reload_failed": 1, "hsmsign_reloads_total{result=failed}": 1, "hsmsign_reloads_total{result=done}": 0})
	s.Roles["signer"] = role
	testkit.OK(t, s.Server.Reload(t.Context(), true))
	all, _ = scrape(t, s)
	all.want(t, scraped{"hsmsign_reload_failed": 0, "hsmsign_reloads_total{result=failed}": 1, "hsmsign_reloads_total{result=done}": 1})
}

// Whatever requests contain, the number of series stays the same.
func TestCardinality(t *testing.T) {
	s := servicekit.Start(t, watched(nil))
	client := s.Client(t, nil)
	flood := func(round int) {
		for i := range 25 {
			text := fmt.Sprintf("%d-%d-%s", round, i, url.PathEscape("\x1b[31m\n{x=\"y\"}"))
			for _, token := range []string{"backend", "reader", ""} {
				for _, path := range []string{"/" + text, "/v1/" + text, "/v1/requests/" + text, "/v1/customers/" + text, "/v1/requests?customer=" + text, "/v1/requests?" + text + "=1"} {
					servicekit.Do(t, client, s.Tokens[token], http.MethodGet, s.URL+path, "")
				}
				servicekit.Do(t, client, s.Tokens[token], "M"+fmt.Sprintf("%d-%d", round, i), s.URL+"/v1/me", "")
				servicekit.Do(t, client, s.Tokens[token], http.MethodGet, s.URL+"/v1/me", "", "Host", "h"+fmt.Sprintf("%d-%d", round, i)+".example")
				servicekit.Do(t, client, s.Tokens[token], http.MethodPost, s.URL+"/v1/requests?customer="+text, text, "Content-Type", "a/"+fmt.Sprintf("%d-%d", round, i))
			}
		}
	}
	series := func() (found []string) {
		all, _ := scrape(t, s)
		for name := range all {
			if strings.HasPrefix(name, "hsmsign_http") && !strings.Contains(name, "rule=server.rate") { // the rate depends on the machine
				found = append(found, name)
			}
		}
		slices.Sort(found)
		return found
	}
	testkit.Until(t, "the probe has signed", func() bool { all, _ := scrape(t, s); return all["hsmsign_ready"] == 1 })
	flood(1)
	before := series()
	flood(2)
	if after := series(); !slices.Equal(before, after) || len(before) > 60 || len(before) < 8 {
		t.Errorf("%d series before, %d after:\n%s\n%s", len(before), len(after), strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
}
