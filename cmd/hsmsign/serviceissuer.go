package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"strings"
	"time"

	"hsmsign/agent"
	"hsmsign/api"
	"hsmsign/client"
	"hsmsign/fault"
	"hsmsign/request"
)

const (
	// serviceWorkers is how many requests of a batch are in flight with a service, which has a limit for each caller.
	serviceWorkers = 64
	// workersEach is how many requests are in flight for each that the role allows a second: more would only wait.
	workersEach = 4
)

// serviceIssuer has a service sign.
type serviceIssuer struct {
	client  *client.Client
	order   api.SignOrder // without the CSR
	timeout time.Duration // of one CSR, with every retry
}

func (job *signJob) newServiceIssuer(s *settings, url string) (*serviceIssuer, error) {
	if err := job.checkReceipt(); err != nil {
		return nil, err
	}
	c, err := job.p.agentClient(s, url, job.timeout)
	if err != nil {
		return nil, err
	}
	if ignored := s.ignored(); len(ignored) > 0 {
		job.p.con.Infof("%s signs; ignored settings of the configuration and the environment: %s", url, strings.Join(ignored, ", "))
	}
	return &serviceIssuer{c, api.SignOrder{
		Customer: job.order.Customer, Vendor: s.agentVendor(), Format: string(job.order.Format), Receipt: job.receipt,
	}, job.timeout}, nil
}

// ignored returns the names of the settings that a service does not use.
func (s *settings) ignored() (names []string) {
	for _, name := range localFlags() {
		if values, _ := s.list(name); slices.ContainsFunc(values, func(value string) bool { return value != "" }) {
			names = append(names, name)
		}
	}
	if digest, _ := s.str("digest"); digest == "sha1" {
		names = append(names, "digest")
	}
	return names
}

func (i *serviceIssuer) open(context.Context) error { return nil }

// workers asks the service how many requests a second it accepts.
func (i *serviceIssuer) workers(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, i.timeout)
	defer cancel()
	me, err := i.client.Me(ctx)
	if err != nil {
		return 0, err
	}
	return max(1, min(serviceWorkers, workersEach*me.PerSecond)), nil
}

func (i *serviceIssuer) look(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, i.timeout)
	defer cancel()
	_, err := i.client.Look(ctx, id)
	return err
}

func (i *serviceIssuer) close() { i.client.Close() }

// serviceRequest is a preparedRequest of a serviceIssuer.
type serviceRequest struct {
	*serviceIssuer
	parsed *request.CSR
	order  api.SignOrder
}

// prepare checks the CSR as the service does, so that what it would refuse is not sent.
func (i *serviceIssuer) prepare(ctx context.Context, order agent.Order) (preparedRequest, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	csr, err := request.DecodeCSR(order.CSR)
	if err != nil {
		return nil, err
	}
	r := &serviceRequest{i, csr, i.order}
	r.order.CSR = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr.DER}))
	return r, nil
}

func (r *serviceRequest) csr() *request.CSR { return r.parsed }

// matches compares data with the stored request. If there is none, nothing is signed for the comparison.
func (r *serviceRequest) matches(ctx context.Context, data []byte) (time.Time, bool, error) {
	within, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	checked, err := r.client.Check(within, r.order)
	if err != nil || checked.Status != api.StatusStored {
		return time.Time{}, false, r.explain(err)
	}
	stored, err := r.issue(ctx)
	if err != nil {
		return time.Time{}, false, err
	}
	return stored.useBefore, bytes.Equal(stored.file, data), nil
}

func (r *serviceRequest) issue(ctx context.Context) (*issuedRequest, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	result, err := r.client.Sign(ctx, r.order)
	if err != nil {
		return nil, r.explain(err)
	}
	done := &issuedRequest{file: []byte(result.Request), id: result.RequestID, customer: result.Customer}
	if result.Receipt != "" {
		done.receipt = []byte(result.Receipt)
	}
	done.useBefore, err = time.Parse(time.RFC3339, result.UseBefore)
	if err != nil || !r.isAnswer(done.file) {
		return nil, fault.Unavailable.Errorf("the answer of the service %s is not a request for this CSR", r.client).Fix("check that the address is that of hsmsign serve")
	}
	return done, nil
}

// explain returns an error of the service with a hint for the command line.
func (r *serviceRequest) explain(err error) error {
	if fault.KindOf(err) == fault.Usage && r.order.Customer == "" {
		return fault.WithHint(err, "name the customer with --customer")
	}
	return err
}

// isAnswer returns whether a file is a request for the CSR, signed with the first certificate of its chain. Whether the chain is
// Apple's is the service's business, and that of hsmsign verify.
func (r *serviceRequest) isAnswer(file []byte) bool {
	found, err := request.Parse(file)
	if err != nil || len(found.Chain) == 0 || !bytes.Equal(found.CSR, r.parsed.DER) {
		return false
	}
	leaf, err := x509.ParseCertificate(found.Chain[0])
	return err == nil && leaf.CheckSignature(x509.SHA256WithRSA, found.CSR, found.Signature) == nil
}
