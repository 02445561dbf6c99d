package main

import (
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/config"
	"hsmsign/fault"
	"hsmsign/server"
	"hsmsign/server/authn"
	"hsmsign/server/authn/awsiam"
	"hsmsign/server/traces"
)

// accepted are the credentials that a listener accepts, by its kind.
var accepted = map[string]string{authn.TLS: "client certificates and tokens", authn.Unix: "Unix users", authn.HTTP: "tokens"}

// serveAddresses reads serve: listen, and refuses a configuration that no service can have.
func (s *settings) serveAddresses() (all []server.Address, err error) {
	for _, text := range s.config.Serve.Listen {
		a, err := server.ParseAddress(text)
		if err != nil {
			return nil, fmt.Errorf("%s: serve: %w", s.path, err)
		}
		if slices.Contains(all, a) {
			return nil, fault.Usage.Errorf("%s: serve: listen: %s is there twice", s.path, a).Fix("remove one")
		}
		all = append(all, a)
	}
	if url := s.config.Serve.Traces; url != "" {
		if err := traces.Check(url); err != nil {
			return nil, fmt.Errorf("%s: serve: %w", s.path, err)
		}
	}
	if err := awsiam.CheckEndpoint(s.config.Serve.AWS.STSEndpoint); err != nil {
		return nil, fmt.Errorf("%s: serve: aws: %w", s.path, err)
	}
	switch {
	case len(all) == 0:
		return nil, fault.Usage.Errorf("the configuration has no serve: listen").Fix("write serve: { listen: [ \"unix:///run/hsmsign/agent.sock\" ] }; see docs/service.md")
	case len(s.config.Callers) == 0:
		return nil, fault.Usage.Errorf("%s: serve without callers: nobody could ask", s.path).Fix("write callers: and roles:; see docs/service.md")
	}
	return all, nil
}

// serves returns whether the configuration is one of a service.
func (s *settings) serves() bool {
	c := s.config.Serve
	return len(c.Listen) > 0 || c.TLS != (config.TLS{}) || c.CRL != "" || c.Metrics != "" || c.Traces != "" || len(c.Hosts) > 0 || c.DropIn != (config.DropIn{}) || c.AWS != (config.AWS{}) || c.Console || len(c.ConsoleOIDC) > 0
}

// serveSettings returns the settings of a service, each in words; nil if the configuration is not one of a service. The error is
// the one with which serve would refuse them.
func (s *settings) serveSettings() (infos []api.Setting, err error) {
	if !s.serves() {
		return nil, nil
	}
	addresses, err := s.serveAddresses()
	if err != nil {
		return nil, err
	}
	for _, a := range addresses {
		infos = append(infos, setting("listen", s.path, "", a.String()+": "+accepted[a.Kind]))
	}
	t, _, err := readTLS(s)
	if err == nil {
		err = t.Check(addresses)
	}
	if err != nil {
		return infos, err
	}
	if t != nil {
		leaf := t.Certificate.Leaf
		infos = append(infos, setting("tls", s.path, "", fmt.Sprintf("%q, valid until %s", leaf.Subject.String(), leaf.NotAfter.UTC().Format(time.DateOnly))))
	}
	from := s.config.Serve
	infos = append(infos, inFile("client-ca", s.path, from.TLS.ClientCA != "", []string{from.TLS.ClientCA}), inFile("crl", s.path, from.CRL != "", []string{from.CRL}))
	infos = append(infos, setting("hosts", s.path, "", server.Hosts(addresses, t, from.Hosts)...))
	return append(infos, inFile("metrics", s.path, from.Metrics != "", []string{from.Metrics}), inFile("traces", s.path, from.Traces != "", []string{from.Traces}),
		inFile("drop-in", s.path, from.DropIn != (config.DropIn{}), dropInNames(from.DropIn)),
		inFile("console", s.path, from.Console, s.signIns(addresses)),
		inFile("sts-endpoint", s.path, from.AWS.STSEndpoint != "", []string{from.AWS.STSEndpoint})), nil
}

// checkServe warns of what serve would accept and what nobody wants: an expired certificate, and callers that no listener accepts.
func (p *program) checkServe(s *settings) error {
	if !s.serves() {
		return nil
	}
	found, err := s.policy()
	if err != nil {
		return err
	}
	addresses, err := s.serveAddresses()
	if err != nil {
		return err
	}
	if _, err := s.dropIns(found, addresses); err != nil {
		return err
	}
	if err := s.checkConsole(addresses); err != nil {
		return err
	}
	t, _, err := readTLS(s)
	if err != nil {
		return err
	}
	if t != nil && time.Now().After(t.Certificate.Leaf.NotAfter) {
		p.con.Warnf("serve: the TLS certificate expired on %s", t.Certificate.Leaf.NotAfter.UTC().Format(time.DateOnly))
	}
	if found.Asks() && !s.notifies() {
		p.con.Warnf("nobody is told what waits for approval; hsmsign pending lists it; to tell people, write notify: with smtp: to, or with webhook")
	}
	return s.warnOfUnusable(found, p.warn)
}

// notifies returns whether the service tells people what waits for approval.
func (s *settings) notifies() bool {
	return s.config.Notify.Webhook.URL != "" || len(s.config.Notify.SMTP.To) > 0
}

// checkServedKey refuses a TLS certificate with the key of the vendor's certificate.
func (s *settings) checkServedKey(vendor *x509.Certificate) error {
	if !s.serves() {
		return nil
	}
	t, _, err := readTLS(s)
	if err != nil {
		return err
	}
	return t.Check(nil, vendor)
}

// warnOfUnusable warns of each caller that has no credential which a listener accepts.
func (s *settings) warnOfUnusable(found *policy.Policy, warn func(message string)) error {
	addresses, err := s.serveAddresses()
	if err != nil {
		return err
	}
	for _, name := range found.Names() {
		c, err := found.Caller(name)
		if err != nil {
			return err
		}
		if !s.usable(s.config.Callers[name], c, addresses) {
			warn(fmt.Sprintf("caller %s has no credential that a listener of the service accepts", name))
		}
	}
	return nil
}

// usable returns whether a listener accepts a credential of a caller.
func (s *settings) usable(from policy.CallerConfig, c *policy.Caller, addresses []server.Address) bool {
	token := from.AWS != (policy.AWSConfig{}) || slices.ContainsFunc(c.Credentials(time.Now()), func(l policy.Listed) bool { return l.State == policy.StateValid || l.Claims != nil })
	certificate := len(from.ClientCert.SPKI) > 0 || len(from.ClientCert.SAN) > 0 && s.config.Serve.TLS.ClientCA != ""
	return slices.ContainsFunc(addresses, func(a server.Address) bool {
		return a.Kind == authn.TLS && (token || certificate) || a.Kind == authn.HTTP && token || a.Kind == authn.Unix && len(from.UID) > 0
	})
}
