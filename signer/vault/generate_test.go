package vault

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/vault/vaulttest"
)

func generate(t *testing.T, reference string, bits int) (signer.Signer, error) {
	t.Helper()
	key, err := Backend(quick()).Generate(t.Context(), signerkit.Ref(t, reference), signer.KeySpec{Bits: bits})
	if err == nil {
		t.Cleanup(func() { _ = key.Close() })
	}
	return key, err
}

func TestGenerate(t *testing.T) {
	server, taken := start(t, vaulttest.Config{})
	reference := at(server, "transit/keys/new?version=1")
	made := testkit.Value(generate(t, reference, 3072))(t)
	signerkit.MustSign(t, made)
	infos := testkit.Value(list(t, reference))(t)
	if len(infos) != 1 || infos[0].Bits != 3072 || len(infos[0].Unprotected()) != 0 || !signerkit.MustOpen(t, Backend(quick()), reference, nil).Public().(interface {
		Equal(crypto.PublicKey) bool
	}).Equal(made.Public()) {
		t.Errorf("%+v", infos)
	}
	for _, existing := range []string{taken, reference} {
		_, err := generate(t, existing, 2048)
		signerkit.WantError(t, err, signer.ErrKeyExists, "key exists: ", "another name")
	}
	if n := server.Calls("CreateKey"); n != 1 {
		t.Errorf("%d keys created, want 1", n)
	}
}

func TestGenerateRefuses(t *testing.T) {
	server, _ := start(t, vaulttest.Config{})
	for _, tt := range []struct {
		path, text string
		bits       int
		family     error
	}{
		{"transit/keys", "no key", 2048, signer.ErrReference},
		{"transit/keys/x", "version=1", 2048, signer.ErrReference},
		{"transit/keys/x?version=2", "version=1", 2048, signer.ErrReference},
		{"transit/keys/x?version=1", "RSA of 1024 bits", 1024, signer.ErrUnsupported},
	} {
		_, err := generate(t, at(server, tt.path), tt.bits)
		signerkit.WantError(t, err, tt.family, tt.text, "")
	}
	if n := server.Calls("*"); n != 0 {
		t.Errorf("%d requests", n)
	}
	for _, tt := range []struct {
		fault  vaulttest.Fault
		family error
		text   string
	}{
		{vaulttest.Denied, signer.ErrAuth, "update transit/keys/x"},
		{vaulttest.Internal, signer.ErrUnavailable, "the key may have been created"},
		{vaulttest.Lost, signer.ErrUnavailable, "the key may have been created"},
		{vaulttest.OK, signer.ErrKeyExists, `"x"`}, // by the request before
	} {
		before := server.Calls("CreateKey")
		testkit.OK(t, server.Script("CreateKey", tt.fault))
		_, err := generate(t, at(server, "transit/keys/x?version=1"), 2048)
		signerkit.WantError(t, err, tt.family, tt.text, "")
		if n := server.Calls("CreateKey") - before; n > 1 {
			t.Errorf("%s: %d requests, want 1", tt.fault, n)
		}
	}
}

// TestGenerateReadsBack: what the server made of a new key is checked: one that could be exported, one that someone else
// created meanwhile, and one that cannot be read.
func TestGenerateReadsBack(t *testing.T) {
	for name, tt := range map[string]struct {
		created, read string // the bodies of the answers
		family        error
		text          string
	}{
		"exportable": {`{"data": {}}`, `{"type": "rsa-2048", "exportable": true, "keys": {"1": %s}}`, signer.ErrBadKey, `exportable is yes: the new key "x" was created`},
		"backup":     {`{"data": {}}`, `{"type": "rsa-2048", "allow_plaintext_backup": true, "keys": {"1": %s}}`, signer.ErrBadKey, "allow_plaintext_backup is yes"},
		"deletable":  {`{"data": {}}`, `{"type": "rsa-2048", "deletion_allowed": true, "keys": {"1": %s}}`, signer.ErrBadKey, "deletion_allowed is yes"},
		"other type": {`{"data": {}}`, `{"type": "ecdsa-p256", "keys": {"1": %s}}`, signer.ErrBadKey, `its type is "ecdsa-p256": the new key "x" was created`},
		"existed":    {`{"warnings": ["key x already existed"]}`, `{}`, signer.ErrKeyExists, `"x"`},
	} {
		t.Run(name, func(t *testing.T) {
			public := vendor(t)
			made := false
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.Method == http.MethodPost:
					var body map[string]any
					testkit.OK(t, json.NewDecoder(r.Body).Decode(&body))
					if body["exportable"] != false || body["allow_plaintext_backup"] != false || body["derived"] != false || body["type"] != "rsa-2048" {
						t.Errorf("%v", body)
					}
					made = true
					_, _ = io.WriteString(w, tt.created)
				case !made:
					w.WriteHeader(http.StatusNotFound)
					_, _ = io.WriteString(w, `{"errors": []}`)
				case strings.Contains(tt.read, "%s"):
					_, _ = fmt.Fprintf(w, `{"data": `+tt.read+`}`, public)
				default:
					_, _ = io.WriteString(w, `{"data": `+tt.read+`}`)
				}
			}))
			defer server.Close()
			_, err := generate(t, "vault://"+strings.TrimPrefix(server.URL, "http://")+"/transit/keys/x?version=1&tls=off", 2048)
			signerkit.WantError(t, err, tt.family, tt.text, "")
		})
	}
}

