//go:build cgo && linux

package pkcs11

import (
	"context"
	"crypto"
	"crypto/rsa"
	"os"
	"os/exec"
	"testing"
	"time"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/secret"
	"hsmsign/signer"
	"hsmsign/signer/pkcs11/internal/uri"
	"hsmsign/signer/signertest"
)

// tokenVariable is a full reference to an RSA key of any real token: HSMSIGN_TEST_PKCS11='pkcs11:token=...' go test -run
// TestAnyToken ./signer/pkcs11. Nothing is written to the token; some hundred signatures are made.
const tokenVariable = "HSMSIGN_TEST_PKCS11" // #nosec G101 -- the name of a variable

func TestAnyToken(t *testing.T) {
	text := os.Getenv(tokenVariable)
	if text == "" {
		t.Skipf("%s names no key of a token", tokenVariable)
	}
	opts := anyOptions(t)
	key := testkit.Value(open(t, opts, text))(t)
	pub := key.Public().(*rsa.PublicKey)
	t.Logf("RSA-%d, %+v", pub.N.BitLen(), stats(key))
	closeKey(t, key)
	missing := signerkit.Ref(t, text)
	path := testkit.Value(uri.Parse(missing.Path))(t)
	other := uri.Path{{Name: "object", Value: "no such key"}}
	for _, a := range path {
		if a.Name != "object" && a.Name != "id" {
			other = append(other, a)
		}
	}
	missing.Path = other.String()
	signertest.Run(t, signertest.Fixture{Backend: Backend(opts), Ref: text, Public: pub, Missing: missing.String()})
}

// anyOptions returns the options for a token of the environment.
func anyOptions(tb testing.TB) Options {
	return Options{Secrets: secret.Reader{Getenv: os.Getenv}, Warn: func(text string) { tb.Log(text) }}
}

// deviceVariable is a program that does to the device of the token what its argument says: kill it, start it again, stop
// it so that it does not answer (SIGSTOP), or continue it.
const deviceVariable = "HSMSIGN_TEST_PKCS11_DEVICE"

// A device that is killed or stopped costs the requests of that time, and no others. The worker process goes the same way.
func TestAnyTokenFaults(t *testing.T) {
	text, program := os.Getenv(tokenVariable), os.Getenv(deviceVariable)
	if text == "" || program == "" {
		t.Skipf("%s names no key of a token, or %s no program", tokenVariable, deviceVariable)
	}
	device := func(do string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), program, do).CombinedOutput(); err != nil { // #nosec G204 -- the tester's program
			t.Fatalf("%s %s: %v: %s", program, do, err, out)
		}
	}
	isolated := anyOptions(t)
	isolated.Isolate, isolated.Worker = true, workerOptions().Worker
	for name, opts := range map[string]Options{"here": anyOptions(t), "isolated": isolated} {
		t.Run(name, func(t *testing.T) {
			opened := mustOpenWith(t, opts, text)
			if here, ok := opened.(*key); ok {
				here.module.pause = 0
			}
			mustSign(t, opened)
			device("kill")
			_, err := opened.SignContext(t.Context(), digest, crypto.SHA256)
			signerkit.Refused(t, err, signer.ErrUnavailable)
			device("start")
			signsAgain(t, opened)
			device("stop")
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err = opened.SignContext(ctx, digest, crypto.SHA256)
			signerkit.Refused(t, err, context.DeadlineExceeded)
			device("continue")
			signsAgain(t, opened)
			t.Logf("%+v", stats(opened))
		})
	}
}

// signsAgain waits until the key signs. A worker's module is initialized again after recoveryPause if it was too early.
func signsAgain(t *testing.T, key signer.Signer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*recoveryPause)
	defer cancel()
	for tick := time.NewTicker(100 * time.Millisecond); ; {
		_, err := key.SignContext(ctx, digest, crypto.SHA256)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-tick.C:
		}
	}
}

// BenchmarkAnyToken is BenchmarkSign with the token of the environment.
func BenchmarkAnyToken(b *testing.B) {
	text := os.Getenv(tokenVariable)
	if text == "" {
		b.Skipf("%s names no key of a token", tokenVariable)
	}
	k := mustOpenWith(b, anyOptions(b), text).(*key)
	compareWithRaw(b, k, k)
}
