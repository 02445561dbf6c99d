package awskmstest

import (
	"encoding/json"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"hsmsign/internal/double"
)

// Fault is how a request fails. Besides the constants, every error code of KMS that the double knows is a fault
// ("KMSInvalidStateException").
type Fault string

// The faults that gcpkmstest has as well.
const (
	OK          Fault = double.OK // no fault
	Throttle    Fault = "ThrottlingException"
	Internal    Fault = "KMSInternalException"    // status 500
	Unavailable Fault = "KeyUnavailableException" // status 500
	Denied      Fault = "AccessDeniedException"
	Expired     Fault = "ExpiredTokenException"
	Disabled    Fault = "DisabledException" // the key is disabled
	Reset       Fault = "reset"             // the connection is reset, without an answer
	Lost        Fault = "lost"              // the request is performed, and then the connection is reset
	FlipBit     Fault = "flip-bit"          // one bit of the signature is wrong
	OtherKey    Fault = "other-key"         // the answer names another key
	Hang        Fault = double.Hang         // no answer until the client leaves
)

// The faults of this double alone.
const (
	BadGateway     Fault = "bad-gateway" // status 502 with an HTML page, as from a proxy
	Truncate       Fault = "truncate"    // half of the answer, as if it were complete
	Empty          Fault = "empty"       // status 200 and no body, as from a broken proxy
	ShortSignature Fault = "short"       // the last byte of the signature is missing
)

// Delay returns the fault of an answer that is d late. Its text is "delay=2s".
func Delay(d time.Duration) Fault { return double.Delay[Fault](d) }

// messages are the messages of KMS for its error codes; %s is the operation.
func messages() map[Fault]string {
	return map[Fault]string{
		Denied:                                "User: arn:aws:iam::111122223333:user/test is not authorized to perform: kms:%s on this resource because no identity-based policy allows the kms:%s action",
		"AlreadyExistsException":              "it exists already",
		"DependencyTimeoutException":          "",
		Disabled:                              "the key is disabled.",
		Expired:                               "The security token included in the request is expired",
		"InvalidKeyUsageException":            "the key's usage is not valid for the operation.",
		"InvalidSignatureException":           "The request signature we calculated does not match the signature you provided.",
		Unavailable:                           "",
		Internal:                              "",
		"KMSInvalidStateException":            "the key is pending deletion.",
		"LimitExceededException":              "You have reached the quota for this resource.",
		"MissingAuthenticationTokenException": "Missing Authentication Token",
		"NotFoundException":                   "it is not found.",
		Throttle:                              "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.",
		"UnrecognizedClientException":         "The security token included in the request is invalid.",
		"UnsupportedOperationException":       "",
		"ValidationException":                 "1 validation error detected",
	}
}

func faults() []Fault {
	return append(slices.Sorted(maps.Keys(messages())), BadGateway, Reset, Lost, Truncate, Empty, FlipBit, ShortSignature, OtherKey)
}

func operations() []string {
	return append([]string{"AssumeRole"}, slices.Sorted(maps.Keys(table()))...)
}

// meet waits as long as the fault and the configuration say, and reports whether the request is to be answered. It
// handles the faults that are no answer of KMS.
func (s *Server) meet(w http.ResponseWriter, r *http.Request, f Fault) bool {
	if !double.Wait(r.Context(), s.closed, f, s.config.Delay) {
		f = Reset // a plain return would answer with status 200 and no body
	}
	switch f {
	case Reset:
		reset(w)
		return false
	case BadGateway:
		http.Error(w, "<html><body>bad gateway</body></html>", http.StatusBadGateway)
		return false
	}
	return true
}

// reset resets the connection of a request.
func reset(w http.ResponseWriter) {
	if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // with it Close sends RST (SO_LINGER, socket(7))
		}
		_ = conn.Close()
	}
}

// refusal returns the error that the fault is, or nil.
func (f Fault) refusal(operation string) error {
	message, known := messages()[f]
	if !known {
		return nil
	}
	return &Error{Code: string(f), Message: strings.ReplaceAll(message, "%s", operation)}
}

// damage returns the body of an answer, changed as the fault says. Without members the body is empty.
func (f Fault) damage(members map[string]any) []byte {
	if members == nil {
		return nil
	}
	sig, _ := members["Signature"].([]byte)
	switch {
	case f == FlipBit && len(sig) > 0:
		sig[len(sig)/2] ^= 1
	case f == ShortSignature && len(sig) > 0:
		members["Signature"] = sig[:len(sig)-1]
	case f == OtherKey:
		if arn, ok := members["KeyId"].(string); ok {
			members["KeyId"] = arn[:len(arn)-4] + "ffff"
		}
	}
	body, _ := json.Marshal(members) // strings, numbers, byte slices and lists of them
	switch f {
	case Truncate:
		return body[:len(body)/2]
	case Empty:
		return nil
	}
	return body
}
