package file

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hsmsign/fault"
	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/secret"
	"hsmsign/signer"
)

// answers returns options with a terminal that gives these answers, one after the other.
func answers(t *testing.T, texts ...string) Options {
	return Options{Secrets: secret.Reader{Prompt: func(context.Context, string) ([]byte, error) {
		if len(texts) == 0 {
			t.Error("an unexpected prompt")
			return nil, errors.New("no more answers")
		}
		answer := texts[0]
		texts = texts[1:]
		return []byte(answer), nil
	}}}
}

// TestGenerate: this package and OpenSSL read the key that was generated.
func TestGenerate(t *testing.T) {
	pass := write(t, "pass", []byte(passphrase+"\n"))
	credentials := Options{Secrets: secret.Reader{Getenv: func(name string) string { return map[string]string{"CREDENTIALS_DIRECTORY": filepath.Dir(pass)}[name] }}}
	tests := []struct {
		name, query string
		opts, again Options
		encrypted   bool
		warns       string
	}{
		{"passphrase file", "?passphrase-file=" + pass, Options{}, Options{}, true, ""},
		{"credential", "?passphrase-file=credential:" + filepath.Base(pass), credentials, credentials, true, ""},
		{"environment", "", env(passphrase), env(passphrase), true, ""},
		{"environment beats unencrypted", "?unencrypted=allow", env(passphrase), env(passphrase), true, ""},
		{"terminal", "", answers(t, passphrase, passphrase), env(passphrase), true, ""},
		{"unencrypted", "?unencrypted=allow", Options{}, Options{}, false, "unencrypted=allow"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "new.key")
			warned := ""
			tt.opts.Warn = func(text string) { warned += text }
			key := testkit.Value(Backend(tt.opts).Generate(t.Context(), signerkit.Ref(t, "file:"+path+tt.query), signer.KeySpec{Bits: 2048}))(t)
			if (warned == "") != (tt.warns == "") || !strings.Contains(warned, tt.warns) {
				t.Errorf("warning %q; want %q", warned, tt.warns)
			}
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%v, %v; want mode 0600", info, err)
			}
			text, err := os.ReadFile(path)
			if err != nil || bytes.HasPrefix(text, []byte("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")) != tt.encrypted {
				t.Errorf("%.40q, %v; encrypted should be %v", text, err, tt.encrypted)
			}
			opened := testkit.Value(open(t, tt.again, "file:"+path+tt.query))(t)
			public := key.Public().(*rsa.PublicKey)
			if !public.Equal(opened.Public()) || public.N.BitLen() != 2048 || public.E != 65537 {
				t.Errorf("a different key is read: %v", opened.Public())
			}
			der := testkit.OpenSSL(t, ".", nil, "pkey", "-in", path, "-passin", "pass:"+passphrase, "-pubout", "-outform", "DER")
			if want, err := x509.MarshalPKIXPublicKey(public); err != nil || !bytes.Equal(der, want) {
				t.Errorf("openssl reads a different key: %v", err)
			}
		})
	}
}

