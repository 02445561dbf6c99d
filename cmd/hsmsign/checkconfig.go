package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/request"
	"hsmsign/signer"
)

func (p *program) checkConfigCommand() *cli.Command {
	return &cli.Command{
		Name:  "check-config",
		Usage: "say which settings sign would use and where each comes from; opens no key",
		Description: "Takes the flags of sign. Secrets are not shown. Exit code 2 when a setting is wrong, 4 when the vendor chain is.\n\n" +
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

// settingInfo is what check-config --json prints for one setting.
type settingInfo struct {
	Name   string   `json:"name"`
	Values []string `json:"values"`
	Origin string   `json:"origin"` // "--key", "$HSMSIGN_KEY", a configuration file, "default" or "not set"
}

func (p *program) checkConfig(ctx *cli.Context) error {
	s, err := p.settings(ctx)
	if err != nil {
		return err
	}
	asJSON, err := s.boolean("json")
	if err != nil {
		return err
	}
	infos, keyErr := s.effective()
	for _, info := range infos {
		if asJSON {
			p.ui.json(info)
			continue
		}
		p.ui.print("%-11s %s  (%s)", info.Name, strings.Join(info.Values, ", "), info.Origin)
	}
	if keyErr != nil {
		return keyErr
	}
	if err := (&signJob{p: p}).readFlags(s); err != nil {
		return err
	}
	if cert, _ := s.str("cert"); cert == "" {
		if len(s.config.Vendors) > 0 {
			return s.missing("cert", "vendor certificate")
		}
		return nil
	}
	c, err := p.vendorChain(ctx.Context, s)
	if err != nil {
		return err
	}
	cert, _ := s.str("cert")
	p.ui.warnings(certName(cert), c.Findings)
	soonest := soonestExpiry(c.Certs)
	p.ui.info("the vendor chain is complete; %q is valid until %s, the soonest to expire is %q, %s", c.Leaf().Subject.CommonName,
		c.Leaf().NotAfter.UTC().Format(time.DateOnly), soonest.Subject.CommonName, soonest.NotAfter.UTC().Format(time.DateOnly))
	return nil
}

// effective lists every setting; the error is that of a key reference that cannot be read.
func (s *settings) effective() ([]settingInfo, error) {
	config := settingInfo{Name: "config", Values: []string{s.path}, Origin: "found there"}
	if s.path == "" {
		config = settingInfo{Name: "config", Values: []string{}, Origin: "not set"}
	}
	infos := []settingInfo{config}
	defaults := map[string]string{"format": string(request.Base64), "digest": "sha256"}
	var keyErr error
	for _, name := range []string{"key", "cert", "out-dir", "format", "digest"} {
		value, origin := s.str(name)
		if name == "key" && value != "" {
			ref, err := signer.ParseRef(value)
			value, keyErr = ref.String(), err
			if err != nil {
				value = "(unreadable)"
				keyErr = fmt.Errorf("%s: %w", origin, err)
			}
		}
		if name == "cert" {
			value = certName(value)
		}
		infos = append(infos, setting(name, origin, defaults[name], value))
	}
	for _, name := range []string{"chain", "trust-root"} {
		values, origin := s.list(name)
		infos = append(infos, setting(name, origin, "", values...))
	}
	name, origin := s.str("vendor")
	infos = append(infos, setting("vendor", origin, "", name))
	vendors := setting("vendors", "", "", "")
	if len(s.config.Vendors) > 0 {
		vendors = setting("vendors", s.path, "", s.vendorNames()...)
	}
	infos = append(infos, vendors)
	modules := setting("modules", "", "", "")
	if len(s.config.Modules) > 0 {
		modules = setting("modules", s.path, "", s.config.Modules...)
	}
	return append(infos, modules), keyErr
}

func setting(name, origin, standard string, values ...string) settingInfo {
	switch {
	case origin != "":
		return settingInfo{name, values, origin}
	case standard != "":
		return settingInfo{name, []string{standard}, "default"}
	}
	return settingInfo{name, []string{}, "not set"}
}
