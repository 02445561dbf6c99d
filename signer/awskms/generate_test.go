package awskms

import (
	"crypto"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	api "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/google/go-cmp/cmp"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/awskms/awskmstest"
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
	server, taken := start(t, awskmstest.Config{})
	reference := at(server, "alias/New-Vendor")
	// KMS does not find a new key everywhere at once.
	testkit.OK(t, server.Script("GetPublicKey", "NotFoundException", "NotFoundException"))
	made := testkit.Value(generate(t, reference, 3072))(t)
	s := testkit.Value(quick().connect(t.Context(), signerkit.Ref(t, reference)))(t)
	out := testkit.Value(s.clients[0].api.DescribeKey(t.Context(), &api.DescribeKeyInput{KeyId: aws.String("alias/New-Vendor")}))(t)
	if m := out.KeyMetadata; m.KeySpec != "RSA_3072" || m.KeyUsage != "SIGN_VERIFY" || !strings.Contains(aws.ToString(m.Description), "hsmsign: MDM vendor signing key alias/New-Vendor") {
		t.Errorf("%s for %s: %q", m.KeySpec, m.KeyUsage, aws.ToString(m.Description))
	}
	testkit.OK(t, signerkit.Sign(t, made))
	if diff := cmp.Diff(made.Public(), signerkit.MustOpen(t, Backend(Options{}), reference, nil).Public()); diff != "" {
		t.Errorf("the alias names a different key:\n%s", diff)
	}
	for _, existing := range []string{taken, reference} {
		_, err := generate(t, existing, 2048)
		signerkit.WantError(t, err, signer.ErrKeyExists, "alias/", "another alias")
	}
	if n := server.Calls("CreateKey"); n != 1 {
		t.Errorf("%d keys created, want 1", n)
	}
}

func TestGenerateRefuses(t *testing.T) {
	server, _ := start(t, awskmstest.Config{})
	for _, tt := range []struct {
		reference string
		bits      int
		family    error
		text      string
	}{
		{at(server, "alias/x"), 1024, signer.ErrUnsupported, "1024 bits"},
		{at(server, testID), 2048, signer.ErrReference, "name an alias"},
		{at(server, testARN), 2048, signer.ErrReference, "name an alias"},
		{at(server, "alias/aws/x"), 2048, signer.ErrReference, "reserved by Amazon"},
		{at(server, ""), 2048, signer.ErrReference, "no key"},
		{"awskms:///alias/x?regions=eu-west-1,us-east-1&endpoint=" + server.Endpoint(), 2048, signer.ErrUnsupported, "several regions"},
	} {
		_, err := generate(t, tt.reference, tt.bits)
		signerkit.WantError(t, err, tt.family, tt.text, "")
	}
	if n := server.Calls("CreateKey"); n != 0 {
		t.Errorf("%d keys created", n)
	}
}

// TestGenerateFaults: CreateKey is sent once, and the error names a key that stays behind.
func TestGenerateFaults(t *testing.T) {
	server, _ := start(t, awskmstest.Config{})
	for i, tt := range []struct {
		operation string
		fault     awskmstest.Fault
		family    error
		text, fix string
		creates   int
	}{
		{"DescribeKey", awskmstest.Denied, signer.ErrAuth, "kms:DescribeKey", "grant kms:DescribeKey", 0},
		{"CreateKey", awskmstest.Denied, signer.ErrAuth, "kms:CreateKey", "grant kms:CreateKey", 1},
		{"CreateKey", "LimitExceededException", signer.ErrUnsupported, "LimitExceeded", "Service Quotas", 1},
		{"CreateKey", awskmstest.Throttle, signer.ErrUnavailable, "throttled", "Service Quotas", 1}, // nothing was created
		{"CreateKey", awskmstest.Truncate, signer.ErrUnavailable, "may have been created", "key list", 1},
		{"CreateAlias", awskmstest.Denied, signer.ErrAuth, "arn:aws:kms:eu-west-1:111122223333:key/", "kms:ScheduleKeyDeletion", 1},
		{"CreateAlias", "AlreadyExistsException", signer.ErrKeyExists, "has no alias", "kms:CreateAlias", 1},
		{"GetPublicKey", awskmstest.Denied, signer.ErrAuth, `" has the alias "alias/faulty-`, "kms:ScheduleKeyDeletion", 1},
	} {
		testkit.OK(t, server.Script(tt.operation, tt.fault))
		before := server.Calls("CreateKey")
		reference := at(server, fmt.Sprintf("alias/faulty-%d", i))
		if tt.fault == "AlreadyExistsException" { // a new key may not be found at once, so it waits for the alias
			reference += "&timeout=4s"
		}
		_, err := generate(t, reference, 2048)
		signerkit.WantError(t, err, tt.family, tt.text, tt.fix)
		if n := server.Calls("CreateKey") - before; n != tt.creates {
			t.Errorf("%s %v: %d requests CreateKey, want %d", tt.operation, tt.fault, n, tt.creates)
		}
	}
	// The answer to CreateAlias is lost: the alias exists when it is requested again.
	testkit.OK(t, server.Script("CreateAlias", awskmstest.Internal, awskmstest.Throttle))
	testkit.Value(generate(t, at(server, "alias/faulty"), 2048))(t)
}

