package api

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hsmsign/internal/testkit"

	"github.com/invopop/jsonschema"
)

var update = flag.Bool("update", false, "write the files of docs/schema again")

// shapes are the objects that a command prints with --json, or gives to a program or webhook, by the name of their schema.
var shapes = map[string]any{
	"sign": SignResult{}, "verify": VerifyResult{}, "inspect": InspectResult{}, "chain-check": ChainResult{}, "chain-fetch": FetchResult{},
	"key": Key{}, "token": Token{}, "key-test": TestResult{}, "key-import-cert": ImportResult{}, "doctor": Step{}, "check-config": Setting{},
	"push-inspect": PushResult{}, "vendor-status": VendorStatus{}, "version": Version{}, "testpki": TestPKIResult{}, "failure": Failure{},
	"policy-test": PolicyTest{}, "entitlement": EntitlementRequest{}, "caller-token": CallerToken{}, "caller": Caller{}, "console-login": ConsoleLogin{}, "notice": Notice{}, "notice-due": DueNotice{},
	"ledger-init": LedgerInit{}, "ledger-status": LedgerStatus{}, "ledger-entry": LedgerEntry{}, "ledger-verify": LedgerVerify{}, "ledger-customer": Customer{}, "ledger-due": LedgerDue{}, "ledger-watch": LedgerWatch{}, "ledger-restore": LedgerRestore{}, "ledger-rotate": LedgerRotate{}, "ledger-copy": LedgerCopy{}, "ledger-move": LedgerMove{}, "ledger-reconcile": LedgerReconcile{},
	"request": Request{}, "setup": Setup{}, "mdm-signature": MessageResult{}, "push-import": PushImportResult{}, "testpki-identities": TestIdentities{},
	"profile": ProfileReport{}, "profile-sign": ProfileSignResult{},
}

// TestSchemas: docs/schema has the JSON Schema of each shape and no other file. After a change of a shape run
// go test ./api -run Schemas -update.
func TestSchemas(t *testing.T) {
	dir := filepath.Join("..", "docs", "schema")
	for name, shape := range shapes {
		// A later version may add fields.
		reflector := jsonschema.Reflector{AllowAdditionalProperties: true, Anonymous: true, ExpandedStruct: true}
		schema := testkit.Value(json.MarshalIndent(reflector.Reflect(shape), "", "  "))(t)
		file := filepath.Join(dir, name+".json")
		if *update {
			testkit.OK(t, os.WriteFile(file, append(schema, '\n'), 0o644))
		}
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(bytes.TrimSpace(got), schema) {
			t.Errorf("%s is not the schema of %T (%v); run go test ./api -run Schemas -update", file, shape, err)
		}
	}
	files := testkit.Value(os.ReadDir(dir))(t)
	for _, file := range files {
		if shapes[strings.TrimSuffix(file.Name(), ".json")] == nil {
			t.Errorf("%s belongs to no shape", file.Name())
		}
	}
}
