package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/agent"
	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/keystore"
	"hsmsign/request"
	"hsmsign/signer"
)

func (p *program) checkConfigCommand() *cli.Command {
	return &cli.Command{
		Name:  "check-config",
		Usage: "show the settings that sign would use and the origin of each; opens no key",
		Description: "Accepts the flags of sign. Secrets are not shown. Exit code 2 if a setting is wrong, 4 if the vendor chain is.\n\n" +
			"  hsmsign check-config\n" +
			"  hsmsign --config test.yaml check-config",
		Flags: append([]cli.Flag{
			stringFlag("key", "vendor key `REFERENCE`"),
			stringFlag("out-dir", "`FOLDER` for requests"),
			stringFlag("format", "`FORMAT` of the request"),
			stringFlag("digest", "`HASH` of the signature"),
			jsonFlag(),
		}, identityFlags()...),
		Action: p.checkConfig,
	}
}

func (p *program) checkConfig(ctx *cli.Context) error {
	s, err := p.settings(ctx)
	if err != nil {
		return err
	}
	infos, keyErr := s.effective()
	for _, info := range infos {
		if s.json {
			p.con.JSON(info)
			continue
		}
		p.con.Printf("%-11s %s  (%s)", info.Name, strings.Join(info.Values, ", "), info.Origin)
	}
	if keyErr != nil {
		return keyErr
	}
	if err := (&signJob{p: p}).readFlags(s); err != nil {
		return err
	}
	if err := p.checkServe(s); err != nil {
		return err
	}
	if err := s.checkProfiles(ctx.Context); err != nil {
		return err
	}
	cert, _ := s.str("cert")
	if cert == "" {
		if len(s.config.Vendors) > 0 {
			return s.missing("cert", "vendor certificate")
		}
		return nil
	}
	cfg, err := s.vendorConfig(keystore.Key{})
	if err != nil {
		return err
	}
	vendor, err := agent.NewVendor(ctx.Context, cfg)
	if err != nil {
		return err
	}
	c := vendor.Chain()
	if err := s.checkServedKey(c.Leaf()); err != nil {
		return err
	}
	p.con.Warnings(keystore.Redact(cert), c.Findings)
	first := agent.FirstExpiry(c.Certs)
	p.con.Infof("the vendor chain is complete; %q is valid until %s, the first to expire is %q, %s", c.Leaf().Subject.CommonName,
		c.Leaf().NotAfter.UTC().Format(time.DateOnly), first.Subject.CommonName, first.NotAfter.UTC().Format(time.DateOnly))
	return nil
}

// effective returns every setting; the error is that of a key reference that cannot be read.
func (s *settings) effective() ([]api.Setting, error) {
	infos := []api.Setting{inFile("config", "found there", s.path != "", []string{s.path})}
	defaults := map[string]string{"format": string(request.Base64), "digest": "sha256"}
	var keyErr error
	for _, name := range []string{"key", "cert", "out-dir", "format", "digest"} {
		value, origin := s.str(name)
		switch {
		case name == "cert":
			value = keystore.Redact(value)
		case name == "key" && value != "":
			ref, err := signer.ParseRef(value)
			if value = ref.String(); err != nil {
				value, keyErr = "(unreadable)", fmt.Errorf("%s: %w", origin, err)
			}
		}
		infos = append(infos, setting(name, origin, defaults[name], value))
	}
	for _, name := range []string{"chain", "trust-root"} {
		values, origin := s.list(name)
		values = slices.Clone(values)
		for i := range values {
			values[i] = keystore.Redact(values[i])
		}
		infos = append(infos, setting(name, origin, "", values...))
	}
	ledgers, err := s.ledgerConfig()
	if err == nil && ledgers.reference != "" {
		err = ledgers.checkAnchors()
	}
	if err != nil {
		keyErr = errors.Join(keyErr, err)
	}
	infos = append(infos, setting("ledger", ledgers.origin, "", ledgers.name()))
	infos = append(infos, inFile("watch", s.path, len(s.config.Ledger.Watch) > 0, s.config.Ledger.Watch))
	infos = append(infos, s.publishingSettings()...)
	found, err := s.policy()
	if err != nil {
		keyErr = errors.Join(keyErr, err)
	} else if found != nil {
		if _, err := s.oidc(nil, nil); err != nil {
			keyErr = errors.Join(keyErr, err)
		}
		for _, name := range found.Issuers() {
			infos = append(infos, setting("oidc "+name, s.path, "", found.ExplainIssuer(name)))
		}
		keyErr = errors.Join(keyErr, s.checkApprovals(found))
		infos = append(infos, setting("policy", s.path, "", fmt.Sprintf("sha256:%x", found.Hash())))
		for _, name := range found.Roles() {
			infos = append(infos, setting("role "+name, s.path, "", found.ExplainRole(name)))
		}
		for _, name := range found.Names() {
			infos = append(infos, setting("caller "+name, s.path, "", found.Explain(name, time.Now())))
		}
	}
	served, err := s.serveSettings()
	if err != nil {
		keyErr = errors.Join(keyErr, err)
	}
	infos = append(infos, served...)
	notified, err := s.notifySettings()
	keyErr, infos = errors.Join(keyErr, err), append(infos, notified...)
	name, origin := s.str("vendor")
	infos = append(infos, setting("vendor", origin, "", name))
	service, err := s.agentSettings()
	keyErr, infos = errors.Join(keyErr, err), append(infos, service...)
	return append(infos,
		inFile("profiles", s.path, len(s.config.Profiles) > 0, slices.Sorted(maps.Keys(s.config.Profiles))),
		inFile("vendors", s.path, len(s.config.Vendors) > 0, s.vendorNames()),
		inFile("modules", s.path, s.config.Modules != nil, s.config.Modules)), keyErr
}

// checkApprovals refuses roles whose requests can never be approved.
func (s *settings) checkApprovals(found *policy.Policy) error {
	if err := found.CheckApprovals(time.Now()); err != nil {
		return fault.Errorf("%s: %w", s.path, err)
	}
	return nil
}

// inFile returns a setting that only the configuration file can have.
func inFile(name, origin string, set bool, values []string) api.Setting {
	if !set {
		origin = ""
	}
	return setting(name, origin, "", values...)
}

func setting(name, origin, def string, values ...string) api.Setting {
	switch {
	case origin != "":
		return api.Setting{Name: name, Values: values, Origin: origin}
	case def != "":
		return api.Setting{Name: name, Values: []string{def}, Origin: "default"}
	}
	return api.Setting{Name: name, Values: []string{}, Origin: "not set"}
}
