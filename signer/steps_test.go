package signer

import (
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
)

// TestRunSteps: the checks run in order and are reported as they end. After a failure the others are skipped; after a
// warning they are not.
func TestRunSteps(t *testing.T) {
	for _, tt := range []struct {
		name string
		fail string // the check that fails
		want string
		ok   bool
	}{
		{"good", "", "a ok, b warn, c ok", true},
		{"first fails", "a", "a fail, b skipped, c skipped", false},
		{"second fails", "b", "a ok, b fail, c skipped", false},
		{"last fails", "c", "a ok, b warn, c fail", false},
	} {
		var ran, reported []string
		check := func(name string, step Step) Check {
			return Check{Name: name, Run: func(ctx context.Context) Step {
				if ran = append(ran, name); ctx != t.Context() || len(reported) != len(ran)-1 {
					t.Errorf("%s: check %q runs before the last one was reported", tt.name, name)
				}
				if name == tt.fail {
					return StepFail(ErrBadKey)
				}
				return step
			}}
		}
		ok := RunSteps(t.Context(), func(s Step) { reported = append(reported, s.Name+" "+string(s.Status)) },
			[]Check{check("a", StepOK("fine")), check("b", StepWarn("careful")), check("c", StepOK("fine"))})
		if got := strings.Join(reported, ", "); got != tt.want || ok != tt.ok {
			t.Errorf("%s: %s, %v; want %s, %v", tt.name, got, ok, tt.want, tt.ok)
		}
		if skipped := strings.Count(tt.want, "skipped"); len(ran) != 3-skipped {
			t.Errorf("%s: %q ran", tt.name, ran)
		}
	}
}

func TestSteps(t *testing.T) {
	err := &Error{Op: "open", Ref: Ref{Scheme: "file", Path: "a"}, Err: fault.Errorf("%w: damaged", ErrBadKey).Fix("restore it")}
	joined := errors.Join(err, errors.New("close"))
	for _, tt := range []struct{ got, want Step }{
		{StepOK("%d bits", 2048), Step{Status: StatusOK, Detail: "2048 bits"}},
		{StepWarn("mode %o", 0o644).WithFix("chmod"), Step{Status: StatusWarn, Detail: "mode 644", Fix: "chmod"}},
		{StepFail(err), Step{Status: StatusFail, Detail: "unusable key: damaged", Fix: "restore it", Err: err}},
		{StepFail(joined), Step{Status: StatusFail, Detail: "unusable key: damaged", Fix: "restore it", Err: joined}},
		{StepFail(ErrAuth), Step{Status: StatusFail, Detail: "authentication failed", Err: ErrAuth}},
	} {
		if diff := cmp.Diff(tt.want, tt.got, cmp.Comparer(func(a, b error) bool { return errors.Is(a, b) })); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
}

// TestStepSign: the signature is made and verified.
func TestStepSign(t *testing.T) {
	key := testkit.NewSigner(testkit.GoldenKey(t))
	if s := StepSign(t.Context(), key); s.Status != StatusOK || !strings.HasPrefix(s.Detail, "made and verified in ") || key.Calls.Load() != 1 {
		t.Errorf("%+v after %d signatures", s, key.Calls.Load())
	}
	key.Faulty = true
	if s := StepSign(t.Context(), key); s.Status != StatusFail || !errors.Is(s.Err, ErrBadSignature) {
		t.Errorf("%+v", s)
	}
}

func TestDescribeKey(t *testing.T) {
	public := &testkit.GoldenKey(t).PublicKey
	der := testkit.Value(x509.MarshalPKIXPublicKey(public))(t)
	want := fmt.Sprintf("RSA of 2048 bits; SHA-256 of its public key %x", sha256.Sum256(der))
	if got, err := DescribeKey(public); got != want || err != nil {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	if _, err := DescribeKey(&rsa.PublicKey{}); !errors.Is(err, ErrBadKey) {
		t.Errorf("no modulus: %v", err)
	}
}
