package pkcs11

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hsmsign/internal/signerkit"
	"hsmsign/signer"
)

func TestParseReference(t *testing.T) {
	module := "/lib/m.so"
	if filepath.Separator == '\\' {
		module = `C:\m.dll`
	}
	base := "pkcs11:object=k?module-path=" + module
	good := []struct {
		in   string
		want reference
	}{
		{base + "&pin-source=file:/run/pin&max-sessions=64", reference{pinSource: "file:/run/pin", sessions: 64}},
		{base + "&mechanism=rsa-pkcs&max-sessions=1", reference{mechanism: "rsa-pkcs", sessions: 1}},
		{base + "&mechanism=sha256-rsa-pkcs&max-sessions=1", reference{mechanism: "sha256-rsa-pkcs", sessions: 1}},
		{base + "&module-init=a='b'%20c&max-sessions=1", reference{moduleInit: "a='b' c", sessions: 1}},
		{base + "&pin-value=12%2634&max-sessions=1&insecure-mode=allow", reference{pinValue: "12&34", sessions: 1, insecure: "allow"}},
	}
	for _, tt := range good {
		got, err := parseReference(signerkit.Ref(t, tt.in))
		tt.want.module = module
		got.ref, got.path = signer.Ref{}, nil
		if err != nil {
			t.Errorf("%q: %v", tt.in, err)
		} else if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(reference{}, signer.Ref{})); diff != "" {
			t.Errorf("%q: (-want +got)\n%s", tt.in, diff)
		}
	}
	if r, err := parseReference(signerkit.Ref(t, "pkcs11:?module-name=softhsm2")); err != nil || r.module != "" || r.moduleName != "softhsm2" {
		t.Errorf("by name: %q, %q, %v", r.module, r.moduleName, err)
	}
	if r, err := parseReference(signerkit.Ref(t, base)); err != nil || r.sessions < 1 || r.sessions > 4 {
		t.Errorf("without max-sessions: %d, %v; want 1 to 4", r.sessions, err)
	}

	const secret = "s3cr3t"
	bad := []struct{ in, says string }{
		{"file:/etc/key", `scheme "file"`},
		{"pkcs11:object=k", `"module-path" is required`},
		{"pkcs11:object=k?module-path=libsofthsm2.so", `"module-path" is required and must be absolute`},
		{"pkcs11:objekt=k?pin-value=" + secret, `unknown path attribute "objekt"`},
		{base + "&module-name=" + secret, `"module-path" and "module-name" exclude each other`},
		{"pkcs11:object=k?module-name=", `"module-name" must be a name, not a path`},
		{"pkcs11:object=k?module-name=../" + secret, `"module-name" must be a name, not a path`},
		{base + "&pin-value=" + secret + "&pin-source=file:x", `exclude each other`},
		{base + "&pin-value=", `"pin-value" must have 1 to`},
		{base + "&pin-value=" + strings.Repeat(secret, 200), `"pin-value" must have 1 to`},
		{base + "&pin-source=", `"pin-source" is empty`},
		{base + "&module-init=", `"module-init" is empty`},
		{base + "&module-init=a%00" + secret, `or contains a zero byte`},
		{base + ",pin-source=file:" + secret, `the name of the module contains "pin-source="; '&' separates`},
		{base + "&max-sessions=0", `from 1 to 64`},
		{base + "&max-sessions=65", `from 1 to 64`},
		{base + "&max-sessions=" + secret, `from 1 to 64`},
		{base + "&mechanism=" + secret, `"mechanism" must be one of ["rsa-pkcs" "sha256-rsa-pkcs"]`},
		{base + "&insecure-mode=" + secret, `"insecure-mode" must be one of ["allow"]`},
	}
	for _, tt := range bad {
		_, err := parseReference(signerkit.Ref(t, tt.in))
		if !errors.Is(err, signer.ErrReference) || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), secret) {
			t.Errorf("%q: error %v; want %q and no secret", tt.in, err, tt.says)
		}
	}
}

// A worker gets the exact reference, with the resolved module and without the PIN; a person gets it redacted.
func TestReferenceForWorker(t *testing.T) {
	const in = "pkcs11:object=x%26y;id=%01?module-name=softhsm2&pin-value=s3cr3t%3B&max-sessions=2"
	r := reference{ref: signerkit.Ref(t, in), pinValue: "s3cr3t;"}
	ref := r.forWorker("/lib/1 50%&;.so")
	want := "pkcs11:object=x%26y;id=%01?module-path=/lib/1 50%25%26%3B.so&pin-source=parent&max-sessions=2"
	if got := ref.Encode(); got != want {
		t.Errorf("%q; want %q", got, want)
	}
	if module, _ := signerkit.Ref(t, ref.Encode()).Query("module-path"); module != "/lib/1 50%&;.so" {
		t.Errorf("module-path is %q", module)
	}
	r.ref.Path = ""
	if text := r.exact(nil); text != "pkcs11:?module-name=softhsm2&max-sessions=2" {
		t.Errorf("%q", text)
	}
}
