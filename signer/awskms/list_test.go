package awskms

import (
	"fmt"
	"strings"
	"testing"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/awskms/awskmstest"
)

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
	server, _ := start(t, awskmstest.Config{})
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
