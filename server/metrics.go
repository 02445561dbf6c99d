package server

import (
	"context"
	"net/http"
	"regexp"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"hsmsign/agent"
	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/server/notify"
)

// none is the value of a label that does not apply.
const none = "none"

// Stages of a request besides those of package agent.
const (
	stagePrepare = "prepare" // the checks of the CSR and of its subject
	stageQueue   = "queue"   // waiting for its turn
)

// maxRules is how many rules the metrics tell apart; the program has fewer.
const maxRules = 256

var ruleForm = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9]+(\.[a-z0-9-]+)+$`) })

// metrics are what /metrics shows. Labels have few values: routes, kinds, rules, stages, and names of vendor identities and
// witnesses; never names of callers or customers, and nothing that a request contains.
type metrics struct {
	registry   *prometheus.Registry
	requests   *prometheus.CounterVec
	took       *prometheus.HistogramVec
	stages     *prometheus.HistogramVec
	signatures *prometheus.HistogramVec
	reloads    *prometheus.CounterVec
	messages   *prometheus.CounterVec
	silent     prometheus.Counter

	mu    sync.Mutex
	rules map[string]bool // that were seen
}

func newMetrics(s *Server) *metrics {
	short := []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}
	long := append(append([]float64{}, short...), 60)
	m := &metrics{
		registry: prometheus.NewRegistry(), rules: map[string]bool{},
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hsmsign_http_requests_total", Help: "Requests, by the kind of their error and the rule that refused them."},
			[]string{"route", "status", "kind", "rule"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "hsmsign_http_request_seconds", Help: "Time of requests.", Buckets: long}, []string{"route"}),
		stages: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "hsmsign_stage_seconds", Help: "Time of the stages of requests for signatures, and of probes.", Buckets: short},
			[]string{"stage"}),
		signatures: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "hsmsign_signature_seconds", Help: "Time of signatures in the key store, probes included, by the kind of their error.", Buckets: short},
			[]string{"backend", "kind"}),
		reloads:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hsmsign_reloads_total", Help: "Reloads of the configuration or of the TLS files."}, []string{"result"}),
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hsmsign_messages_total", Help: "Tries to deliver notices and answers, by their result."}, []string{"kind", "channel", "result"}),
		silent:   prometheus.NewCounter(prometheus.CounterOpts{Name: "hsmsign_log_dropped_total", Help: "Log records about unknown callers that were dropped because there were too many."}),
	}
	m.registry.MustRegister(m.requests, m.took, m.stages, m.signatures, m.reloads, m.messages, m.silent, newGauges(s),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, result := range []string{reloadDone, reloadFailed} {
		m.reloads.WithLabelValues(result)
	}
	for _, kind := range []string{ledger.MessagePending, ledger.MessageMDMCert} {
		m.messages.WithLabelValues(kind, notify.ChannelNone, notify.ResultDropped)
	}
	return m
}

// message implements notify.Config.Count.
func (m *metrics) message(kind, channel, result string) {
	m.messages.WithLabelValues(kind, channel, result).Inc()
}

// Results of a reload.
const (
	reloadDone   = "done"
	reloadFailed = "failed"
)

// request counts a request that was answered.
func (m *metrics) request(c *call) {
	route := orNone(c.pattern)
	m.requests.WithLabelValues(route, strconv.Itoa(c.written.status), fault.KindOf(c.err).String(), m.rule(fault.Rule(c.err))).Inc()
	m.took.WithLabelValues(route).Observe(c.cfg.Now().Sub(c.begun).Seconds())
}

func orNone(text string) string {
	if text == "" {
		return none
	}
	return text
}

// rule returns the label of a rule. Rules are written in the program; the check is for a mistake in it.
func (m *metrics) rule(id string) string {
	if id == "" {
		return none
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.rules[id] {
		if len(m.rules) >= maxRules || len(id) > 64 || !ruleForm().MatchString(id) {
			return "other"
		}
		m.rules[id] = true
	}
	return id
}

// observer returns an observer of stages, which traces and measures them. backend returns the scheme of the key store.
func (s *Server) observer(backend func() string) agent.Observer {
	return func(ctx context.Context, stage string) (context.Context, func(error)) {
		begun := time.Now()
		inner, end := s.cfg.Traces.Stage(ctx, stage)
		return inner, func(err error) {
			end(err)
			took := time.Since(begun).Seconds()
			s.metrics.stages.WithLabelValues(stage).Observe(took)
			if stage == agent.StageSign {
				s.metrics.signatures.WithLabelValues(orNone(backend()), fault.KindOf(err).String()).Observe(took)
			}
		}
	}
}

// kindMetrics is the kind of the listener for metrics.
const kindMetrics = "metrics"

// scrapeLimit is how many scrapes are answered at once; further ones get 503.
const scrapeLimit = 4

// server returns the HTTP server of the listener for metrics. It answers anybody who reaches it.
func (m *metrics) server(s *Server) *http.Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: scrapeLimit, Timeout: scrapeWait}))
	for pattern, answer := range map[string]func(*call) error{"GET /livez": (*call).livez, "GET /readyz": (*call).readyz} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			_ = answer(&call{Server: s, w: w, r: r, state: s.state.Load()}) // they do not fail
		})
	}
	return &http.Server{Handler: mux, ReadHeaderTimeout: s.cfg.Limits.Header, ReadTimeout: s.cfg.Limits.Body, WriteTimeout: time.Minute, IdleTimeout: s.cfg.Limits.Idle, MaxHeaderBytes: maxHeader}
}

// scrapeWait bounds one scrape.
const scrapeWait = 10 * time.Second
