package main

import (
	"context"
	"errors"
	"strings"
	"time"

	"hsmsign/agent"
	"hsmsign/fault"
	"hsmsign/keystore"
	"hsmsign/signer"
)

// openCustomerKey opens a key that is to be used as a customer's. The error is of kind usage if it is a key of the vendor.
func (p *program) openCustomerKey(ctx context.Context, s *settings, value string) (signer.Signer, error) {
	key, err := s.pushKey(value)
	if err != nil {
		return nil, err
	}
	vendors := s.configuredVendors()
	for _, vendor := range vendors {
		if vendor.namesKey(key) {
			return nil, fault.Usage.Errorf("%s is the vendor's key, and a vendor key signs requests only", key).
				Fix("make the customer's key with hsmsign push csr --key-out FILE")
		}
	}
	opened, err := p.openPushKey(ctx, s, value)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	for _, vendor := range vendors {
		certs, err := vendor.vendorCerts(ctx, time.Now())
		if err != nil {
			continue // the vendor's certificate is missing: its key is known by its reference only
		}
		if err := agent.OtherUse("the customer's key "+key.String(), opened.Public(), certs...); err != nil {
			return nil, errors.Join(err, opened.Close())
		}
	}
	return opened, nil
}

// configuredVendors returns the settings of each vendor identity that the environment and the configuration name, for commands
// whose --key and --cert are the customer's.
func (s *settings) configuredVendors() []*settings {
	environment := *s
	environment.flags = nil
	configured := environment
	configured.getenv = func(string) string { return "" }
	all := []*settings{&environment, &configured}
	for _, name := range s.vendorNames() {
		all = append(all, configured.of(name))
	}
	return all
}

// namesKey returns whether the settings name a key. Other references can name the same key, which its certificate shows.
func (s *settings) namesKey(key keystore.Key) bool {
	own, err := s.key("vendor key")
	if err != nil || own.Ref.Scheme != key.Ref.Scheme {
		return false
	}
	if key.Ref.Scheme != "file" {
		return own.Ref.Encode() == key.Ref.Encode()
	}
	a, errA := signer.Unescape(strings.TrimPrefix(own.Ref.Path, "//"))
	b, errB := signer.Unescape(strings.TrimPrefix(key.Ref.Path, "//"))
	return errA == nil && errB == nil && sameFile(a, b)
}
