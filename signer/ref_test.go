package signer

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
)

func TestParseRef(t *testing.T) {
	tests := []struct {
		in, scheme, path string
		query            map[string]string
		out              string // String(); "": as in
	}{
		{in: "file:vendor.key", scheme: "file", path: "vendor.key"},
		{in: "file:///etc/hsmsign/vendor.key?passphrase-file=/run/secrets/pass", scheme: "file", path: "///etc/hsmsign/vendor.key",
			query: map[string]string{"passphrase-file": "/run/secrets/pass"}},
		{in: "pkcs11:token=mdm;object=vendor;id=%01?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/secrets/pin",
			scheme: "pkcs11", path: "token=mdm;object=vendor;id=%01",
			query: map[string]string{"module-path": "/usr/lib/softhsm/libsofthsm2.so", "pin-source": "file:/run/secrets/pin"}},
		{in: "awskms:///alias/mdm-vendor?region=eu-west-1", scheme: "awskms", path: "///alias/mdm-vendor", query: map[string]string{"region": "eu-west-1"}},
		{in: "awskms:///arn:aws:kms:eu-west-1:111122223333:key/1234", scheme: "awskms", path: "///arn:aws:kms:eu-west-1:111122223333:key/1234"},
		{in: "awskms:///KEY-ID?region=eu-west-1&endpoint=http://127.0.0.1:8080", scheme: "awskms", path: "///KEY-ID",
			query: map[string]string{"region": "eu-west-1", "endpoint": "http://127.0.0.1:8080"}},
		{in: "gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/1?endpoint=127.0.0.1:9010", scheme: "gcpkms",
			path: "//projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/1", query: map[string]string{"endpoint": "127.0.0.1:9010"}},
		{in: "FILE:Vendor.Key", scheme: "file", path: "Vendor.Key", out: "file:Vendor.Key"},
		{in: "pkcs11:object=a+b;token=R&D?x=a+b", scheme: "pkcs11", path: "object=a+b;token=R&D", query: map[string]string{"x": "a+b"}},
		{in: "file:a?x=a%26b", scheme: "file", path: "a", query: map[string]string{"x": "a&b"}},
		{in: "file:a?x=%2b%20%25", scheme: "file", path: "a", query: map[string]string{"x": "+ %"}, out: "file:a?x=+%20%25"},
		{in: "file:a?x=", scheme: "file", path: "a", query: map[string]string{"x": ""}},
		{in: "file:a?x=b?c=d", scheme: "file", path: "a", query: map[string]string{"x": "b?c=d"}},
		{in: "file:a?x=1&X=2", scheme: "file", path: "a", query: map[string]string{"x": "1", "X": "2"}},
		{in: "file:a#b", scheme: "file", path: "a#b"},
		{in: "file:clé", scheme: "file", path: "clé"},
		{in: "pkcs11:token=a?pin-value=1234&module-path=/m", scheme: "pkcs11", path: "token=a",
			query: map[string]string{"pin-value": "1234", "module-path": "/m"}, out: "pkcs11:token=a?pin-value=REDACTED&module-path=/m"},
		{in: "vault://h/k?client-secret=1234", scheme: "vault", path: "//h/k", query: map[string]string{"client-secret": "1234"}, out: "vault://h/k?client-secret=REDACTED"},
		{in: "file:a?Passphrase=1234", scheme: "file", path: "a", query: map[string]string{"Passphrase": "1234"}, out: "file:a?Passphrase=REDACTED"},
		{in: "awskms:///k?secret_access_key=1234", scheme: "awskms", path: "///k", query: map[string]string{"secret_access_key": "1234"},
			out: "awskms:///k?secret_access_key=REDACTED"},
		{in: "awskms:///k?endpoint=http://user:p@ss@host", scheme: "awskms", path: "///k", query: map[string]string{"endpoint": "http://user:p@ss@host"},
			out: "awskms:///k?endpoint=REDACTED@host"},
		{in: "gcpkms://k?endpoint=user:pass@host:443", scheme: "gcpkms", path: "//k", query: map[string]string{"endpoint": "user:pass@host:443"},
			out: "gcpkms://k?endpoint=REDACTED@host:443"},
		{in: "pkcs11:token=a?module-path=/m%3Bx=y", scheme: "pkcs11", path: "token=a", query: map[string]string{"module-path": "/m;x=y"}},
		{in: "pkcs11:token=a?pin-source=exec:/bin/x --secret=pin", scheme: "pkcs11", path: "token=a",
			query: map[string]string{"pin-source": "exec:/bin/x --secret=pin"}, out: "pkcs11:token=a?pin-source=exec:/bin/x%20--secret=REDACTED"},
		{in: "pkcs11:?module-init=configdir='sql:/d' keyPrefix='' tokenDescription=x", scheme: "pkcs11",
			query: map[string]string{"module-init": "configdir='sql:/d' keyPrefix='' tokenDescription=x"},
			out:   "pkcs11:?module-init=configdir='sql:/d'%20keyPrefix=''%20tokenDescription=x"},
		{in: "pkcs11:?module-path=/m", scheme: "pkcs11", path: "", query: map[string]string{"module-path": "/m"}},
	}
	for _, tt := range tests {
		ref, err := ParseRef(tt.in)
		if err != nil || ref.Scheme != tt.scheme || ref.Path != tt.path || len(ref.query) != len(tt.query) {
			t.Errorf("%s: %+v, %v; want %q, %q and %d attributes", tt.in, ref, err, tt.scheme, tt.path, len(tt.query))
		}
		for name, want := range tt.query {
			if got, ok := ref.Query(name); !ok || got != want {
				t.Errorf("%s: attribute %q: %q, %v; want %q", tt.in, name, got, ok, want)
			}
		}
		if _, ok := ref.Query("no-such-attribute"); ok {
			t.Errorf("%s: an absent attribute is found", tt.in)
		}
		if got := ref.String(); got != tt.out && (tt.out != "" || got != tt.in) {
			t.Errorf("%s: String() %q, want %q", tt.in, got, tt.out)
		}
	}
}

