package file

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/secret"
	"hsmsign/signer"
	"hsmsign/signer/signertest"
)

// passphrase is that of every encrypted file in testdata. All of them contain the key of pkcs1.pem.
const passphrase = "tr0ub4dor"

// sample returns a file of testdata.
func sample(tb testing.TB, name string) []byte {
	tb.Helper()
	return testkit.Value(os.ReadFile(filepath.Join("testdata", name)))(tb)
}

// private copies a file of testdata to a path that only its owner can read, as git stores no such mode.
func private(tb testing.TB, name string) string {
	tb.Helper()
	return write(tb, name, sample(tb, name))
}

func write(tb testing.TB, name string, data []byte) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), name)
	testkit.OK(tb, os.WriteFile(path, data, 0o600))
	return path
}

// sampleKey returns the key of testdata, read by the standard library alone.
func sampleKey(tb testing.TB) *rsa.PrivateKey {
	tb.Helper()
	block, _ := pem.Decode(sample(tb, "pkcs1.pem"))
	return testkit.Value(x509.ParsePKCS1PrivateKey(block.Bytes))(tb)
}

func open(tb testing.TB, opts Options, reference string) (signer.Signer, error) {
	tb.Helper()
	return Backend(opts).Open(tb.Context(), signerkit.Ref(tb, reference), signer.OpenOptions{})
}

// opens requires that a reference opens a key with this public key.
func opens(tb testing.TB, opts Options, reference string, public *rsa.PublicKey) {
	tb.Helper()
	if key, err := open(tb, opts, reference); err != nil || !public.Equal(key.Public()) {
		tb.Errorf("%s: %v, or a different key", reference, err)
	}
}

// env returns options with an environment that contains a passphrase.
func env(value string) Options {
	return Options{Secrets: secret.Reader{Getenv: func(name string) string {
		if name == "HSMSIGN_PASSPHRASE" {
			return value
		}
		return ""
	}}}
}

func TestConformance(t *testing.T) {
	plain := sample(t, "pkcs1.pem")
	two := write(t, "two.pem", append(append([]byte("# first\n"), plain...), plain...))
	second := fmt.Sprintf("line %d", 2+strings.Count(string(plain), "\n"))
	pass := write(t, "pass", []byte(passphrase+"\n"))
	for _, name := range []string{"pkcs1.pem", "pbes2-aes256.pem", "modern.p12"} {
		t.Run(name, func(t *testing.T) {
			signertest.Run(t, signertest.Fixture{
				Backend:   Backend(Options{}),
				Ref:       "file://" + private(t, name) + "?passphrase-file=" + pass,
				Public:    &sampleKey(t).PublicKey,
				Missing:   "file:" + filepath.Join(t.TempDir(), "missing.key"),
				Ambiguous: "file:" + two,
				Matches:   []string{"line 2", second},
				Secrets:   []string{passphrase},
			})
		})
	}
}

func TestPath(t *testing.T) {
	path := private(t, "pkcs1.pem")
	public := &sampleKey(t).PublicKey
	t.Chdir(filepath.Dir(path))
	testkit.OK(t, os.Link("pkcs1.pem", "a b?+%.key"))
	for _, good := range []string{"file:pkcs1.pem", "file:./pkcs1.pem", "file:" + path, "file://" + path, "FILE:pkcs1.pem", "file:a%20b%3f+%25.key", "file:a b%3F+%25.key"} {
		opens(t, Options{}, good, public)
	}
	for _, bad := range []string{"file://host" + path, "file://pkcs1.pem", "file://localhost" + path, "file://", "file:%zz", "file:a%00b",
		"file:pkcs1.pem?insecure-mode=yes", "file:pkcs1.pem?insecure-mode=", "file:pkcs1.pem?passphrase-file=", "file:pkcs1.pem?pass=x"} {
		_, err := open(t, Options{}, bad)
		if !errors.Is(err, signer.ErrReference) {
			t.Errorf("%s: %v; want ErrReference", bad, err)
		}
	}
}

