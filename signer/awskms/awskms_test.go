package awskms

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/awskms/awskmstest"
	remote "hsmsign/signer/kms"
	"hsmsign/signer/signertest"
)

// envReal names a reference to a real key, for the tests that run on the service itself.
const envReal = "HSMSIGN_TEST_AWSKMS"

// quick keeps the tests short.
func quick() remote.Policy {
	return remote.Policy{Attempt: time.Second, Total: 4 * time.Second, Wait: 5 * time.Millisecond, Recover: 200 * time.Millisecond}
}

// vendorKey is the key of the golden files, so that requests signed here are theirs byte for byte.
func vendorKey(tb testing.TB) *rsa.PrivateKey {
	tb.Helper()
	text, err := os.ReadFile("../../testdata/golden/vendor.key")
	if err != nil {
		tb.Fatal(err)
	}
	block, rest := pem.Decode(text)
	if block == nil || len(rest) > 0 {
		tb.Fatal("vendor.key is not one block of PEM")
		return nil
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		tb.Fatal(err)
	}
	private, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		tb.Fatalf("vendor.key is a %T", parsed)
	}
	return private
}

func newKey(tb testing.TB) *rsa.PrivateKey {
	tb.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		tb.Fatal(err)
	}
	return private
}

// environment takes all that the SDK would find on this machine away, and gives it the double's credentials.
func environment(tb testing.TB) {
	tb.Helper()
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "AWS_") {
			tb.Setenv(name, "")
		}
	}
	none := filepath.Join(tb.TempDir(), "none")
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": awskmstest.AccessKeyID, "AWS_SECRET_ACCESS_KEY": awskmstest.SecretAccessKey,
		"AWS_CONFIG_FILE": none, "AWS_SHARED_CREDENTIALS_FILE": none, "AWS_EC2_METADATA_DISABLED": "true",
	} {
		tb.Setenv(name, value)
	}
}

// start starts a double with the vendor's key under alias/Vendor, and gives the reference to it.
func start(tb testing.TB, config awskmstest.Config) (*awskmstest.Server, string) {
	tb.Helper()
	environment(tb)
	server, err := awskmstest.NewServer(config)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := server.Close(); err != nil {
			tb.Errorf("close the double: %v", err)
		}
	})
	if _, err := server.AddKey("alias/Vendor", vendorKey(tb)); err != nil {
		tb.Fatal(err)
	}
	return server, at(server, "alias/Vendor")
}

