package softhsmtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hsmsign/internal/testkit"
)

// tool runs pkcs11-tool, another program, through the module.
func tool(t *testing.T, module, pin string, args ...string) (string, error) {
	t.Helper()
	args = append([]string{"--module", module, "--login", "--pin", pin}, args...)
	out, err := exec.CommandContext(t.Context(), "pkcs11-tool", args...).CombinedOutput()
	return string(out), err
}

// signArgs returns the arguments with which pkcs11-tool signs with the key "vendor".
func signArgs(t *testing.T) []string {
	t.Helper()
	in := filepath.Join(t.TempDir(), "in")
	testkit.OK(t, os.WriteFile(in, []byte("something"), 0o600))
	return []string{"--sign", "--mechanism", "RSA-PKCS", "--label", "vendor", "--input-file", in, "--output-file", os.DevNull}
}

func TestFaultModule(t *testing.T) {
	tok := New(t)
	tok.Import(t, testkit.File(t, "golden/vendor.key"), "vendor", []byte{1})
	f := BuildFaultModule(t)
	if diff := cmp.Diff(map[string]int{}, f.Calls(t)); diff != "" {
		t.Errorf("calls before the first: %s", diff)
	}
	real := tok.Module
	f.Use(tok)
	if tok.Module == real || !strings.Contains(tok.Ref("vendor"), "faultmodule.so") {
		t.Errorf("references name %q", tok.Module)
	}
	tests := []struct {
		name   string
		script []string
		wrong  string // what pkcs11-tool prints; "": it signs
	}{
		{"no fault", nil, ""},
		{"return", []string{"C_SignInit 1 return 0x30"}, "CKR_DEVICE_ERROR"},
		{"another function", []string{"C_VerifyInit * return 0x30"}, ""},
		{"a later call", []string{"C_SignInit 2 return 0x30"}, ""},
		{"this call and later ones", []string{"C_SignInit 1+ return 0x30"}, "CKR_DEVICE_ERROR"},
		{"every function", []string{"* 1 return 0x5"}, "CKR_GENERAL_ERROR"},
		{"after", []string{"C_Login 1 after 0xE0"}, "CKR_TOKEN_NOT_PRESENT"},
		{"mechanism", []string{"C_SignInit * mechanism 0x1 0x70"}, "CKR_MECHANISM_INVALID"},
		{"another mechanism", []string{"C_SignInit * mechanism 0x40 0x70"}, ""},
		{"read-write only", []string{"C_OpenSession * without 0x2 0xB5"}, "CKR_SESSION_READ_ONLY"},
		{"bits that are there", []string{"C_OpenSession * without 0x4 0xB5"}, ""},
		{"alone", []string{"* * alone 0x5"}, ""},
		{"sessions closed", []string{"C_SignInit 1 closeall"}, "CKR_SESSION_HANDLE_INVALID"},
		{"length", []string{"C_Sign * length 3"}, ""},
		{"PIN pad", []string{"C_Login * pad " + tok.PIN}, ""},
		{"crash", []string{"C_Login 1 crash"}, "signal: segmentation fault"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f.Script(t, tt.script...)
			before := f.Calls(t)["C_Initialize"]
			out, err := tool(t, f.Path, tok.PIN, signArgs(t)...)
			if tt.wrong == "" && err != nil {
				t.Errorf("%v: %s", err, out)
			}
			if tt.wrong != "" && (err == nil || !strings.Contains(err.Error()+out, tt.wrong)) {
				t.Errorf("%v: %s; want %q", err, out, tt.wrong)
			}
			if n := f.Calls(t)["C_Initialize"] - before; n != 1 { // of all processes
				t.Errorf("%d calls of C_Initialize are counted", n)
			}
		})
	}
}