func TestGenerateRefuses(t *testing.T) {
	there := write(t, "there.key", []byte("precious"))
	dir := filepath.Dir(there)
	link := filepath.Join(dir, "link.key")
	testkit.OK(t, os.Symlink(filepath.Join(dir, "nowhere"), link))
	fresh := filepath.Join(dir, "new.key")
	tests := []struct {
		name, ref string
		opts      Options
		bits      int
		family    error
		fix       string
	}{
		{"exists", "file:" + there, env(passphrase), 2048, signer.ErrKeyExists, "nothing is replaced"},
		{"a dangling link", "file:" + link, env(passphrase), 2048, signer.ErrKeyExists, "nothing is replaced"},
		{"no passphrase", "file:" + fresh, Options{}, 2048, signer.ErrAuth, "unencrypted=allow"},
		{"two passphrases", "file:" + fresh, answers(t, "one", "two"), 2048, signer.ErrAuth, ""},
		{"empty passphrase", "file:" + fresh, answers(t, ""), 2048, signer.ErrAuth, ""},
		{"no such passphrase", "file:" + fresh + "?passphrase-file=" + dir + "/none", Options{}, 2048, secret.ErrNoFile, "correct the path"},
		{"small", "file:" + fresh, env(passphrase), 1024, signer.ErrUnsupported, ""},
		{"odd", "file:" + fresh, env(passphrase), 2049, signer.ErrUnsupported, ""},
		{"no folder", "file:" + dir + "/none/new.key", env(passphrase), 2048, signer.ErrReference, "create the folder"},
		{"bad reference", "file:" + fresh + "?unencrypted=yes", env(passphrase), 2048, signer.ErrReference, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Backend(tt.opts).Generate(t.Context(), signerkit.Ref(t, tt.ref), signer.KeySpec{Bits: tt.bits})
			if !errors.Is(err, tt.family) || !strings.Contains(fault.Hint(err), tt.fix) {
				t.Errorf("%v, want %v with hint %q", err, tt.family, tt.fix)
			}
			if _, err := os.Lstat(fresh); err == nil {
				t.Error("a file was written")
			}
		})
	}
	// A file that appears while the key is generated is not changed either.
	if err := (&session{reference: reference{path: there}}).write([]byte("new")); !errors.Is(err, signer.ErrKeyExists) {
		t.Errorf("%v, want %v", err, signer.ErrKeyExists)
	}
	if text, err := os.ReadFile(there); err != nil || string(text) != "precious" {
		t.Errorf("the existing file contains %q, %v", text, err)
	}
}

func TestList(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"pkcs1.pem", "pbes2-aes256.pem", "modern.p12", "rfc1421.pem"} {
		testkit.OK(t, os.WriteFile(filepath.Join(dir, name), sample(t, name), 0o600))
	}
	testkit.OK(t, os.WriteFile(filepath.Join(dir, "README"), []byte("no key"), 0o600))
	testkit.OK(t, os.Mkdir(filepath.Join(dir, "deeper"), 0o700))
	infos := testkit.Value(Backend(Options{}).List(t.Context(), signerkit.Ref(t, "file:"+dir)))(t)
	var got []string
	for _, info := range infos {
		line := info.Label
		for _, p := range info.Properties {
			line += " " + p.Value
		}
		got = append(got, line)
		if _, err := open(t, env(passphrase), info.Ref); err != nil {
			t.Errorf("its reference does not open: %v", err)
		}
	}
	want := []string{"modern.p12 PKCS#12 yes 0600", "pbes2-aes256.pem encrypted PKCS#8 yes 0600", "pkcs1.pem PKCS#1 no 0600",
		"rfc1421.pem encrypted PEM (RFC 1421) yes 0600"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if last := infos[2]; last.Bits != sampleKey(t).N.BitLen() || !sampleKey(t).PublicKey.Equal(last.Public) || last.Algorithm != "RSA" {
		t.Errorf("%+v", last)
	}
	for path, family := range map[string]error{dir + "/none": signer.ErrKeyNotFound, dir + "/README": signer.ErrBadKey} {
		if _, err := Backend(Options{}).List(t.Context(), signerkit.Ref(t, "file:"+path)); !errors.Is(err, family) {
			t.Errorf("%s: %v, want %v", path, err, family)
		}
	}
}

