// Package oidc verifies OIDC tokens that issuers of the configuration signed for this service: of CI jobs, of Kubernetes service
// accounts and of cloud workloads.
//
//	issuers, err := oidc.New(configs, oidc.Options{ReadToken: read, Log: log}, nil)
//	issuer, claims, err := issuers.Verify(ctx, token, time.Now())
//
// A token is accepted if a key of its issuer signed it with an algorithm of a fixed list, if it is for this service alone, and if
// it is valid now and was issued recently. What its claims mean is the business of the policy. See Verify.
//
// # Keys
//
// The keys of an issuer are fetched when they are needed, by discovery (OpenID Connect Discovery 1.0). They are fetched again
// every 15 minutes in the background, and when a token names a key that is not known; at most once in 10 seconds, whatever tokens
// are sent. If the issuer does not answer, its keys are used for 12 hours; then its tokens are refused until it answers.
//
// Answers are bounded in size and time. Redirects are refused. The connections are https, or http to a loopback address.
//
// An Issuers is safe for concurrent use.
package oidc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"hsmsign/fault"
)

// Config is an issuer and what its tokens must have.
type Config struct {
	Name     string // in the configuration
	URL      string // the claim iss
	Audience string // the claim aud
	MaxAge   time.Duration
	// CA are the CAs of its TLS certificate, PEM; nil: those of the system.
	CA []byte
	// TokenFile has a token that is sent to the issuer with each request for keys; empty: none. It needs CA, so that no other
	// server than one of the issuer gets the token.
	TokenFile string
}

// Options are what all issuers share.
type Options struct {
	// ReadToken reads a TokenFile. It is called for each fetch, since such tokens are replaced.
	ReadToken func(path string) ([]byte, error)
	// Log gets a record when an issuer does not answer, and when it does again; nil: nobody.
	Log *slog.Logger
	// Wait is the time limit of discovery and keys together; 0: 5 seconds.
	Wait time.Duration
}

// The bounds of a token.
const (
	MaxToken = 12 << 10 // bytes
	Skew     = time.Minute
)

// algorithms are those that tokens may have. All are signatures with a public key: with a shared key (HS256) the public key of the
// issuer could be the secret.
var algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.ES256, jose.ES384, jose.EdDSA}

// Issuers are the issuers of a configuration.
type Issuers struct{ all map[string]*issuer } // by URL

type issuer struct {
	Config
	verifying oidc.Config
	source    *source
}

// New returns issuers, and fetches nothing. Those whose keys come from the same place as in before share them with it; before may
// be nil. The error is of kind usage.
func New(configs []Config, options Options, before *Issuers) (*Issuers, error) {
	if options.Log == nil {
		options.Log = slog.New(slog.DiscardHandler)
	}
	all := map[string]*issuer{}
	for _, cfg := range configs {
		if all[cfg.URL] != nil {
			return nil, fault.Usage.Errorf("oidc: %s: another issuer has its URL", cfg.Name).Fix("remove one")
		}
		source, err := newSource(cfg, options, before)
		if err != nil {
			return nil, fault.Errorf("oidc: %s: %w", cfg.Name, err)
		}
		i := &issuer{Config: cfg, source: source}
		// The times are checked by checkTimes, whose clock skew is smaller.
		i.verifying = oidc.Config{ClientID: cfg.Audience, SkipExpiryCheck: true}
		for _, a := range algorithms {
			i.verifying.SupportedSigningAlgs = append(i.verifying.SupportedSigningAlgs, string(a))
		}
		all[cfg.URL] = i
	}
	return &Issuers{all}, nil
}

// Fetch begins to fetch the keys that are not known yet, and does not wait.
func (i *Issuers) Fetch(now time.Time) {
	if i == nil {
		return
	}
	for _, one := range i.all {
		one.source.warm(now)
	}
}

