package server

import (
	"crypto/tls"
	"crypto/x509"
	"maps"
	"slices"
	"time"

	"hsmsign/agent"
	"hsmsign/agent/policy"
	"hsmsign/fault"
	"hsmsign/server/authn"
	"hsmsign/server/authn/awsiam"
	"hsmsign/server/authn/oidc"
	"hsmsign/server/notify"
)

// State is what a reload replaces. It does not change.
type State struct {
	Policy  *policy.Policy
	Vendors map[string]*agent.Vendor // by name of the identity; "": the unnamed one
	Active  string                   // the identity that signs unless another one is asked for
	// Profiles are the identities that sign configuration profiles, by name; Profile is the one that signs unless another one is
	// asked for.
	Profiles map[string]*agent.ProfileSigner
	Profile  string
	Hosts    []string            // that a request may name, besides those of the addresses, localhost and the certificate
	Roots    []*x509.Certificate // that POST /v1/verify trusts in addition to Apple's
	TLS      *TLS                // nil without a TLS listener
	DropIn   DropIn              // the wire forms of other products that are answered
	OIDC     *oidc.Issuers       // of OIDC tokens; nil: there are none
	// Channels are the ways to people, for notices and answers.
	Channels notify.Channels
	Console  *Console         // pages for people; nil: there are none
	AWS      *awsiam.Verifier // for callers with an AWS identity; nil: there are none. A reload keeps it

	// Commit is called when the state is in force; nil: nobody has to know.
	Commit func()

	hosts   map[string]bool
	servers []string // the hosts that are names of this server alone
}

// TLS is the server's certificate, and the CAs of callers' certificates.
type TLS struct {
	Certificate tls.Certificate // with its Leaf
	Clients     *authn.Authorities
}

// check refuses a state that the service cannot use.
func (s *Server) check(next *State) error {
	next.hosts = allowedHosts(s.cfg.Listen, append(next.TLS.hosts(), next.Hosts...)...)
	next.servers = ownNames(next.hosts)
	if next.Vendors[next.Active] == nil {
		return fault.Usage.Errorf("there is no vendor identity %q", next.Active).Fix("write vendor: and the name of one")
	}
	if next.DropIn.MDMCert && next.Channels.Spool == "" && next.Channels.SMTP == nil {
		return fault.Usage.Errorf("the drop-in mdmcert without a place for its mails").Fix("write serve: { drop-in: { mdmcert: { spool: FOLDER } } }, or smtp: true with notify: smtp")
	}
	var vendors []*x509.Certificate
	for _, v := range next.Vendors {
		vendors = append(vendors, v.Chain().Leaf())
	}
	for name, signer := range next.Profiles {
		if err := agent.OtherUse("the profile identity "+name, signer.Chain()[0].PublicKey, vendors...); err != nil {
			return err
		}
	}
	return next.TLS.Check(s.cfg.Listen, vendors...)
}

// Check returns an error, of kind usage, if the certificate does not do for the addresses: there is none for a TLS listener, or it
// has the key of a vendor's certificate.
func (t *TLS) Check(listen []Address, vendors ...*x509.Certificate) error {
	for _, a := range listen {
		if a.Kind == authn.TLS && t == nil {
			return fault.Usage.Errorf("%s without a certificate", a).Fix("write serve: { tls: { cert: FILE, key: FILE } } in the configuration")
		}
	}
	if t == nil {
		return nil
	}
	return agent.OtherUse("the service's TLS certificate", t.Certificate.Leaf.PublicKey, vendors...)
}

// gone returns whether the caller of a connection is not one of the new state, or not with that connection.
func (s *Server) gone(next *State, conn authn.Connection, caller string) bool {
	if _, err := next.Policy.Caller(caller); err != nil {
		return true
	}
	found, err := next.checker(s.cfg.Now()).Connection(conn)
	return err != nil || found.Caller != nil && found.Caller.Name != caller
}

// profileNames returns the names of the identities that sign profiles, sorted.
func (st *State) profileNames() []string { return slices.Sorted(maps.Keys(st.Profiles)) }

func (st *State) checker(now time.Time) authn.Checker {
	c := authn.Checker{Policy: st.Policy, OIDC: st.OIDC, AWS: st.AWS, Servers: st.servers, Now: now}
	if st.TLS != nil {
		c.Clients = st.TLS.Clients
	}
	return c
}

// closeBut closes the vendors that another state does not have; nil: all.
func (st *State) closeBut(other *State) {
	for name, v := range st.Vendors {
		if other == nil || other.Vendors[name] != v {
			v.Close()
		}
	}
	for name, signer := range st.Profiles {
		if other == nil || other.Profiles[name] != signer {
			signer.Close()
		}
	}
}
