package awskms

import (
	"strings"
	"testing"

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
	for _, tt := range []struct {
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
	} {
		testkit.OK(t, server.Script(tt.operation, tt.fault))
		before := server.Calls("CreateKey")
		reference := at(server, "alias/faulty")
		if tt.fault == "AlreadyExistsException" { // a new key may not be found at once, so it waits for the alias
			reference += "&timeout=2s"
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