// A PIN locks after some wrong PINs of any processes, and a good one resets the count.
func TestFaultModulePINs(t *testing.T) {
	tok := New(t)
	f := BuildFaultModule(t)
	f.Script(t, "C_Login * pins 3")
	steps := []struct{ pin, says string }{
		{"0000", "CKR_PIN_INCORRECT"}, {"0000", "CKR_PIN_INCORRECT"}, {tok.PIN, ""},
		{"0000", "CKR_PIN_INCORRECT"}, {"0000", "CKR_PIN_INCORRECT"}, {"0000", "CKR_PIN_INCORRECT"}, {tok.PIN, "CKR_PIN_LOCKED"},
	}
	flags := []string{"user PIN count low", "final user PIN try", "", "user PIN count low", "final user PIN try", "user PIN locked", "user PIN locked"}
	for i, step := range steps {
		out, err := tool(t, f.Path, step.pin, "--list-objects")
		if (err == nil) != (step.says == "") || !strings.Contains(out, step.says) {
			t.Errorf("step %d: %v: %s; want %q", i, err, out, step.says)
		}
		list, err := exec.CommandContext(t.Context(), "pkcs11-tool", "--module", f.Path, "--list-slots").CombinedOutput()
		if err != nil || !strings.Contains(string(list), flags[i]) || flags[i] == "" && strings.Contains(string(list), "PIN count low") {
			t.Errorf("step %d: %v: %s; want %q", i, err, list, flags[i])
		}
	}
}

// A lie replaces the value of an attribute, or a text about the module or the token.
func TestFaultModuleAttributes(t *testing.T) {
	tok := New(t)
	tok.Import(t, testkit.File(t, "golden/vendor.key"), "vendor", []byte{1})
	f := BuildFaultModule(t)
	f.Script(t, "C_GetAttributeValue * attribute 0x3 6c6965", "C_GetAttributeValue * attribute 0x102 *300") // CKA_LABEL, CKA_ID
	out, err := tool(t, f.Path, tok.PIN, "--list-objects", "--type", "privkey")
	if err != nil || !strings.Contains(out, "label:      lie\n") || !strings.Contains(out, strings.Repeat("78", 300)) {
		t.Errorf("%v: %s", err, out)
	}
	f.Script(t, "C_GetInfo * info 2 6c6965", "C_GetTokenInfo * info 64 6c6965") // manufacturerID, model
	slots, err := exec.CommandContext(t.Context(), "pkcs11-tool", "--module", f.Path, "--show-info", "--list-slots").CombinedOutput()
	if text := string(slots); err != nil || !strings.Contains(text, "Manufacturer     lie") || !strings.Contains(text, "token model        : lie") {
		t.Errorf("%v: %s", err, slots)
	}
	f.Script(t, "C_FindObjects * length 0")
	if out, err := tool(t, f.Path, tok.PIN, "--list-objects"); err != nil || strings.Contains(out, "Object") {
		t.Errorf("%v: %s", err, out)
	}
}

// A call hangs until its line is removed from the script, and sleeps as long as it says.
func TestFaultModuleHangs(t *testing.T) {
	tok := New(t)
	tok.Import(t, testkit.File(t, "golden/vendor.key"), "vendor", []byte{1})
	f := BuildFaultModule(t)
	f.Script(t, "C_SignInit * hang")
	done := make(chan error, 1)
	go func() {
		_, err := tool(t, f.Path, tok.PIN, signArgs(t)...)
		done <- err
	}()
	await(t, "the call", func() bool { return f.Calls(t)["C_SignInit"] == 1 })
	select {
	case err := <-done:
		t.Fatalf("it did not hang: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	f.Script(t)
	if err := <-done; err != nil {
		t.Error(err)
	}
	f.Script(t, "C_SignInit * sleep 200")
	began := time.Now()
	if out, err := tool(t, f.Path, tok.PIN, signArgs(t)...); err != nil || time.Since(began) < 200*time.Millisecond {
		t.Errorf("%v after %v: %s", err, time.Since(began), out)
	}
}
