package server

import (
	"context"
	"crypto"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"hsmsign/agent"
	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/api/ledgerapi"
	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/request"
	"hsmsign/server/notify"
)

// retryPause is the time after a failed signature in which a look at the request does not try again: each try is an entry.
const retryPause = 5 * time.Second

// listPending answers GET /v1/pending.
func (c *call) listPending() error {
	values := c.r.URL.Query()
	if err := onlyQuery(values, "before", "limit"); err != nil {
		return err
	}
	limit, err := number(values, "limit", 100, 1, 1000)
	if err != nil {
		return err
	}
	before, err := number(values, "before", 0, 0, math.MaxInt)
	if err != nil {
		return err
	}
	found, next, err := c.cfg.Ledger.Pending(c.r.Context(), int64(before), limit, c.seesRequest)
	if err != nil {
		return err
	}
	list := api.List[api.Request]{Items: make([]api.Request, 0, len(found))}
	for _, r := range found {
		list.Items = append(list.Items, c.describe(r))
	}
	if next > 0 {
		list.Next = nextPage(c.r.URL, "before", strconv.FormatInt(next, 10))
	}
	return c.json(http.StatusOK, list)
}

// seesRequest returns whether the caller may know of a request: it may read or ask for those of the customer, or has asked for this one,
// or may approve it.
func (c *call) seesRequest(r *ledger.RequestRecord) bool {
	return c.reads(r) || r.Approval != nil && (r.Approval.Caller == c.who.Name || c.decides(r))
}

// reads returns whether the caller may have the file of a request.
func (c *call) reads(r *ledger.RequestRecord) bool {
	caller := c.cred.Caller
	if r.Customer == "" { // about no customer, or about one that was erased
		return false
	}
	return caller.Role.Allows(policy.Sign) && caller.Role.Covers(r.Customer) || caller.Read(r.Customer)
}

// decides returns whether the caller's role approves what was asked; whether this person may, is another question.
func (c *call) decides(r *ledger.RequestRecord) bool {
	role := c.cred.Caller.Role
	unfreeze := r.Approval.Freeze.Scope != ""
	return role.Allows(policy.Approve) && role.Covers(r.Customer) && (unfreeze || role.Uses(r.Approval.Vendor))
}

// describe describes a request, with how many people have approved it, of those that count now.
func (c *call) describe(r ledger.RequestRecord) api.Request {
	shown := ledgerapi.NewRequest(r)
	if a := r.Approval; a != nil {
		have, _ := c.state.Policy.Count(a.Asked, r.Customer, a.Given, a.Need)
		shown.Approval = ledgerapi.NewApproval(r, have)
	}
	return shown
}

// whole describes one request: also its CSR, if others must approve it, and the file, if the caller may have it.
func (c *call) whole(r *ledger.RequestRecord) (api.Request, error) {
	if !c.reads(r) {
		r.File = nil
	}
	shown := c.describe(*r)
	if r.Approval == nil || r.CSRDER == nil {
		return shown, nil
	}
	csr, err := request.DecodeCSR(r.CSRDER)
	if err != nil {
		return shown, err
	}
	shown.Subject, shown.CSR = api.Name(csr.Parsed.Subject), pemCSR(r.CSRDER)
	if c.reads(r) || c.decides(r) {
		shown.Previous, err = c.previous(r)
	}
	return shown, err
}

// previous describes the CSR of the customer that was signed last before a request was asked for; nil if there is none.
func (c *call) previous(r *ledger.RequestRecord) (*api.PreviousCSR, error) {
	before, err := c.cfg.Ledger.Previous(c.r.Context(), r)
	if err != nil || before == nil {
		return nil, err
	}
	csr, err := request.DecodeCSR(before.CSRDER)
	if err != nil {
		return nil, err
	}
	return &api.PreviousCSR{
		Request: before.ID.String(), Begun: api.Time(before.Begun), Subject: api.Name(csr.Parsed.Subject), CSRSHA256: before.CSR.String(), KeySHA256: before.SPKI.String(),
		CSR: pemCSR(before.CSRDER),
	}, nil
}

