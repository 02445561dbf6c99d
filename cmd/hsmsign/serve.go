package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"reflect"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/urfave/cli/v2"

	"hsmsign/agent"
	"hsmsign/agent/policy"
	"hsmsign/config"
	"hsmsign/fault"
	"hsmsign/internal/console"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/server"
	"hsmsign/server/authn/awsiam"
	"hsmsign/server/authn/oidc"
	"hsmsign/server/traces"
)

const (
	serveSignTimeout = 30 * time.Second // less than the server gives a request
	tlsFilesEvery    = 10 * time.Second // how often the files of tls: are compared
)

func (p *program) serveCommand() *cli.Command {
	return &cli.Command{
		Name: "serve", Usage: "answer requests over HTTP: the signing agent as a service",
		Description: "It needs a configuration with serve:, callers:, roles: and ledger:; see docs/service.md. It logs lines of JSON to standard\n" +
			"error. SIGHUP reads the configuration again. SIGTERM ends it when it has answered the requests that it has; a second\n" +
			"one ends it at once.\n\n" +
			"  hsmsign serve --config /etc/hsmsign/hsmsign.yaml",
		Flags:  append(ledgerFlags(), vendorFlag(), configFlag()),
		Action: p.serve,
	}
}

// serveJob is one run of serve.
type serveJob struct {
	p      *program
	cli    *cli.Context
	log    *slog.Logger
	ledger *ledger.Ledger

	s atomic.Pointer[settings] // of the configuration in force
	// Of the state in force; only loading uses them, which the server does one after the other.
	profiles map[string]servedProfile // by name
	vendors  map[string]servedVendor
	issuers  *oidc.Issuers
	files    atomic.Pointer[[sha256.Size]byte] // hash of the files of tls:
	aws      *awsiam.Verifier                  // nil: no caller had an AWS identity
}

// serviceLedger is the ledger for the vendors of a service, whose own probes have its name.
type serviceLedger struct{ *ledger.Ledger }

// Probe implements record.Prober.
func (l serviceLedger) Probe(ctx context.Context, p record.Probe) error {
	p.Actor, p.Channel = server.Actor, server.Channel
	return l.Ledger.Probe(ctx, p)
}

// servedVendor is a vendor and what it was made of.
type servedVendor struct {
	*agent.Vendor
	from config.Vendor
}

func (p *program) serve(ctx *cli.Context) error {
	if err := noNewPrivileges(); err != nil {
		return fault.Errorf("no_new_privs: %w", err)
	}
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	job := &serveJob{p: p, cli: ctx, vendors: map[string]servedVendor{}, profiles: map[string]servedProfile{}, log: slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{ReplaceAttr: inUTC}))}
	p.prompt = nil // a service has nobody to ask
	p.log = job.log
	s, _, err := p.start(ctx, noFiles)
	if err != nil {
		return err
	}
	job.s.Store(s)
	addresses, err := s.serveAddresses()
	if err != nil {
		return err
	}
	l, done, err := p.openLedger(ctx.Context, s, true)
	if err != nil {
		return err
	}
	defer done()
	job.ledger = l
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	replica := host + ":" + strconv.Itoa(os.Getpid())
	version := readVersion().Version
	tracer, err := traces.New(traces.Config{URL: s.config.Serve.Traces, Replica: replica, Version: version, Log: job.log})
	if err != nil {
		return fault.Errorf("%s: serve: %w", s.path, err)
	}
	defer tracer.Close()
	service, err := server.New(server.Config{
		Ledger: l, Load: job.load, Listen: addresses, Metrics: s.config.Serve.Metrics, Replica: replica, Version: version, Traces: tracer, Log: job.log, Due: job.due,
		Notify: func(state string) { _, _ = daemon.SdNotify(false, state) }, // without systemd there is nobody to tell
	})
	if err != nil {
		return err
	}
	if _, err := service.Listen(ctx.Context); err != nil {
		return err
	}
	go job.reload(ctx.Context, service, hangup)
	return service.Run(ctx.Context)
}

// inUTC makes the times of a log UTC.
func inUTC(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindTime {
		a.Value = slog.TimeValue(a.Value.Time().UTC())
	}
	return a
}

// reload reads the configuration again at SIGHUP, and the files of tls: when they have changed, until ctx ends.
func (job *serveJob) reload(ctx context.Context, service *server.Server, hangup <-chan os.Signal) {
	tick := time.NewTicker(tlsFilesEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			_ = service.Reload(ctx, true) // it logs the error
		case <-tick.C:
			if _, files, err := readTLS(job.s.Load()); err == nil && files != *job.files.Load() {
				_ = service.Reload(ctx, false) // likewise
			}
		}
	}
}