func TestParseRefRefuses(t *testing.T) {
	for in, want := range map[string]string{
		"":                                       "it has no scheme",
		"vendor.key":                             "it has no scheme",
		"/etc/hsmsign/vendor.key":                "it has no scheme",
		`C:\keys\vendor.key`:                     "it has no scheme",
		":path":                                  "it has no scheme",
		"1file:path":                             "it has no scheme",
		"fi le:path":                             "it has no scheme",
		"file:":                                  "nothing follows",
		"file:?x=1":                              "nothing follows",
		"pkcs11:":                                "nothing follows",
		"file:a?":                                "attribute 1 is not of the form",
		"file:a?x=1&":                            "attribute 2 is not of the form",
		"file:a?x":                               "attribute 1 is not of the form",
		"file:a?=1":                              "attribute 1 is not of the form",
		"file:a?x y=1":                           "attribute 1 is not of the form",
		"file:a?x=1&x=2":                         `"x" is repeated`,
		"file:a?x=%4":                            `"x": a % must be followed`,
		"file:a?x=%zz":                           `"x": a % must be followed`,
		"file:a\nb":                              "control character",
		"file:a?x=\x7f":                          "control character",
		"file:a\x00":                             "control character",
		"file:" + strings.Repeat("a", MaxRef-4):  "4097 bytes; the limit is 4096",
		"pkcs11:token=a?pin-value=1234%":         `"pin-value": a % must be followed`,
		"pkcs11:token=a?pin-value=1234&1234":     "attribute 2 is not of the form",
		"pkcs11:a?pin-value=1234&pin-value=1234": `"pin-value" is repeated`,
		"pkcs11:a?pin-value=1234\n":              "control character",
		"pkcs11:a?module-path=/m;pin-value=1234": `"module-path": ';' separates path attributes; use '&' between query attributes`,
		"pkcs11:a?pin-value=12;1234":             `"pin-value": ';' separates`,
		"pkcs11:a?module-path=/m,PIN=1234":       `"module-path" contains another one`,
		"pkcs11:a?x=%3Bp%69n%3D1234":             `"x" contains another one`,
		"pkcs11:a?pin-source=|/x,pin=1234 y":     `"pin-source" contains another one`,
		"pkcs11:token=a;pin-value=1234;id=%01":   "may be a secret",
		"pkcs11:token=a;PIN =1234":               "may be a secret",
		"pkcs11:p%69n=1234?module-path=/m":       "may be a secret",
		"file:a&passphrase=1234":                 "may be a secret",
		"awskms:///k;api-key=1234":               "may be a secret",
		"awskms:///k;API_KEY=1234":               "may be a secret",
		"pkcs11:p%6ain%z=1234?x=y":               "may be a secret",
		"vault://user:1234@host/transit/keys/k":  "a user or a password before the host",
		"gcpkms://1234@projects?x=y":             "a user or a password before the host",
	} {
		ref, err := ParseRef(in)
		if !errors.Is(err, ErrReference) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, %v; want %q", in, ref, err, want)
			continue
		}
		if strings.Contains(err.Error(), "1234") {
			t.Errorf("%q: the error contains the PIN: %v", in, err)
		}
	}
	if _, err := ParseRef("file:" + strings.Repeat("a", MaxRef-5)); err != nil {
		t.Errorf("%d bytes: %v", MaxRef, err)
	}
}

