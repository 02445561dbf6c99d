package signer

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestOperation(t *testing.T) {
	OperationOf(t.Context()).Attempted("x", time.Now(), nil) // without one
	if got := OperationOf(t.Context()).Attempts(); got != nil {
		t.Errorf("%v", got)
	}
	o := &Operation{}
	ctx, cancel := context.WithCancel(WithOperation(t.Context(), o))
	defer cancel()
	failed := errors.New("failed")
	for _, id := range []string{"8d0b35e0-46cf", "a b", "a\n", strings.Repeat("x", 129), "\xff"} {
		OperationOf(ctx).Attempted(id, time.Unix(1, 0), failed)
	}
	for i, a := range o.Attempts() {
		if want := map[int]string{0: "8d0b35e0-46cf"}[i]; a.ID != want || !errors.Is(a.Err, failed) || a.Time.Unix() != 1 {
			t.Errorf("%d: %+v", i, a)
		}
	}
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() { o.Attempted("id", time.Now(), nil) })
	}
	all.Wait()
	if n := len(o.Attempts()); n != maxAttempts {
		t.Errorf("%d attempts", n)
	}
}