// at is the reference to a key on the double.
func at(server *awskmstest.Server, id string) string {
	return "awskms:///" + id + "?endpoint=" + server.URL() + "&region=" + server.Region()
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

func open(tb testing.TB, opts Options, reference string) (signer.Signer, error) {
	tb.Helper()
	ref, err := signer.ParseRef(reference)
	if err != nil {
		tb.Fatal(err)
	}
	key, err := Backend(opts).Open(context.Background(), ref, signer.OpenOptions{PublicKey: opts.PublicKey})
	if err == nil {
		tb.Cleanup(func() { _ = key.Close() })
	}
	return key, err
}

func mustOpen(tb testing.TB, opts Options, reference string) signer.Signer {
	tb.Helper()
	key, err := open(tb, opts, reference)
	if err != nil {
		tb.Fatalf("open %s: %v (%s)", reference, err, fixOf(err))
	}
	return key
}

// mustSign makes a signature and holds it against the one that the key itself makes: PKCS #1 v1.5 is deterministic.
func mustSign(tb testing.TB, key signer.Signer, private *rsa.PrivateKey, message string) {
	tb.Helper()
	got, err := signer.Sign(context.Background(), key, []byte(message), crypto.SHA256)
	if err != nil {
		tb.Fatalf("sign: %v (%s)", err, fixOf(err))
	}
	digest := sha256.Sum256([]byte(message))
	want, err := rsa.SignPKCS1v15(nil, private, crypto.SHA256, digest[:])
	if err != nil || string(got) != string(want) {
		tb.Fatalf("sign: other bytes than the key's own (%v)", err)
	}
}

// wantError checks family, text and hint of an error, and that it is a *signer.Error.
func wantError(tb testing.TB, err, family error, text, fix string) {
	tb.Helper()
	var carrier *signer.Error
	switch {
	case err == nil:
		tb.Fatalf("no error; want %v", family)
	case !errors.Is(err, family):
		tb.Fatalf("%v does not wrap %q", err, family)
	case !errors.As(err, &carrier):
		tb.Fatalf("%v is a %T", err, err)
	case !strings.Contains(err.Error(), text):
		tb.Errorf("%q does not hold %q", err, text)
	case !strings.Contains(fault.Hint(carrier), fix):
		tb.Errorf("fix %q does not hold %q", fault.Hint(carrier), fix)
	case strings.Contains(fmt.Sprintf("%+v %s", err, fault.Hint(carrier)), awskmstest.SecretAccessKey):
		tb.Errorf("the error tells the secret access key")
	}
}

// TestConformance holds the backend to the rules of every key store, on the double, and on the service itself when
// HSMSIGN_TEST_AWSKMS names a key.
func TestConformance(t *testing.T) {
	if reference := os.Getenv(envReal); reference != "" {
		t.Run("service", func(t *testing.T) {
			ref, err := signer.ParseRef(reference)
			if err != nil {
				t.Fatal(err)
			}
			r, err := parseReference(ref, remote.Policy{})
			if err != nil {
				t.Fatal(err)
			}
			signertest.Run(t, signertest.Fixture{
				Backend: Backend(Options{}), Ref: reference, Public: mustOpen(t, Options{}, reference).Public().(*rsa.PublicKey),
				Missing: strings.Replace(reference, r.id, "alias/hsmsign-there-is-no-such-alias", 1), Hashes: []crypto.Hash{crypto.SHA256},
			})
		})
	}
	t.Run("double", func(t *testing.T) {
		server, reference := start(t, awskmstest.Config{Delay: time.Millisecond})
		signertest.Run(t, signertest.Fixture{
			Backend: Backend(Options{Policy: quick()}), Ref: reference, Public: &vendorKey(t).PublicKey,
			Missing: at(server, "alias/vendor"), // aliases keep their case
			Hashes:  []crypto.Hash{crypto.SHA256}, Secrets: []string{awskmstest.SecretAccessKey},
		})
	})
}

// TestCalls: one call a signature, and one more to open where the public key is not at hand.
func TestCalls(t *testing.T) {
	private := vendorKey(t)
	for _, tt := range []struct {
		name   string
		public crypto.PublicKey
		asked  int
	}{{"without the certificate", nil, 1}, {"with the certificate", &private.PublicKey, 0}} {
		t.Run(tt.name, func(t *testing.T) {
			server, reference := start(t, awskmstest.Config{})
			key := mustOpen(t, Options{Policy: quick(), PublicKey: tt.public}, reference)
			for i := range 5 {
				mustSign(t, key, private, fmt.Sprint(i))
			}
			if server.Calls("GetPublicKey") != tt.asked || server.Calls("Sign") != 5 || requests(server) != 5+tt.asked {
				t.Errorf("%d GetPublicKey, %d Sign, %d in all; want %d, 5 and no other", server.Calls("GetPublicKey"), server.Calls("Sign"), requests(server), tt.asked)
			}
		})
	}
}

// requests is how many have come in.
func requests(server *awskmstest.Server) int {
	n := 0
	for _, operation := range []string{"GetPublicKey", "Sign", "DescribeKey", "CreateKey", "CreateAlias", "ListKeys", "ListAliases", "AssumeRole"} {
		n += server.Calls(operation)
	}
	return n
}

func TestReferenceForms(t *testing.T) {
	server, reference := start(t, awskmstest.Config{})
	private := vendorKey(t)
	arn := *mustOpen(t, Options{}, reference).(*key).sites[0].id.Load()
	id := strings.TrimPrefix(resource(arn), "key/")
	for _, name := range []string{arn, id, strings.Replace(arn, "key/"+id, "alias/Vendor", 1)} {
		t.Run(name, func(t *testing.T) {
			for _, public := range []crypto.PublicKey{nil, &private.PublicKey} {
				mustSign(t, mustOpen(t, Options{PublicKey: public}, at(server, name)), private, "form")
			}
		})
	}
	t.Run("region of the ARN", func(t *testing.T) {
		mustSign(t, mustOpen(t, Options{}, "awskms:///"+arn+"?endpoint="+server.URL()), private, "arn")
	})
	t.Run("region of the environment", func(t *testing.T) {
		t.Setenv("AWS_REGION", server.Region())
		mustSign(t, mustOpen(t, Options{}, "awskms:///alias/Vendor?endpoint="+server.URL()), private, "env")
	})
	t.Run("no region", func(t *testing.T) {
		_, err := open(t, Options{}, "awskms:///alias/Vendor?endpoint="+server.URL())
		wantError(t, err, signer.ErrReference, "no region", "region=")
	})
	t.Run("another region", func(t *testing.T) {
		_, err := open(t, Options{}, "awskms:///alias/Vendor?region=us-east-1&endpoint="+server.URL())
		wantError(t, err, signer.ErrKeyNotFound, "us-east-1", "us-east-1")
	})
}

// TestUnfitKeys: keys that are there and cannot make the signatures, with what to do.
func TestUnfitKeys(t *testing.T) {
	server, _ := start(t, awskmstest.Config{})
	private := vendorKey(t)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, text, fix string
		key             awskmstest.Key
	}{
		{"encryption", "ENCRYPT_DECRYPT", "SIGN_VERIFY", awskmstest.Key{Private: private, Usage: awskmstest.EncryptDecrypt}},
		{"elliptic curve", "ECC_NIST_P256", "RSA", awskmstest.Key{Private: ec}},
		{"symmetric", "UnsupportedOperationException", "RSA", awskmstest.Key{}},
		{"disabled", "is disabled", "kms:EnableKey", awskmstest.Key{Private: private, State: awskmstest.Disabled}},
		{"pending deletion", "is pending deletion", "kms:CancelKeyDeletion", awskmstest.Key{Private: private, State: awskmstest.PendingDeletion}},
		{"pending import", "is pending import", "kms:ImportKeyMaterial", awskmstest.Key{Private: private, State: awskmstest.PendingImport}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			arn, err := server.Add(tt.key)
			if err != nil {
				t.Fatal(err)
			}
			_, err = open(t, Options{Policy: quick()}, at(server, arn))
			wantError(t, err, signer.ErrBadKey, tt.text, tt.fix)
			// Without a call at the start the first signature meets it.
			key := mustOpen(t, Options{Policy: quick(), PublicKey: &private.PublicKey}, at(server, arn))
			_, err = signer.Sign(t.Context(), key, []byte("x"), crypto.SHA256)
			wantError(t, err, signer.ErrBadKey, "", "e")
		})
	}
	t.Run("becomes disabled", func(t *testing.T) {
		arn, err := server.AddKey("", private)
		if err != nil {
			t.Fatal(err)
		}
		key := mustOpen(t, Options{Policy: quick()}, at(server, arn))
		server.SetState(arn, awskmstest.Disabled)
		before := server.Calls("Sign")
		_, err = signer.Sign(t.Context(), key, []byte("x"), crypto.SHA256)
		wantError(t, err, signer.ErrBadKey, "disabled", "kms:EnableKey")
		if n := server.Calls("Sign") - before; n != 1 {
			t.Errorf("asked %d times; a refusal is not repeated", n)
		}
	})
	t.Run("SHA-1", func(t *testing.T) {
		key := mustOpen(t, Options{}, at(server, "alias/Vendor"))
		_, err := signer.Sign(t.Context(), key, []byte("x"), crypto.SHA1)
		wantError(t, err, signer.ErrUnsupported, "SHA-1", "SHA-256")
	})
}