// TestListCertificate: a certificate in the key's file is reported if it is that of the key.
func TestListCertificate(t *testing.T) {
	read := func(name string) []byte { return testkit.File(t, "golden/"+name) }
	both := write(t, "both.pem", append(read("vendor.key"), read("chain.pem")...))
	other := write(t, "other.pem", append(read("vendor.key"), read("root.pem")...))
	for path, want := range map[string]bool{both: true, other: false} {
		infos, err := Backend(Options{}).List(t.Context(), signerkit.Ref(t, "file:"+path+"?unencrypted=allow"))
		if err != nil || len(infos) != 1 {
			t.Fatalf("%v, %v", infos, err)
		}
		if cert := infos[0].Cert; (cert != nil) != want || want && !strings.HasPrefix(cert.Subject.CommonName, "MDM Vendor") {
			t.Errorf("%s: certificate %v", path, cert)
		}
		if infos[0].Ref != "file:"+path {
			t.Errorf("reference %q", infos[0].Ref)
		}
	}
}

func TestDiagnose(t *testing.T) {
	plain, encrypted := private(t, "pkcs1.pem"), private(t, "pbes2-aes256.pem")
	open := private(t, "pkcs1.pem")
	testkit.OK(t, os.Chmod(open, 0o640)) // #nosec G302 -- the mode is what is tested
	csr := write(t, "csr", []byte("no key"))
	tests := []struct {
		name, ref string
		opts      Options
		want      string
		family    error
	}{
		{"encrypted", "file:" + encrypted, env(passphrase), "ooooooo", nil},
		{"plain", "file:" + plain, Options{}, "ooowooo", nil},
		{"old PEM", "file:" + private(t, "rfc1421.pem"), env(passphrase), "ooowooo", nil},
		{"others can read it", "file:" + open, Options{}, "oofssss", signer.ErrBadKey},
		{"which is allowed", "file:" + open + "?insecure-mode=allow", Options{}, "oowwooo", nil},
		{"wrong passphrase", "file:" + encrypted, env("wrong"), "oooofss", signer.ErrAuth},
		{"no passphrase", "file:" + encrypted, Options{}, "oooofss", signer.ErrAuth},
		{"no key", "file:" + csr, Options{}, "ooooofs", signer.ErrBadKey},
		{"no file", "file:" + csr + "2", Options{}, "ofsssss", signer.ErrKeyNotFound},
		{"bad reference", "file:x?y=z", Options{}, "fssssss", signer.ErrReference},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, steps := signerkit.Diagnose(t, Backend(tt.opts), tt.ref, nil)
			if got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
			for _, s := range steps {
				if s.Err != nil && !errors.Is(s.Err, tt.family) || strings.Contains(s.Detail+s.Fix, passphrase) {
					t.Errorf("%+v, want %v and no passphrase", s, tt.family)
				}
			}
		})
	}
}

// TestDiagnoseEnded: the step "signature" reports a context that has ended.
func TestDiagnoseEnded(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), -time.Second)
	defer cancel()
	var last signer.Step
	key := Backend(Options{}).Diagnose(ctx, signerkit.Ref(t, "file:"+private(t, "pkcs1.pem")), signer.OpenOptions{}, func(s signer.Step) { last = s })
	if key != nil || last.Status != signer.StatusFail || !errors.Is(last.Err, context.DeadlineExceeded) {
		t.Errorf("%v, %+v", key, last)
	}
}

func TestExport(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.key")
	s := testkit.Value(Backend(Options{}).Generate(t.Context(), signerkit.Ref(t, "file:"+path+"?unencrypted=allow"), signer.KeySpec{Bits: 2048}))(t)
	private, err := Export(s)
	if err != nil || !private.PublicKey.Equal(s.Public()) {
		t.Fatalf("%v, or not the private key of the Signer", err)
	}
	// EncodePEM and Generate write the same text.
	text := testkit.Value(EncodePEM(private, nil))(t)
	if want, err := os.ReadFile(path); err != nil || string(text) != string(want) {
		t.Errorf("a different text than that of Generate (%v)", err)
	}
	testkit.OK(t, s.Close())
	if _, err := Export(s); !errors.Is(err, signer.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	if _, err := Export(testkit.NewSigner(private)); !errors.Is(err, signer.ErrUnsupported) {
		t.Errorf("of another backend: %v", err)
	}
}
