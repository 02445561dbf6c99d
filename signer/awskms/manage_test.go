package awskms

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/google/go-cmp/cmp"

	"hsmsign/signer"
	"hsmsign/signer/awskms/awskmstest"
)

func generate(t *testing.T, reference string, bits int) (signer.Signer, error) {
	t.Helper()
	ref, err := signer.ParseRef(reference)
	if err != nil {
		t.Fatal(err)
	}
	key, err := Backend(Options{Policy: quick()}).Generate(t.Context(), ref, signer.KeySpec{Bits: bits})
	if err == nil {
		t.Cleanup(func() { _ = key.Close() })
	}
	return key, err
}

func TestGenerate(t *testing.T) {
	server, taken := start(t, awskmstest.Config{})
	reference := at(server, "alias/New-Vendor")
	// A key just made is not known everywhere at once: eventual consistency.
	script(t, server, "GetPublicKey", "NotFoundException", "NotFoundException")
	made, err := generate(t, reference, 3072)
	if err != nil {
		t.Fatal(err)
	}
	s := made.(*key).sites[0]
	out, err := ask(t.Context(), s, s.client.DescribeKey, &kms.DescribeKeyInput{KeyId: s.id.Load()})
	if err != nil {
		t.Fatal(err)
	}
	if m := out.KeyMetadata; m.KeySpec != "RSA_3072" || m.KeyUsage != "SIGN_VERIFY" || !strings.Contains(aws.ToString(m.Description), "hsmsign: MDM vendor signing key alias/New-Vendor") {
		t.Errorf("%s for %s: %q", m.KeySpec, m.KeyUsage, aws.ToString(m.Description))
	}
	if _, err := signer.Sign(t.Context(), made, []byte("x"), crypto.SHA256); err != nil {
		t.Fatal(err)
	}
	again := mustOpen(t, Options{}, reference)
	if diff := cmp.Diff(made.Public(), again.Public()); diff != "" {
		t.Errorf("the alias names another key:\n%s", diff)
	}
	_, err = generate(t, taken, 2048)
	wantError(t, err, signer.ErrKeyExists, "alias/Vendor", "another alias")
	_, err = generate(t, reference, 2048)
	wantError(t, err, signer.ErrKeyExists, "alias/New-Vendor", "another alias")
	if n := server.Calls("CreateKey"); n != 1 {
		t.Errorf("%d keys made, want 1", n)
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
		{at(server, "alias/aws/x"), 2048, signer.ErrReference, "Amazon's own"},
		{at(server, ""), 2048, signer.ErrReference, "no key"},
		{"awskms:///alias/x?regions=eu-west-1,us-east-1&endpoint=" + server.URL(), 2048, signer.ErrUnsupported, "several regions"},
	} {
		_, err := generate(t, tt.reference, tt.bits)
		wantError(t, err, tt.family, tt.text, "")
	}
	if n := server.Calls("CreateKey"); n != 0 {
		t.Errorf("%d keys made", n)
	}
}

// TestGenerateFaults: CreateKey is asked once only, and a key that stays behind is named.
func TestGenerateFaults(t *testing.T) {
	server, _ := start(t, awskmstest.Config{})
	made := 0
	for _, tt := range []struct {
		operation string
		faults    []awskmstest.Fault
		family    error
		text, fix string
		makes     int
	}{
		{"DescribeKey", []awskmstest.Fault{awskmstest.AccessDenied}, signer.ErrAuth, "kms:DescribeKey", "grant kms:DescribeKey", 0},
		{"CreateKey", []awskmstest.Fault{awskmstest.AccessDenied}, signer.ErrAuth, "kms:CreateKey", "grant kms:CreateKey", 1},
		{"CreateKey", []awskmstest.Fault{"LimitExceededException"}, signer.ErrUnsupported, "LimitExceeded", "Service Quotas", 1},
		{"CreateKey", []awskmstest.Fault{awskmstest.Throttle}, signer.ErrUnavailable, "throttled", "Service Quotas", 1}, // nothing was made
		{"CreateKey", []awskmstest.Fault{awskmstest.Truncate}, signer.ErrUnavailable, "may have been made", "key list", 1},
		{"CreateAlias", []awskmstest.Fault{awskmstest.AccessDenied}, signer.ErrAuth, "arn:aws:kms:eu-west-1:111122223333:key/", "kms:ScheduleKeyDeletion", 1},
		{"CreateAlias", []awskmstest.Fault{"AlreadyExistsException"}, signer.ErrKeyExists, "has no alias", "kms:CreateAlias", 1},
	} {
		script(t, server, tt.operation, tt.faults...)
		_, err := generate(t, at(server, "alias/faulty"), 2048)
		wantError(t, err, tt.family, tt.text, tt.fix)
		if made += tt.makes; server.Calls("CreateKey") != made {
			t.Errorf("%s %v: CreateKey asked %d times in all, want %d", tt.operation, tt.faults, server.Calls("CreateKey"), made)
			made = server.Calls("CreateKey")
		}
	}
	// An alias whose answer is lost is there when it is asked for again.
	script(t, server, "CreateAlias", awskmstest.Internal, awskmstest.Throttle)
	if _, err := generate(t, at(server, "alias/faulty"), 2048); err != nil {
		t.Error(err)
	}
}