// TestMovedAlias: an alias that is moved, after Open or after the first signature, does not swap the key.
func TestMovedAlias(t *testing.T) {
	private := vendorKey(t)
	for _, public := range []crypto.PublicKey{nil, &private.PublicKey} {
		t.Run(fmt.Sprintf("%T", public), func(t *testing.T) {
			server, reference := start(t, awskmstest.Config{})
			key := mustOpen(t, Options{Policy: quick(), PublicKey: public}, reference)
			mustSign(t, key, private, "before")
			if _, err := server.AddKey("alias/Vendor", newKey(t)); err != nil {
				t.Fatal(err)
			}
			mustSign(t, key, private, "after")
		})
	}
}

// TestOtherCertificate: a key that is not the certificate's gives no signature.
func TestOtherCertificate(t *testing.T) {
	_, reference := start(t, awskmstest.Config{})
	key := mustOpen(t, Options{Policy: quick(), PublicKey: &newKey(t).PublicKey}, reference)
	if _, err := signer.Sign(t.Context(), key, []byte("x"), crypto.SHA256); !errors.Is(err, signer.ErrBadKey) {
		t.Errorf("got %v", err)
	}
	_, err := open(t, Options{PublicKey: "no key"}, reference)
	wantError(t, err, signer.ErrUnsupported, "string", "")
}

