// Package server is the signing agent as a service: HTTP in front of package agent and the ledger.
//
// It is closed by default. Every request but those of health checks needs a caller of the configuration (package authn), whose
// role decides (package policy), and every signature is recorded in the ledger before it is made and before it is released.
// A vendor key signs only what Prepare has parsed as a CSR, and the probe of package signer.
//
//	s, err := server.New(server.Config{Ledger: l, Load: load, Listen: addresses, Log: log})
//	addresses, err := s.Listen(ctx)
//	err = s.Run(ctx) // until ctx ends; then it finishes what it has begun
//
// # What happens to a request
//
// In this order: the Host must be one of the server's; the credentials must name one caller; a request that changes something
// must not come from another web site; the caller must be below its rate and its number of requests at once; only then the body
// is read, which is bounded. A signature then waits in a queue that is fair among callers. Errors are RFC 9457 problems made
// from package fault.
//
// Drop-ins (package dropin) are requests in wire forms of other products, whose refusals have the form that the product reads. Two of
// them have the credential in the body, so a bounded number of bodies is read before the caller is known.
//
// # Reload
//
// A State is everything that a reload replaces. Reload loads a new one, records its policy in the ledger, and closes the
// connections whose callers are gone. If anything of the new one is wrong, the old one stays.
//
// A Server is safe for concurrent use. Its locks are independent of each other and are not held during I/O.
package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/server/authn"
	"hsmsign/server/notify"
	"hsmsign/server/traces"
)

// Limits are those of connections and requests; a zero field is the default of a service.
type Limits struct {
	Header      time.Duration // for a TLS handshake and a request's header; 5 seconds
	Body        time.Duration // for a request with its body; 15 seconds
	Idle        time.Duration // between two requests; 2 minutes
	Connections int           // of all listeners; 4096
	Running     int           // signatures at once: most of them wait for a commit of the ledger, which many share; 256
	Waiting     int           // for their turn, of all callers; 512
	Each        int           // requests of one caller at once, of any kind; 128
	Stranger    time.Duration // for a body that is read before its sender is known; 5 seconds
}

func (l Limits) withDefaults() Limits {
	return Limits{
		cmp.Or(l.Header, 5*time.Second), cmp.Or(l.Body, 15*time.Second), cmp.Or(l.Idle, 2*time.Minute), cmp.Or(l.Connections, 4096),
		cmp.Or(l.Running, 256), cmp.Or(l.Waiting, 512), cmp.Or(l.Each, 128), cmp.Or(l.Stranger, 5*time.Second),
	}
}

const (
	maxHeader    = 16 << 10
	requestWait  = 45 * time.Second // for everything after the body
	writeWait    = requestWait + 30*time.Second
	drainWait    = 65 * time.Second // longer than a request
	policyEvery  = time.Minute
	leaveWait    = 5 * time.Second
	stateClosing = 2 * time.Minute // after which nobody uses a replaced state
)

