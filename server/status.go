package server

import (
	_ "embed"
	"net/http"
	"slices"

	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/ledger/record"
	"hsmsign/request"
)

// openapi describes the API (OpenAPI 3.1). A test compares it with the routes and with what they answer.
//
//go:embed openapi.yaml
var openapi []byte

// openAPI answers GET /v1/openapi.yaml.
func (c *call) openAPI() error {
	c.w.Header().Set("Content-Type", "application/yaml")
	c.send(http.StatusOK, openapi)
	return nil
}

// verify answers POST /v1/verify.
func (c *call) verify() error {
	data, err := c.body()
	if err != nil {
		return err
	}
	roots := c.state.Roots
	now := c.cfg.Now()
	return c.json(http.StatusOK, api.NewVerifyResult("", request.Verify(data, request.VerifyOptions{TrustRoots: roots, Now: now}), now))
}

// vendor answers GET /v1/vendor: the identities that the caller may use.
func (c *call) vendor() error {
	list := api.List[api.Vendor]{Items: []api.Vendor{}}
	for _, name := range c.state.names() {
		if !c.cred.Caller.Role.Uses(name) {
			continue
		}
		identity := c.state.Vendors[name]
		shown := api.NewVendor(name, name == c.state.Active, identity.Chain().Certs, c.cfg.Now())
		shown.Findings = identity.Chain().Findings
		if c.cred.Caller.Role.Allows(policy.Read) {
			shown.Backend, shown.Signed = identity.Backend(), api.Time(identity.LastSignature())
		}
		list.Items = append(list.Items, shown)
	}
	return c.json(http.StatusOK, list)
}

// me answers GET /v1/me: who the caller is, and what it may.
func (c *call) me() error {
	caller := c.cred.Caller
	me := api.Me{
		Caller: caller.Name, Credential: c.cred.Name, Person: caller.Person, Owners: caller.Owners, Customer: caller.Customer, Channel: c.who.Channel,
		Role: caller.Role.Name, May: caller.Role.May, Customers: append([]string{}, caller.Role.Customers...), Explanation: caller.Role.Explain(),
	}
	if caller.Role.Allows(policy.Sign) {
		used, err := c.cfg.Ledger.Today(c.r.Context(), caller.Name)
		if err != nil {
			return err
		}
		left := max(caller.Role.PerDay-used, 0)
		me.PerSecond, me.PerDay, me.Left = caller.Role.PerSecond, caller.Role.PerDay, &left
	}
	var err error
	if me.Frozen, err = c.frozen(); err != nil {
		return err
	}
	return c.json(http.StatusOK, me)
}

// status answers GET /v1/status.
func (c *call) status() error {
	if !c.cred.Caller.Role.Allows(policy.Read) {
		return c.forbidden("read the status")
	}
	head, err := c.cfg.Ledger.Head(c.r.Context())
	if err != nil {
		return err
	}
	s := api.ServiceStatus{
		Replica: c.cfg.Replica, Replicas: []api.Replica{}, Ready: c.health.ready(c.Server) == nil, Policy: record.Hash(c.state.Policy.Hash()).String(),
		Ledger: api.LedgerHead{Origin: head.Origin, Entries: head.Size, Root: record.Hash(head.Root).String()},
	}
	if err := c.health.ready(c.Server); err != nil {
		s.NotReady = api.NewError(err)
	}
	s.Running, s.Waiting = c.queue.load()
	replicas, err := c.cfg.Ledger.Replicas(c.r.Context())
	if err != nil {
		return err
	}
	for _, r := range replicas {
		s.Replicas = append(s.Replicas, api.Replica{Name: r.Name, Policy: r.Policy.String(), Seen: api.Time(r.Seen)})
	}
	if s.Frozen, err = c.frozen(); err != nil {
		return err
	}
	return c.json(http.StatusOK, s)
}

// identity returns the name of the identity with a vendor certificate; "" if it is not one of the state's.
func (st *State) identity(vendor record.Hash) string {
	for name, v := range st.Vendors {
		if record.SHA256(v.Chain().Leaf().Raw) == vendor {
			return name
		}
	}
	return ""
}

// names returns the names of the vendor identities, sorted.
func (st *State) names() (names []string) {
	for name := range st.Vendors {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