// TestGenerateElsewhere: an endpoint that serves another region gets one request if it says so, and a key that it made
// in spite of that is named.
func TestGenerateElsewhere(t *testing.T) {
	environment(t)
	const elsewhere = "arn:aws:kms:us-east-1:111122223333:"
	for name, tt := range map[string]struct {
		absent string // the message of NotFoundException
		text   string
		calls  int
	}{
		"names its region": {"Alias " + elsewhere + "alias/x is not found.", elsewhere + "alias/x", 1},
		"makes the key":    {"not found", "the new key \"" + elsewhere + "key/" + testID + "\" has no alias", 2},
	} {
		t.Run(name, func(t *testing.T) {
			calls := 0
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls++
				w.Header().Set("Content-Type", "application/x-amz-json-1.1")
				if r.Header.Get("X-Amz-Target") == "TrentService.CreateKey" {
					_, _ = fmt.Fprintf(w, `{"KeyMetadata": {"KeyId": %q, "Arn": %q}}`, testID, elsewhere+"key/"+testID)
					return
				}
				w.WriteHeader(http.StatusBadRequest)
				_, _ = fmt.Fprintf(w, `{"__type": "NotFoundException", "message": %q}`, tt.absent)
			}))
			defer server.Close()
			_, err := generate(t, "awskms:///alias/x?region=eu-west-1&endpoint="+server.URL, 2048)
			signerkit.WantError(t, err, signer.ErrReference, tt.text, "")
			if calls != tt.calls {
				t.Errorf("%d requests, want %d", calls, tt.calls)
			}
		})
	}
}

func list(t *testing.T, reference string) ([]signer.KeyInfo, error) {
	t.Helper()
	return Backend(quick()).List(t.Context(), signerkit.Ref(t, reference))
}

func TestList(t *testing.T) {
	server, one := start(t, awskmstest.Config{})
	private := testkit.GoldenKey(t)
	disabled := testkit.Value(server.Add(awskmstest.Key{Private: private, State: awskmstest.StateDisabled, Name: "alias/Old"}))(t)
	testkit.Value(server.Add(awskmstest.Key{Name: "alias/Symmetric"}))(t)
	infos, err := list(t, at(server, ""))
	if err != nil || len(infos) != 2 {
		t.Fatalf("%d keys, want the two RSA keys: %v", len(infos), err)
	}
	byLabel := map[string]signer.KeyInfo{}
	for _, info := range infos {
		byLabel[info.Label] = info
		if info.Algorithm != "RSA" || info.Bits != 2048 || info.Store != "AWS KMS eu-west-1" {
			t.Errorf("%+v", info)
		}
	}
	vendor := byLabel["alias/Vendor"]
	if !private.PublicKey.Equal(vendor.Public) || vendor.Properties[0] != (signer.Property{Name: "KeyState", Value: "Enabled"}) {
		t.Errorf("%+v", vendor)
	}
	signerkit.MustSign(t, signerkit.MustOpen(t, Backend(Options{}), vendor.Ref, nil))
	old := byLabel["alias/Old"]
	if old.Public != nil || !strings.Contains(old.Ref, disabled) || old.Properties[0].Value != "Disabled" {
		t.Errorf("%+v", old)
	}
	infos, err = list(t, one)
	if err != nil || len(infos) != 1 || infos[0].Ref != vendor.Ref {
		t.Errorf("%+v, %v", infos, err)
	}
	_, err = list(t, at(server, "alias/absent"))
	signerkit.WantError(t, err, signer.ErrKeyNotFound, "alias/absent", "")
}

// TestListPermissions: facts that the credentials may not read are omitted.
func TestListPermissions(t *testing.T) {
	server, one := start(t, awskmstest.Config{})
	testkit.OK(t, server.Stand("ListAliases", awskmstest.Denied))
	testkit.OK(t, server.Stand("DescribeKey", awskmstest.Denied))
	testkit.Value(server.Add(awskmstest.Key{}))(t)
	infos, err := list(t, at(server, ""))
	if err != nil || len(infos) != 1 || infos[0].Bits != 2048 || infos[0].Label != "" || infos[0].Properties != nil {
		t.Errorf("%+v, %v", infos, err)
	}
	testkit.OK(t, server.Stand("GetPublicKey", awskmstest.Denied))
	infos, err = list(t, at(server, ""))
	if err != nil || len(infos) != 2 || infos[0].Bits != 0 || infos[0].ID == "" {
		t.Errorf("%+v, %v", infos, err)
	}
	infos, err = list(t, one)
	if want := "awskms:///alias/Vendor?region=eu-west-1&endpoint=" + server.Endpoint(); err != nil || len(infos) != 1 || infos[0].Ref != want {
		t.Errorf("%+v, %v; want %s", infos, err, want)
	}
	testkit.OK(t, server.Stand("ListKeys", awskmstest.Denied))
	_, err = list(t, at(server, ""))
	signerkit.WantError(t, err, signer.ErrAuth, "kms:ListKeys", "grant kms:ListKeys")
}

