package azurekmstest

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"hsmsign/internal/double"
)

// Fault is how a request fails.
type Fault string

// The faults that the other doubles have as well.
const (
	OK       Fault = double.OK   // no fault
	Throttle Fault = "throttle"  // status 429
	Internal Fault = "internal"  // status 500
	Denied   Fault = "denied"    // status 403: no role
	Expired  Fault = "expired"   // status 401 with a challenge: the token is refused
	Disabled Fault = "disabled"  // status 403: the version is disabled
	Reset    Fault = "reset"     // the connection is reset, without an answer
	Lost     Fault = "lost"      // the request is performed, and then the connection is reset
	FlipBit  Fault = "flip-bit"  // one bit of the signature is wrong
	OtherKey Fault = "other-key" // the answer names another version
	Hang     Fault = double.Hang // no answer until the client leaves
)

// The faults of this double alone.
const (
	Unavailable    Fault = "unavailable"   // status 503
	Firewall       Fault = "firewall"      // status 403: the network rules of the vault
	NotFound       Fault = "not-found"     // status 404: KeyNotFound
	BadParameter   Fault = "bad-parameter" // status 400: the key cannot do that
	Deleted        Fault = "deleted"       // status 409: a deleted key of the name can be recovered
	Standard       Fault = "standard"      // status 400: the tier of the vault has no HSM
	NoChallenge    Fault = "no-challenge"  // status 401 without a challenge
	BadGateway     Fault = "bad-gateway"   // status 502 with an HTML page
	Truncate       Fault = "truncate"      // half of the answer, as if it were complete
	Empty          Fault = "empty"         // status 200 and no body
	Huge           Fault = "huge"          // an answer of 2 MiB
	ShortSignature Fault = "short"         // the last byte of the signature is missing
	NoKey          Fault = "no-key"        // the answer names no key
	OtherPage      Fault = "other-page"    // the next page of a list is on another host
)

// Delay returns the fault of an answer that is d late. Its text is "delay=2s".
func Delay(d time.Duration) Fault { return double.Delay[Fault](d) }

// refusals are the faults that are an answer of Key Vault, with its codes and messages.
func refusals() map[Fault]*Error {
	return map[Fault]*Error{
		Throttle:     {http.StatusTooManyRequests, "Throttled", "", "Request was not processed because too many requests were received."},
		Internal:     {http.StatusInternalServerError, "InternalServerError", "", "an internal error"},
		Unavailable:  {http.StatusServiceUnavailable, "ServiceUnavailable", "", "the service is unavailable"},
		Denied:       {http.StatusForbidden, "Forbidden", "ForbiddenByRbac", "Caller is not authorized to perform action on resource.\r\nAction: 'Microsoft.KeyVault/vaults/keys/sign/action'"},
		Firewall:     {http.StatusForbidden, "Forbidden", "ForbiddenByFirewall", "Client address is not authorized and caller is not a trusted service."},
		Disabled:     {http.StatusForbidden, "Forbidden", "KeyDisabled", "Operation sign is not allowed on a disabled key."},
		NotFound:     {http.StatusNotFound, "KeyNotFound", "", "A key with (name/id) x was not found in this key vault."},
		BadParameter: {http.StatusBadRequest, "BadParameter", "", "Operation sign is not permitted on this key."},
		Deleted:      {http.StatusConflict, "Conflict", "ObjectIsDeletedButRecoverable", "Key x is currently in a deleted but recoverable state."},
		Standard:     {http.StatusBadRequest, "BadParameter", "", "The vault's SKU does not support HSM keys."},
	}
}

func faults() []Fault {
	return append(slices.Sorted(maps.Keys(refusals())), Expired, NoChallenge, BadGateway, Reset, Lost, Truncate, Empty, Huge, FlipBit, ShortSignature, OtherKey, NoKey, OtherPage)
}

func operations() []string {
	return []string{"CreateKey", "GetKey", "ListKeys", "ListVersions", "Sign", "Token"}
}

// refusal returns the error that the fault is, or nil.
func (f Fault) refusal() error {
	if e, ok := refusals()[f]; ok {
		return e
	}
	return nil
}

// meet waits as long as the fault and the configuration say, and reports whether the request is to be answered. It handles
// the faults that are no answer of a request with a token.
func (s *Server) meet(w http.ResponseWriter, r *http.Request, c call) bool {
	if !double.Wait(r.Context(), s.closed, c.fault, s.config.Delay) {
		c.fault = Reset // a plain return would answer with status 200 and no body
	}
	switch c.fault {
	case Reset:
		double.Reset(r)
	case BadGateway:
		http.Error(w, "<html><body>bad gateway</body></html>", http.StatusBadGateway)
	case Expired:
		s.challenge(w, c.id)
	case NoChallenge:
		http.Error(w, "<html><body>who are you?</body></html>", http.StatusUnauthorized)
	case Empty:
		w.WriteHeader(http.StatusOK)
	default:
		return true
	}
	return false
}

// damage returns the body of an answer, changed as the fault says.
func (f Fault) damage(answer map[string]any) []byte {
	if text, ok := answer["value"].(string); ok {
		sig, _ := base64.RawURLEncoding.DecodeString(text) // which sign encoded
		switch f {
		case FlipBit:
			sig[len(sig)/2] ^= 1
		case ShortSignature:
			sig = sig[:len(sig)-1]
		}
		answer["value"] = base64.RawURLEncoding.EncodeToString(sig)
	}
	if id, ok := answer["kid"].(string); ok {
		switch f {
		case OtherKey:
			answer["kid"] = id[:len(id)-4] + "ffff"
		case NoKey:
			delete(answer, "kid")
		}
	}
	if _, ok := answer["nextLink"]; ok && f == OtherPage {
		answer["nextLink"] = "https://other.invalid/keys?$skiptoken=1"
	}
	if f == Huge {
		answer["padding"] = strings.Repeat("a", 2<<20)
	}
	body, _ := json.Marshal(answer) // strings, numbers and maps of them
	if f == Truncate {
		return body[:len(body)/2]
	}
	return body
}
