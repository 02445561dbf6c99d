package oidc

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"hsmsign/fault"
)

// The bounds of fetching keys.
const (
	fetchWait  = 5 * time.Second
	fetchEvery = 10 * time.Second // at most
	keysFresh  = 15 * time.Minute // after which they are fetched again
	KeysOld    = 12 * time.Hour   // after which they are not used
	maxAnswer  = 256 << 10
	maxKeys    = 100
	maxWaiting = 32 // tokens that wait for a fetch; further ones are refused at once
	minRSA     = 2048
	maxRSA     = 8192
)

// source has the keys of an issuer.
type source struct {
	cfg    Config
	log    *slog.Logger
	client *http.Client
	wait   time.Duration // of a fetch

	mu      sync.Mutex
	at      endpoints // of sign-ins
	keys    []jose.JSONWebKey
	fetched time.Time // zero: never
	tried   time.Time
	failure error         // of the last fetch; nil: it succeeded
	running chan struct{} // closed when the fetch ends; nil: none is running
	waiting int
}

// newSource returns the source of an issuer, or that of before.
func newSource(cfg Config, options Options, before *Issuers) (*source, error) {
	if before != nil {
		if old := before.all[cfg.URL]; old != nil && bytes.Equal(old.CA, cfg.CA) && old.TokenFile == cfg.TokenFile {
			return old.source, nil
		}
	}
	client, err := newClient(cfg, options.ReadToken)
	if err != nil {
		return nil, err
	}
	return &source{cfg: cfg, log: options.Log, client: client, wait: cmp.Or(options.Wait, fetchWait)}, nil
}

// warm begins to fetch the keys if they are not known.
func (s *source) warm(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fetched.IsZero() {
		s.start(now)
	}
}

// find returns the keys with an id. If there is none, or the keys are too old, it waits for one fetch.
func (s *source) find(ctx context.Context, id string, now time.Time) ([]jose.JSONWebKey, error) {
	s.mu.Lock()
	found := s.usable(id, now)
	if found != nil && now.Sub(s.fetched) < keysFresh {
		s.mu.Unlock()
		return found, nil
	}
	fetch := s.start(now)
	if found != nil {
		s.mu.Unlock()
		return found, nil
	}
	defer s.mu.Unlock()
	if fetch != nil && s.waiting < maxWaiting {
		s.waiting++
		s.mu.Unlock()
		select {
		case <-fetch:
		case <-ctx.Done():
		}
		s.mu.Lock()
		s.waiting--
		found = s.usable(id, now)
	}
	switch {
	case found != nil:
		return found, nil
	case !s.fetched.IsZero() && now.Sub(s.fetched) < KeysOld:
		return nil, fmt.Errorf("the issuer has no key %q", fault.Clip(id, 64))
	case s.failure != nil:
		return nil, fmt.Errorf("the keys of the issuer are not known: %w", s.failure)
	}
	return nil, errors.New("the keys of the issuer are not known yet")
}

// usable returns the keys with an id that may be used now. A token without an id needs no choice. The caller has locked s.
func (s *source) usable(id string, now time.Time) (found []jose.JSONWebKey) {
	if s.fetched.IsZero() || now.Sub(s.fetched) >= KeysOld {
		return nil
	}
	if id == "" && len(s.keys) == 1 {
		return s.keys
	}
	for _, key := range s.keys {
		if id != "" && key.KeyID == id {
			found = append(found, key)
		}
	}
	return found
}

// start begins a fetch, and returns what is closed when it ends. Nil: there was one a moment ago. The caller has locked s.
func (s *source) start(now time.Time) <-chan struct{} {
	if s.running != nil {
		return s.running
	}
	if since := now.Sub(s.tried); !s.tried.IsZero() && since >= 0 && since < fetchEvery {
		return nil
	}
	done := make(chan struct{})
	s.tried, s.running = now, done
	go func() {
		keys, at, err := s.fetch()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.report(err)
		if s.failure, s.running = err, nil; err == nil {
			s.keys, s.at, s.fetched = keys, at, now
		}
		close(done)
	}()
	return done
}

