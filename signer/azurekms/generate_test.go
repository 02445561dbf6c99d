package azurekms

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/azurekms/azurekmstest"
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
	server, taken := start(t, azurekmstest.Config{})
	reference := at(t, server, "keys/new")
	// A new key may not be found everywhere at once.
	testkit.OK(t, server.Script("GetKey", azurekmstest.OK, azurekmstest.NotFound, azurekmstest.NotFound))
	made := testkit.Value(generate(t, reference, 2048))(t)
	signerkit.MustSign(t, made)
	infos := testkit.Value(list(t, reference))(t)
	if len(infos) != 1 || infos[0].Bits != 2048 || len(infos[0].Unprotected()) != 0 || infos[0].Properties[0].Value != "RSA-HSM" || !versionForm().MatchString(infos[0].ID) {
		t.Errorf("%+v", infos)
	}
	signerkit.MustSign(t, signerkit.MustOpen(t, Backend(quick()), infos[0].Ref, made.Public()))
	soft := at(t, server, "keys/soft") + "&protection=software"
	testkit.Value(generate(t, soft, 2048))(t)
	if infos := testkit.Value(list(t, soft))(t); infos[0].Properties[0].Value != "RSA" || infos[0].Properties[1].Value != "no" {
		t.Errorf("%+v", infos)
	}
	for _, existing := range []string{strings.Replace(taken, "/"+strings.Split(strings.Split(taken, "?")[0], "/")[5], "", 1), reference} {
		_, err := generate(t, existing, 2048)
		signerkit.WantError(t, err, signer.ErrKeyExists, "key exists: ", "another name")
	}
	if n := server.Calls("CreateKey"); n != 2 {
		t.Errorf("%d keys created, want 2", n)
	}
}

func TestGenerateRefuses(t *testing.T) {
	server, _ := start(t, azurekmstest.Config{})
	for _, tt := range []struct {
		path, text string
		bits       int
		family     error
	}{
		{"keys", "no key", 2048, signer.ErrReference},
		{"keys/x/" + testVersion, "the service chooses the version", 2048, signer.ErrReference},
		{"keys/x", "RSA of 1024 bits", 1024, signer.ErrUnsupported},
	} {
		_, err := generate(t, at(t, server, tt.path), tt.bits)
		signerkit.WantError(t, err, tt.family, tt.text, "")
	}
	if n := server.Calls("*"); n != 0 {
		t.Errorf("%d requests", n)
	}
	reference := at(t, server, "keys/x")
	for _, tt := range []struct {
		operation string
		fault     azurekmstest.Fault
		family    error
		text, fix string
		created   int
	}{
		{"GetKey", azurekmstest.Denied, signer.ErrAuth, "ForbiddenByRbac", "", 0},
		{"CreateKey", azurekmstest.Denied, signer.ErrAuth, "ForbiddenByRbac", "role", 1},
		{"CreateKey", azurekmstest.Deleted, signer.ErrKeyExists, "ObjectIsDeletedButRecoverable", "can be recovered", 1},
		{"CreateKey", azurekmstest.Standard, signer.ErrUnsupported, "SKU", "protection=software", 1},
		{"CreateKey", azurekmstest.Internal, signer.ErrUnavailable, "the key may have been created", "key list", 1},
		{"CreateKey", azurekmstest.Lost, signer.ErrUnavailable, "the key may have been created", "key list", 1},
		{"CreateKey", azurekmstest.OK, signer.ErrKeyExists, `"x"`, "another name", 0}, // by the request before
	} {
		before := server.Calls("CreateKey")
		testkit.OK(t, server.Script(tt.operation, tt.fault))
		_, err := generate(t, reference, 2048)
		signerkit.WantError(t, err, tt.family, tt.text, tt.fix)
		if n := server.Calls("CreateKey") - before; n != tt.created {
			t.Errorf("%s: %d requests, want %d", tt.fault, n, tt.created)
		}
	}
}

