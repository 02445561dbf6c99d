package main

import (
	"encoding/json"
	"os"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"hsmsign/internal/scripttest"
	"hsmsign/internal/testkit"
	"hsmsign/server/authn/oidc/oidctest"
)

// cmdIssuer: oidcissuer KIND runs an issuer at $ISSUER. KIND.token is a token for https://sign.example.com with the claims that a
// kind of issuer sends, KIND.json are its claims, and other.token is one for another audience.
func cmdIssuer(t *testing.T) scripttest.Command {
	return func(ts *testscript.TestScript, _ bool, args []string) {
		issuer := oidctest.New(t, "")
		ts.Setenv("ISSUER", issuer.URL)
		for name, audience := range map[string]string{args[0]: "https://sign.example.com", "other": "https://other.example.com"} {
			claims := oidctest.Claims(args[0], issuer.URL, audience, time.Now())
			ts.Check(os.WriteFile(ts.MkAbs(name+".token"), []byte(issuer.Sign(claims)+"\n"), 0o600))
			ts.Check(os.WriteFile(ts.MkAbs(name+".json"), testkit.Must(json.Marshal(claims)), 0o600))
		}
	}
}