// Config is what a Server is made of. Every field is required unless it says something else.
type Config struct {
	Ledger *ledger.Ledger
	// Load returns the state at the start and at each reload. again says that configuration files are to be read again, and not
	// only the files that they name. It is not called by several at once. The server closes the vendors of a state that the next
	// one does not have.
	Load func(ctx context.Context, again bool) (*State, error)
	// Listen are the addresses; at least one.
	Listen []Address
	// Metrics is the address of the listener for /metrics, /livez and /readyz, HOST:PORT; empty: none.
	Metrics string
	// Replica is the name of this process among those with the same ledger.
	Replica string
	// Log receives one record for each request. It gets no secret, no CSR and no token.
	Log *slog.Logger
	// Due returns what has to be done soon; see the command ledger due.
	Due func(ctx context.Context, now time.Time) ([]Due, error)
	// Version is that of the program, for metrics; it may be empty.
	Version string
	// Traces gets the spans of requests of known callers; nil: nobody. The caller of New closes it after Run.
	Traces *traces.Tracer
	// Notify tells the service manager about a state, in the words of sd_notify(3); nil: nobody.
	Notify func(state string)
	Limits Limits
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Server is a signing agent that answers over HTTP.
type Server struct {
	cfg    Config
	state  atomic.Pointer[State]
	routes *http.ServeMux

	conns     connections
	pace      pace
	queue     *queue
	health    health
	metrics   *metrics
	notifier  *notify.Notifier
	exporting *semaphore.Weighted
	dues      dues
	figures   figures
	strangers strangers
	signIns   rates          // of senders that are not known
	late      sync.WaitGroup // signatures whose caller was answered before

	listeners []listener // that Listen has opened
	reloading sync.Mutex
	draining  atomic.Bool
}

// New loads and opens nothing. The error is of kind usage.
func New(cfg Config) (*Server, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.Limits = cfg.Limits.withDefaults()
	if cfg.Notify == nil {
		cfg.Notify = func(string) {}
	}
	if len(cfg.Listen) == 0 {
		return nil, fault.Usage.Errorf("the service listens nowhere").Fix("write serve: { listen: [ ... ] } in the configuration")
	}
	s := &Server{cfg: cfg, conns: connections{all: map[net.Conn]*connection{}, max: cfg.Limits.Connections}, queue: newQueue(cfg.Limits.Running, cfg.Limits.Waiting, cfg.Limits.Each)}
	s.health.logs = rate.NewLimiter(logRate, logRate)
	s.exporting = semaphore.NewWeighted(maxExports)
	s.routes = s.newRoutes()
	s.metrics = newMetrics(s)
	s.notifier = notify.New(notify.Config{Ledger: cfg.Ledger, Log: cfg.Log, Waits: s.waits, Result: s.deliveries().Mail, Count: s.metrics.message, Now: cfg.Now})
	return s, nil
}

// load replaces the state.
func (s *Server) load(ctx context.Context, again bool) error {
	s.reloading.Lock()
	defer s.reloading.Unlock()
	before := s.state.Load()
	next, err := s.cfg.Load(ctx, again)
	if err != nil {
		return err
	}
	if err = s.check(next); err == nil {
		// It is recorded before it is in force.
		err = s.cfg.Ledger.StartPolicy(ctx, Actor, Channel, s.cfg.Replica, record.Hash(next.Policy.Hash()))
	}
	if err != nil {
		next.closeBut(before)
		return err
	}
	s.state.Store(next)
	s.notifier.Use(next.Channels)
	if next.Commit != nil {
		next.Commit()
	}
	next.OIDC.Fetch(s.cfg.Now())
	s.endSessions(ctx, next)
	if before != nil {
		s.conns.closeIf(func(conn authn.Connection, caller string) bool { return s.gone(next, conn, caller) })
		time.AfterFunc(stateClosing, func() { before.closeBut(next) })
	}
	return nil
}

// The actor and the channel of what the service itself records.
const (
	Actor   = "hsmsign serve"
	Channel = "service"
)

// Reload loads the state again; again says that configuration files are read again too. The error is logged as well, and the
// state before stays.
func (s *Server) Reload(ctx context.Context, again bool) error {
	err := s.load(ctx, again)
	s.figures.reloaded(err != nil)
	s.metrics.reloads.WithLabelValues(map[bool]string{false: reloadDone, true: reloadFailed}[err != nil]).Inc()
	if err != nil {
		s.cfg.Log.Error("reload failed; the settings before stay in force", "error", err.Error(), "fix", fault.Hint(err))
	} else {
		s.cfg.Log.Info("reloaded", "policy", record.Hash(s.state.Load().Policy.Hash()).String())
	}
	return err
}

// Listen opens the addresses and returns them as they are, in the order of the configuration. Then it loads the state, so that the
// ledger records the policy of a service that can run. The error is that of Load, or of kind usage.
func (s *Server) Listen(ctx context.Context) ([]net.Addr, error) {
	var err error
	if s.listeners, err = listen(ctx, s.cfg.Listen); err != nil {
		return nil, err
	}
	if s.cfg.Metrics != "" {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.cfg.Metrics)
		if err != nil {
			s.closeListeners()
			return nil, fault.Usage.Errorf("metrics: %w", err).Fix(listenFix(err))
		}
		s.listeners = append(s.listeners, listener{l, kindMetrics})
	}
	if err := s.load(ctx, true); err != nil {
		s.closeListeners()
		return nil, err
	}
	var all []net.Addr
	for _, l := range s.listeners {
		all = append(all, l.Addr())
		s.cfg.Log.Info("listening", "address", describe(l))
	}
	return all, nil
}

