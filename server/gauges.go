package server

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"hsmsign/ledger"
)

// gauges are the metrics that are read when they are scraped, from memory only.
type gauges struct {
	server *Server
	descs  map[string]*prometheus.Desc
}

// described are the names, help texts and labels of the gauges. Names that end with _total are counters.
var described = [][]string{
	{"hsmsign_build_info", "The version of the program; always 1.", "version", "replica"},
	{"hsmsign_ready", "Whether the service can sign."},
	{"hsmsign_draining", "Whether the service is stopping."},
	{"hsmsign_last_signature_age_seconds", "How long ago the active identity's key signed, probes included."},
	{"hsmsign_policy_differs", "Whether another replica has another policy."},
	{"hsmsign_reload_failed", "Whether the last reload failed, so that the settings before are in force."},
	{"hsmsign_connections", "Open connections."},
	{"hsmsign_queue_running", "Signatures that are being made."},
	{"hsmsign_queue_waiting", "Requests that wait for their turn to sign."},
	{"hsmsign_queue_capacity", "How many requests may run or wait.", "state"},
	{"hsmsign_key_open", "Whether the key of an identity is open.", "vendor", "backend"},
	{"hsmsign_key_sessions", "Sessions of an open key in its key store, or calls to it.", "vendor", "state"},
	{"hsmsign_key_recoveries_total", "How often something was replaced after a failure since the key was opened.", "vendor", "what"},
	{"hsmsign_key_breaker", "State of the circuit breaker of a key store in the network: 0 closed, 1 half-open, 2 open.", "vendor"},
	{"hsmsign_expiry_days", "Days until it expires; of push certificates and tokens, the next one.", "what", "vendor", "position"},
	{"hsmsign_due", "Push certificates and watched certificates that expire within some days, and issued requests that were not redeemed.", "what", "within"},
	{"hsmsign_ledger_entries", "Entries of the ledger."},
	{"hsmsign_ledger_cosigned_entries", "Entries below the newest checkpoint that enough witnesses have cosigned."},
	{"hsmsign_ledger_uncosigned_entries", "Entries that are not below such a checkpoint yet."},
	{"hsmsign_ledger_copies_failing", "Copies of the checkpoints that cannot be written."},
	{"hsmsign_witness_failing", "Whether a witness did not cosign when it was asked last.", "witness"},
	{"hsmsign_witness_alarm", "Whether a witness knows another ledger than the store has.", "witness"},
	{"hsmsign_witness_failures_total", "How often a witness did not cosign when this process asked it.", "witness"},
	{"hsmsign_new_keys_total", "Known customers that used a key that nobody used before, seen by this process."},
	{"hsmsign_pending", "Requests, and ends of freezes, that wait for approval."},
	{"hsmsign_pending_age_seconds", "How long ago the oldest of them was asked for; 0: there is none."},
	{"hsmsign_frozen", "Freezes in force.", "scope"},
	{"hsmsign_messages_waiting", "Notices and answers that wait in the outbox.", "kind"},
	{"hsmsign_messages_late_seconds", "How long the notice or answer is late that is late for longest, of a kind that has a channel.", "kind"},
	{"hsmsign_figures_age_seconds", "How long ago the figures of the ledger were read.", "what"},
}

func newGauges(s *Server) *gauges {
	g := &gauges{s, map[string]*prometheus.Desc{}}
	for _, d := range described {
		g.descs[d[0]] = prometheus.NewDesc(d[0], d[1], d[2:], nil)
	}
	return g
}

