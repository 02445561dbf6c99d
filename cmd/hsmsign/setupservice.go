package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"hsmsign/agent/policy"
	"hsmsign/fault"
	"hsmsign/server"
	"hsmsign/server/authn"
)

// askListeners asks where the service listens, and for the certificate of tls: listeners.
func (job *setupJob) askListeners(ctx context.Context) error {
	serve := &job.config.Serve
	def := "unix://" + filepath.Join(job.dir, "agent.sock")
	if job.service != nil {
		def = "unix:///run/hsmsign/agent.sock"
	}
	given, _ := job.list("listen")
	if given == nil {
		text, err := job.answer(ctx, asking{
			flag: "listen", question: "listeners, separated by spaces: unix:///PATH for users of this host, tls://HOST:PORT for clients with a certificate or token", def: def,
			check: func(text *string) error { _, err := job.parseListeners(strings.Fields(*text)); return err },
		})
		if err != nil {
			return err
		}
		given = strings.Fields(text)
	}
	addresses, err := job.parseListeners(given)
	if err != nil {
		return err
	}
	serve.Listen = given
	if !slices.ContainsFunc(addresses, func(a server.Address) bool { return a.Kind == authn.TLS }) {
		return nil
	}
	for {
		if err := job.askTLS(ctx); err != nil {
			return err
		}
		found, _, err := readTLS(job.tlsSettings())
		if err == nil {
			err = found.Check(addresses)
		}
		if err == nil || job.silent || job.has("tls-cert") {
			return err
		}
		job.p.con.Fail(err)
	}
}

// askTLS asks for the certificate of tls: listeners.
func (job *setupJob) askTLS(ctx context.Context) (err error) {
	t := &job.config.Serve.TLS
	if t.Cert, err = job.answer(ctx, asking{flag: "tls-cert", question: "certificate of the tls: listeners, PEM", check: job.absolute}); err != nil {
		return err
	}
	t.Key, err = job.answer(ctx, asking{flag: "tls-key", question: "its key, PEM, a file of mode 0600, or " + secretsCredential + "NAME", check: job.secretFile})
	return err
}

// tlsSettings returns settings with which root can read the key of the tls: listeners, also if it is a credential.
func (job *setupJob) tlsSettings() *settings {
	s, c := *job.settings, *job.config
	if file, ok := job.credentialFile(c.Serve.TLS.Key); ok {
		c.Serve.TLS.Key = file
	}
	s.config = &c
	return &s
}

// parseListeners refuses what serve: listen cannot have.
func (job *setupJob) parseListeners(texts []string) (all []server.Address, err error) {
	for _, text := range texts {
		a, err := server.ParseAddress(text)
		switch {
		case err != nil:
			return nil, err
		case slices.Contains(all, a):
			return nil, fault.Usage.Errorf("listen: %s is there twice", a).Fix("remove one")
		case a.Kind == authn.Unix && !isFolder(filepath.Dir(a.Path)) && !slices.Contains([]string{job.dir, "/run/hsmsign"}, filepath.Dir(a.Path)):
			return nil, fault.Usage.Errorf("listen: there is no folder %q", filepath.Dir(a.Path)).Fix("make it, or use /run/hsmsign, which systemd makes")
		}
		all = append(all, a)
	}
	if len(all) == 0 {
		return nil, fault.Usage.Errorf("no listener").Fix("write unix:///PATH or tls://HOST:PORT")
	}
	return all, nil
}

// The limits of a role that nobody has chosen.
const (
	setupPerSecond = 5
	setupPerDay    = 500
	maxPerSecond   = 10_000
	maxPerDay      = 10_000_000
)

// askCallers asks who may sign and approve, and makes the roles.
func (job *setupJob) askCallers(ctx context.Context) error {
	c := job.config
	c.Callers, c.Roles = map[string]policy.CallerConfig{}, map[string]policy.RoleConfig{}
	me := job.getenv("SUDO_USER")
	if me == "" && os.Geteuid() != 0 {
		me = job.getenv("USER")
	}
	operator, err := job.answer(ctx, asking{
		flag: "operator", question: "Unix user who may sign, read, manage customers and freeze", def: me, check: checkAccount,
	})
	if err != nil {
		return err
	}
	limits, err := job.askLimits(ctx)
	if err != nil {
		return err
	}
	if err := job.addPerson(operator, "admin"); err != nil {
		return err
	}
	c.Roles["admin"] = limits([]string{policy.Sign, policy.Read, policy.Customers, policy.Freeze})
	if job.backend, err = job.answer(ctx, asking{flag: "backend", question: "name of a machine that gets a token to sign, as portal", optional: true, check: job.checkBackend}); err != nil {
		return err
	}
	if job.backend != "" {
		valid, err := job.tokenTime()
		if err != nil {
			return err
		}
		var entry string
		job.token, entry = policy.NewToken(time.Now().Add(valid))
		c.Callers[job.backend] = policy.CallerConfig{Role: "signer", Owners: []string{operator}, Tokens: []string{entry}}
		c.Roles["signer"] = limits([]string{policy.Sign})
	}
	if err := job.askApprovers(ctx); err != nil {
		return err
	}
	found, err := job.policy()
	if err != nil {
		return err
	}
	return found.CheckApprovals(time.Now())
}

