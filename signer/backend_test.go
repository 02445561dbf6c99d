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

// session is a Session that may fail.
type session struct {
	err    error
	closed int
}

func (s *session) Open(context.Context, OpenOptions) (Signer, error) {
	return &testkit.Signer{}, s.err
}
func (s *session) Generate(context.Context, KeySpec) (Signer, error) {
	return &testkit.Signer{}, s.err
}
func (s *session) List(context.Context) ([]KeyInfo, error) { return make([]KeyInfo, 1), s.err }
func (s *session) Close() error                            { s.closed++; return nil }

// TestNewBackend: a session is closed if the work fails and after a listing, and an error names the operation.
func TestNewBackend(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range []struct {
		name             string
		ctx              context.Context
		connect, work    error
		connects, closed int // by one operation, without a listing's own Close
		want             error
	}{
		{"works", t.Context(), nil, nil, 1, 0, nil},
		{"ended", ended, nil, nil, 0, 0, context.Canceled},
		{"cannot connect", t.Context(), ErrAuth, nil, 1, 0, ErrAuth},
		{"fails", t.Context(), nil, ErrBadKey, 1, 1, ErrBadKey},
	} {
		var connects int
		var s session
		backend := NewBackend(func(context.Context, Ref) (*session, error) { connects++; return &s, tt.connect })
		for op, run := range map[string]func(Ref) (bool, error){
			"open": func(ref Ref) (bool, error) {
				key, err := backend.Open(tt.ctx, ref, OpenOptions{})
				return key != nil, err
			},
			"generate": func(ref Ref) (bool, error) {
				key, err := backend.Generate(tt.ctx, ref, KeySpec{})
				return key != nil, err
			},
			"list": func(ref Ref) (bool, error) { infos, err := backend.List(tt.ctx, ref); return infos != nil, err },
		} {
			connects, s = 0, session{err: tt.work}
			value, err := run(Ref{Scheme: "kms", Path: "key"})
			closed := tt.closed
			if op == "list" && tt.connects == 1 && tt.connect == nil {
				closed++
			}
			if !errors.Is(err, tt.want) || connects != tt.connects || s.closed != closed || value != (tt.want == nil) {
				t.Errorf("%s, %s: %v, %v; connected %d times, closed %d times", tt.name, op, value, err, connects, s.closed)
			}
			if e, ok := errors.AsType[*Error](err); tt.want != nil && (!ok || e.Op != op || e.Ref.Path != "key") {
				t.Errorf("%s, %s: %v", tt.name, op, err)
			}
		}
	}
}

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