func TestCheckQuery(t *testing.T) {
	ref := testkit.Value(ParseRef("pkcs11:token=a?module-path=/m&pin-value=1234"))(t)
	if err := ref.CheckQuery("pin-value", "module-path", "pin-source"); err != nil {
		t.Errorf("known: %v", err)
	}
	err := ref.CheckQuery("module-path", "pin-source")
	if !errors.Is(err, ErrReference) || !strings.Contains(err.Error(), `unknown query attribute "pin-value"; pkcs11: accepts module-path, pin-source`) {
		t.Errorf("unknown: %v", err)
	}
	if strings.Contains(err.Error(), "1234") {
		t.Errorf("the error contains the PIN: %v", err)
	}
	ref = testkit.Value(ParseRef("pkcs11:token=a?pin-sorce=file:x"))(t)
	if hint := fault.Hint(ref.CheckQuery("module-path", "pin-source")); hint != `did you mean "pin-source"?` {
		t.Errorf("hint %q", hint)
	}
}

func TestErrorHidesPIN(t *testing.T) {
	ref := testkit.Value(ParseRef("pkcs11:token=a?pin-value=1234"))(t)
	e := &Error{Op: "log in", Ref: ref, Err: fault.WithHint(ErrAuth, "check the PIN")}
	if want := "log in pkcs11:token=a?pin-value=REDACTED: authentication failed"; e.Error() != want {
		t.Errorf("%q, want %q", e, want)
	}
	if !errors.Is(e, ErrAuth) || fault.Hint(e) != "check the PIN" {
		t.Errorf("wraps %v, hint %q", e.Unwrap(), fault.Hint(e))
	}
}

func TestWith(t *testing.T) {
	const text = "file:a?x=1&y=2"
	ref := testkit.Value(ParseRef(text))(t)
	if got := ref.Without("x", "z").With("w", "0").String(); got != "file:a?w=0&y=2" || ref.String() != text {
		t.Errorf("%q, made from %q", got, ref)
	}
}

// TestEncode: unlike String, Encode keeps secrets, and escapes only what has a meaning.
func TestEncode(t *testing.T) {
	for in, want := range map[string]string{
		"file:vendor.key": "file:vendor.key",
		"pkcs11:token=a%20b;id=%01?pin-value=12%2634&x=%C3%A9": "pkcs11:token=a%20b;id=%01?pin-value=12%2634&x=\u00e9",
		"file:a?x=%3b&y=%3D":                                  "file:a?x=%3B&y==",
		"FILE:a?x=%25%0a&y=a+b":                               "file:a?x=%25%0A&y=a+b",
		"awskms:///k?endpoint=http://user:secret@host":        "awskms:///k?endpoint=http://user:secret@host",
		"pkcs11:?module-path=/usr/lib/softhsm/libsofthsm2.so": "pkcs11:?module-path=/usr/lib/softhsm/libsofthsm2.so",
	} {
		ref := testkit.Value(ParseRef(in))(t)
		if got := ref.Encode(); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// FuzzParseRef: Encode is the exact inverse of ParseRef and never longer than its input, String is an inverse unless it
// hides a secret, and no PIN is printed.
func FuzzParseRef(f *testing.F) {
	testkit.Seeds(f, "FuzzParseRef", 8)
	f.Add("file:a?x=%26%25%7f&y=\u00e9")
	same := func(t *testing.T, ref Ref, text string) {
		again, err := ParseRef(text)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if diff := cmp.Diff(ref, again, cmp.AllowUnexported(Ref{}, attr{})); diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseRef(s)
		if err != nil {
			if !errors.Is(err, ErrReference) {
				t.Fatalf("%v does not wrap ErrReference", err)
			}
			return
		}
		encoded, printed := ref.Encode(), ref.String()
		if len(encoded) > len(s) {
			t.Errorf("%q is longer than %q", encoded, s)
		}
		same(t, ref, encoded)
		if len(printed) <= MaxRef && !strings.Contains(printed, "REDACTED") {
			same(t, ref, printed)
		}

		// A secret after any separator, in the path and in the query.
		const pin = "s3cr3t-PIN"
		if strings.Contains(s, pin) {
			return
		}
		for _, attribute := range []string{"pin-value=", "PIN=", "x-passphrase =", "client_secret=", "api-key=", "p%49n=", "credential="} {
			for _, separator := range []string{";", "&", ",", "?", "|", " ", "/", "#", "%3B", "?x=y&", "?x=y;", "?x=exec:/x,"} {
				for _, with := range []string{s + separator + attribute + pin, ref.Scheme + ":" + ref.Path + separator + attribute + pin + "&x=y"} {
					ref, err := ParseRef(with)
					if err != nil && strings.Contains(err.Error()+fault.Hint(err), pin) || strings.Contains(ref.String()+Redact(with), pin) {
						t.Fatalf("%q: %q, %v", with, ref, err)
					}
				}
			}
		}
	})
}