func list(t *testing.T, reference string) ([]signer.KeyInfo, error) {
	t.Helper()
	return Backend(quick()).List(t.Context(), signerkit.Ref(t, reference))
}

func TestList(t *testing.T) {
	server, one := start(t, vaulttest.Config{})
	private := testkit.GoldenKey(t)
	testkit.Value(server.AddKey("vendor", testkit.Key("other")))(t)
	testkit.Value(server.Add(vaulttest.Key{Name: "symmetric"}))(t)
	testkit.Value(server.Add(vaulttest.Key{Name: "curve", Private: testkit.Value(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)}))(t)
	testkit.Value(server.Add(vaulttest.Key{Name: "loose", Private: private, Exportable: true, PlaintextBackup: true, Imported: true}))(t)
	infos := testkit.Value(list(t, at(server, "transit/keys")))(t)
	var lines []string
	for _, info := range infos {
		lines = append(lines, fmt.Sprintf("%s %s %s %d %v %d", info.Label, info.ID, info.Algorithm, info.Bits, info.Public != nil, len(info.Unprotected())))
		if !strings.HasPrefix(info.Store, "Vault 127.0.0.1:") || !strings.HasSuffix(info.Store, " transit") {
			t.Errorf("store %q", info.Store)
		}
	}
	want := "curve 1 EC 0 false 0; loose 1 RSA 2048 true 3; vendor 1 RSA 2048 true 0; vendor 2 RSA 2048 true 0"
	if got := strings.Join(lines, "; "); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	vendor := infos[2]
	if !private.PublicKey.Equal(vendor.Public) || vendor.Ref != at(server, "transit/keys/vendor?version=1") {
		t.Errorf("%+v", vendor)
	}
	signerkit.MustSign(t, signerkit.MustOpen(t, Backend(quick()), vendor.Ref, nil))
	for path, want := range map[string]int{"transit/keys/vendor": 2, "transit/keys/vendor?version=2": 1} {
		if infos, err := list(t, at(server, path)); err != nil || len(infos) != want || infos[want-1].ID != "2" {
			t.Errorf("%s: %+v, %v", path, infos, err)
		}
	}
	if infos, err := list(t, one); err != nil || infos[0].Ref != vendor.Ref {
		t.Errorf("%+v, %v", infos, err)
	}
	for path, text := range map[string]string{"transit/keys/vendor?version=3": "no version 3", "transit/keys/absent": "status 404", "none/keys": "no handler for route"} {
		_, err := list(t, at(server, path))
		signerkit.WantError(t, err, signer.ErrKeyNotFound, text, "")
	}
	empty := testkit.Value(vaulttest.NewServer(vaulttest.Config{}))(t)
	defer func() { _ = empty.Close() }()
	if infos, err := list(t, at(empty, "transit/keys")); err != nil || len(infos) != 0 {
		t.Errorf("%+v, %v", infos, err)
	}
	_, err := list(t, at(server, "transit/keys/symmetric"))
	signerkit.WantError(t, err, signer.ErrBadKey, "aes256-gcm96", "")
}

// TestListPermissions: a key that the token may not read is listed by its name.
func TestListPermissions(t *testing.T) {
	server, _ := start(t, vaulttest.Config{})
	testkit.OK(t, server.Stand("ReadKey", vaulttest.Denied))
	infos, err := list(t, at(server, "transit/keys"))
	if err != nil || len(infos) != 1 || infos[0].Label != "vendor" || infos[0].Bits != 0 || infos[0].Ref != at(server, "transit/keys/vendor") {
		t.Errorf("%+v, %v", infos, err)
	}
	testkit.OK(t, server.Stand("ReadKey", vaulttest.NotFound)) // deleted meanwhile
	if infos, err := list(t, at(server, "transit/keys")); err != nil || len(infos) != 0 {
		t.Errorf("%+v, %v", infos, err)
	}
	testkit.OK(t, server.Stand("ListKeys", vaulttest.Denied))
	_, err = list(t, at(server, "transit/keys"))
	signerkit.WantError(t, err, signer.ErrAuth, "list transit/keys", `allows "list transit/keys"`)
}

