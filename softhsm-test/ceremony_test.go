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

	softhsmtest "hsmsign/softhsm-test"
)

// TestCeremonyAfterKill kills both parts of a ceremony (SIGKILL) ever later, runs them again, and wants one key, one CSR,
// one bundle and a transcript that holds, wherever it was cut off.
func TestCeremonyAfterKill(t *testing.T) {
	token := softhsmtest.New(t, softhsmtest.WithLabel("mdm"))
	dir := t.TempDir()
	pki := filepath.Join(dir, "pki")
	program := filepath.Join(binary, "hsmsign")
	cut, finished := 0, 0
	for delay := 5 * time.Millisecond; finished < 2 && cut < 60; delay += delay / 4 {
		folder := filepath.Join(dir, delay.String())
		label := "vendor-" + delay.String()
		args := []string{
			"vendor", "ceremony", "--dir", folder, "--key", token.Ref(label), "--witness=A", "--witness=B",
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
			// Nor does SoftHSM2 make a key pair whole or not at all.
			_ = exec.Command("pkcs11-tool", "--module", token.Module, "--token-label", token.Label, "--login", "--pin", token.PIN,
				"--delete-object", "--type", "pubkey", "--label", label).Run() // most times there is none
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
		second := append(args[:8:8], "--certificate", filepath.Join(pki, "vendor.pem"), "--trust-root", filepath.Join(pki, "root.pem"), "--store")
		killAfter(t, delay, program, second...)
		mend()
		run(t, program, second...)
		if out := run(t, program, "vendor", "ceremony", "--verify", folder); !bytes.Contains(out, []byte(`the last is "complete"`)) {
			t.Errorf("killed after %v: %s", delay, out)
		}
	}
	if cut < 5 || finished == 0 {
		t.Errorf("%d were killed, %d had finished", cut, finished)
	}
}

// killAfter kills a program after that time, and says whether that was before its end.
func killAfter(t *testing.T, delay time.Duration, program string, args ...string) bool {
	t.Helper()
	killed := exec.Command(program, args...)
	if err := killed.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(delay)
	_ = killed.Process.Kill()
	return killed.Wait() != nil
}

// tokenMender gives a function that undoes what SoftHSM2 does to a token when it is killed in C_Login: it empties the
// token's file before it writes it anew (ObjectFile::writeAttributes), and without that file there is no token. The keys
// are in other files.
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
		if err := os.WriteFile(found[0], whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// keysOf lists the keys of a label.
func keysOf(t *testing.T, token *softhsmtest.Token, label string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	list := exec.CommandContext(ctx, filepath.Join(binary, "hsmsign"), "key", "list", "--json", "--key", token.Ref(label))
	list.Stderr = os.Stderr
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestCeremonyGuide runs the commands of docs/ceremony.md as they stand, with a test PKI in Apple's place.
func TestCeremonyGuide(t *testing.T) {
	token := softhsmtest.New(t, softhsmtest.WithLabel("mdm"))
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "pin"), []byte(token.PIN+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	commands := commandsOf(t, "../docs/ceremony.md")
	if len(commands) != 5 {
		t.Fatalf("%d commands", len(commands))
	}
	for _, command := range commands {
		command = strings.ReplaceAll(command, "/usr/lib/softhsm/libsofthsm2.so", token.Module)
		if strings.Contains(command, "mdm.cer") {
			command = "hsmsign testpki --csr ceremony/vendor.csr --out-dir pki && cp pki/vendor.pem mdm.cer && cp pki/wwdr.pem apple.pem && " + command
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		shell := exec.CommandContext(ctx, "bash", "-c", command)
		shell.Dir = dir
		shell.Env = append(os.Environ(), append(token.Env(), "PATH="+binary+":"+os.Getenv("PATH"), "HOME="+dir,
			"XDG_CONFIG_HOME="+dir, "HSMSIGN_TRUST_ROOT="+filepath.Join(dir, "pki", "root.pem"))...)
		if out, err := shell.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", command, err, out)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "ceremony", "vendor.pem")); err != nil {
		t.Error(err)
	}
}