// report logs when fetching begins to fail, and when it succeeds again. The caller has locked s.
func (s *source) report(err error) {
	switch {
	case err != nil && s.failure == nil:
		s.log.Warn("the keys of an OIDC issuer cannot be fetched", "issuer", s.cfg.Name, "error", fault.Clip(err.Error(), 512))
	case err == nil && s.failure != nil:
		s.log.Info("the keys of an OIDC issuer were fetched again", "issuer", s.cfg.Name)
	}
}

// endpoints are what the discovery of an issuer says of sign-ins.
type endpoints struct {
	Keys      string   `json:"jwks_uri"`
	Authorize string   `json:"authorization_endpoint"`
	Token     string   `json:"token_endpoint"`
	Methods   []string `json:"token_endpoint_auth_methods_supported"`
	Named     bool     `json:"authorization_response_iss_parameter_supported"` // RFC 9207
}

// discovered returns the endpoints of the issuer. If they are not known, it waits for one fetch.
func (s *source) discovered(ctx context.Context, now time.Time) (endpoints, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fetch := (<-chan struct{})(nil)
	if s.fetched.IsZero() || now.Sub(s.fetched) >= keysFresh {
		fetch = s.start(now)
	}
	if usable := !s.fetched.IsZero() && now.Sub(s.fetched) < KeysOld; !usable && fetch != nil && s.waiting < maxWaiting {
		s.waiting++
		s.mu.Unlock()
		select {
		case <-fetch:
		case <-ctx.Done():
		}
		s.mu.Lock()
		s.waiting--
	}
	switch {
	case !s.fetched.IsZero() && now.Sub(s.fetched) < KeysOld:
		return s.at, nil
	case s.failure != nil:
		return endpoints{}, s.failure
	}
	return endpoints{}, errors.New("its discovery is not known yet")
}

// fetch returns the keys and endpoints that the issuer has now. It does not end with the token that needed them: others wait for them too.
func (s *source) fetch() ([]jose.JSONWebKey, endpoints, error) {
	ctx, cancel := context.WithTimeout(oidc.ClientContext(context.Background(), s.client), s.wait)
	defer cancel()
	var found endpoints
	provider, err := oidc.NewProvider(ctx, s.cfg.URL)
	if err != nil {
		return nil, found, fmt.Errorf("discovery: %w", err)
	}
	if err := provider.Claims(&found); err != nil || found.Keys == "" {
		return nil, found, errors.New("discovery: the answer has no jwks_uri")
	}
	keys, err := s.fetchKeys(ctx, found.Keys)
	return keys, found, err
}

// fetchKeys returns the keys at a URL.
func (s *source) fetchKeys(ctx context.Context, url string) ([]jose.JSONWebKey, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("jwks_uri: %w", err)
	}
	response, err := s.client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	defer func() { _ = response.Body.Close() }() // it was read
	keys, err := readKeys(response)
	if err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	return keys, nil
}

// readKeys returns the keys of an answer that tokens can be verified with.
func readKeys(response *http.Response) ([]jose.JSONWebKey, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.NewDecoder(response.Body).Decode(&set); err != nil {
		return nil, err
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("%d keys; at most %d are accepted", len(set.Keys), maxKeys)
	}
	var keys []jose.JSONWebKey
	for _, data := range set.Keys {
		var key jose.JSONWebKey
		if key.UnmarshalJSON(data) == nil && (key.Use == "" || key.Use == "sig") && strong(key.Key) {
			keys = append(keys, key)
		}
	}
	if keys == nil {
		return nil, errors.New("no key that tokens can be verified with")
	}
	return keys, nil
}

// strong returns whether a key is a public key of a kind and size that is accepted. A secret key of the issuer is not one.
func strong(key any) bool {
	switch key := key.(type) {
	case *rsa.PublicKey:
		return key.N.BitLen() >= minRSA && key.N.BitLen() <= maxRSA
	case *ecdsa.PublicKey:
		return key.Curve == elliptic.P256() || key.Curve == elliptic.P384()
	case ed25519.PublicKey:
		return len(key) == ed25519.PublicKeySize
	}
	return false
}
