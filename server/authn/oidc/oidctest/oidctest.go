// Package oidctest is an issuer of OIDC tokens for tests. It answers discovery and keys over a real socket, and signs tokens with
// real keys by the standard library alone, so that it shares no mistake with what it tests. Claims has the claims that the known
// issuers send.
//
//	issuer := oidctest.New(t, "")
//	token := issuer.Sign(oidctest.Claims("github", issuer.URL, "https://sign.example.com", time.Now()))
//
// An Issuer is safe for concurrent use.
package oidctest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha512" // registers SHA-384 and SHA-512
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"

	"hsmsign/internal/testkit"
)

// Key is a key of an issuer.
type Key struct {
	ID  string
	Alg string // "RS256", "PS256", "ES384", "EdDSA", ...
	crypto.Signer
}

// NewKey returns a key for an algorithm. RSA keys of one id are the same in a test process.
func NewKey(t testing.TB, id, alg string) Key {
	t.Helper()
	switch alg {
	case "EdDSA":
		_, key, err := ed25519.GenerateKey(rand.Reader)
		testkit.OK(t, err)
		return Key{id, alg, key}
	case "ES256":
		return Key{id, alg, testkit.Value(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)}
	case "ES384":
		return Key{id, alg, testkit.Value(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t)}
	}
	return Key{id, alg, testkit.Key("OIDC " + id)}
}

// JWK returns the public key as a JSON Web Key (RFC 7517).
func (k Key) JWK() map[string]any {
	jwk := map[string]any{"use": "sig", "kid": k.ID, "alg": k.Alg}
	switch public := k.Public().(type) {
	case *rsa.PublicKey:
		jwk["kty"], jwk["n"], jwk["e"] = "RSA", encode(public.N.Bytes()), encode(big.NewInt(int64(public.E)).Bytes())
	case *ecdsa.PublicKey:
		size := (public.Curve.Params().BitSize + 7) / 8
		point := testkit.Must(public.Bytes()) // 4, x, y
		jwk["kty"], jwk["crv"], jwk["x"], jwk["y"] = "EC", public.Curve.Params().Name, encode(point[1:1+size]), encode(point[1+size:])
	case ed25519.PublicKey:
		jwk["kty"], jwk["crv"], jwk["x"] = "OKP", "Ed25519", encode(public)
	}
	return jwk
}

// Issuer is an issuer that runs until the test ends.
type Issuer struct {
	URL string
	// Fetches is how often its keys were asked for.
	Fetches atomic.Int64

	mu     sync.Mutex
	keys   []Key
	answer func(w http.ResponseWriter, r *http.Request) bool
	codes  map[string]code // of people who have signed in
}

// New runs an issuer over http at a loopback address. path is the path of its URL, as "/TENANT/v2.0", and may be empty. Its key
// has the id "1" and the algorithm RS256.
func New(t testing.TB, path string) *Issuer {
	t.Helper()
	return start(t, path, nil)
}

// NewTLS is New over https, with a certificate.
func NewTLS(t testing.TB, path string, cert tls.Certificate) *Issuer {
	t.Helper()
	return start(t, path, &cert)
}

func start(t testing.TB, path string, cert *tls.Certificate) *Issuer {
	i := &Issuer{keys: []Key{NewKey(t, "1", "RS256")}}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { i.serve(path, w, r) }))
	if server.Start(); cert != nil {
		server.Close()
		server = httptest.NewUnstartedServer(server.Config.Handler)
		server.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}, MinVersion: tls.VersionTLS12}
		server.StartTLS()
	}
	t.Cleanup(server.Close)
	i.URL = server.URL + path
	return i
}

func (i *Issuer) serve(path string, w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	answer, keys := i.answer, i.keys
	i.mu.Unlock()
	if r.URL.Path == path+"/keys" {
		i.Fetches.Add(1)
	}
	if answer != nil && answer(w, r) {
		return
	}
	var shape any
	switch r.URL.Path {
	case path + "/.well-known/openid-configuration":
		shape = map[string]any{
			"issuer": i.URL, "jwks_uri": i.URL + "/keys", "response_types_supported": []string{"code", "id_token"},
			"authorization_endpoint": i.URL + "/authorize", "token_endpoint": i.URL + "/token", "authorization_response_iss_parameter_supported": true,
		}
	case path + "/token":
		status, answer := i.redeem(r)
		if shape = answer; status != http.StatusOK {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
		}
	case path + "/keys":
		var all []any
		for _, key := range keys {
			all = append(all, key.JWK())
		}
		shape = map[string]any{"keys": all}
	default:
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(shape) // the other side may be gone
}

// Answer has a function answer requests; those for which it returns false are answered as always. Nil: all are.
func (i *Issuer) Answer(answer func(w http.ResponseWriter, r *http.Request) bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.answer = answer
}

// Down has the issuer answer with status 503, or as always again.
func (i *Issuer) Down(down bool) {
	i.Answer(func(w http.ResponseWriter, _ *http.Request) bool {
		if down {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		return down
	})
}

// SetKeys replaces the keys.
func (i *Issuer) SetKeys(keys ...Key) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = keys
}

// Key returns the first key.
func (i *Issuer) Key() Key {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.keys[0]
}

// Sign returns a token with claims, signed by the first key.
func (i *Issuer) Sign(claims map[string]any) string { return i.Key().Sign(claims, nil) }

// Sign returns a token with claims; header is added to its header, or replaces what is there.
func (k Key) Sign(claims, header map[string]any) string {
	return k.SignText(string(testkit.Must(json.Marshal(claims))), header)
}

// SignText is Sign for a payload of any form.
func (k Key) SignText(payload string, header map[string]any) string {
	all := map[string]any{"alg": k.Alg, "kid": k.ID, "typ": "JWT"}
	for name, value := range header {
		if all[name] = value; value == nil {
			delete(all, name)
		}
	}
	text := encode(testkit.Must(json.Marshal(all))) + "." + encode([]byte(payload))
	return text + "." + encode(k.sign([]byte(text)))
}

// sign returns a signature (RFC 7518, section 3).
func (k Key) sign(text []byte) []byte {
	hash := map[string]crypto.Hash{"RS256": crypto.SHA256, "PS256": crypto.SHA256, "ES256": crypto.SHA256, "RS384": crypto.SHA384, "ES384": crypto.SHA384, "RS512": crypto.SHA512}[k.Alg]
	var digest []byte
	if hash != 0 {
		h := hash.New()
		h.Write(text)
		digest = h.Sum(nil)
	}
	switch key := k.Signer.(type) {
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, key, digest)
		testkit.Must(0, err)
		size := (key.Curve.Params().BitSize + 7) / 8
		return append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...)
	case *rsa.PrivateKey:
		if k.Alg == "PS256" {
			return testkit.Must(rsa.SignPSS(rand.Reader, key, hash, digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}))
		}
		return testkit.Must(rsa.SignPKCS1v15(nil, key, hash, digest))
	}
	return testkit.Must(k.Signer.Sign(nil, text, crypto.Hash(0))) // Ed25519
}

func encode(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }
