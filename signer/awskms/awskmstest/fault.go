package awskmstest

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Fault is how a request fails. Besides those here, every error code that KMS knows ("DisabledException") is one.
type Fault string

// The faults.
const (
	OK             Fault = "ok"
	Throttle       Fault = "ThrottlingException"
	Internal       Fault = "KMSInternalException" // status 500
	KeyUnavailable Fault = "KeyUnavailableException"
	AccessDenied   Fault = "AccessDeniedException"
	ExpiredToken   Fault = "ExpiredTokenException"
	BadGateway     Fault = "bad-gateway" // status 502 with a page in HTML, as a proxy writes it
	Reset          Fault = "reset"       // the connection is reset, no answer is given
	Truncate       Fault = "truncate"    // half of the answer, as if it were whole
	Empty          Fault = "empty"       // status 200 and nothing, as a broken proxy answers
	FlipBit        Fault = "flip-bit"    // one bit of the signature is wrong
	ShortSignature Fault = "short"       // the last byte of the signature is missing
	OtherKey       Fault = "other-key"   // the answer names another key
	Hang           Fault = "hang"        // no answer at all, until the client leaves
)

// Delay is an answer that comes late.
func Delay(d time.Duration) Fault { return Fault(delayPrefix + d.String()) }

const delayPrefix = "delay="

// messages are what KMS writes with its error codes; %s stands for the operation.
func messages() map[string]string {
	return map[string]string{
		"AccessDeniedException":               "User: arn:aws:iam::111122223333:user/test is not authorized to perform: kms:%s on this resource because no identity-based policy allows the kms:%s action",
		"AlreadyExistsException":              "it exists already",
		"DependencyTimeoutException":          "",
		"DisabledException":                   "the key is disabled.",
		"ExpiredTokenException":               "The security token included in the request is expired",
		"InvalidKeyUsageException":            "the key's usage is not valid for the operation.",
		"InvalidSignatureException":           "The request signature we calculated does not match the signature you provided.",
		"KeyUnavailableException":             "",
		"KMSInternalException":                "",
		"KMSInvalidStateException":            "the key is pending deletion.",
		"LimitExceededException":              "You have reached the quota for this resource.",
		"MissingAuthenticationTokenException": "Missing Authentication Token",
		"NotFoundException":                   "it is not found.",
		"ThrottlingException":                 "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.",
		"UnrecognizedClientException":         "The security token included in the request is invalid.",
		"UnsupportedOperationException":       "",
		"ValidationException":                 "1 validation error detected",
	}
}

// operations are those that can fail on demand.
func operations() []string {
	return []string{"*", "AssumeRole", "CreateAlias", "CreateKey", "DescribeKey", "GetPublicKey", "ListAliases", "ListKeys", "Sign"}
}

// check refuses what is no fault, or a fault of no operation.
func (f Fault) check(operation string) error {
	if name, _, _ := strings.Cut(operation, "@"); !slices.Contains(operations(), name) {
		return fmt.Errorf("unknown operation %q; there are %v", name, operations())
	}
	if d, ok := strings.CutPrefix(string(f), delayPrefix); ok {
		_, err := time.ParseDuration(d)
		return err
	}
	own := []Fault{OK, BadGateway, Reset, Truncate, Empty, FlipBit, ShortSignature, OtherKey, Hang}
	if _, known := messages()[string(f)]; known || slices.Contains(own, f) {
		return nil
	}
	return fmt.Errorf("unknown fault %q; there are %v, delay=2s, and the error codes of KMS", f, own)
}

// Script lets the next requests of an operation ("Sign", "AssumeRole", or "*" for whichever comes) meet these faults,
// one each and in this order; those already there come first. "Sign@us-east-1" is for one region. A fault or an
// operation that is not known is an error, and then nothing is changed.
func (s *Server) Script(operation string, faults ...Fault) error {
	for _, f := range faults {
		if err := f.check(operation); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scripts[operation] = append(s.scripts[operation], faults...)
	return nil
}

// Stand lets every request of an operation, named as for Script, meet a fault once its script is used up. OK ends
// it.
func (s *Server) Stand(operation string, fault Fault) error {
	if err := fault.check(operation); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.standing[operation] = fault
	return nil
}

// next is what a request meets: the first of the narrowest script, or else the narrowest standing fault.
func (s *Server) next(operation, region string) Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := []string{operation + "@" + region, operation, "*@" + region, "*"}
	for _, name := range names {
		if script := s.scripts[name]; len(script) > 0 {
			s.scripts[name] = script[1:]
			return withOperation(script[0], operation)
		}
	}
	for _, name := range names {
		if f, ok := s.standing[name]; ok && f != OK {
			return withOperation(f, operation)
		}
	}
	return OK
}

// withOperation remembers for which operation access is denied.
func withOperation(f Fault, operation string) Fault {
	if f == AccessDenied {
		return f + Fault(" "+operation)
	}
	return f
}

// meet lets the time pass that the fault and the configuration want, and says whether there is to be an answer.
func (s *Server) meet(w http.ResponseWriter, r *http.Request, f Fault) bool {
	wait := s.config.Delay
	if d, ok := strings.CutPrefix(string(f), delayPrefix); ok {
		more, err := time.ParseDuration(d)
		if err != nil {
			more = 0 // Script has checked it
		}
		wait += more
	}
	var late <-chan time.Time
	if f != Hang {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-r.Context().Done():
		f = Reset // merely to return would answer with status 200 and nothing in it
	case <-s.ending:
		f = Reset
	case <-late:
	}
	switch f {
	case Reset:
		if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
			if tcp, ok := conn.(*net.TCPConn); ok {
				_ = tcp.SetLinger(0) // with it Close sends RST (SO_LINGER, socket(7))
			}
			_ = conn.Close()
		}
		return false
	case BadGateway:
		http.Error(w, "<html><body>bad gateway</body></html>", http.StatusBadGateway)
		return false
	}
	return true
}

// refusal is the error that the fault is; nil for all others.
func (f Fault) refusal() error {
	code, operation, _ := strings.Cut(string(f), " ")
	message, known := messages()[code]
	if !known {
		return nil
	}
	return &Error{Code: code, Message: strings.ReplaceAll(message, "%s", operation)}
}

// damage is the body of an answer, with what the fault does to it. No members are an empty body.
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
	body := encode(members)
	switch f {
	case Truncate:
		return body[:len(body)/2]
	case Empty:
		return nil
	}
	return body
}
