package main

import (
	"context"
	"runtime"
	"time"

	"hsmsign/agent"
	"hsmsign/api/ledgerapi"
	"hsmsign/client"
	"hsmsign/fault"
	"hsmsign/keystore"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/request"
)

// issuer makes requests: with the vendor's key that this machine has access to, or through a service.
type issuer interface {
	// prepare checks an order without a key.
	prepare(ctx context.Context, order agent.Order) (preparedRequest, error)
	// open opens the key, before the first request of a batch.
	open(ctx context.Context) error
	// workers returns how many requests of a batch can be in flight.
	workers(ctx context.Context) (int, error)
	// look returns nil if a request that others must approve may be issued now, the error of Issue if it still waits, and another
	// error if it never will be issued.
	look(ctx context.Context, id string) error
	close()
}

// preparedRequest is an order that passed the checks of its issuer.
type preparedRequest interface {
	csr() *request.CSR
	// matches returns whether data is the request that issue would return, and until when it can be used.
	matches(ctx context.Context, data []byte) (useBefore time.Time, is bool, err error)
	issue(ctx context.Context) (*issuedRequest, error)
}

// issuedRequest is a signed request.
type issuedRequest struct {
	file      []byte
	id        string // in the ledger; "" without one
	customer  string
	useBefore time.Time
	receipt   []byte // nil: none was asked for
}

// localIssuer signs with the vendor's key.
type localIssuer struct {
	vendor      *agent.Vendor
	caller      agent.Caller
	ledger      *ledger.Ledger // nil: nothing is recorded
	closeLedger func()
	receipt     bool
	inFlight    int
	hint        string // for a caller whose role does not allow it
}

// newLocalIssuer opens the ledger, if there is one, and reads the vendor's chain.
func (job *signJob) newLocalIssuer(ctx context.Context, s *settings) (*localIssuer, error) {
	key, err := s.key("vendor key")
	if err != nil {
		return nil, err
	}
	// More workers than cores: while some wait for the disk, others sign.
	l := &localIssuer{receipt: job.receipt, closeLedger: func() {}, inFlight: key.InFlight(4 * runtime.GOMAXPROCS(0))}
	if s.config.Agent.URL != "" {
		l.hint = "sign through the service: --agent " + s.config.Agent.URL + ", without the flags of the local key"
	}
	cfg, err := s.vendorConfig(key)
	if err != nil {
		return nil, err
	}
	cfg.SignTimeout = job.timeout
	if err := l.record(ctx, job, s, &cfg); err != nil {
		return nil, l.refusal(err)
	}
	if l.vendor, err = agent.NewVendor(ctx, cfg); err != nil {
		l.closeLedger()
		return nil, err
	}
	cert, _ := s.str("cert")
	job.p.con.Warnings(keystore.Redact(cert), l.vendor.Chain().Findings)
	return l, nil
}

// record opens the ledger, if there is one, as the recorder of the vendor.
func (l *localIssuer) record(ctx context.Context, job *signJob, s *settings, cfg *agent.Config) error {
	if reference, _ := s.str("ledger"); reference == "" {
		if job.receipt {
			return fault.Usage.Errorf("--receipt without a ledger").Fix("name it with --ledger")
		}
		_, err := s.policy() // callers need a ledger
		return err
	}
	var err error
	if l.caller, err = s.caller(); err != nil {
		return err
	}
	if l.caller.Rules != nil {
		job.order.Customer = orDefault(job.order.Customer, l.caller.Rules.Customer)
	}
	if err := job.checkReceipt(); err != nil {
		return err
	}
	if job.order.Customer == "" {
		return fault.Usage.Errorf("no customer given, and the ledger records one for each request").Fix("name the customer with --customer")
	}
	opened, done, err := job.p.openLedger(ctx, s, true)
	if err != nil {
		return err
	}
	l.ledger, l.closeLedger, cfg.Recorder = opened, done, opened
	l.inFlight = max(l.inFlight, recording) // many share one commit
	return nil
}

// refusal returns an error with the hint at the service if the policy refuses what the service may allow.
func (l *localIssuer) refusal(err error) error {
	if kind := fault.KindOf(err); l.hint != "" && (kind == fault.Forbidden || kind == fault.Unauthenticated) {
		hint := fault.Hint(err)
		if hint != "" {
			hint += "; or "
		}
		return fault.WithHint(err, hint+l.hint)
	}
	return err
}

func (l *localIssuer) open(ctx context.Context) error { return l.vendor.Open(ctx) }

func (l *localIssuer) workers(context.Context) (int, error) { return l.inFlight, nil }

// look reads the entries only: nothing is asked again while nobody has decided.
func (l *localIssuer) look(ctx context.Context, text string) error {
	id, err := record.ParseID(text)
	if err != nil {
		return err
	}
	found, err := l.ledger.Request(ctx, id)
	if err != nil {
		return err
	}
	switch found.State {
	case record.KindPending, record.KindRejected, record.KindExpired:
		shown := ledgerapi.NewRequest(*found)
		shown.Approval = ledgerapi.NewApproval(*found, 0)
		return client.Outcome(&shown)
	}
	return nil
}

func (l *localIssuer) close() {
	l.vendor.Close()
	l.closeLedger()
}

// localRequest is a preparedRequest of a localIssuer.
type localRequest struct {
	*localIssuer
	prepared *agent.Prepared
}

func (l *localIssuer) prepare(ctx context.Context, order agent.Order) (preparedRequest, error) {
	prepared, err := l.vendor.Prepare(ctx, l.caller, order)
	if err != nil {
		return nil, err
	}
	return localRequest{l, prepared}, nil
}

func (r localRequest) csr() *request.CSR { return r.prepared.CSR }

func (r localRequest) matches(_ context.Context, data []byte) (time.Time, bool, error) {
	return r.prepared.UseBefore(), r.prepared.Matches(data), nil
}

func (r localRequest) issue(ctx context.Context) (*issuedRequest, error) {
	issued, err := r.vendor.Issue(ctx, r.prepared)
	if err != nil {
		return nil, r.refusal(err)
	}
	done := &issuedRequest{file: issued.Request, id: issued.RequestID, customer: r.prepared.Order.Customer, useBefore: r.prepared.UseBefore()}
	if !r.receipt {
		return done, nil
	}
	id, err := record.ParseID(issued.RequestID)
	if err != nil {
		return nil, err
	}
	done.receipt, err = r.ledger.Prove(ctx, id)
	return done, err
}
