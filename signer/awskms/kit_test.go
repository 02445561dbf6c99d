package awskms

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/awskms/awskmstest"
	"hsmsign/signer/kms"
)

// quick is a policy with short delays. A slow machine must not look like a service that is down, so its breaker stays
// closed.
func quick() Options {
	return Options{Policy: kms.Policy{AttemptTimeout: 2 * time.Second, Timeout: 8 * time.Second, RetryDelay: 5 * time.Millisecond, BreakerThreshold: 1000}}
}

// environment removes everything that the SDK would find on this machine, and sets the double's credentials.
func environment(tb testing.TB) {
	tb.Helper()
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "AWS_") {
			tb.Setenv(name, "")
		}
	}
	absent := filepath.Join(tb.TempDir(), "absent")
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": awskmstest.AccessKeyID, "AWS_SECRET_ACCESS_KEY": awskmstest.SecretAccessKey,
		"AWS_CONFIG_FILE": absent, "AWS_SHARED_CREDENTIALS_FILE": absent, "AWS_EC2_METADATA_DISABLED": "true",
	} {
		tb.Setenv(name, value)
	}
}

// start starts a double with the golden key under alias/Vendor, and returns a reference to the key.
func start(tb testing.TB, config awskmstest.Config) (*awskmstest.Server, string) {
	tb.Helper()
	environment(tb)
	server, err := awskmstest.NewServer(config)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = server.Close() })
	add(tb, server, awskmstest.Key{Name: "alias/Vendor", Private: testkit.GoldenKey(tb)})
	return server, at(server, "alias/Vendor")
}

// at returns a reference to a key on the double.
func at(server *awskmstest.Server, id string) string {
	return "awskms:///" + id + "?endpoint=" + server.Endpoint() + "&region=" + server.Region()
}

func add(tb testing.TB, server *awskmstest.Server, key awskmstest.Key) (arn string) {
	tb.Helper()
	arn, err := server.Add(key)
	if err != nil {
		tb.Fatal(err)
	}
	return arn
}

func script(tb testing.TB, server *awskmstest.Server, operation string, faults ...awskmstest.Fault) {
	tb.Helper()
	if err := server.Script(operation, faults...); err != nil {
		tb.Fatal(err)
	}
}

func stand(tb testing.TB, server *awskmstest.Server, operation string, fault awskmstest.Fault) {
	tb.Helper()
	if err := server.Stand(operation, fault); err != nil {
		tb.Fatal(err)
	}
}

func parse(tb testing.TB, reference string) signer.Ref {
	tb.Helper()
	ref, err := signer.ParseRef(reference)
	if err != nil {
		tb.Fatal(err)
	}
	return ref
}

// open opens a key, with the public key of a certificate unless that is nil.
func open(tb testing.TB, opts Options, reference string, public crypto.PublicKey) (signer.Signer, error) {
	tb.Helper()
	key, err := Backend(opts).Open(context.Background(), parse(tb, reference), signer.OpenOptions{PublicKey: public})
	if err == nil {
		tb.Cleanup(func() { _ = key.Close() })
	}
	return key, err
}

func mustOpen(tb testing.TB, opts Options, reference string, public crypto.PublicKey) signer.Signer {
	tb.Helper()
	key, err := open(tb, opts, reference, public)
	if err != nil {
		tb.Fatalf("open %s: %v (%s)", reference, err, fault.Hint(err))
	}
	return key
}

func sign(tb testing.TB, key signer.Signer) error {
	tb.Helper()
	_, err := signer.Sign(tb.Context(), key, []byte("message"), crypto.SHA256)
	return err
}

// mustSign requires the signature that the golden key itself makes: PKCS #1 v1.5 is deterministic.
func mustSign(tb testing.TB, key signer.Signer) {
	tb.Helper()
	got, err := signer.Sign(tb.Context(), key, []byte("message"), crypto.SHA256)
	if err != nil {
		tb.Fatalf("sign: %v (%s)", err, fault.Hint(err))
	}
	digest := sha256.Sum256([]byte("message"))
	want, err := rsa.SignPKCS1v15(nil, testkit.GoldenKey(tb), crypto.SHA256, digest[:])
	if err != nil || string(got) != string(want) {
		tb.Fatalf("sign: not the signature of the key itself (%v)", err)
	}
}

// wantError checks the family, the text and the hint of an error, and that it is a *signer.Error without secrets.
func wantError(tb testing.TB, err, family error, text, fix string) {
	tb.Helper()
	_, ok := errors.AsType[*signer.Error](err)
	switch {
	case !errors.Is(err, family) || !ok:
		tb.Errorf("%v (%T); want a *signer.Error of %q", err, err, family)
	case !strings.Contains(err.Error(), text):
		tb.Errorf("%q does not contain %q", err, text)
	case !strings.Contains(fault.Hint(err), fix):
		tb.Errorf("hint %q does not contain %q", fault.Hint(err), fix)
	case strings.Contains(fmt.Sprintf("%+v %s", err, fault.Hint(err)), awskmstest.SecretAccessKey):
		tb.Errorf("the error contains the secret access key")
	}
}