// TestListPages: a listing continues to the last page, and is limited.
func TestListPages(t *testing.T) {
	server, _ := start(t, awskmstest.Config{})
	testkit.OK(t, server.Stand("DescribeKey", awskmstest.Denied))
	testkit.OK(t, server.Stand("GetPublicKey", awskmstest.Denied))
	fill := func(n int) {
		for i := range n {
			testkit.Value(server.Add(awskmstest.Key{Name: fmt.Sprintf("alias/k%d", i), Private: testkit.GoldenKey(t)}))(t)
		}
	}
	fill(250)
	infos, err := list(t, at(server, ""))
	if err != nil || len(infos) != 251 || server.Calls("ListKeys") != 3 {
		t.Errorf("%d keys in %d pages: %v", len(infos), server.Calls("ListKeys"), err)
	}
	fill(maxListed)
	_, err = list(t, at(server, ""))
	signerkit.WantError(t, err, signer.ErrUnsupported, "more than 1000", "name the key")
}

func TestDiagnose(t *testing.T) {
	server, _ := start(t, awskmstest.Config{})
	opts := quick()
	opts.Policy.Timeout = 500 * time.Millisecond
	backend := Backend(opts)
	arn := testkit.Value(server.Add(awskmstest.Key{Private: testkit.GoldenKey(t)}))(t)
	reference := at(server, arn)
	for _, tt := range []struct {
		name, reference string
		public          crypto.PublicKey
		prepare         func()
		step            string // that fails; "": none
		family          error
	}{
		{"good", reference, &testkit.GoldenKey(t).PublicKey, nil, "", nil},
		{"malformed", "awskms:///Vendor", nil, nil, "reference", signer.ErrReference},
		{"no key", at(server, ""), nil, nil, "reference", signer.ErrReference},
		{"another region", strings.Replace(at(server, "alias/Vendor"), "eu-west-1", "us-east-1", 1), nil, nil, "key", signer.ErrKeyNotFound},
		{"another certificate", reference, &testkit.Key("other").PublicKey, nil, "key", signer.ErrBadKey},
		{"outage", reference, nil, func() { testkit.OK(t, server.Stand("*", awskmstest.Internal)) }, "reach", signer.ErrUnavailable},
		{"denied", reference, nil, func() { testkit.OK(t, server.Stand("GetPublicKey", awskmstest.Denied)) }, "key", signer.ErrAuth},
		{"signing denied", reference, nil, func() { testkit.OK(t, server.Stand("Sign", awskmstest.Denied)) }, "signature", signer.ErrAuth},
		{"disabled", reference, nil, func() { testkit.OK(t, server.Stand("GetPublicKey", awskmstest.Disabled)) }, "key", signer.ErrBadKey},
		{"no credentials", reference, nil, func() { t.Setenv("AWS_ACCESS_KEY_ID", "") }, "credentials", signer.ErrAuth},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.prepare != nil {
				tt.prepare()
			}
			letters, steps := signerkit.Diagnose(t, backend, tt.reference, tt.public)
			for _, operation := range []string{"*", "GetPublicKey", "Sign"} {
				testkit.OK(t, server.Stand(operation, awskmstest.OK))
			}
			if tt.step != "" {
				if s := steps[tt.step]; !errors.Is(s.Err, tt.family) || len(letters) != 6 {
					t.Errorf("%+v", steps)
				}
				return
			}
			for name, text := range map[string]string{"credentials": "EnvConfigCredentials", "key": "RSA of 2048 bits", "protection": "Origin AWS_KMS", "signature": "made and verified"} {
				if s := steps[name]; s.Status != signer.StatusOK || !strings.Contains(s.Detail, text) {
					t.Errorf("%s: %+v, want %q", name, s, text)
				}
			}
		})
	}
	t.Setenv("AWS_ACCESS_KEY_ID", awskmstest.AccessKeyID)
	closed := httptest.NewServer(nil)
	closed.Close()
	signerkit.DiagnoseClosed(t, Backend(Options{}), "awskms:///alias/x?region=eu-west-1&endpoint="+closed.URL)
	testkit.OK(t, server.Stand("DescribeKey", awskmstest.Denied))
	if _, steps := signerkit.Diagnose(t, backend, reference, nil); steps["protection"].Status != signer.StatusOK || !strings.Contains(steps["protection"].Detail, "needs kms:DescribeKey") {
		t.Errorf("%+v", steps)
	}
}
