package server

import (
	"context"
	"errors"
	"net/http"

	"hsmsign/api"
	"hsmsign/api/ledgerapi"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

// freeze answers POST /v1/freeze.
func (c *call) freeze() error { return c.setFreeze(c.cfg.Ledger.Freeze) }

// unfreeze answers POST /v1/unfreeze.
func (c *call) unfreeze() error { return c.setFreeze(c.cfg.Ledger.Unfreeze) }

// setFreeze changes what is frozen, and answers with everything that is.
func (c *call) setFreeze(set func(ctx context.Context, actor, channel string, f ledger.Freeze) error) error {
	var asked api.FreezeOrder
	if err := c.decode(&asked); err != nil {
		return err
	}
	f := ledger.Freeze{Scope: asked.Scope, Name: asked.Name, Reason: asked.Reason}
	if err := c.cred.Caller.Freezes(f.Customer()); err != nil {
		return err
	}
	f.Ask = c.cred.Ask()
	err := set(c.r.Context(), c.who.Name, c.who.Channel, f)
	if waiting, ok := errors.AsType[*record.Waiting](err); ok {
		return c.waitUnfreeze(waiting)
	}
	if err != nil {
		return err
	}
	frozen, err := c.frozen()
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, api.List[api.Freeze]{Items: frozen})
}

// waitUnfreeze answers with the end of a freeze that other people must approve first.
func (c *call) waitUnfreeze(waiting *record.Waiting) error {
	c.notifier.Wake()
	found, err := c.cfg.Ledger.Request(c.r.Context(), waiting.ID)
	if err != nil {
		return err
	}
	c.request = waiting.ID.String()
	c.w.Header().Set("Location", "/v1/requests/"+c.request)
	return c.json(http.StatusAccepted, c.describe(*found))
}

// frozen returns what is frozen, as far as the caller may see it.
func (c *call) frozen() ([]api.Freeze, error) {
	found, err := c.cfg.Ledger.Freezes(c.r.Context())
	if err != nil {
		return nil, err
	}
	all := []api.Freeze{}
	everything := c.cred.Caller.Role.Covers("")
	for _, f := range found {
		own := f.Scope == ledger.FreezeVendor && c.cred.Caller.Role.Uses(f.Name) || f.Scope == ledger.FreezeCaller && f.Name == c.who.Name || f.Scope == ledger.FreezeCustomer && c.cred.Caller.Role.Covers(f.Name)
		if everything || own || f.Scope == ledger.FreezeAll {
			all = append(all, ledgerapi.NewFreeze(f))
		}
	}
	return all, nil
}
