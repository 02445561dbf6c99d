package signer

import (
	"context"
	"errors"
	"testing"

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
