package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"hsmsign/config"
)

func vendorFlag() cli.Flag {
	return stringFlag("vendor", "`NAME` of the vendor identity in the configuration (default: its active one)")
}

// choose takes the vendor identity that --vendor or the configuration names, or the configuration's only, unnamed one.
func (s *settings) choose() error {
	c := s.config
	s.vendor, s.identity = "", config.Vendor{Key: c.Key, Cert: c.Cert, Chain: c.Chain, TrustRoot: c.TrustRoot}
	name, from := s.str("vendor")
	if name == "" {
		return nil
	}
	if _, ok := c.Vendors[name]; !ok {
		return usage(config.SuggestVendor(name, s.vendorNames()), "%s: there is no vendor %q", from, name)
	}
	*s = *s.of(name)
	return nil
}

// of is the settings with one of the configuration's vendor identities.
func (s *settings) of(name string) *settings {
	chosen := *s
	chosen.vendor, chosen.identity = name, s.config.Vendors[name]
	if len(chosen.identity.TrustRoot) == 0 {
		chosen.identity.TrustRoot = s.config.TrustRoot
	}
	return &chosen
}

// vendorNames are the names of the configuration's vendor identities, sorted.
func (s *settings) vendorNames() []string {
	return slices.Sorted(maps.Keys(s.config.Vendors))
}

// origin is where the configuration says a setting.
func (s *settings) origin(name string) string {
	if s.vendor != "" && slices.Contains([]string{"key", "cert", "chain", "trust-root"}, name) {
		return s.path + ", vendors: " + s.vendor
	}
	return s.path
}

// missing is the refusal where a setting of the vendor identity is needed and not there.
func (s *settings) missing(name, what string) error {
	hint := fmt.Sprintf("name it with --%s, $%s or %s: in the configuration", name, envName(name), name)
	if len(s.config.Vendors) > 0 && s.vendor == "" {
		hint = "choose with --vendor, $HSMSIGN_VENDOR or vendor: in the configuration; there are " + strings.Join(s.vendorNames(), ", ")
	}
	return usage(hint, "no %s given", what)
}
