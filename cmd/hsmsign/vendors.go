package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"hsmsign/config"
	"hsmsign/fault"
)

func vendorFlag() cli.Flag {
	return stringFlag("vendor", "`NAME` of the vendor identity in the configuration (default: its active one)")
}

// choose selects the vendor identity that --vendor or the configuration names, or the configuration's unnamed one.
func (s *settings) choose() error {
	c := s.config
	s.vendor, s.identity = "", config.Vendor{Key: c.Key, Cert: c.Cert, Chain: c.Chain, TrustRoot: c.TrustRoot}
	name, from := s.str("vendor")
	if name == "" {
		return nil
	}
	if _, ok := c.Vendors[name]; !ok {
		return fault.Usage.Errorf("%s: there is no vendor %q", from, name).Fix(config.SuggestVendor(name, s.vendorNames()))
	}
	*s = *s.of(name)
	return nil
}

// of returns the settings with one of the configuration's vendor identities.
func (s *settings) of(name string) *settings {
	chosen := *s
	chosen.vendor, chosen.identity = name, s.config.Vendors[name]
	if len(chosen.identity.TrustRoot) == 0 {
		chosen.identity.TrustRoot = s.config.TrustRoot
	}
	return &chosen
}

// vendorNames returns the sorted names of the configuration's vendor identities.
func (s *settings) vendorNames() []string {
	return slices.Sorted(maps.Keys(s.config.Vendors))
}

// origin returns where in the configuration a setting is.
func (s *settings) origin(name string) string {
	if s.vendor != "" && slices.Contains([]string{"key", "cert", "chain", "trust-root"}, name) {
		return s.path + ", vendors: " + s.vendor
	}
	return s.path
}

// missing is the error for a setting of the vendor identity that is needed and not set.
func (s *settings) missing(name, what string) error {
	hint := fmt.Sprintf("name it with --%s, $%s or %s: in the configuration", name, envName(name), name)
	if len(s.config.Vendors) > 0 && s.vendor == "" {
		hint = "choose with --vendor, $HSMSIGN_VENDOR or vendor: in the configuration; there are " + strings.Join(s.vendorNames(), ", ")
	}
	return fault.Usage.Errorf("no %s given", what).Fix(hint)
}
