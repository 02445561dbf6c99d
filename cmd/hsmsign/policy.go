package main

import (
	"os"
	"os/user"
	"strconv"
	"strings"

	"hsmsign/agent"
	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/internal/input"
	"hsmsign/keystore"
)

// policy returns the policy of the configuration; nil if it has no callers.
func (s *settings) policy() (*policy.Policy, error) {
	if len(s.config.Callers) == 0 {
		if len(s.config.Roles) > 0 {
			return nil, fault.Usage.Errorf("%s: roles without callers", s.path).Fix("write who has them below callers:")
		}
		if len(s.config.OIDC) > 0 {
			return nil, fault.Usage.Errorf("%s: oidc without callers", s.path).Fix("write whose tokens they issue below callers:")
		}
		return nil, nil
	}
	if s.config.Ledger.Store == "" {
		return nil, fault.Usage.Errorf("%s: callers without a ledger", s.path).Fix("write ledger: and its reference; it counts and records what they ask for")
	}
	found, err := policy.New(s.config.Callers, s.config.Roles, policy.Environment{Vendors: s.vendorNames(), Facts: s.facts(), Issuers: s.issuers()})
	if err != nil {
		return nil, fault.Errorf("%s: %w", s.path, err)
	}
	return found, nil
}

// neededPolicy is policy for a command that needs callers.
func (s *settings) neededPolicy() (*policy.Policy, error) {
	found, err := s.policy()
	if err == nil && found == nil {
		return nil, fault.Usage.Errorf("the configuration has no callers").Fix("write them below callers: and roles:; hsmsign.example.yaml shows how")
	}
	return found, err
}

// caller returns the Unix user who runs the program, with its rules if the configuration has callers.
func (s *settings) caller() (agent.Caller, error) {
	uid := os.Getuid()
	c := agent.Caller{Name: "uid " + strconv.Itoa(uid), Channel: policy.Local}
	found, err := s.policy()
	if err != nil {
		return c, err
	}
	if found == nil {
		if u, err := user.Current(); err == nil {
			c.Name += " (" + u.Username + ")"
		}
		return c, nil
	}
	credential, err := found.UID(uid)
	if err != nil {
		return c, err
	}
	return agent.Caller{Name: credential.Caller.Name, Channel: policy.Local, Credential: credential.Name, Rules: credential.Caller}, nil
}

// manager returns the caller, who may change what is known of a customer.
func (s *settings) manager(customer string) (agent.Caller, error) {
	c, err := s.caller()
	if err == nil && c.Rules != nil {
		_, err = c.Rules.Manage(customer)
	}
	return c, err
}

// maxFact is the size of a certificate file whose content is part of the policy's hash.
const maxFact = 64 << 10

// facts are what the effective policy depends on besides callers and roles: the keys and certificates of the vendor
// identities, the trusted roots, the witnesses, and the CAs of issuers. They contain no secret. Files are part of it by their SHA-256.
func (s *settings) facts() map[string]string {
	facts := map[string]string{"witnesses required": strconv.Itoa(s.config.Ledger.Required)}
	for _, w := range s.config.Ledger.Witnesses {
		facts["witness "+w.Name] = w.Operator + " " + w.VerifierKey
	}
	for name, i := range s.config.OIDC {
		facts["oidc "+name+" ca"] = certificateFacts(i.CA)
	}
	for name, i := range s.config.Profiles {
		facts["profile "+name] = keystore.Redact(i.Key) + "\n" + certificateFacts(append([]string{i.Cert}, i.Chain...)...)
	}
	identities := []*settings{s}
	for _, name := range s.vendorNames() {
		if name != s.vendor {
			identities = append(identities, s.of(name))
		}
	}
	for _, identity := range identities {
		// Flags and variables are those of the chosen identity.
		key, cert, chain, roots := identity.identity.Key, identity.identity.Cert, identity.identity.Chain, identity.identity.TrustRoot
		if identity == s {
			key, _ = s.str("key")
			cert, _ = s.str("cert")
			chain, _ = s.list("chain")
			roots, _ = s.list("trust-root")
		}
		name := "vendor " + identity.vendor
		facts[name+" key"], facts[name+" cert"] = keystore.Redact(key), certificateFacts(cert)
		facts[name+" chain"], facts[name+" trust-root"] = certificateFacts(chain...), certificateFacts(roots...)
	}
	return facts
}

// certificateFacts returns names of certificates, and the SHA-256 of those that are readable files.
func certificateFacts(names ...string) string {
	var all []string
	for _, name := range names {
		if name == "" {
			continue
		}
		text := keystore.Redact(name)
		if data, err := input.File(name, maxFact); err == nil && len(data) <= maxFact {
			text += " sha256:" + api.SHA256(data)
		}
		all = append(all, text)
	}
	return strings.Join(all, "\n")
}
