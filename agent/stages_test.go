package agent

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
)

// figures is a key with figures.
type figures struct {
	*store
	during func()
}

func (f figures) Scheme() string { return "memory" }

func (f figures) Open(ctx context.Context, opts signer.OpenOptions) (signer.Signer, error) {
	opened, err := f.store.Open(ctx, opts)
	return counted{opened, f.during}, err
}

type counted struct {
	signer.Signer
	during func() // Stats
}

func (c counted) Stats() signer.Stats {
	c.during()
	return signer.Stats{Open: 7}
}

// stages records the stages of a context, with the kinds of their errors.
type stages struct {
	mu  sync.Mutex
	all []string
}

type nestedKey struct{}

func (s *stages) observe(ctx context.Context, stage string) (context.Context, func(error)) {
	outer, _ := ctx.Value(nestedKey{}).(string)
	return context.WithValue(ctx, nestedKey{}, outer+stage+"/"), func(err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.all = append(s.all, outer+stage+" "+fault.KindOf(err).String())
	}
}

// Each stage is reported once, in order, with its outcome; the recorder and the key get the stage's context.
func TestObserver(t *testing.T) {
	down := fault.Unavailable.New("down")
	for _, tt := range []struct {
		name string
		r    recorder
		sign error
		want string
	}{
		{"issued", recorder{}, nil, "authorize none, open none, sign none, conclude none, release none"},
		{"not authorized", recorder{authorize: down}, nil, "authorize unavailable"},
		{"the key fails", recorder{}, down, "authorize none, open none, sign unavailable, conclude none"},
		{"not concluded", recorder{conclude: down}, nil, "authorize none, open none, sign none, conclude unavailable"},
		{"not released", recorder{release: down}, nil, "authorize none, open none, sign none, conclude none, release unavailable"},
		{"stored", recorder{stored: testkit.File(t, "golden/customer.req")}, nil, "authorize none, release none"},
	} {
		key := golden(t)
		key.key.Fail = func() error { return tt.sign }
		v := newVendor(t, Config{Key: key, Recorder: &tt.r})
		var s stages
		_, err := v.Issue(WithObserver(t.Context(), s.observe), prepare(t, v, customer(t)))
		if got := strings.Join(s.all, ", "); got != tt.want {
			t.Errorf("%s: %s, want %s (%v)", tt.name, got, tt.want, err)
		}
	}
	var s stages
	ctx := WithObserver(t.Context(), s.observe)
	outer := errors.New("outer")
	err := Observe(ctx, "a", func(ctx context.Context) error {
		return errors.Join(outer, Observe(ctx, "b", func(context.Context) error { return nil }))
	})
	if got := strings.Join(s.all, ", "); got != "a/b none, a internal" || !errors.Is(err, outer) {
		t.Errorf("nested: %s, %v", got, err)
	}
}

// Stats are those of the open key.
func TestStats(t *testing.T) {
	for _, tt := range []struct {
		key interface {
			Open(ctx context.Context, opts signer.OpenOptions) (signer.Signer, error)
		}
		backend string
		want    int
		ok      bool
	}{{figures{golden(t), func() {}}, "memory", 7, true}, {golden(t), "", 0, false}} {
		v := newVendor(t, Config{Key: tt.key})
		if _, ok := v.Stats(); ok || v.IsOpen() || v.Backend() != tt.backend {
			t.Errorf("figures of a key that is not open, or backend %q", v.Backend())
		}
		testkit.OK(t, issue(t, v))
		if stats, ok := v.Stats(); stats.Open != tt.want || ok != tt.ok || !v.IsOpen() {
			t.Errorf("%+v %v, want %d", stats, ok, tt.want)
		}
		v.Close()
		if _, ok := v.Stats(); ok || v.IsOpen() {
			t.Error("figures of a closed key")
		}
	}
}

// A key whose figures are being read is closed after that, once.
func TestStatsAndClose(t *testing.T) {
	key := golden(t)
	var v *Vendor
	v = newVendor(t, Config{Key: figures{key, func() {
		v.Close()
		if key.key.Closed.Load() != 0 {
			t.Error("the key was closed while its figures were read")
		}
	}}})
	testkit.OK(t, issue(t, v))
	if _, ok := v.Stats(); !ok || key.key.Closed.Load() != 1 {
		t.Errorf("closed %d times", key.key.Closed.Load())
	}
}
