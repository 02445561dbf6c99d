//go:build unix

package agent

import (
	"context"
	"crypto"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/internal/testkit"
)

// entitled returns the caller portal, whose role has a shell script as its program.
func entitled(t *testing.T, channel, text string) Caller {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	testkit.OK(t, os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700))
	found := testkit.Value(policy.New(
		map[string]policy.CallerConfig{"portal": {Role: "signer", Owners: []string{"ada", "bo"}, UID: []int{7}}},
		map[string]policy.RoleConfig{"signer": {
			May: []string{policy.Sign}, Customers: []string{"acme"}, PerSecond: 100, PerDay: 7, Approvals: policy.NoApprovals(), Entitlement: &policy.EntitlementConfig{Program: path},
		}}, policy.Environment{}))(t)
	credential := testkit.Value(found.UID(7))(t)
	return Caller{Name: "portal", Channel: channel, Credential: credential.Name, Rules: credential.Caller}
}

// issueFor issues the customer's CSR for a caller.
func issueFor(ctx context.Context, t *testing.T, v *Vendor, caller Caller, customerName string) error {
	t.Helper()
	order := customer(t)
	order.Customer = customerName
	issued, err := v.Issue(ctx, testkit.Value(v.Prepare(ctx, caller, order))(t))
	if (issued == nil) != (err != nil) {
		t.Errorf("%v, and a request %v", err, issued)
	}
	return err
}

// The program decides after the role and before the key: what it answers is recorded, and without an answer there is no request.
func TestEntitlement(t *testing.T) {
	for _, tt := range []struct {
		name, text, customer string
		opens                int64
		refused              string
		recorded             string // end of the answer's JSON
		kind                 fault.Kind
		message              string
	}{
		{"allows", "echo contract 7", "acme", 1, "", `"exit":0,"line":"contract 7"}`, fault.None, ""},
		{"denies", "echo no contract; exit 1", "acme", 0, policy.RuleEntitlement, `"exit":1,"line":"no contract"}`, fault.Forbidden, "caller portal: the program of its role signer denies the request: no contract [policy.entitlement]"},
		{"denies without a reason", "exit 1", "acme", 0, policy.RuleEntitlement, `"exit":1}`, fault.Forbidden, "it printed no reason"},
		{"fails", "echo yes; exit 3", "acme", 0, "", "", fault.Unavailable, "exit code 3"},
		{"is not asked", "touch $0.asked", "bolt", 0, policy.RuleCustomer, "", fault.Forbidden, "policy.customers"},
	} {
		r, key := &recorder{}, golden(t)
		caller := entitled(t, "tls", tt.text)
		program := caller.Rules.Role.Entitlement.Program
		err := issueFor(t.Context(), t, newVendor(t, Config{Name: "new", Key: key, Recorder: r}), caller, tt.customer)
		if fault.KindOf(err) != tt.kind || err != nil && !strings.Contains(err.Error(), tt.message) || key.opens.Load() != tt.opens {
			t.Errorf("%s: %v; the key was opened %d times", tt.name, err, key.opens.Load())
		}
		if got := strings.Join(r.refused, " "); got != tt.refused {
			t.Errorf("%s: refused %q", tt.name, got)
		}
		switch {
		case tt.kind == fault.Unavailable:
			if len(r.uses) != 0 {
				t.Errorf("%s: %+v", tt.name, r.uses)
			}
		case len(r.uses) != 1 || r.uses[0].Credential != "uid 7" || r.uses[0].Identity != "new" || !strings.HasSuffix(string(r.uses[0].Entitlement), tt.recorded):
			t.Errorf("%s: %+v", tt.name, r.uses)
		case tt.recorded == "":
			if _, err := os.Stat(program + ".asked"); err == nil || r.uses[0].Entitlement != nil {
				t.Errorf("%s: it was asked (%v): %s", tt.name, err, r.uses[0].Entitlement)
			}
		default:
			var answer api.Entitlement
			testkit.OK(t, json.Unmarshal(r.uses[0].Entitlement, &answer))
			if answer.ProgramSHA256 != api.SHA256(testkit.Value(os.ReadFile(program))(t)) {
				t.Errorf("%s: %+v", tt.name, answer)
			}
		}
		// Without a recorder it is the same.
		if err := issueFor(t.Context(), t, newVendor(t, Config{Key: golden(t)}), caller, tt.customer); fault.KindOf(err) != tt.kind {
			t.Errorf("%s, without a recorder: %v", tt.name, err)
		}
	}
}

// A denial that is not recorded says both.
func TestEntitlementNotRecorded(t *testing.T) {
	r := &recorder{authorize: errors.New("the ledger is down")}
	err := issueFor(t.Context(), t, newVendor(t, Config{Key: golden(t), Recorder: r}), entitled(t, policy.Local, "exit 1"), "acme")
	if !errors.Is(err, r.authorize) || !strings.Contains(err.Error(), policy.RuleEntitlement) {
		t.Errorf("%v", err)
	}
}

// The program gets everything that is known of the request.
func TestEntitlementQuestion(t *testing.T) {
	out := filepath.Join(t.TempDir(), "question")
	caller := entitled(t, "tls", "cat >"+out)
	v := newVendor(t, Config{Name: "new", Key: golden(t), Recorder: &recorder{}})
	testkit.OK(t, issueFor(t.Context(), t, v, caller, "acme"))
	var got api.EntitlementRequest
	testkit.OK(t, json.Unmarshal(testkit.Value(os.ReadFile(out))(t), &got))
	csr := prepare(t, v, customer(t)).CSR
	want := api.EntitlementRequest{
		Caller: "portal", Role: "signer", Owners: []string{"ada", "bo"}, Channel: "tls", Customer: "acme", Vendor: "new", Digest: "SHA-256",
		Subject: policy.Attributes(csr.Parsed.Subject), CSRSHA256: api.SHA256(csr.DER), KeySHA256: api.SHA256(csr.Parsed.RawSubjectPublicKeyInfo), CSR: got.CSR,
	}
	if diff := cmp.Diff(want, got); diff != "" || len(got.Subject["CN"]) != 1 {
		t.Errorf("-want +got:\n%s", diff)
	}
	if block, rest := pem.Decode([]byte(got.CSR)); block == nil || len(rest) > 0 || !slices.Equal(block.Bytes, csr.DER) {
		t.Errorf("the CSR %s", got.CSR)
	}
}

// SHA-1 is for the command line only; a vendor without callers may use it.
func TestDigestOfServices(t *testing.T) {
	for channel, want := range map[string]string{policy.Local: "", "tls": policy.RuleDigest, "unix": policy.RuleDigest, "": policy.RuleDigest} {
		r := &recorder{}
		v := newVendor(t, Config{Key: golden(t), Recorder: r})
		order := customer(t)
		order.Customer, order.Digest = "acme", crypto.SHA1
		_, err := v.Issue(t.Context(), testkit.Value(v.Prepare(t.Context(), entitled(t, channel, "exit 0"), order))(t))
		if got := strings.Join(r.refused, " "); got != want || (err != nil) != (want != "") {
			t.Errorf("%q: refused %q, %v", channel, got, err)
		}
	}
}
