package server

import (
	"context"
	"crypto/x509"
	"sync"
	"time"

	"hsmsign/ledger"
)

const (
	figuresEvery = 30 * time.Second
	datesEvery   = 10 * time.Minute // what is due is proved entry by entry, and asks TLS endpoints
	figuresWait  = 25 * time.Second
)

// figures are what the metrics show and a scrape must not read: a timer does. It is safe for concurrent use.
type figures struct {
	mu       sync.Mutex
	read     time.Time // when the store was read; zero: never
	ledger   ledger.Figures
	frozen   map[string]int            // freezes by scope
	backlogs map[string]ledger.Backlog // of the outbox, by kind
	dates    []Due
	dated    time.Time // when dates was read; zero: never
	reload   bool      // the last reload failed
}

// view is a copy of the figures, which does not change.
type view struct {
	read, dated  time.Time
	ledger       ledger.Figures
	frozen       map[string]int
	backlogs     map[string]ledger.Backlog
	dates        []Due
	reloadFailed bool
}

func (f *figures) view() view {
	f.mu.Lock()
	defer f.mu.Unlock()
	return view{read: f.read, dated: f.dated, ledger: f.ledger, frozen: f.frozen, backlogs: f.backlogs, dates: f.dates, reloadFailed: f.reload}
}

func (f *figures) reloaded(failed bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reload = failed
}

// readFigures reads the ledger's figures. After an error the old ones remain, whose age is a metric; the probe logs a store
// that does not answer.
func (s *Server) readFigures(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, figuresWait)
	defer cancel()
	found, err := s.cfg.Ledger.Figures(ctx)
	if err != nil {
		return
	}
	freezes, err := s.cfg.Ledger.Freezes(ctx)
	if err != nil {
		return
	}
	backlogs, err := s.cfg.Ledger.Backlogs(ctx)
	if err != nil {
		return
	}
	frozen := map[string]int{ledger.FreezeAll: 0, ledger.FreezeCaller: 0, ledger.FreezeCustomer: 0, ledger.FreezeVendor: 0}
	for _, f := range freezes {
		frozen[f.Scope]++
	}
	s.figures.mu.Lock()
	defer s.figures.mu.Unlock()
	s.figures.read, s.figures.ledger, s.figures.frozen, s.figures.backlogs = s.cfg.Now(), found, frozen, backlogs
}

// readDates reads what is due.
func (s *Server) readDates(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, datesEvery/2)
	defer cancel()
	dates, err := s.due(ctx)
	if err != nil {
		if ctx.Err() == nil {
			s.cfg.Log.Warn("what is due was not read", "error", err.Error())
		}
		return
	}
	s.figures.mu.Lock()
	defer s.figures.mu.Unlock()
	s.figures.dates, s.figures.dated = dates, s.cfg.Now()
}

// expiry is when something of the configuration expires.
type expiry struct {
	what, vendor string
	position     int
	at           time.Time
}

// What expires.
const (
	expiresVendor = "vendor-certificate" // position 0; those above it have the positions after it
	expiresTLS    = "tls-certificate"
	expiresCRL    = "crl"
	expiresToken  = "token"
	expiresPush   = "push-certificate"
)

// expiries returns what expires, of things with many only the next one.
func (st *State) expiries(now time.Time) (all []expiry) {
	for _, name := range st.names() {
		for i, c := range st.Vendors[name].Chain().Certs {
			all = append(all, expiry{expiresVendor, name, i, c.NotAfter})
		}
	}
	if st.TLS != nil {
		all = append(all, expiry{what: expiresTLS, at: first(st.TLS.certificates())})
		if at := st.TLS.Clients.NextUpdate(); !at.IsZero() {
			all = append(all, expiry{what: expiresCRL, at: at})
		}
	}
	if at := st.nextToken(now); !at.IsZero() {
		all = append(all, expiry{what: expiresToken, at: at})
	}
	return all
}

// certificates returns those that a handshake sends.
func (t *TLS) certificates() []*x509.Certificate {
	all := []*x509.Certificate{t.Certificate.Leaf}
	for _, der := range t.Certificate.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			all = append(all, c)
		}
	}
	return all
}

func first(certs []*x509.Certificate) time.Time {
	at := certs[0].NotAfter
	for _, c := range certs {
		if c.NotAfter.Before(at) {
			at = c.NotAfter
		}
	}
	return at
}

// nextToken returns when the next token of a caller expires that has not expired; zero: there is none.
func (st *State) nextToken(now time.Time) (next time.Time) {
	for _, name := range st.Policy.Names() {
		caller, err := st.Policy.Caller(name)
		if err != nil {
			continue
		}
		for _, c := range caller.Credentials(now) {
			if c.Expires.After(now) && (next.IsZero() || c.Expires.Before(next)) {
				next = c.Expires
			}
		}
	}
	return next
}
