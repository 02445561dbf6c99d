package vaulttest

import (
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
	OK       Fault = double.OK       // no fault
	Throttle Fault = "throttle"      // status 429: a rate limit quota
	Internal Fault = "internal"      // status 500
	Denied   Fault = "denied"        // status 403: a policy
	Expired  Fault = "invalid-token" // status 403: the token is expired or revoked
	Disabled Fault = "disabled"      // the version is below min_encryption_version
	Reset    Fault = "reset"         // the connection is reset, without an answer
	Lost     Fault = "lost"          // the request is performed, and then the connection is reset
	FlipBit  Fault = "flip-bit"      // one bit of the signature is wrong
	Hang     Fault = double.Hang     // no answer until the client leaves
)

// The faults of this double alone.
const (
	Sealed         Fault = "sealed"        // status 503
	Standby        Fault = "standby"       // status 307 to another host
	Behind         Fault = "behind"        // status 412: a replica that is behind the primary
	Secondary      Fault = "secondary"     // status 472: a node of a disaster recovery secondary
	NotFound       Fault = "not-found"     // status 404
	NoKey          Fault = "no-key"        // status 400: the key does not exist, as Sign answers it
	NoVersion      Fault = "no-version"    // status 400: the version does not exist
	OldNoVersion   Fault = "no-version500" // the same with status 500, as in old versions
	NoPrivate      Fault = "no-private"    // status 400: only the public part was imported
	NoSigning      Fault = "no-signing"    // status 400: the type of the key cannot sign
	Proxy          Fault = "proxy"         // status 403 with an HTML page
	BadGateway     Fault = "bad-gateway"   // status 502 with an HTML page
	Truncate       Fault = "truncate"      // half of the answer, as if it were complete
	Empty          Fault = "empty"         // status 200 and no body
	Huge           Fault = "huge"          // an answer of 2 MiB
	ShortSignature Fault = "short"         // the last byte of the signature is missing
	OtherVersion   Fault = "other-version" // the signature is said to be that of version 7
	NoSignature    Fault = "no-signature"  // the answer has none
)

// Delay returns the fault of an answer that is d late. Its text is "delay=2s".
func Delay(d time.Duration) Fault { return double.Delay[Fault](d) }

// refusals are the faults that are an answer of Vault, with its messages.
func refusals() map[Fault]*Error {
	const before, after = "1 error occurred:\n\t* ", "\n\n"
	return map[Fault]*Error{
		Throttle:     {http.StatusTooManyRequests, "request path \"transit\": rate limit quota exceeded"},
		Internal:     {http.StatusInternalServerError, "internal error"},
		Denied:       {http.StatusForbidden, before + "permission denied" + after},
		Expired:      {http.StatusForbidden, "2 errors occurred:\n\t* permission denied\n\t* invalid token" + after},
		Sealed:       {http.StatusServiceUnavailable, "Vault is sealed"},
		Behind:       {http.StatusPreconditionFailed, "required index state not present"},
		Secondary:    {472, "path disabled in replication DR secondary mode"},
		NotFound:     {http.StatusNotFound, ""},
		NoKey:        {http.StatusBadRequest, "signing key not found"},
		NoVersion:    {http.StatusBadRequest, "requested version for signing is higher than the latest key version"},
		OldNoVersion: {http.StatusInternalServerError, before + "requested version for signing is higher than the latest key version" + after},
		Disabled:     {http.StatusBadRequest, "requested version for signing is less than the minimum encryption key version"},
		NoPrivate:    {http.StatusBadRequest, "requested version for signing does not contain a private part"},
		NoSigning:    {http.StatusBadRequest, "key type aes256-gcm96 does not support signing"},
	}
}

func faults() []Fault {
	return append(slices.Sorted(maps.Keys(refusals())), Standby, Proxy, BadGateway, Reset, Lost, Truncate, Empty, Huge, FlipBit, ShortSignature, OtherVersion, NoSignature)
}

func operations() []string {
	return []string{"CreateKey", "Health", "ListKeys", "Login", "LookupToken", "ReadKey", "RenewToken", "Sign"}
}

// refusal returns the error that the fault is, or nil.
func (f Fault) refusal() error {
	if e, ok := refusals()[f]; ok {
		return e
	}
	return nil
}

// meet waits as long as the fault and the configuration say, and reports whether the request is to be answered. It handles
// the faults that are no answer of Vault.
func (s *Server) meet(w http.ResponseWriter, r *http.Request, f Fault) bool {
	if !double.Wait(r.Context(), s.closed, f, s.config.Delay) {
		f = Reset // a plain return would answer with status 200 and no body
	}
	switch f {
	case Reset:
		double.Reset(r)
	case Standby:
		w.Header().Set("Location", "https://active.invalid:8200"+r.URL.Path)
		w.WriteHeader(http.StatusTemporaryRedirect)
	case BadGateway:
		http.Error(w, "<html><body>bad gateway</body></html>", http.StatusBadGateway)
	case Proxy:
		http.Error(w, "<html><body>forbidden</body></html>", http.StatusForbidden)
	case Empty:
		w.WriteHeader(http.StatusOK)
	default:
		return true
	}
	return false
}

// damage returns the body of an answer, changed as the fault says.
func (f Fault) damage(answer map[string]any) []byte {
	data, _ := answer["data"].(map[string]any)
	if text, ok := data["signature"].(string); ok {
		data["signature"] = f.damageSignature(text)
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