// TestRegions: the second region stands in for the first, with the same key only.
func TestRegions(t *testing.T) {
	server, _ := start(t, awskmstest.Config{})
	private := vendorKey(t)
	const id = "mrk-1234abcd12ab34cd56ef1234567890ab"
	if _, err := server.Add(awskmstest.Key{Private: private, ID: id, Alias: "alias/Multi", Regions: []string{"eu-west-1", "us-east-1"}}); err != nil {
		t.Fatal(err)
	}
	query := "?regions=eu-west-1,us-east-1&endpoint=" + server.URL()
	for _, name := range []string{id, "alias/Multi", "arn:aws:kms:us-east-1:111122223333:key/" + id} {
		t.Run(name, func(t *testing.T) {
			var warned atomic.Pointer[string]
			opts := Options{Policy: quick(), Warn: func(message string) { warned.Store(&message) }}
			opts.Policy.Total = time.Second
			key := mustOpen(t, opts, "awskms:///"+name+query)
			mustSign(t, key, private, "first")
			stand(t, server, "*@eu-west-1", awskmstest.Internal)
			mustSign(t, key, private, "second")
			if w := warned.Load(); w == nil || !strings.Contains(*w, `"us-east-1" signs now, not "eu-west-1"`) {
				t.Errorf("no warning about the change of region")
			}
			mustSign(t, mustOpen(t, opts, "awskms:///"+name+query), private, "opened while the first is down")
			stand(t, server, "*@eu-west-1", awskmstest.AccessDenied)
			time.Sleep(2 * opts.Policy.Recover)
			asked := server.Calls("Sign")
			_, err := signer.Sign(t.Context(), key, []byte("x"), crypto.SHA256)
			wantError(t, err, signer.ErrAuth, "AccessDenied", "kms:Sign")
			if n := server.Calls("Sign") - asked; n != 1 {
				t.Errorf("%d calls; a refusal of one region is not tried in another", n)
			}
			stand(t, server, "*@eu-west-1", awskmstest.OK)
			mustSign(t, key, private, "third")
		})
	}
	t.Run("silence of the first leaves time for the second", func(t *testing.T) {
		opts := Options{Policy: quick()}
		opts.Policy.Total = time.Second
		key := mustOpen(t, opts, "awskms:///"+id+query)
		stand(t, server, "*@eu-west-1", awskmstest.Hang)
		defer stand(t, server, "*@eu-west-1", awskmstest.OK)
		ctx, cancel := context.WithTimeout(t.Context(), opts.Policy.Total)
		defer cancel()
		if _, err := signer.Sign(ctx, key, []byte("x"), crypto.SHA256); err != nil {
			t.Error(err)
		}
	})
	t.Run("another key under the alias", func(t *testing.T) {
		if _, err := server.Add(awskmstest.Key{Private: newKey(t), Alias: "alias/Multi", Regions: []string{"us-east-1"}}); err != nil {
			t.Fatal(err)
		}
		opts := Options{Policy: quick()}
		opts.Policy.Total = time.Second
		key := mustOpen(t, opts, "awskms:///alias/Multi"+query)
		stand(t, server, "Sign@eu-west-1", awskmstest.Internal)
		_, err := signer.Sign(t.Context(), key, []byte("x"), crypto.SHA256)
		wantError(t, err, signer.ErrUnavailable, "the key in region \"us-east-1\" is another one", "")
	})
}