// TestGenerateReadsBack: what the service made of a new key is checked, and a version that someone else added meanwhile.
func TestGenerateReadsBack(t *testing.T) {
	server, _ := start(t, azurekmstest.Config{})
	private := testkit.GoldenKey(t)
	for i, tt := range []struct {
		name, text string
		key        azurekmstest.Key
		family     error
	}{
		{"exportable", "exportable is yes", azurekmstest.Key{Private: private, HSM: true, Exportable: true}, signer.ErrBadKey},
		{"operations", "key_ops is sign verify decrypt", azurekmstest.Key{Private: private, HSM: true, Ops: []string{"sign", "verify", "decrypt"}}, signer.ErrBadKey},
		{"software", `its type is "RSA"`, azurekmstest.Key{Private: private}, signer.ErrBadKey},
		{"two versions", "someone else created it", azurekmstest.Key{Private: private, HSM: true}, signer.ErrKeyExists},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.key.Name = fmt.Sprintf("k%d", i)
			path := testkit.Value(server.Add(tt.key))(t)
			if tt.name == "two versions" {
				path = testkit.Value(server.Add(tt.key))(t)
			}
			s := testkit.Value(quick().connect(t.Context(), signerkit.Ref(t, at(t, server, path))))(t)
			defer func() { _ = s.Close() }()
			if err := s.readBack(t.Context()); !errors.Is(err, tt.family) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%v, want %q", err, tt.text)
			}
		})
	}
}

func list(t *testing.T, reference string) ([]signer.KeyInfo, error) {
	t.Helper()
	return Backend(quick()).List(t.Context(), signerkit.Ref(t, reference))
}

func TestList(t *testing.T) {
	server, one := start(t, azurekmstest.Config{PageSize: 1})
	private := testkit.GoldenKey(t)
	testkit.Value(server.AddKey("Vendor", testkit.Key("other")))(t)
	testkit.Value(server.Add(azurekmstest.Key{Name: "symmetric"}))(t)
	testkit.Value(server.Add(azurekmstest.Key{Name: "curve", Private: testkit.Value(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t), HSM: true}))(t)
	infos := testkit.Value(list(t, at(t, server, "keys")))(t)
	var lines []string
	for _, info := range infos {
		lines = append(lines, fmt.Sprintf("%s %s %d %v %s", info.Label, info.Algorithm, info.Bits, info.Public != nil, info.Properties[0].Value))
		if info.Store != "Azure Key Vault "+server.Address() {
			t.Errorf("store %q", info.Store)
		}
	}
	want := "curve EC 0 false EC-HSM; Vendor RSA 2048 true RSA-HSM; Vendor RSA 2048 true RSA"
	if got := strings.Join(lines, "; "); got != want {
		t.Fatalf("%s, want %s", got, want)
	}
	vendor := infos[1]
	if !private.PublicKey.Equal(vendor.Public) || vendor.Properties[len(vendor.Properties)-2] != (signer.Property{Name: "hsmPlatform", Value: "2"}) {
		t.Errorf("%+v", vendor)
	}
	signerkit.MustSign(t, signerkit.MustOpen(t, Backend(quick()), vendor.Ref, nil))
	if infos, err := list(t, one); err != nil || len(infos) != 1 || !strings.HasPrefix(one, strings.Split(infos[0].Ref, "?")[0]) {
		t.Errorf("%+v, %v", infos, err)
	}
	if infos, err := list(t, at(t, server, "keys/Vendor")); err != nil || len(infos) != 2 {
		t.Errorf("%+v, %v", infos, err)
	}
	for path, text := range map[string]string{"keys/absent": "has no version", "keys/Vendor/" + absent: "KeyNotFound"} {
		_, err := list(t, at(t, server, path))
		signerkit.WantError(t, err, signer.ErrKeyNotFound, text, "")
	}
	testkit.OK(t, server.Script("ListKeys", azurekmstest.Throttle, azurekmstest.OK, azurekmstest.Truncate)) // a page is repeated
	if infos, err := list(t, at(t, server, "keys")); err != nil || len(infos) != 3 {
		t.Errorf("%d keys, %v", len(infos), err)
	}
}

// TestListPermissions: a key that the identity may not read is listed by its name.
func TestListPermissions(t *testing.T) {
	server, one := start(t, azurekmstest.Config{})
	testkit.OK(t, server.Stand("GetKey", azurekmstest.Denied))
	infos, err := list(t, at(t, server, "keys"))
	if err != nil || len(infos) != 1 || infos[0].Label != "Vendor" || infos[0].Bits != 0 || !strings.HasPrefix(one, strings.Split(infos[0].Ref, "?")[0]) {
		t.Errorf("%+v, %v", infos, err)
	}
	testkit.OK(t, server.Stand("ListKeys", azurekmstest.Denied))
	_, err = list(t, at(t, server, "keys"))
	signerkit.WantError(t, err, signer.ErrAuth, "ForbiddenByRbac", "deploy/terraform/azure")
}

