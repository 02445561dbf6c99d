package azurekms

import (
	"crypto"
	"testing"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/azurekms/azurekmstest"
)

// TestOperation: each attempt is reported with the request id that the vault has in its log; a request without an answer has no id.
func TestOperation(t *testing.T) {
	server, reference := start(t, azurekmstest.Config{})
	key := signerkit.MustOpen(t, Backend(quick()), reference, &testkit.GoldenKey(t).PublicKey)
	testkit.OK(t, server.Script("Sign", azurekmstest.Throttle, azurekmstest.Lost, azurekmstest.Truncate, azurekmstest.OK, azurekmstest.ShortSignature, azurekmstest.OtherKey))
	operation := &signer.Operation{Reason: "6f1c"}
	testkit.Value(signer.Sign(signer.WithOperation(t.Context(), operation), key, []byte("message"), crypto.SHA256))(t)
	log, attempts := server.Log(), operation.Attempts()
	if len(log) != 4 || len(attempts) != 4 {
		t.Fatalf("%d requests, %d attempts", len(log), len(attempts))
	}
	for i, a := range attempts {
		want := log[i].ID
		if log[i].Fault == azurekmstest.Lost {
			want = ""
		}
		if a.ID != want || (a.Err == nil) != (i == 3) || a.Time.IsZero() || log[i].Operation != "Sign" {
			t.Errorf("attempt %d: %+v; want the id %q; %+v", i, a, want, log[i])
		}
	}
	// A signature that is refused was made: its id is known.
	for range 2 {
		refused := &signer.Operation{}
		if _, err := signer.Sign(signer.WithOperation(t.Context(), refused), key, []byte("message"), crypto.SHA256); err == nil {
			t.Fatal("the answer is accepted")
		}
		log = server.Log()
		if got := refused.Attempts(); len(got) != 1 || got[0].ID != log[len(log)-1].ID || got[0].Err == nil {
			t.Errorf("%+v", got)
		}
	}
	testkit.Value(signer.Sign(t.Context(), key, []byte("message"), crypto.SHA256))(t) // without an operation
}
