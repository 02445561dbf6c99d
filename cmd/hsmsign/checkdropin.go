package main

import (
	"slices"
	"strings"
	"time"

	"hsmsign/agent/policy"
	"hsmsign/config"
	"hsmsign/fault"
	"hsmsign/server"
	"hsmsign/server/authn"
)

// dropIns returns the wire forms of other products that the configuration switches on. Each needs a caller that can use it. The error
// is of kind usage.
func (s *settings) dropIns(found *policy.Policy, addresses []server.Address) (server.DropIn, error) {
	from := s.config.Serve.DropIn
	on := server.DropIn{Fleet: from.Fleet, Zentral: from.Zentral, MDMCert: from.MDMCert != config.MDMCert{}}
	for _, form := range []struct {
		name        string
		on          bool
		credentials []string // their names begin with one of these
		words       string
	}{
		{"fleet", on.Fleet, []string{"token "}, "a token"},
		{"zentral", on.Zentral, []string{"token ", "aws "}, "a token or an AWS identity"},
		{"mdmcert", on.MDMCert, []string{"token "}, "a token"},
	} {
		if form.on && !slices.ContainsFunc(found.Names(), func(name string) bool { return dropInCaller(found, name, form.credentials, addresses) }) {
			return on, fault.Usage.Errorf("%s: serve: drop-in: %s: no caller can use it: it needs %s, a role that may sign for the customer of the caller, and a tls or http listener", s.path, form.name, form.words).
				Fix("add a caller for each customer (docs/dropin.md shows one), or remove " + form.name)
		}
	}
	return on, nil
}

// dropInCaller returns whether a caller can use a wire form whose credentials have names that begin with one of the prefixes.
func dropInCaller(found *policy.Policy, name string, prefixes []string, addresses []server.Address) bool {
	c, err := found.Caller(name)
	if err != nil || !c.Role.Allows(policy.Sign) || !c.Role.Covers(orDefault(c.Customer, c.Name)) {
		return false
	}
	credential := slices.ContainsFunc(c.Credentials(time.Now()), func(l policy.Listed) bool {
		return (l.State == "" || l.State == policy.StateValid) && slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(l.Name, prefix) })
	})
	return credential && slices.ContainsFunc(addresses, func(a server.Address) bool { return a.Kind != authn.Unix })
}

// dropInNames returns the wire forms that are switched on, in words.
func dropInNames(from config.DropIn) (names []string) {
	for _, form := range []struct {
		name string
		on   bool
	}{{"fleet", from.Fleet}, {"zentral", from.Zentral}, {"mdmcert by SMTP", from.MDMCert.SMTP}, {"mdmcert into " + from.MDMCert.Spool, from.MDMCert.Spool != ""}} {
		if form.on {
			names = append(names, form.name)
		}
	}
	return names
}