// Verify returns the name of the issuer and the claims of a token that is accepted. Numbers are json.Number. The error says why
// a token is not accepted; it contains claims of the token, and not the token.
//
// The token is a JWS in compact form with one signature. Its claim aud is the audience of the issuer and nothing else. RFC 7519
// allows several audiences, but each of them could use the token here, so a token with several is refused. A token that was
// issued for the sign-in of a person is not accepted either: it has the claim nonce, at_hash or c_hash (OpenID Connect Core 1.0),
// or its azp, the client that asked for it, is its audience. Another azp is that of the workload, as Google and Entra write it.
func (i *Issuers) Verify(ctx context.Context, token string, now time.Time) (name string, claims map[string]any, err error) {
	if i == nil || len(i.all) == 0 {
		return "", nil, errors.New("an OIDC token, and the configuration has no issuers")
	}
	claims, header, err := parse(token)
	if err != nil {
		return "", nil, err
	}
	from, err := i.of(claims)
	if err == nil {
		err = from.check(header.Protected, claims, now)
	}
	if err != nil {
		return "", nil, err
	}
	if err := from.verify(ctx, token, from.verifying, now); err != nil {
		return "", nil, err
	}
	return from.Name, claims, nil
}

// parse returns the claims and the signature of a token, and verifies nothing.
func parse(token string) (claims map[string]any, signature jose.Signature, err error) {
	if len(token) > MaxToken {
		return nil, signature, fmt.Errorf("an OIDC token of %d bytes; at most %d are accepted", len(token), MaxToken)
	}
	signed, err := jose.ParseSignedCompact(token, algorithms)
	if err != nil {
		return nil, signature, fmt.Errorf("an OIDC token that cannot be read: %s", fault.Clip(err.Error(), 128))
	}
	if claims, err = Claims(signed.UnsafePayloadWithoutVerification()); err != nil {
		return nil, signature, fmt.Errorf("an OIDC token whose claims cannot be read: %w", err)
	}
	return claims, signed.Signatures[0], nil
}

// verify verifies the signature of a token that parse has read.
func (i *issuer) verify(ctx context.Context, token string, verifying oidc.Config, now time.Time) error {
	signed, err := jose.ParseSignedCompact(token, algorithms)
	if err != nil {
		return fmt.Errorf("issuer %s: %s", i.Name, fault.Clip(err.Error(), 256))
	}
	verified := &verification{source: i.source, signed: signed, now: now}
	if _, err := oidc.NewVerifier(i.URL, verified, &verifying).Verify(ctx, token); err != nil {
		return fmt.Errorf("issuer %s: %s", i.Name, fault.Clip(err.Error(), 256))
	}
	if !bytes.Equal(verified.payload, signed.UnsafePayloadWithoutVerification()) {
		return fmt.Errorf("issuer %s: other claims than those that are signed", i.Name)
	}
	return nil
}

// Issuer returns the name of the issuer of claims, and an error if they are not those of a token for this service. It checks no
// signature and no time: it is for explanations.
func (i *Issuers) Issuer(claims map[string]any) (string, error) {
	from, err := i.of(claims)
	if err == nil {
		err = from.checkAudience(claims)
	}
	if err != nil {
		return "", err
	}
	return from.Name, nil
}

// of returns the issuer that the claims name.
func (i *Issuers) of(claims map[string]any) (*issuer, error) {
	url, ok := claims["iss"].(string)
	if !ok {
		return nil, errors.New("an OIDC token without the claim iss")
	}
	if found := i.all[url]; found != nil {
		return found, nil
	}
	return nil, fmt.Errorf("an OIDC token of the issuer %q, which is not in the configuration", fault.Clip(url, 128))
}

// check checks everything but the signature.
func (i *issuer) check(header jose.Header, claims map[string]any, now time.Time) error {
	// RFC 8725, section 3.11: a JWT of another type has another meaning. Kubernetes writes no type.
	if typ, ok := header.ExtraHeaders[jose.HeaderType]; ok {
		text, _ := typ.(string)
		if text = strings.TrimPrefix(strings.ToLower(text), "application/"); text != "jwt" && text != "at+jwt" {
			return fmt.Errorf("issuer %s: the token is of the type %q", i.Name, fault.Clip(fmt.Sprint(typ), 64))
		}
	}
	if err := i.checkAudience(claims); err != nil {
		return err
	}
	return i.checkTimes(claims, now)
}

