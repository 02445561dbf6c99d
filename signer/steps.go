package signer

import (
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"hsmsign/fault"
)

// Status is the outcome of one step of a diagnosis.
type Status string

// The statuses. After a failure the remaining steps are skipped.
const (
	StatusOK      Status = "ok"
	StatusWarn    Status = "warn"
	StatusFail    Status = "fail"
	StatusSkipped Status = "skipped"
)

// Step is the result of one step of a diagnosis.
type Step struct {
	Name   string // "module file", "login", ...: stable
	Status Status
	Detail string // the result, one line, no secret
	Fix    string // what to do; empty if the status is ok
	Err    error  // why it failed; wraps a family
}

// Check is one step to run. Run returns StepOK, StepWarn or StepFail.
type Check struct {
	Name string
	Run  func(ctx context.Context) Step
}

// StepOK returns a step that succeeded.
func StepOK(format string, args ...any) Step {
	return Step{Status: StatusOK, Detail: fmt.Sprintf(format, args...)}
}

// StepWarn returns a step that succeeded but needs attention; add what to do with WithFix.
func StepWarn(format string, args ...any) Step {
	return Step{Status: StatusWarn, Detail: fmt.Sprintf(format, args...)}
}

// StepFail returns a step that failed. Detail and Fix are those of the error, without the operation and the reference
// that an *Error adds.
func StepFail(err error) Step {
	if errors.Is(err, context.Canceled) {
		return Step{Status: StatusFail, Detail: "interrupted", Err: err}
	}
	detail := err
	if e, ok := errors.AsType[*Error](err); ok {
		detail = e.Err
	}
	return Step{Status: StatusFail, Detail: detail.Error(), Fix: fault.Hint(err), Err: err}
}

// StepResult returns StepFail, or StepOK if err is nil.
func StepResult(err error, format string, args ...any) Step {
	if err != nil {
		return StepFail(err)
	}
	return StepOK(format, args...)
}

// WithFix returns the step with what to do about it.
func (s Step) WithFix(fix string) Step {
	s.Fix = fix
	return s
}

// StepKey returns the step that describes the public key after a prefix. It fails unless the key is that of the vendor's
// certificate, if that is known.
func StepKey(prefix string, public *rsa.PublicKey, opts OpenOptions) Step {
	if opts.PublicKey != nil && !public.Equal(opts.PublicKey) {
		return StepFail(fmt.Errorf("%w: it is not the key of the vendor's certificate", ErrBadKey))
	}
	described, err := DescribeKey(public)
	return StepResult(err, "%s%s", prefix, described)
}

// RunSteps runs the checks of a diagnosis in order and reports each one as it ends. After a failure the remaining
// checks do not run and are reported as skipped. It returns whether none failed.
func RunSteps(ctx context.Context, report func(Step), checks []Check) bool {
	ok := true
	for _, c := range checks {
		step := Step{Status: StatusSkipped}
		if ok {
			step = c.Run(ctx)
		}
		step.Name = c.Name
		ok = ok && step.Status != StatusFail
		report(step)
	}
	return ok
}

// StepSignature is the name of the step that signs.
const StepSignature = "signature"

// StepSign is the last step of every diagnosis: the key signs ProbeMessage, and the signature is verified.
func StepSign(ctx context.Context, key Signer) Step {
	start := time.Now()
	err := Probe(ctx, key)
	return StepResult(err, "made and verified in %v", time.Since(start).Round(10*time.Microsecond))
}

// DescribeKey returns the size of an RSA key and the SHA-256 of its SubjectPublicKeyInfo, in hex, for people to
// compare. The error wraps ErrBadKey.
func DescribeKey(pub *rsa.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrBadKey, err)
	}
	return fmt.Sprintf("RSA of %d bits; SHA-256 of its public key %x", pub.N.BitLen(), sha256.Sum256(der)), nil
}
