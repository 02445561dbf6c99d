package softhsmtest_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hsmsign/internal/testkit"

	softhsmtest "hsmsign/softhsm-test"
)

// TestCeremonyAfterKill kills both parts of a ceremony (SIGKILL) after growing delays and runs them again. There must be
// one key, one CSR, one bundle and a valid transcript, wherever it was interrupted.
func TestCeremonyAfterKill(t *testing.T) {
	token := softhsmtest.New(t, softhsmtest.WithLabel("mdm"))
	dir := t.TempDir()
	pki := filepath.Join(dir, "pki")
	program := filepath.Join(binary, "hsmsign")
	cut, finished := 0, 0
	for delay := 5 * time.Millisecond; finished < 1 && cut < 40; delay += 7 * delay / 10 {
		folder := filepath.Join(dir, delay.String())
		label := "vendor-" + delay.String()
		args := []string{
			"vendor", "ceremony", "--yes", "--dir", folder, "--key", token.Ref(label), "--witness=A", "--witness=B",
			"--common-name", "Example", "--email", "mdm@example.com", "--country", "US",
		}
		mend := tokenMender(t, token)
		if killAfter(t, delay, program, args...) {
			cut++
		} else {
			finished++
		}
		mend()
		first := keysOf(t, token, label)
		if len(first) == 0 {
			// SoftHSM2 may have made half a key pair.
			_ = exec.Command("pkcs11-tool", "--module", token.Module, "--token-label", token.Label, "--login", "--pin", token.PIN,
				"--delete-object", "--type", "pubkey", "--label", label).Run() // usually there is none
		}
		run(t, program, args...)
		run(t, program, "vendor", "ceremony", "--verify", folder)
		keys := keysOf(t, token, label)
		if bytes.Count(keys, []byte("\n")) != 1 || len(first) > 0 && !bytes.Equal(first, keys) {
			t.Errorf("killed after %v: had %q, has %q", delay, first, keys)
		}
		csr := filepath.Join(folder, "vendor.csr")
		run(t, "openssl", "req", "-in", csr, "-noout", "-verify")
		run(t, program, "testpki", "--csr", csr, "--out-dir", pki, "--force")
		second := append(args[:9:9], "--certificate", filepath.Join(pki, "vendor.pem"), "--trust-root", filepath.Join(pki, "root.pem"), "--store")
		killAfter(t, delay, program, second...)
		mend()
		run(t, program, second...)
		if out := run(t, program, "vendor", "ceremony", "--verify", folder); !bytes.Contains(out, []byte(`the last is "complete"`)) {
			t.Errorf("killed after %v: %s", delay, out)
		}
	}
	if cut < 5 || finished == 0 {
		t.Errorf("%d were killed, %d finished", cut, finished)
	}
}

// killAfter kills a program after a delay, and reports whether that was before its end.
func killAfter(t *testing.T, delay time.Duration, program string, args ...string) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), delay)
	defer cancel()
	return exec.CommandContext(ctx, program, args...).Run() != nil
}

// tokenMender returns a function that repairs a token if SoftHSM2 was killed in C_Login: it truncates the token's file before
// it writes the new content (ObjectFile::writeAttributes), and without that file there is no token. The keys are in other
// files.
func tokenMender(t *testing.T, token *softhsmtest.Token) func() {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(token.Dir, "tokens", "*", "token.object"))
	if err != nil || len(found) != 1 {
		t.Fatalf("%v, %v", found, err)
	}
	whole, err := os.ReadFile(found[0])
	if err != nil || len(whole) == 0 {
		t.Fatalf("%d bytes, %v", len(whole), err)
	}
	return func() {
		if now, err := os.ReadFile(found[0]); err == nil && len(now) >= len(whole) {
			return
		}
		t.Log("SoftHSM2 was killed in the middle of C_Login")
		testkit.OK(t, os.WriteFile(found[0], whole, 0o600))
	}
}

// keysOf returns the list of the private keys with a label.
func keysOf(t *testing.T, token *softhsmtest.Token, label string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	list := exec.CommandContext(ctx, filepath.Join(binary, "hsmsign"), "key", "list", "--json", "--key", strings.Replace(token.Ref(label), "?", ";type=private?", 1))
	list.Stderr = os.Stderr
	out := testkit.Value(list.Output())(t)
	return out
}

// TestCeremonyGuide runs the commands of docs/ceremony.md unchanged, with a test PKI instead of Apple.
func TestCeremonyGuide(t *testing.T) {
	token := softhsmtest.New(t, softhsmtest.WithLabel("mdm"))
	dir := t.TempDir()
	write(t, dir, map[string][]byte{"pin": []byte(token.PIN + "\n")})
	commands := commandsOf(t, "../docs/ceremony.md")
	if len(commands) != 5 {
		t.Fatalf("%d commands", len(commands))
	}
	for i, command := range commands {
		if strings.Contains(command, "mdm.cer") {
			commands[i] = "hsmsign testpki --csr ceremony/vendor.csr --out-dir pki && cp pki/vendor.pem mdm.cer && cp pki/wwdr.pem apple.pem && " + command
		}
	}
	runIn(t, dir, strings.ReplaceAll(strings.Join(commands, "\n"), debianModule, token.Module),
		append(token.Env(), "HSMSIGN_YES=true", "HSMSIGN_TRUST_ROOT="+filepath.Join(dir, "pki", "root.pem"))...)
	if _, err := os.Stat(filepath.Join(dir, "ceremony", "vendor.pem")); err != nil {
		t.Error(err)
	}
}
