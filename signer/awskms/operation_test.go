package awskms

import (
	"crypto"
	"testing"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/awskms/awskmstest"
)

// TestOperation: each attempt is reported with the RequestId that KMS has in its log; without an answer there is none.
func TestOperation(t *testing.T) {
	server, reference := start(t, awskmstest.Config{})
	key := signerkit.MustOpen(t, Backend(quick()), reference, &testkit.GoldenKey(t).PublicKey)
	testkit.OK(t, server.Script("Sign", awskmstest.Throttle, awskmstest.Lost, awskmstest.Truncate, awskmstest.OK, awskmstest.ShortSignature, awskmstest.OtherKey))
	operation := &signer.Operation{Reason: "6f1c"}
	ctx := signer.WithOperation(t.Context(), operation)
	testkit.Value(signer.Sign(ctx, key, []byte("message"), crypto.SHA256))(t)
	log, attempts := server.Log(), operation.Attempts()
	if len(log) != 4 || len(attempts) != 4 {
		t.Fatalf("%d requests, %d attempts", len(log), len(attempts))
	}
	for i, a := range attempts {
		want := log[i].ID
		if log[i].Fault == awskmstest.Lost {
			want = ""
		}
		if a.ID != want || (a.Err == nil) != (i == 3) || a.Time.IsZero() || log[i].Operation != "Sign" {
			t.Errorf("attempt %d: %+v; want the id %q; %+v", i, a, want, log[i])
		}
	}
	if log[0].Error != string(awskmstest.Throttle) || log[3].Error != "" || log[3].ARN == "" {
		t.Errorf("%+v", log)
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