// load implements server.Config.Load.
func (job *serveJob) load(ctx context.Context, again bool) (*server.State, error) {
	s, before := job.s.Load(), job.s.Load()
	if again {
		var err error
		if s, err = job.p.settings(job.cli); err != nil {
			return nil, err
		}
	}
	found, err := s.policy()
	if err != nil {
		return nil, err
	}
	if found == nil {
		return nil, fault.Usage.Errorf("%s: the configuration has no callers", s.path).Fix("write callers: and roles:")
	}
	next := &server.State{Policy: found, Vendors: map[string]*agent.Vendor{}, Active: s.vendor, Hosts: s.config.Serve.Hosts}
	vendors, err := job.loadVendors(ctx, s)
	if err != nil {
		return nil, err
	}
	for name, v := range vendors {
		next.Vendors[name] = v.Vendor
	}
	profiles, err := job.loadProfiles(ctx, s)
	if err != nil {
		return nil, err
	}
	next.Profile, next.Profiles = s.config.Profile, map[string]*agent.ProfileSigner{}
	for name, one := range profiles {
		if next.Profiles[name] = one.ProfileSigner; len(profiles) == 1 {
			next.Profile = name
		}
	}
	var files [sha256.Size]byte
	if next.TLS, files, err = readTLS(s); err != nil {
		return nil, err
	}
	if next.AWS, err = job.loadAWS(before, s, found); err != nil {
		return nil, err
	}
	if next.Roots, err = s.trustRoots(ctx); err != nil {
		return nil, err
	}
	addresses, err := s.serveAddresses()
	if err != nil {
		return nil, err
	}
	if next.DropIn, err = s.dropIns(found, addresses); err != nil {
		return nil, err
	}
	if next.OIDC, err = s.oidc(job.log, job.issuers); err != nil {
		return nil, err
	}
	if next.Console, err = s.console(next.OIDC, addresses); err != nil {
		return nil, err
	}
	if err := s.warnOfUnusable(found, func(message string) { job.log.Warn(message) }); err != nil {
		return nil, err
	}
	if next.Channels, err = s.channels(); err != nil {
		return nil, err
	}
	next.Commit = func() {
		if again && restarts(s.config) != restarts(before.config) {
			job.log.Warn("ledger, listen, metrics or traces were changed; that needs a restart of the service")
		}
		job.vendors, job.profiles, job.issuers, job.aws = vendors, profiles, next.OIDC, next.AWS
		job.files.Store(&files)
		job.s.Store(s)
	}
	return next, nil
}

// loadAWS returns what verifies AWS identities; nil if no caller has one. It stays as it is, with what it knows of its sources, while
// its endpoint does.
func (job *serveJob) loadAWS(before, s *settings, found *policy.Policy) (*awsiam.Verifier, error) {
	endpoint := s.config.Serve.AWS.STSEndpoint
	switch {
	case !found.HasAWS():
		return nil, nil
	case job.aws != nil && endpoint == before.config.Serve.AWS.STSEndpoint:
		return job.aws, nil
	}
	return awsiam.New(awsiam.Config{Endpoint: endpoint, Once: func(ctx context.Context, hash [sha256.Size]byte, until time.Time) (bool, error) {
		return job.ledger.Once(ctx, hash, until)
	}})
}

// restarts returns what of a configuration a reload does not change.
func restarts(c *config.Config) string {
	return fmt.Sprintf("%+v %q %q %q", c.Ledger, c.Serve.Listen, c.Serve.Metrics, c.Serve.Traces)
}

// loadVendors returns the vendor identities. One that has not changed stays as it is, with its open key. The active one must
// have a chain; another one without is left out.
func (job *serveJob) loadVendors(ctx context.Context, s *settings) (map[string]servedVendor, error) {
	all := map[string]servedVendor{}
	for _, one := range identities(s) {
		v, err := job.loadVendor(ctx, one)
		switch {
		case err == nil:
			all[one.vendor] = v
		case one.vendor == s.vendor:
			return nil, err
		default:
			job.log.Warn("a vendor identity cannot be used", "vendor", one.vendor, "error", console.ErrorLine(err))
		}
	}
	return all, nil
}

// servedProfile is a signer of profiles and what it was made of.
type servedProfile struct {
	*agent.ProfileSigner
	from config.ProfileIdentity
}

// loadProfiles returns the identities that sign profiles. One that has not changed stays as it is, with its open key. One that cannot be
// used is left out: CSRs are signed without it.
func (job *serveJob) loadProfiles(ctx context.Context, s *settings) (map[string]servedProfile, error) {
	all := map[string]servedProfile{}
	for name, from := range s.config.Profiles {
		signer, err := s.newProfileSigner(ctx, name, func(cfg *agent.ProfileConfig) {
			cfg.SignTimeout, cfg.Recorder = serveSignTimeout, job.ledger
		})
		before, known := job.profiles[name]
		switch {
		case err != nil && fault.KindOf(err) == fault.Usage: // the key of a vendor
			return nil, fmt.Errorf("profiles: %s: %w", name, err)
		case err != nil:
			job.log.Warn("an identity for profiles cannot be used", "profile", name, "error", console.ErrorLine(err))
		case known && reflect.DeepEqual(before.from, from) && slices.EqualFunc(before.Chain(), signer.Chain(), (*x509.Certificate).Equal):
			all[name] = before
		default:
			all[name] = servedProfile{signer, from}
		}
	}
	return all, nil
}

func (job *serveJob) loadVendor(ctx context.Context, s *settings) (servedVendor, error) {
	key, err := s.key("vendor key")
	if err != nil {
		return servedVendor{}, err
	}
	cfg, err := s.vendorConfig(key)
	if err != nil {
		return servedVendor{}, err
	}
	cfg.SignTimeout, cfg.Recorder = serveSignTimeout, serviceLedger{job.ledger}
	v, err := agent.NewVendor(ctx, cfg)
	if err != nil {
		return servedVendor{}, err
	}
	if before, ok := job.vendors[s.vendor]; ok && reflect.DeepEqual(before.from, s.identity) && before.Chain().PEM() == v.Chain().PEM() {
		return before, nil
	}
	return servedVendor{v, s.identity}, nil
}

// due implements server.Config.Due.
func (job *serveJob) due(ctx context.Context, now time.Time) ([]server.Due, error) {
	return job.s.Load().dueItems(ctx, job.ledger, now, now)
}
