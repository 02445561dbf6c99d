package vault

import (
	"crypto"
	"testing"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/vault/vaulttest"
)

// TestOperation: each attempt is reported with the request_id that Vault has in its audit log; an error has none.
func TestOperation(t *testing.T) {
	server, reference := start(t, vaulttest.Config{})
	key := signerkit.MustOpen(t, Backend(quick()), reference, &testkit.GoldenKey(t).PublicKey)
	testkit.OK(t, server.Script("Sign", vaulttest.Throttle, vaulttest.Lost, vaulttest.Truncate, vaulttest.OK, vaulttest.ShortSignature))
	operation := &signer.Operation{Reason: "6f1c"}
	testkit.Value(signer.Sign(signer.WithOperation(t.Context(), operation), key, []byte("message"), crypto.SHA256))(t)
	log, attempts := server.Log(), operation.Attempts()
	if len(log) != 4 || len(attempts) != 4 {
		t.Fatalf("%d requests, %d attempts", len(log), len(attempts))
	}
	for i, a := range attempts {
		want := ""
		if i == 3 {
			want = log[i].ID
		}
		if a.ID != want || (a.Err == nil) != (i == 3) || a.Time.IsZero() || log[i].Operation != "Sign" || log[i].Path != "transit/sign/vendor/sha2-256" {
			t.Errorf("attempt %d: %+v; want the id %q; %+v", i, a, want, log[i])
		}
	}
	// A signature that is refused was made: its id is known.
	refused := &signer.Operation{}
	if _, err := signer.Sign(signer.WithOperation(t.Context(), refused), key, []byte("message"), crypto.SHA256); err == nil {
		t.Fatal("the answer is accepted")
	}
	log = server.Log()
	if got := refused.Attempts(); len(got) != 1 || got[0].ID != log[len(log)-1].ID || got[0].Err == nil {
		t.Errorf("%+v", got)
	}
	testkit.Value(signer.Sign(t.Context(), key, []byte("message"), crypto.SHA1))(t) // without an operation
}
