package gcpkms

import (
	"crypto"
	"testing"

	"google.golang.org/grpc/codes"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/gcpkms/gcpkmstest"
)

// TestOperation: each request has the reason, which the audit log has too; without an operation it has none.
func TestOperation(t *testing.T) {
	server, reference := start(t, gcpkmstest.Config{})
	key := signerkit.MustOpen(t, Backend(quick()), reference, &testkit.GoldenKey(t).PublicKey)
	testkit.OK(t, server.Script("AsymmetricSign", gcpkmstest.Unavailable, gcpkmstest.Lost))
	operation := &signer.Operation{Reason: "6f1cb50c9df3a1b2c3d4e5f60718293a"}
	testkit.Value(signer.Sign(signer.WithOperation(t.Context(), operation), key, []byte("message"), crypto.SHA256))(t)
	testkit.Value(signer.Sign(t.Context(), key, []byte("message"), crypto.SHA256))(t)
	log, attempts := server.Log(), operation.Attempts()
	if len(log) != 4 || len(attempts) != 3 {
		t.Fatalf("%+v; %+v", log, attempts)
	}
	for i, want := range []struct {
		code   codes.Code
		failed bool
	}{{codes.Unavailable, true}, {codes.OK, true}, {codes.OK, false}} {
		if log[i].Reason != operation.Reason || log[i].Code != want.code || log[i].Name != vendorOne || (attempts[i].Err != nil) != want.failed || attempts[i].ID != "" {
			t.Errorf("request %d: %+v; %+v", i, log[i], attempts[i])
		}
	}
	if log[3].Reason != "" {
		t.Errorf("without an operation: %+v", log[3])
	}
}