func TestInsecureMode(t *testing.T) {
	path := private(t, "pbes2-aes256.pem")
	pass := write(t, "pass", []byte(passphrase))
	for _, f := range []string{path, pass} {
		testkit.OK(t, os.Chmod(f, 0o640)) // #nosec G302 -- that is the test
	}
	var warned []string
	opts := Options{Warn: func(message string) { warned = append(warned, message) }}

	_, err := open(t, opts, "file:"+path)
	if !errors.Is(err, signer.ErrBadKey) || !errors.Is(err, secret.ErrInsecureMode) || len(warned) > 0 {
		t.Errorf("without the attribute: %v, warned %q", err, warned)
	}
	if want := "chmod 600 " + path + ", or add ?insecure-mode=allow to the reference"; fault.Hint(err) != want {
		t.Errorf("hint %q, want %q", fault.Hint(err), want)
	}
	allowed := "file:" + path + "?insecure-mode=allow&passphrase-file=" + pass
	opens(t, opts, allowed, &sampleKey(t).PublicKey)
	if len(warned) != 2 || !strings.Contains(warned[0], path) || !strings.Contains(warned[1], pass) {
		t.Errorf("warned %q; want once for the key and once for the passphrase", warned)
	}
	opens(t, Options{}, allowed, &sampleKey(t).PublicKey)
	warned = nil
	opens(t, opts, "file:"+private(t, "pkcs1.pem")+"?insecure-mode=allow", &sampleKey(t).PublicKey)
	if len(warned) > 0 {
		t.Errorf("a file of mode 0600: warned %q", warned)
	}
}

func TestPassphrase(t *testing.T) {
	encrypted := "file:" + private(t, "scrypt.pem")
	plain := "file:" + private(t, "pkcs1.pem")
	prompted := 0
	prompt := func(answer string) Options {
		return Options{Secrets: secret.Reader{Prompt: func(_ context.Context, label string) ([]byte, error) {
			prompted++
			if want := fmt.Sprintf("passphrase of %q", strings.TrimPrefix(encrypted, "file:")); label != want {
				t.Errorf("asked for %q, want %q", label, want)
			}
			return []byte(answer), nil
		}}}
	}
	missing := "?passphrase-file=" + filepath.Join(t.TempDir(), "missing")
	tests := []struct {
		name     string
		opts     Options
		ref      string
		want     error
		prompted int
	}{
		{"environment", env(passphrase), encrypted, nil, 0},
		{"prompt", prompt(passphrase), encrypted, nil, 1},
		{"none", Options{}, encrypted, signer.ErrAuth, 0},
		{"wrong", env("tr0ub4dor&3"), encrypted, signer.ErrAuth, 0},
		{"wrong at the prompt: asked once", prompt("tr0ub4dor&3"), encrypted, signer.ErrAuth, 1},
		{"a missing file is not replaced by the environment", env(passphrase), encrypted + missing, secret.ErrNoFile, 0},
		{"not asked for a plain key", prompt(passphrase), plain, nil, 0},
		{"missing file of a plain key", Options{}, plain + missing, nil, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			prompted = 0
			_, err := open(t, tt.opts, tt.ref)
			if !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
			if prompted != tt.prompted {
				t.Errorf("asked %d times, want %d", prompted, tt.prompted)
			}
			if err != nil && strings.Contains(err.Error()+fault.Hint(err), passphrase) {
				t.Errorf("the error contains the passphrase: %v", err)
			}
		})
	}

	t.Run("cancelled at the prompt", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		opts := Options{Secrets: secret.Reader{Prompt: func(context.Context, string) ([]byte, error) {
			cancel()
			return []byte(passphrase), nil
		}}}
		if _, err := Backend(opts).Open(ctx, signerkit.Ref(t, encrypted), signer.OpenOptions{}); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want %v", err, context.Canceled)
		}
	})
}

// TestWrongPassphraseIsErrAuth: one wrong passphrase in 256 results in valid padding. The error must not be that of a
// damaged file, or the exit code would sometimes differ. For this file the last four do.
func TestWrongPassphraseIsErrAuth(t *testing.T) {
	path := private(t, "scrypt.pem")
	for _, n := range []int{0, 223, 323, 385, 486} {
		_, err := open(t, env(fmt.Sprintf("wrong %d", n)), "file:"+path)
		if !errors.Is(err, signer.ErrAuth) {
			t.Fatalf("passphrase %d: %v, want ErrAuth", n, err)
		}
	}
}

// BenchmarkSign reports the ratio to the bare signature, measured in the same run.
func BenchmarkSign(b *testing.B) {
	key := sampleKey(b)
	digest := make([]byte, 32)
	k := testkit.Value(Backend(Options{}).Open(b.Context(), signerkit.Ref(b, "file:"+private(b, "pkcs1.pem")), signer.OpenOptions{}))(b)
	var bare time.Duration
	for b.Loop() {
		if _, err := k.SignContext(b.Context(), digest, crypto.SHA256); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		began := time.Now()
		if _, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest); err != nil {
			b.Fatal(err)
		}
		bare += time.Since(began)
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed())/float64(bare), "x-bare")
}

// BenchmarkOpen measures the other half of the cost of one run of the command line.
func BenchmarkOpen(b *testing.B) {
	r := signerkit.Ref(b, "file:"+private(b, "pkcs1.pem"))
	for b.Loop() {
		if _, err := Backend(Options{}).Open(b.Context(), r, signer.OpenOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}
