package double

import (
	"context"
	"crypto/rsa"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"hsmsign/internal/testkit"
)

type fault string

const broken fault = "broken"

func script() *Script[fault] { return NewScript([]string{"Sign", "List"}, broken, "slow") }

// TestNext: queued faults come before standing ones, narrow names before wide ones, and a request takes one fault.
func TestNext(t *testing.T) {
	s := script()
	testkit.OK(t, errors.Join(
		s.Stand("*", "slow"), s.Stand("*@there", broken),
		s.Add("Sign", broken, OK), s.Add("Sign", "delay=1s"), s.Add("*", Hang), s.Add("Sign@there", Hang),
	))
	for i, want := range []fault{broken, OK, "delay=1s", Hang, "slow", "slow"} {
		if got := s.Next("Sign", "here"); got != want {
			t.Errorf("request %d: %q, want %q", i, got, want)
		}
	}
	for i, want := range []fault{Hang, broken, broken} {
		if got := s.Next("Sign", "there"); got != want {
			t.Errorf("request %d there: %q, want %q", i, got, want)
		}
	}
	testkit.OK(t, errors.Join(s.Stand("Sign", broken), s.Stand("Sign", OK)))
	if got := s.Next("Sign", "here"); got != "slow" {
		t.Errorf("%q; a removed fault hides a wider one", got)
	}
	if err := s.Stand("*", OK); err != nil || s.Next("Sign", "here") != OK {
		t.Errorf("a removed fault stands (%v)", err)
	}
}

func TestScriptRefuses(t *testing.T) {
	s := script()
	for _, f := range []fault{"", "Broken", "delay=", "delay=soon", "delay=-1s"} {
		if s.Add("Sign", OK, f) == nil || s.Stand("Sign", f) == nil {
			t.Errorf("fault %q is accepted", f)
		}
	}
	for _, operation := range []string{"", "sign", "@there"} {
		if s.Add(operation, OK) == nil || s.Stand(operation, OK) == nil {
			t.Errorf("operation %q is accepted", operation)
		}
	}
	if err := s.Add("Sign", broken, "Broken"); err == nil || s.Next("Sign", "") != OK {
		t.Error("a script with an unknown fault is added in part")
	}
}

func TestCalls(t *testing.T) {
	s := script()
	s.Count("Sign")
	s.Count("Sign")
	s.Count("Other")
	if s.Calls("Sign") != 2 || s.Calls("Other") != 1 || s.Calls("List") != 0 || s.Calls("*") != 3 {
		t.Errorf("%v", s.calls)
	}
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		if !Wait[fault](ctx, nil, OK, 0) || time.Since(began) != 0 {
			t.Errorf("no delay: %v", time.Since(began))
		}
		if !Wait(ctx, nil, Delay[fault](2*time.Second), time.Second) || time.Since(began) != 3*time.Second {
			t.Errorf("delays of 2 s and 1 s: %v", time.Since(began))
		}
		if Wait[fault](ctx, nil, Hang, 0) || time.Since(began) != time.Minute {
			t.Errorf("hang: %v", time.Since(began))
		}
		closed := make(chan struct{})
		time.AfterFunc(time.Second, func() { close(closed) })
		if Wait[fault](t.Context(), closed, Hang, 0) || Wait[fault](ctx, nil, OK, 0) {
			t.Error("a request is answered after the end")
		}
	})
}

// server is a double without keys.
type server struct{ script *Script[fault] }

func (s server) AddKey(name string, _ *rsa.PrivateKey) (string, error) { return "full/" + name, nil }
func (s server) Script(operation string, faults ...fault) error {
	return s.script.Add(operation, faults...)
}

func TestProgramRefuses(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		testkit.OK(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	s := server{script()}
	for path, text := range map[string]string{
		"no/such/file":               "no/such/file",
		file("text.pem", "no block"): "no private key",
		file("garbage.pem", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"): "garbage.pem",
		"../../testdata/golden/chain.pem":        "no private key",
		"../../signer/file/testdata/ed25519.pem": "not RSA",
	} {
		if _, err := Import[fault](s, "v", path); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("key %q: %v, want %q", path, err, text)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for text, want := range map[string]string{"Sign": "OPERATION=FAULT", "Sing=ok": "Sing", "Sign=explode": "explode", "Sign=": "unknown fault"} {
		if err := Serve[fault](ended, s, &Options{Scripts: []string{text}}, io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("faults %q: %v, want %q", text, err, want)
		}
	}
	for _, arg := range []string{"extra", "--no-such-flag", "--delay=soon"} {
		flags, _ := Flags("name", "", "")
		if err := Parse(flags, []string{arg}, io.Discard); err == nil || errors.Is(err, flag.ErrHelp) {
			t.Errorf("%s: %v", arg, err)
		}
	}
}
