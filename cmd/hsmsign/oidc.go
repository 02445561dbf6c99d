package main

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"

	"hsmsign/agent/policy"
	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/internal/input"
	"hsmsign/secret"
	"hsmsign/server/authn/oidc"
)

// issuers returns the issuers of OIDC tokens as the policy sees them.
func (s *settings) issuers() map[string]policy.OIDCIssuer {
	all := map[string]policy.OIDCIssuer{}
	for name, i := range s.config.OIDC {
		all[name] = policy.OIDCIssuer{URL: i.Issuer, Audience: i.Audience, Kind: i.Kind, MaxAge: i.MaxAge}
	}
	return all
}

// oidc returns the issuers of the configuration, which share their keys with those of before. It connects to nobody.
func (s *settings) oidc(log *slog.Logger, before *oidc.Issuers) (*oidc.Issuers, error) {
	var configs []oidc.Config
	for _, name := range slices.Sorted(maps.Keys(s.config.OIDC)) {
		from := s.config.OIDC[name]
		cfg := oidc.Config{Name: name, URL: from.Issuer, Audience: from.Audience, TokenFile: from.TokenFile}
		var err error
		if cfg.MaxAge, err = policy.ParseMaxAge(from.MaxAge); err != nil {
			return nil, fmt.Errorf("%s: oidc: %s: %w", s.path, name, err)
		}
		if from.CA != "" {
			if cfg.CA, err = input.File(from.CA, chain.MaxFile); err != nil {
				return nil, fault.Usage.Errorf("%s: oidc: %s: ca %s: %w", s.path, name, strconv.Quote(from.CA), err).Fix("name a file with the CA of the issuer, PEM")
			}
		}
		configs = append(configs, cfg)
	}
	read := func(path string) ([]byte, error) {
		return secret.Reader{Getenv: s.getenv}.ReadFile(path, oidc.MaxToken)
	}
	all, err := oidc.New(configs, oidc.Options{ReadToken: read, Log: log}, before)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.path, err)
	}
	return all, nil
}