// Describe implements prometheus.Collector.
func (g *gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range g.descs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (g *gauges) Collect(ch chan<- prometheus.Metric) {
	set := func(name string, value float64, labels ...string) {
		kind := prometheus.GaugeValue
		if strings.HasSuffix(name, "_total") {
			kind = prometheus.CounterValue
		}
		ch <- prometheus.MustNewConstMetric(g.descs[name], kind, value, labels...)
	}
	s, state, now := g.server, g.server.state.Load(), g.server.cfg.Now()
	if state == nil {
		return // the first state is being loaded
	}
	v := s.figures.view()
	s.serviceGauges(set, v, now)
	for _, name := range state.names() {
		state.keyGauges(set, name)
	}
	for _, e := range state.expiries(now) {
		set("hsmsign_expiry_days", days(e.at, now), e.what, e.vendor, strconv.Itoa(e.position))
	}
	if !v.dated.IsZero() {
		dueGauges(set, v.dates, now)
		set("hsmsign_figures_age_seconds", now.Sub(v.dated).Seconds(), "due")
	}
	set("hsmsign_new_keys_total", float64(s.cfg.Ledger.Counts().NewKeys))
	if !v.read.IsZero() {
		ledgerGauges(set, v, s.cfg.Ledger.Counts())
		s.messageGauges(set, v)
		set("hsmsign_figures_age_seconds", now.Sub(v.read).Seconds(), "ledger")
	}
}

type setter func(name string, value float64, labels ...string)

func days(at, now time.Time) float64 { return at.Sub(now).Hours() / 24 }

func number01(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// serviceGauges are those of the process.
func (s *Server) serviceGauges(set setter, v view, now time.Time) {
	set("hsmsign_build_info", 1, orNone(s.cfg.Version), s.cfg.Replica)
	set("hsmsign_ready", number01(s.health.ready(s) == nil))
	set("hsmsign_draining", number01(s.draining.Load()))
	state := s.state.Load()
	if signed := state.Vendors[state.Active].LastSignature(); !signed.IsZero() {
		set("hsmsign_last_signature_age_seconds", now.Sub(signed).Seconds())
	}
	set("hsmsign_policy_differs", number01(s.health.differing()))
	set("hsmsign_reload_failed", number01(v.reloadFailed))
	set("hsmsign_connections", float64(s.conns.count()))
	running, waiting := s.queue.load()
	set("hsmsign_queue_running", float64(running))
	set("hsmsign_queue_waiting", float64(waiting))
	set("hsmsign_queue_capacity", float64(s.queue.limit), "running")
	set("hsmsign_queue_capacity", float64(s.queue.waitLimit), "waiting")
}

// breakers are the values of the states of a breaker.
var breakers = map[string]float64{"closed": 0, "half-open": 1, "open": 2}

// keyGauges are those of the key of an identity.
func (st *State) keyGauges(set setter, name string) {
	v := st.Vendors[name]
	set("hsmsign_key_open", number01(v.IsOpen()), name, orNone(v.Backend()))
	stats, ok := v.Stats()
	if !ok {
		return
	}
	set("hsmsign_key_sessions", float64(stats.Open), name, "open")
	set("hsmsign_key_sessions", float64(stats.Idle), name, "idle")
	set("hsmsign_key_sessions", float64(stats.InUse), name, "in-use")
	set("hsmsign_key_recoveries_total", float64(stats.Evicted), name, "session")
	set("hsmsign_key_recoveries_total", float64(stats.Reconnects), name, "login")
	set("hsmsign_key_recoveries_total", float64(stats.Reinitialized), name, "module")
	set("hsmsign_key_recoveries_total", float64(stats.Restarts), name, "worker")
	if value, ok := breakers[stats.Breaker]; ok {
		set("hsmsign_key_breaker", value, name)
	}
}

// windows are the days of the label within; each count includes those of the windows before.
var windows = []int{0, 7, 30, 90}

// dueLabels are the labels of what is due. The chains of vendor identities have their own metric.
var dueLabels = map[string]string{ledger.DuePush: expiresPush, ledger.DueRequest: "request", "watched certificate": "watched-certificate", "profile certificate": "profile-certificate", "server token": "server-token"}

// dueGauges are counts: names of customers are not in metrics.
func dueGauges(set setter, dates []Due, now time.Time) {
	counts := map[string]map[int]int{}
	for _, label := range dueLabels {
		counts[label] = map[int]int{}
	}
	next := map[string]time.Time{}
	for _, d := range dates {
		label := dueLabels[d.What]
		if label == "" {
			continue
		}
		for _, within := range windows {
			if d.Deadline.Before(now.AddDate(0, 0, within)) {
				counts[label][within]++
			}
		}
		if at := next[label]; !d.Deadline.IsZero() && d.Deadline.After(now) && (at.IsZero() || d.Deadline.Before(at)) {
			next[label] = d.Deadline
		}
	}
	for label, of := range counts {
		for _, within := range windows {
			set("hsmsign_due", float64(of[within]), label, strconv.Itoa(within)+"d")
		}
	}
	for label, at := range next {
		set("hsmsign_expiry_days", days(at, now), label, "", "0")
	}
}

// messageGauges are those of the outbox. What nobody can send is not late: it waits for a channel.
func (s *Server) messageGauges(set setter, v view) {
	for _, kind := range []string{ledger.MessagePending, ledger.MessageMDMCert} {
		set("hsmsign_messages_waiting", float64(v.backlogs[kind].Waiting), kind)
		late := time.Duration(0)
		if slices.Contains(s.notifier.Kinds(), kind) {
			late = v.backlogs[kind].Late
		}
		set("hsmsign_messages_late_seconds", late.Seconds(), kind)
	}
}

// ledgerGauges are those of the ledger.
func ledgerGauges(set setter, v view, counts ledger.Counts) {
	set("hsmsign_ledger_entries", float64(v.ledger.Entries))
	if v.ledger.Witnessed {
		set("hsmsign_ledger_cosigned_entries", float64(v.ledger.Cosigned))
		set("hsmsign_ledger_uncosigned_entries", float64(v.ledger.Entries-v.ledger.Cosigned))
	}
	failing := 0
	for _, c := range v.ledger.Copies {
		if c.Failure != "" {
			failing++
		}
	}
	set("hsmsign_ledger_copies_failing", float64(failing))
	for _, w := range v.ledger.Witnesses {
		set("hsmsign_witness_failing", number01(w.Failure != ""), w.Name)
		set("hsmsign_witness_alarm", number01(w.Alarm), w.Name)
		set("hsmsign_witness_failures_total", float64(counts.Failures[w.Name]), w.Name)
	}
	set("hsmsign_pending", float64(v.ledger.Pending.Requests))
	set("hsmsign_pending_age_seconds", v.ledger.Pending.Oldest.Seconds())
	for scope, n := range v.frozen {
		set("hsmsign_frozen", float64(n), scope)
	}
}