// askLimits asks for limits and approvals, and returns what makes a role with them.
func (job *setupJob) askLimits(ctx context.Context) (func(may []string) policy.RoleConfig, error) {
	perSecond, err := job.number("per-second", setupPerSecond, 1, maxPerSecond)
	if err != nil {
		return nil, err
	}
	perDay, err := job.number("per-day", setupPerDay, 1, maxPerDay)
	if err != nil {
		return nil, err
	}
	approvals := policy.NoApprovals()
	_, err = job.answer(ctx, asking{
		flag: "approvals", question: "how many other people must approve a new customer or a new key: none, or a number", def: "none",
		check: func(text *string) error {
			if *text == "none" {
				return nil
			}
			n, err := strconv.Atoi(*text)
			if err != nil || n < 1 || n > 9 {
				return fault.Usage.Errorf("approvals is %q", fault.Clip(*text, 64)).Fix("write none, or a number from 1 to 9")
			}
			approvals = policy.ApprovalsConfig{NewCustomer: &n, NewKey: &n, SameKey: new(int)}
			return nil
		},
	})
	return func(may []string) policy.RoleConfig {
		return policy.RoleConfig{May: may, Customers: []string{"*"}, PerSecond: perSecond, PerDay: perDay, Approvals: approvals}
	}, err
}

// askApprovers asks who approves, if anybody must.
func (job *setupJob) askApprovers(ctx context.Context) error {
	given, _ := job.list("approver")
	if given == nil && !job.silent && job.config.Roles["admin"].Approvals != policy.NoApprovals() {
		text, err := job.answer(ctx, asking{flag: "approver", question: "Unix users who may approve, separated by spaces", check: func(text *string) error {
			for _, name := range strings.Fields(*text) {
				if err := checkAccount(&name); err != nil {
					return err
				}
			}
			return nil
		}})
		if err != nil {
			return err
		}
		given = strings.Fields(text)
	}
	for _, name := range given {
		if err := job.addPerson(name, "approver"); err != nil {
			return err
		}
		job.config.Roles["approver"] = policy.RoleConfig{May: []string{policy.Approve, policy.Read, policy.Freeze}, Customers: []string{"*"}}
	}
	return nil
}

// checkAccount refuses what is no Unix user.
func checkAccount(name *string) error {
	a, err := findAccount(*name)
	if err == nil {
		*name = a.name
	}
	return err
}

// addPerson adds a caller for a Unix user.
func (job *setupJob) addPerson(name, role string) error {
	a, err := findAccount(name)
	if err != nil {
		return err
	}
	if _, ok := job.config.Callers[a.name]; ok {
		return fault.Usage.Errorf("the user %s has two roles", a.name).Fix("name another user: nobody approves what they have asked for")
	}
	job.config.Callers[a.name] = policy.CallerConfig{Role: role, Person: a.name, UID: []int{a.uid}}
	return nil
}

// checkBackend refuses a machine whose token no listener accepts.
func (job *setupJob) checkBackend(name *string) error {
	if _, ok := job.config.Callers[*name]; ok {
		return fault.Usage.Errorf("%q is a caller already", *name).Fix("choose another name")
	}
	for _, text := range job.config.Serve.Listen {
		if !strings.HasPrefix(text, "unix:") {
			return nil
		}
	}
	return fault.Usage.Errorf("no listener accepts the token of %s", fault.Clip(*name, 64)).Fix("add a tls://HOST:PORT listener, or leave the machine out")
}

// tokenTime returns the validity of the token.
func (job *setupJob) tokenTime() (time.Duration, error) {
	text, from := job.str("expires")
	valid, err := tokenTime(orDefault(text, "90d"))
	if err != nil {
		return 0, fault.Usage.Errorf("%s is %q", from, fault.Clip(text, 64)).Fix(fmt.Sprintf("it is a time from 1m to %dd, as 24h or 90d", policy.MaxTokenDays))
	}
	return valid, nil
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// notThere refuses a file that exists and would have to be replaced.
func notThere(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return fault.Usage.Errorf("%q exists", path).Fix("setup replaces no key, PIN or ledger: name it in an answer, or move it away")
	}
	return nil
}
