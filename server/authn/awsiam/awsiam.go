// Package awsiam finds out which AWS IAM role or user a caller is. The caller signs the request GetCallerIdentity of AWS STS with its
// AWS credentials and sends what it signed; hsmsign sends the request to STS, which verifies the signature and answers with the
// identity. So hsmsign needs neither a secret nor AWS credentials, and the caller's secret key leaves its machine in no form.
//
//	v, err := awsiam.New(awsiam.Config{Once: ledger.Once})
//	signed, err := awsiam.Decode(bearer) // what follows Prefix
//	identity, err := v.Verify(ctx, signed, awsiam.Rule{Servers: names, Source: remote, Accept: known})
//
// # What is not the caller's choice
//
// Method, address and body of the request to STS are constants of this package: the address is looked up in a table of the STS
// endpoints, and is never the text that the caller sent. Of the headers only those of a list are copied, and only if the
// signature covers them. Everything else that was sent is refused. JSON is asked for and nothing else is read, redirects are not
// followed, and the answer must contain one identity. (CVE-2020-16250: a caller chose what STS answered. CVE-2022-2385: doubled
// parameters were read in two ways.)
//
// # One signature is one request
//
// A header X-Hsmsign-Server with a name of this server is part of the signature, so no other server can use it here or ours
// elsewhere. A signature is accepted for 15 minutes after its X-Amz-Date and once, across replicas. It is remembered after STS has
// verified it and the caller is known: then strangers cannot fill that memory, and two replicas that verify the same signature at
// the same time still accept it once, because remembering is one step.
//
// # Limits
//
// Calls to STS are bounded for each source and in all, in three classes: sources that have identified a caller before, other
// requests from addresses that have, and strangers. So strangers neither reach STS through this server in numbers, nor use up what
// known callers need.
//
// A Verifier is safe for concurrent use. Its locks are not held during I/O.
package awsiam

import (
	"context"
	"crypto/sha256"
	"net/http"
	"net/netip"
	"time"

	"hsmsign/fault"
)

const (
	// Prefix begins a bearer value of this package; base64url of the JSON of a Signed, without padding, follows.
	Prefix = "hsmsign-aws_"
	// ServerHeader is the signed header with the name of the server that the request is for.
	ServerHeader = "X-Hsmsign-Server"
	// MaxAge is for how long after its X-Amz-Date a signature is accepted. It is that of STS.
	MaxAge = 15 * time.Minute
	// ZentralMaxAge is the same for Zentral, whose requests name no server.
	ZentralMaxAge = time.Minute
	// Timeout is that of a call to STS.
	Timeout = 5 * time.Second

	// maxSkew is how far the clock of a caller may be ahead.
	maxSkew = time.Minute
)

// The errors of STS, besides those of kind unauthenticated.
var (
	ErrUnavailable = fault.Unavailable.New("AWS STS cannot be asked who the caller is")
	ErrLimited     = fault.Limited.New("AWS STS is asked too often who callers are")
)

// Signed is what a caller signed. Its JSON is an object with url and headers, an object of strings; method and body, which
// Zentral sends, may be left out.
type Signed struct {
	Method, URL string
	Headers     []Header
	Body        string
}

// Header is one header of a request.
type Header struct{ Name, Value string }

// Rule is what a signed request must be for the place where it arrived.
type Rule struct {
	// Servers are the names of this server, in lower case; the signed header X-Hsmsign-Server must have one of them.
	Servers []string
	// Zentral says that the header may be missing, and that X-Amz-Date is at most 60 seconds old.
	Zentral bool
	// Source is the address that the request came from; all requests without one are one source.
	Source netip.Addr
	// Accept returns an error for an identity that is not that of a caller; Verify returns it. nil: every identity is accepted.
	Accept func(Identity) error
}

// Identity is an IAM role or user as package policy compares it.
type Identity struct {
	Account string
	// ARN is arn:aws:iam::ACCOUNT:role/NAME, without the path of the role, which STS does not tell, or arn:aws:iam::ACCOUNT:user/NAME
	// with the path of the user.
	ARN string
	// UniqueID is AROA... of a role, AIDA... of a user. AWS never uses one again.
	UniqueID string
}

// Config is what a Verifier needs.
type Config struct {
	// Once remembers a hash until a time, in all replicas, and returns whether it was new: ledger.Ledger has it.
	Once func(ctx context.Context, hash [sha256.Size]byte, until time.Time) (fresh bool, err error)
	// Endpoint is the URL of a double of STS with a loopback address, for tests; empty: STS.
	Endpoint string
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Verifier verifies signed requests.
type Verifier struct {
	cfg     Config
	http    *http.Client
	limits  limits
	timeout time.Duration
}

// New returns a Verifier. It sends nothing. The error is of kind usage.
func New(cfg Config) (*Verifier, error) {
	if err := CheckEndpoint(cfg.Endpoint); err != nil {
		return nil, err
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Verifier{cfg: cfg, http: newHTTP(cfg.Endpoint), limits: newLimits(), timeout: Timeout}, nil
}

// Close closes idle connections. The Verifier can still be used.
func (v *Verifier) Close() { v.http.CloseIdleConnections() }

// Verify returns the identity that signed a request. An error of kind unauthenticated says why it is refused, for a log and not for
// the caller; other errors wrap ErrUnavailable or ErrLimited, or are those of Accept and Once.
func (v *Verifier) Verify(ctx context.Context, s Signed, rule Rule) (Identity, error) {
	r, err := s.check(rule, v.cfg.Now())
	if err != nil {
		return Identity{}, err
	}
	found, err := v.identify(ctx, r, rule.Source)
	if err == nil && rule.Accept != nil {
		err = rule.Accept(found)
	}
	if err != nil {
		return Identity{}, err
	}
	// The signature is an HMAC with the caller's key over everything that STS verifies. It identifies the request: nobody without
	// the key has another one that STS accepts for it, whatever was changed of the form or of headers that are not signed.
	fresh, err := v.cfg.Once(ctx, sha256.Sum256([]byte("hsmsign AWS signature "+r.signature)), r.date.Add(MaxAge))
	if err != nil {
		return Identity{}, err
	}
	if !fresh {
		return Identity{}, refusef("the signature was used before")
	}
	v.limits.succeeded(rule.Source, r.accessKey, v.cfg.Now())
	return found, nil
}

// identify asks STS whose a request is, if the source may ask.
func (v *Verifier) identify(ctx context.Context, r *request, source netip.Addr) (Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, v.timeout)
	defer cancel()
	leave, err := v.limits.enter(ctx, source, r.accessKey, v.cfg.Now())
	if err != nil {
		return Identity{}, err
	}
	defer leave()
	return v.ask(ctx, r)
}

// refusef returns the error of a request that is refused.
func refusef(format string, args ...any) error {
	return fault.Unauthenticated.Errorf("AWS: "+format, args...).Fix("sign a GetCallerIdentity request as docs/callers.md says, once for each request")
}