// checkAudience returns an error for a token that is not for this service alone, or not for a bearer.
func (i *issuer) checkAudience(claims map[string]any) error {
	audience := claims["aud"]
	if list, ok := audience.([]any); ok && len(list) == 1 {
		audience = list[0]
	}
	if audience != i.Audience {
		return fmt.Errorf("issuer %s: the audience of the token is %s, and not only %q", i.Name, fault.Clip(fmt.Sprintf("%q", audience), 128), i.Audience)
	}
	for _, name := range []string{"nonce", "at_hash", "c_hash"} {
		if _, ok := claims[name]; ok {
			return fmt.Errorf("issuer %s: the token has the claim %s: it was issued for a sign-in", i.Name, name)
		}
	}
	if claims["azp"] == i.Audience {
		return fmt.Errorf("issuer %s: the token was issued to its audience: it is for a sign-in", i.Name)
	}
	// RFC 7800: such a token needs the proof of a key.
	if _, ok := claims["cnf"]; ok {
		return fmt.Errorf("issuer %s: the token has the claim cnf: it is not a bearer token", i.Name)
	}
	return nil
}

// checkTimes returns an error for a token that is not valid now.
func (i *issuer) checkTimes(claims map[string]any, now time.Time) error {
	expires, err := date(claims, "exp", true)
	if err != nil {
		return fmt.Errorf("issuer %s: %w", i.Name, err)
	}
	issued, err := date(claims, "iat", true)
	if err != nil {
		return fmt.Errorf("issuer %s: %w", i.Name, err)
	}
	begins, err := date(claims, "nbf", false)
	if err != nil {
		return fmt.Errorf("issuer %s: %w", i.Name, err)
	}
	text := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	switch {
	case !now.Before(expires.Add(Skew)):
		return fmt.Errorf("issuer %s: the token expired at %s", i.Name, text(expires))
	case issued.After(now.Add(Skew)):
		return fmt.Errorf("issuer %s: the token was issued at %s, which is in the future", i.Name, text(issued))
	case begins.After(now.Add(Skew)):
		return fmt.Errorf("issuer %s: the token is not valid before %s", i.Name, text(begins))
	case now.After(issued.Add(i.MaxAge + Skew)):
		return fmt.Errorf("issuer %s: the token was issued at %s, and max-age is %v", i.Name, text(issued), i.MaxAge)
	}
	return nil
}

// date returns the time of a claim (RFC 7519, NumericDate); zero: there is none.
func date(claims map[string]any, name string, required bool) (time.Time, error) {
	value, ok := claims[name]
	if !ok && !required {
		return time.Time{}, nil
	}
	number, _ := value.(json.Number)
	seconds, err := number.Float64()
	if err != nil || seconds < 0 || seconds > 1e11 {
		return time.Time{}, fmt.Errorf("the token has no time in the claim %s", name)
	}
	return time.Unix(int64(seconds), 0), nil
}

// verification verifies the signature of one token. It implements oidc.KeySet.
type verification struct {
	source  *source
	signed  *jose.JSONWebSignature
	now     time.Time
	payload []byte // that the signature is over
}

// VerifySignature verifies the token that signed was parsed from.
func (v *verification) VerifySignature(ctx context.Context, _ string) ([]byte, error) {
	header := v.signed.Signatures[0].Protected
	keys, err := v.source.find(ctx, header.KeyID, v.now)
	if err != nil {
		return nil, err
	}
	for _, key := range keys {
		if !fits(key, header.Algorithm) {
			continue
		}
		if payload, err := v.signed.Verify(key.Key); err == nil {
			v.payload = payload
			return payload, nil
		}
	}
	return nil, fmt.Errorf("the signature is not that of the key %q", fault.Clip(header.KeyID, 64))
}

// fits returns whether a key may be used with an algorithm.
func fits(key jose.JSONWebKey, algorithm string) bool {
	return key.Algorithm == "" || key.Algorithm == algorithm
}