func pemCSR(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// approve answers POST /v1/requests/{id}/approve.
func (c *call) approve() error { return c.decide(true) }

// reject answers POST /v1/requests/{id}/reject.
func (c *call) reject() error { return c.decide(false) }

// decide records a decision. The last approval issues the request.
func (c *call) decide(approve bool) error {
	found, err := c.requestOf(c.r.PathValue("id"))
	if err != nil {
		return err
	}
	var order api.Decision
	if err := c.decode(&order); err != nil {
		return err
	}
	shown := record.Shown{Customer: order.Customer, Vendor: order.Vendor, Scope: order.Scope, Name: order.Name}
	if order.CSRSHA256 != "" {
		if shown.CSR, err = record.ParseHash(order.CSRSHA256); err != nil {
			return err
		}
	}
	c.request = found.ID.String()
	err = c.cfg.Ledger.Decide(c.r.Context(), record.Decision{
		Request: found.ID, Approve: approve, Shown: shown, Reason: order.Reason, Actor: c.who.Name, Channel: c.who.Channel, Credential: c.cred.Name,
		Person: c.cred.Caller.Person, Policy: c.state.Policy.Hash(), Approvers: c.state.Policy, Allowed: c.cred.Approves,
	})
	if err != nil {
		return err
	}
	if found, err = c.cfg.Ledger.Request(c.r.Context(), found.ID); err != nil {
		return err
	}
	return c.showDecided(found)
}

// showDecided tries to issue what enough people have approved, and answers with the request: with status 202 while it waits.
func (c *call) showDecided(found *ledger.RequestRecord) error {
	again, problem, err := c.tryIssue(found)
	if err != nil {
		return err
	}
	shown, err := c.whole(again)
	if err != nil {
		return err
	}
	shown.Problem = problem
	status := http.StatusOK
	if again.State == record.KindPending || again.State == record.KindApproved || problem != nil {
		status = http.StatusAccepted
	}
	return c.json(status, shown)
}

// tryIssue issues a request that enough people have approved, unless it was tried just now, and returns how it is then. problem says
// why it was not issued.
func (c *call) tryIssue(found *ledger.RequestRecord) (again *ledger.RequestRecord, problem *api.Problem, err error) {
	if !c.triable(found) {
		return found, nil, nil
	}
	err = c.issueFor(found)
	if waiting, ok := errors.AsType[*record.Waiting](err); ok {
		c.reason, err = waiting, nil
	}
	if err != nil {
		told := c.problem(err)
		problem = &told
	}
	again, err = c.cfg.Ledger.Request(c.r.Context(), found.ID)
	return again, problem, err
}

// triable returns whether a look at a request may issue it.
func (c *call) triable(r *ledger.RequestRecord) bool {
	a, now := r.Approval, c.cfg.Now()
	if a == nil || a.Freeze.Scope != "" || a.Expired || len(a.Given) == 0 {
		return false
	}
	if r.Actor != c.who.Name && c.cred.Approves(a.Asked, r.Customer) != nil {
		return false
	}
	switch r.State {
	case record.KindApproved:
		return true
	case record.KindFailed, record.KindUnknown, record.KindRefused:
		return now.Sub(r.Changed) >= retryPause
	}
	return false
}

// issueFor issues a request for its requester, from the CSR that the ledger has. Every rule applies again as it is now: those of
// the requester, its program, and those of the ledger, which counts the approvals.
func (c *call) issueFor(r *ledger.RequestRecord) error {
	a := r.Approval
	requester, err := c.state.Policy.Caller(a.Caller)
	if err != nil {
		return fault.Forbidden.Errorf("the caller who asked is no longer in the configuration").Rule(policy.RulePerson).Fix("let it be asked for again")
	}
	vendor := c.state.Vendors[a.Vendor]
	if vendor == nil {
		return fault.Conflict.Errorf("the service has no vendor identity %q", a.Vendor).Fix("let it be asked for again with another one")
	}
	who := agent.Caller{Name: a.Caller, Channel: a.Channel, Credential: a.Credential, Rules: requester, Paced: true}
	order := agent.Order{CSR: r.CSRDER, Customer: r.Customer}
	if r.Digest == crypto.SHA1.String() {
		order.Digest = crypto.SHA1
	}
	prepared, err := vendor.Prepare(c.r.Context(), who, order)
	if err != nil {
		return err
	}
	if record.SHA256(prepared.CSR.DER) != r.CSR {
		return fault.Defects.Errorf("the stored CSR of the request %s is not the one that was asked for", r.ID).Fix("verify the ledger")
	}
	c.csr = r.CSR
	c.r = c.r.WithContext(agent.WithObserver(c.r.Context(), c.observer(func() string { return vendor.Backend() })))
	leave, err := c.queue.enter(c.r.Context(), a.Caller)
	if err != nil {
		return err
	}
	defer leave()
	_, err = vendor.Issue(c.r.Context(), prepared)
	c.notifier.Wake() // a mail may wait for it
	return err
}

// wait answers with what other people must approve first.
func (c *call) wait(result api.SignResult, waiting *record.Waiting) error {
	found, err := c.cfg.Ledger.Request(c.r.Context(), waiting.ID)
	if err != nil {
		return err
	}
	c.notifier.Wake()
	c.request = waiting.ID.String()
	c.w.Header().Set("Location", "/v1/requests/"+c.request)
	c.w.Header().Set("Retry-After", strconv.Itoa(int(retryPause/time.Second)))
	result.Status, result.RequestID, result.Approval = api.StatusPending, c.request, c.describe(*found).Approval
	return c.json(http.StatusAccepted, result)
}

// waits returns nil if what a notice is about still waits for people, and an error that wraps notify.ErrNever if it does not: it was
// decided, has expired, or is nothing that the ledger knows.
func (s *Server) waits(ctx context.Context, m ledger.Message) error {
	found, err := s.cfg.Ledger.Request(ctx, m.About)
	if fault.KindOf(err) == fault.NotFound {
		return fmt.Errorf("%w: %w", notify.ErrNever, err)
	}
	if err != nil {
		return err
	}
	if a := found.Approval; a != nil && (found.State == record.KindPending || found.State == record.KindApproved) {
		if _, enough := s.state.Load().Policy.Count(a.Asked, found.Customer, a.Given, a.Need); !enough {
			return nil
		}
	}
	return fmt.Errorf("%w: %s is %s", notify.ErrNever, m.About, found.State)
}