// TestListLimits: a list that is too long, and a name that would change a URL.
func TestListLimits(t *testing.T) {
	server, _ := start(t, vaulttest.Config{})
	for i := range maxListed {
		testkit.Value(server.AddKey(fmt.Sprintf("k%d", i), testkit.GoldenKey(t)))(t)
	}
	_, err := list(t, at(server, "transit/keys"))
	signerkit.WantError(t, err, signer.ErrUnsupported, "more than 1000 keys", "name the key")
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"data": {"keys": ["../../sys/seal"]}}`)
	}))
	defer other.Close()
	_, err = list(t, "vault://"+strings.TrimPrefix(other.URL, "http://")+"/transit/keys?tls=off")
	signerkit.WantError(t, err, signer.ErrUnavailable, "not the name of a key", "")
}

func TestDiagnose(t *testing.T) {
	server, reference := start(t, vaulttest.Config{})
	opts := quick()
	opts.Policy.Timeout, opts.Policy.RetryDelay = 3*time.Second, 10*time.Second // one attempt
	backend := Backend(opts)
	loose := at(server, testkit.Value(server.Add(vaulttest.Key{Name: "loose", Private: testkit.GoldenKey(t), Exportable: true}))(t))
	stand := func(operation string, fault vaulttest.Fault) func() {
		return func() { testkit.OK(t, server.Stand(operation, fault)) }
	}
	server.AddToken("short", "", vaulttest.Lease{TTL: time.Hour})
	appRole, _ := roles(t, server, vaulttest.Lease{TTL: time.Hour})
	for _, tt := range []struct {
		name, reference string
		public          crypto.PublicKey
		prepare         func()
		letters, step   string // the step to look at
		text            string
		family          error
	}{
		{"good", reference, &testkit.GoldenKey(t).PublicKey, nil, "ooowooo", "token", "accepted, policies default, hsmsign, does not expire", nil},
		{"AppRole", reference + appRole, nil, nil, "ooooooo", "token", "valid for 1h0m0s", nil},
		{"a token that cannot be renewed", reference + "&token-source=" + write(t, "token", "short", 0o600), nil, nil, "ooowooo", "token", "cannot be renewed", nil},
		{"malformed", "vault://h/transit", nil, nil, "fssssss", "reference", "/keys/", signer.ErrReference},
		{"no key", at(server, "transit/keys"), nil, nil, "fssssss", "reference", "names no key", signer.ErrReference},
		{"no secret", reference + "&token-source=env:NONE", nil, nil, "ofsssss", "credentials", "NONE is not set", signer.ErrAuth},
		{"sealed", reference, nil, stand("Health", vaulttest.Sealed), "oofssss", "reach", "sealed", signer.ErrUnavailable},
		{"no health", reference, nil, stand("Health", vaulttest.NotFound), "ooowooo", "reach", "without its health", nil},
		{"no question about the token", reference, nil, stand("LookupToken", vaulttest.Denied), "ooowooo", "token", "does not describe", nil},
		{"login refused", reference + appRole, nil, stand("Login", vaulttest.Denied), "ooofsss", "token", "auth/approle/login", signer.ErrAuth},
		{"no version", at(server, "transit/keys/vendor"), nil, nil, "ooowfss", "key", "has version=1", signer.ErrAmbiguousKey},
		{"denied", reference, nil, stand("ReadKey", vaulttest.Denied), "ooowfss", "key", "read transit/keys/vendor", signer.ErrAuth},
		{"another certificate", reference, &testkit.Key("other").PublicKey, nil, "ooowfss", "key", "not the key of the vendor's certificate", signer.ErrBadKey},
		{"exportable", loose, nil, nil, "ooowowo", "protection", "exportable yes", nil},
		{"signing denied", reference, nil, stand("Sign", vaulttest.Denied), "ooowoof", "signature", "update transit/sign/vendor", signer.ErrAuth},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.prepare != nil {
				tt.prepare()
			}
			letters, steps := signerkit.Diagnose(t, backend, tt.reference, tt.public)
			for _, operation := range []string{"Health", "LookupToken", "Login", "ReadKey", "Sign"} {
				testkit.OK(t, server.Stand(operation, vaulttest.OK))
			}
			if s := steps[tt.step]; letters != tt.letters || !strings.Contains(s.Detail, tt.text) || tt.family != nil && !errors.Is(s.Err, tt.family) {
				t.Errorf("%s, want %s; %+v", letters, tt.letters, s)
			}
		})
	}
	if _, steps := signerkit.Diagnose(t, backend, reference, nil); !strings.Contains(steps["reach"].Detail, vaulttest.Version+", active") || !strings.Contains(steps["key"].Detail, `version 1 of "vendor", RSA of 2048 bits`) {
		t.Errorf("%+v", steps)
	}
	for body, text := range map[string]string{`{"initialized": false, "sealed": true}`: "not initialized", `{"initialized": true, "sealed": true}`: "the server is sealed"} {
		other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-Vault-Token")+r.Header.Get("X-Vault-Namespace") != "" {
				t.Error("the health needs neither token nor namespace")
			}
			_, _ = io.WriteString(w, body)
		}))
		letters, steps := signerkit.Diagnose(t, backend, "vault://"+strings.TrimPrefix(other.URL, "http://")+"/transit/keys/x?version=1&tls=off&namespace=a", nil)
		if letters != "oofssss" || !strings.Contains(steps["reach"].Detail, text) || !strings.Contains(steps["reach"].Fix, "vault operator") {
			t.Errorf("%s: %+v", letters, steps["reach"])
		}
		other.Close()
	}
	closed := httptest.NewServer(nil)
	closed.Close()
	signerkit.DiagnoseClosed(t, Backend(Options{Secrets: quick().Secrets}), "vault://"+strings.TrimPrefix(closed.URL, "http://")+"/transit/keys/x?version=1&tls=off")
}
