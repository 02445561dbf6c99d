//go:build cgo

package pkcs11

import (
	"crypto"
	"sync"
	"testing"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
)

// The session given back last is taken first.
func TestPoolOrder(t *testing.T) {
	tok := newToken(t)
	k := mustOpen(t, tok.Ref("vendor")+"&max-sessions=2").(*key)
	take := func() session {
		t.Helper()
		s, err := k.sessions.take(t.Context(), k.token.now.Load())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	a, b := take(), take()
	if a == b {
		t.Fatal("one session was given twice")
	}
	for _, order := range [][2]session{{a, b}, {b, a}} {
		k.sessions.put(order[0], nil)
		k.sessions.put(order[1], nil)
		if got := [2]session{take(), take()}; got != [2]session{order[1], order[0]} {
			t.Errorf("given back %v, taken %v", order, got)
		}
	}
	k.sessions.put(a, nil)
	k.sessions.put(b, nil)
}

// When one session is found dead its idle siblings are not tried: the second try of a signature is its last.
func TestPoolEvicts(t *testing.T) {
	tok := newToken(t)
	k := mustOpen(t, tok.Ref("vendor")+"&max-sessions=3").(*key)
	var taken []session
	for range 3 {
		s, err := k.sessions.take(t.Context(), k.token.now.Load())
		if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, s)
	}
	for _, s := range taken {
		k.sessions.put(s, nil)
		if err := k.module.lib.CloseSession(s.handle); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := k.Sign(nil, digest, crypto.SHA256); err != nil {
		t.Error(err)
	}
	if got, want := stats(k), (signer.Stats{Open: 1, Idle: 1, Evicted: 3}); got != want {
		t.Errorf("%+v; want %+v", got, want)
	}
}

// There are never more sessions than the reference allows, and no more than are needed.
func TestPool(t *testing.T) {
	tok := newToken(t)
	s := script(t, tok.Module)
	key := mustOpen(t, tok.Ref("vendor")+"&max-sessions=3")
	var mu sync.Mutex
	used := map[pkcs11.SessionHandle]int{}
	busy, most := 0, 0
	s.before = func(sh pkcs11.SessionHandle) {
		mu.Lock()
		defer mu.Unlock()
		used[sh]++
		busy++
		most = max(most, busy)
	}
	s.signed = func(_ pkcs11.SessionHandle, sig []byte) ([]byte, error) {
		mu.Lock()
		defer mu.Unlock()
		busy--
		return sig, nil
	}
	for range 10 {
		if _, err := key.Sign(nil, digest, crypto.SHA256); err != nil {
			t.Fatal(err)
		}
	}
	if len(used) != 1 {
		t.Errorf("one caller used %d sessions; want 1", len(used))
	}
	var callers sync.WaitGroup
	for range 16 {
		callers.Go(func() {
			for range 4 {
				if _, err := key.Sign(nil, digest, crypto.SHA256); err != nil {
					t.Error(err)
				}
			}
		})
	}
	callers.Wait()
	if len(used) > 3 || most > 3 {
		t.Errorf("%d sessions, %d at the same time; want at most 3", len(used), most)
	}
}

func TestPoolSize(t *testing.T) {
	tests := []struct {
		want     int
		tokenMax uint
		size     int
	}{
		{4, pkcs11.CK_EFFECTIVELY_INFINITE, 4},
		{4, pkcs11.CK_UNAVAILABLE_INFORMATION, 4},
		{4, 100, 4},
		{4, 5, 4},
		{4, 4, 3}, // one is the anchor
		{4, 2, 1},
		{4, 1, 1},
	}
	for _, tt := range tests {
		if got := poolSize(tt.want, tt.tokenMax); got != tt.size {
			t.Errorf("%d wanted, the token allows %d: %d; want %d", tt.want, tt.tokenMax, got, tt.size)
		}
	}
}
