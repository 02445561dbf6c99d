package server

import (
	"context"
	"net/http"
	"sync"
	"time"

	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/api/ledgerapi"
)

// Due is something that has to be done; see the command ledger due.
type Due = ledgerapi.Due

// duesFor is how long what is due is not read again: it asks TLS endpoints and reads files.
const duesFor = time.Minute

// dues is what is due. It is safe for concurrent use.
type dues struct {
	mu   sync.Mutex // held while it is read: the others wait for that
	at   time.Time
	list []Due
}

// due returns what is due, at most duesFor old.
func (s *Server) due(ctx context.Context) ([]Due, error) {
	s.dues.mu.Lock()
	defer s.dues.mu.Unlock()
	now := s.cfg.Now()
	if !s.dues.at.IsZero() && now.Sub(s.dues.at) < duesFor {
		return s.dues.list, nil
	}
	list, err := s.cfg.Due(ctx, now)
	if err == nil {
		s.dues.at, s.dues.list = now, list
	}
	return list, err
}

// listDue answers GET /v1/due.
func (c *call) listDue() error {
	values := c.r.URL.Query()
	if err := onlyQuery(values, "within"); err != nil {
		return err
	}
	if !c.cred.Caller.Role.Allows(policy.Read) {
		return c.forbidden("read what is due")
	}
	within, err := number(values, "within", 30, 0, 3650)
	if err != nil {
		return err
	}
	found, err := c.due(c.r.Context())
	if err != nil {
		return err
	}
	before := c.cfg.Now().AddDate(0, 0, within)
	list := api.List[api.LedgerDue]{Items: []api.LedgerDue{}}
	for _, item := range found {
		if (item.Open || item.Deadline.Before(before)) && c.cred.Caller.Read(item.Customer) {
			list.Items = append(list.Items, item.LedgerDue)
		}
	}
	return c.json(http.StatusOK, list)
}

// alarmDays is how long before the date of an event its alarm is.
const alarmDays = 30

// calendar answers GET /v1/calendar: every date, as far as the caller may know of it.
func (c *call) calendar() error {
	values := c.r.URL.Query()
	if err := onlyQuery(values, "customer"); err != nil {
		return err
	}
	caller, only := c.cred.Caller, values.Get("customer")
	if !caller.Role.Allows(policy.Read) {
		return c.forbidden("read what is due")
	}
	if only != "" {
		if !caller.Read(only) {
			return noSuchCustomer(only)
		}
		if _, err := c.cfg.Ledger.Customers(c.r.Context(), only); err != nil {
			return err
		}
	}
	found, err := c.due(c.r.Context())
	if err != nil {
		return err
	}
	var items []Due
	for _, item := range found {
		if caller.Read(item.Customer) && (only == "" || item.Customer == only) {
			items = append(items, item)
		}
	}
	c.w.Header().Set("Content-Type", "text/calendar; charset=utf-8")
	c.w.Header().Set("Content-Disposition", `attachment; filename="due.ics"`)
	c.send(http.StatusOK, ledgerapi.Calendar(c.cfg.Ledger.Origin(), items, alarmDays, c.cfg.Now()))
	return nil
}