// TestListLimits: a list that is too long, and one that continues on another host, to which no token is sent.
func TestListLimits(t *testing.T) {
	server, _ := start(t, azurekmstest.Config{PageSize: 500})
	for i := range maxListed {
		testkit.Value(server.AddKey(fmt.Sprintf("k%d", i), testkit.GoldenKey(t)))(t)
	}
	_, err := list(t, at(t, server, "keys"))
	signerkit.WantError(t, err, signer.ErrUnsupported, "more than 1000 keys", "name the key")
	testkit.OK(t, server.Stand("ListKeys", azurekmstest.OtherPage))
	opts := quick()
	opts.Policy.Timeout, opts.Policy.RetryDelay = 3*time.Second, 10*time.Second // one attempt
	_, err = Backend(opts).List(t.Context(), signerkit.Ref(t, at(t, server, "keys")))
	signerkit.WantError(t, err, signer.ErrUnavailable, "leads to another host", "")
	r := reference{host: "acme.vault.azure.net"}
	for id, want := range map[string]bool{
		"https://acme.vault.azure.net/keys/x": true, "https://acme.vault.azure.net/keys/x/" + testVersion: true, "https://acme.vault.azure.net/keys/x/..": false,
		"https://acme.vault.azure.net/keys/a%2Fb": false, "https://other.vault.azure.net/keys/x": false, "https://acme.vault.azure.net/secrets/x": false,
	} {
		if got := (&session{reference: r}).ofVault(azkeys.ID(id)); got != want {
			t.Errorf("%s: %v", id, got)
		}
	}
}

func TestDiagnose(t *testing.T) {
	server, reference := start(t, azurekmstest.Config{})
	opts := quick()
	opts.Policy.Timeout, opts.Policy.RetryDelay = 3*time.Second, 10*time.Second // one attempt
	backend := Backend(opts)
	loose := at(t, server, testkit.Value(server.Add(azurekmstest.Key{Name: "loose", Private: testkit.GoldenKey(t), Exportable: true}))(t))
	outer := t
	stand := func(operation string, fault azurekmstest.Fault) func() {
		return func() { testkit.OK(t, server.Stand(operation, fault)) }
	}
	for _, tt := range []struct {
		name, reference string
		public          crypto.PublicKey
		prepare         func()
		letters, step   string // the step to look at
		text            string
		family          error
	}{
		{"good", reference, &testkit.GoldenKey(t).PublicKey, nil, "oooooo", "protection", "kty RSA-HSM, HSM yes, enabled yes, exportable no", nil},
		{"malformed", "azurekms://x/keys", nil, nil, "fsssss", "reference", "not the host", signer.ErrReference},
		{"no key", at(t, server, "keys"), nil, nil, "fsssss", "reference", "names no key", signer.ErrReference},
		{"no credentials", reference + "&credential=workload", nil, func() { environment(outer) }, "ofssss", "credentials", "no Azure credentials", signer.ErrAuth},
		{"no version", at(t, server, "keys/Vendor"), nil, nil, "ooofss", "key", "names no version", signer.ErrAmbiguousKey},
		{"outage", reference, nil, stand("GetKey", azurekmstest.Internal), "oofsss", "reach", "InternalServerError", signer.ErrUnavailable},
		{"denied", reference, nil, stand("GetKey", azurekmstest.Denied), "ooofss", "key", "ForbiddenByRbac", signer.ErrAuth},
		{"another certificate", reference, &testkit.Key("other").PublicKey, nil, "ooofss", "key", "not the key of the vendor's certificate", signer.ErrBadKey},
		{"exportable", loose, nil, nil, "oooowo", "protection", "exportable yes", nil},
		{"signing denied", reference, nil, stand("Sign", azurekmstest.Denied), "ooooof", "signature", "ForbiddenByRbac", signer.ErrAuth},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.prepare != nil {
				tt.prepare()
			}
			letters, steps := signerkit.Diagnose(t, backend, tt.reference, tt.public)
			for _, operation := range []string{"GetKey", "Sign"} {
				testkit.OK(t, server.Stand(operation, azurekmstest.OK))
			}
			environment(outer, server.Environment()...)
			if s := steps[tt.step]; letters != tt.letters || !strings.Contains(s.Detail, tt.text) || tt.family != nil && !errors.Is(s.Err, tt.family) {
				t.Errorf("%s, want %s; %+v", letters, tt.letters, s)
			}
		})
	}
	closed := testkit.Value(azurekmstest.NewServer(azurekmstest.Config{}))(t)
	gone := at(t, closed, "keys/x/"+testVersion)
	_ = closed.Close()
	signerkit.DiagnoseClosed(t, Backend(Options{}), gone)
}