func list(t *testing.T, reference string) ([]signer.KeyInfo, error) {
	t.Helper()
	ref, err := signer.ParseRef(reference)
	if err != nil {
		t.Fatal(err)
	}
	return Backend(Options{Policy: quick()}).List(t.Context(), ref)
}

func TestList(t *testing.T) {
	server, one := start(t, awskmstest.Config{})
	private := vendorKey(t)
	add := func(k awskmstest.Key) string {
		arn, err := server.Add(k)
		if err != nil {
			t.Fatal(err)
		}
		return arn
	}
	disabled := add(awskmstest.Key{Private: private, State: awskmstest.Disabled, Alias: "alias/Old"})
	add(awskmstest.Key{Alias: "alias/Symmetric"})
	infos, err := list(t, at(server, ""))
	if err != nil || len(infos) != 2 {
		t.Fatalf("%d keys, want the two of RSA: %v", len(infos), err)
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
	mustSign(t, mustOpen(t, Options{}, vendor.Ref), private, "the reference that was listed")
	old := byLabel["alias/Old"]
	if old.Public != nil || !strings.Contains(old.Ref, disabled) || old.Properties[0].Value != "Disabled" {
		t.Errorf("%+v", old)
	}
	infos, err = list(t, one)
	if err != nil || len(infos) != 1 || infos[0].Ref != vendor.Ref {
		t.Errorf("%+v, %v", infos, err)
	}
	_, err = list(t, at(server, "alias/absent"))
	wantError(t, err, signer.ErrKeyNotFound, "alias/absent", "")
}

// TestListPermissions: what may not be asked is left out.
func TestListPermissions(t *testing.T) {
	server, _ := start(t, awskmstest.Config{})
	stand(t, server, "ListAliases", awskmstest.AccessDenied)
	stand(t, server, "DescribeKey", awskmstest.AccessDenied)
	if _, err := server.Add(awskmstest.Key{}); err != nil {
		t.Fatal(err)
	}
	infos, err := list(t, at(server, ""))
	if err != nil || len(infos) != 1 || infos[0].Bits != 2048 || infos[0].Label != "" || infos[0].Properties != nil {
		t.Errorf("%+v, %v", infos, err)
	}
	stand(t, server, "GetPublicKey", awskmstest.AccessDenied)
	infos, err = list(t, at(server, ""))
	if err != nil || len(infos) != 2 || infos[0].Bits != 0 || infos[0].ID == "" {
		t.Errorf("%+v, %v", infos, err)
	}
	stand(t, server, "ListKeys", awskmstest.AccessDenied)
	_, err = list(t, at(server, ""))
	wantError(t, err, signer.ErrAuth, "kms:ListKeys", "grant kms:ListKeys")
}

// TestListPages: a listing goes on to the last page, and is bounded.
func TestListPages(t *testing.T) {
	server, _ := start(t, awskmstest.Config{})
	stand(t, server, "DescribeKey", awskmstest.AccessDenied)
	stand(t, server, "GetPublicKey", awskmstest.AccessDenied)
	private := vendorKey(t)
	fill := func(n int) {
		for i := range n {
			if _, err := server.AddKey(fmt.Sprintf("alias/k%d", i), private); err != nil {
				t.Fatal(err)
			}
		}
	}
	fill(250)
	infos, err := list(t, at(server, ""))
	if err != nil || len(infos) != 251 || server.Calls("ListKeys") != 3 {
		t.Errorf("%d keys in %d pages: %v", len(infos), server.Calls("ListKeys"), err)
	}
	fill(maxKeys)
	_, err = list(t, at(server, ""))
	wantError(t, err, signer.ErrUnsupported, "more than 1000", "name the key")
}

func diagnose(t *testing.T, opts Options, reference string) (map[string]signer.Step, signer.Signer) {
	t.Helper()
	ref, err := signer.ParseRef(reference)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	steps := map[string]signer.Step{}
	key := Backend(opts).Diagnose(context.Background(), ref, signer.OpenOptions{PublicKey: opts.PublicKey}, func(s signer.Step) {
		names = append(names, s.Name)
		steps[s.Name] = s
	})
	if diff := cmp.Diff([]string{"reference", "credentials", "reach", "key", "protection", "signature"}, names); diff != "" {
		t.Errorf("steps (-want +got)\n%s", diff)
	}
	return steps, key
}

func TestDiagnose(t *testing.T) {
	server, reference := start(t, awskmstest.Config{})
	opts := Options{Policy: quick()}
	opts.Policy.Total = 300 * time.Millisecond
	steps, key := diagnose(t, opts, reference)
	if key == nil {
		t.Fatalf("%+v", steps)
	}
	mustSign(t, key, vendorKey(t), "diagnosed")
	if err := key.Close(); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"credentials": "EnvConfigCredentials", "key": "RSA of 2048 bits", "protection": "Origin AWS_KMS", "signature": "made and verified"} {
		if s := steps[name]; s.Status != signer.StatusOK || !strings.Contains(s.Detail, text) {
			t.Errorf("%s: %+v, want %q", name, s, text)
		}
	}
	arn := *mustOpenKey(t, reference).sites[0].id.Load()
	for _, tt := range []struct {
		name, step string
		opts       Options
		reference  string
		prepare    func()
		family     error
	}{
		{"reference", "reference", opts, "awskms:///Vendor", nil, signer.ErrReference},
		{"region", "key", opts, strings.Replace(reference, "eu-west-1", "us-east-1", 1), nil, signer.ErrKeyNotFound},
		{"certificate", "key", Options{Policy: opts.Policy, PublicKey: &newKey(t).PublicKey}, reference, nil, signer.ErrBadKey},
		{"outage", "reach", opts, reference, func() { stand(t, server, "*", awskmstest.Internal) }, signer.ErrUnavailable},
		{"denied", "key", opts, reference, func() { stand(t, server, "GetPublicKey", awskmstest.AccessDenied) }, signer.ErrAuth},
		{"signing denied", "signature", opts, reference, func() { stand(t, server, "Sign", awskmstest.AccessDenied) }, signer.ErrAuth},
		{"disabled", "key", opts, reference, func() { server.SetState(arn, awskmstest.Disabled) }, signer.ErrBadKey},
		{"no credentials", "credentials", opts, reference, func() { t.Setenv("AWS_ACCESS_KEY_ID", "") }, signer.ErrAuth},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.prepare != nil {
				tt.prepare()
			}
			steps, key := diagnose(t, tt.opts, tt.reference)
			if s := steps[tt.step]; key != nil || s.Status != signer.StatusFail || !errors.Is(s.Err, tt.family) {
				t.Errorf("%+v", steps)
			}
			for _, operation := range []string{"*", "GetPublicKey", "Sign"} {
				stand(t, server, operation, awskmstest.OK)
			}
			server.SetState(arn, awskmstest.Enabled)
		})
	}
	t.Setenv("AWS_ACCESS_KEY_ID", awskmstest.AccessKeyID)
	stand(t, server, "DescribeKey", awskmstest.AccessDenied)
	steps, key = diagnose(t, opts, reference)
	if key == nil || !strings.Contains(steps["protection"].Detail, "signing does not need") {
		t.Fatalf("%+v", steps)
	}
	_ = key.Close()
}

func mustOpenKey(t *testing.T, reference string) *key {
	t.Helper()
	return mustOpen(t, Options{}, reference).(*key)
}