func (s *Server) closeListeners() {
	for _, l := range s.listeners {
		_ = l.Close() // the first error is reported
	}
}

// Run serves what Listen has opened until ctx ends. Then it accepts nothing more, finishes the requests that it has, at most for
// 65 seconds, and returns nil.
func (s *Server) Run(ctx context.Context) error {
	// The work of requests ends after the drain, not with ctx.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	servers, errs := make([]*http.Server, len(s.listeners)), make(chan error, len(s.listeners))
	for i, l := range s.listeners {
		if servers[i] = s.newHTTP(work, l.kind); l.kind == kindMetrics {
			servers[i] = s.metrics.server(s)
		}
		go func() { errs <- serve(servers[i], l) }()
	}
	ending := s.background(work)
	// Not with work: a delivery ends while requests are finished, so that it does not make the end later.
	notified := make(chan struct{})
	notifying, stopNotifier := context.WithCancel(ctx)
	defer stopNotifier()
	go func() { s.notifier.Run(notifying); close(notified) }()
	s.cfg.Notify("READY=1")
	var err error
	select {
	case <-ctx.Done():
	case err = <-errs:
	}
	s.draining.Store(true)
	s.cfg.Notify("STOPPING=1")
	s.cfg.Log.Info("stopping: finishing what has begun")
	stopNotifier()
	s.drain(servers)
	stop()
	<-ending
	<-notified
	s.leave()
	s.state.Load().closeBut(nil)
	return err
}

// leave tells the other replicas that this one has ended.
func (s *Server) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), leaveWait)
	defer cancel()
	if err := s.cfg.Ledger.Leave(ctx, s.cfg.Replica); err != nil {
		s.cfg.Log.Warn("replicas", "error", err.Error())
	}
}

// serve serves a listener until its server is shut down.
func serve(server *http.Server, l listener) error {
	var err error
	if l.kind == authn.TLS {
		err = server.ServeTLS(l, "", "")
	} else {
		err = server.Serve(l)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("%s: %w", describe(l), err)
}

// newHTTP returns the HTTP server of one listener.
func (s *Server) newHTTP(work context.Context, kind string) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Server{
		Handler: s.handler(kind), TLSConfig: s.tlsConfig(), Protocols: protocols,
		ReadHeaderTimeout: s.cfg.Limits.Header, ReadTimeout: s.cfg.Limits.Body, WriteTimeout: writeWait, IdleTimeout: s.cfg.Limits.Idle, MaxHeaderBytes: maxHeader,
		BaseContext: func(net.Listener) context.Context { return work },
		ConnContext: s.conns.accepted(kind), ConnState: s.conns.changed,
		ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
	}
}

// drain ends the servers when their requests have ended, or after drainWait.
func (s *Server) drain(servers []*http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), drainWait)
	defer cancel()
	var all sync.WaitGroup
	for _, server := range servers {
		all.Go(func() {
			if server.Shutdown(ctx) != nil {
				_ = server.Close() // the time is over
			}
		})
	}
	all.Wait()
	s.awaitLate(ctx)
}
