//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"hsmsign/internal/testkit"
)

// terminal is a pseudo-terminal and the program that runs on it.
type terminal struct {
	t      *testing.T
	master *os.File
	slave  *os.File
	cmd    *exec.Cmd
	stdout bytes.Buffer

	mu   sync.Mutex
	seen bytes.Buffer // what the terminal shows
}

// startOnTerminal runs the program in a folder, with a pseudo-terminal as its controlling terminal and standard input.
func startOnTerminal(t *testing.T, dir string, args ...string) *terminal {
	t.Helper()
	program := filepath.Join(t.TempDir(), "hsmsign") // testscript.Main goes by the name
	testkit.OK(t, os.Symlink(os.Args[0], program))
	return runOnTerminal(t, program, dir, args...)
}

// runOnTerminal is startOnTerminal for a program, which is this test under the name hsmsign.
func runOnTerminal(t *testing.T, program, dir string, args ...string) *terminal {
	t.Helper()
	master := testkit.Value(os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0))(t)
	testkit.OK(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n := testkit.Value(unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN))(t)
	slave := testkit.Value(os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0))(t)
	term := &terminal{t: t, master: master, slave: slave, cmd: exec.Command(program, args...)}
	term.cmd.Dir = dir
	term.cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME="+dir)
	term.cmd.Stdin, term.cmd.Stderr, term.cmd.Stdout = slave, slave, &term.stdout
	term.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	testkit.OK(t, term.cmd.Start())
	go func() {
		buf := make([]byte, 1024)
		for {
			n, err := master.Read(buf)
			term.mu.Lock()
			term.seen.Write(buf[:n])
			term.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { _ = term.cmd.Process.Kill(); _ = master.Close(); _ = slave.Close() })
	return term
}

func (term *terminal) shown() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	return term.seen.String()
}

// waitFor waits until the terminal shows a text n times.
func (term *terminal) waitFor(text string, n int) {
	term.t.Helper()
	defer func() {
		if term.t.Failed() {
			term.t.Logf("the terminal shows %q", term.shown())
		}
	}()
	testkit.Until(term.t, fmt.Sprintf("the terminal shows %q %d times", text, n), func() bool { return strings.Count(term.shown(), text) >= n })
}

func (term *terminal) echo() bool {
	state := testkit.Value(unix.IoctlGetTermios(int(term.slave.Fd()), unix.TCGETS))(term.t)
	return state.Lflag&unix.ECHO != 0
}

// waitForEcho waits until the terminal's echo is on or off.
func (term *terminal) waitForEcho(on bool) {
	term.t.Helper()
	testkit.Until(term.t, fmt.Sprintf("the echo is %v", on), func() bool { return term.echo() == on })
}

func (term *terminal) write(text string) {
	if _, err := term.master.WriteString(text); err != nil {
		term.t.Fatal(err)
	}
}

// exit waits for the end of the program and returns its exit code.
func (term *terminal) exit() int {
	_ = term.cmd.Wait() // the exit code says it
	return term.cmd.ProcessState.ExitCode()
}

// encryptedKey makes a folder with the golden files and enc.key, whose passphrase is "correct-horse".
func encryptedKey(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	testkit.OK(t, copyDir(filepath.Join("..", "..", "testdata", "golden"), dir))
	testkit.OpenSSL(t, dir, nil, "pkcs8", "-topk8", "-in", "vendor.key", "-out", "enc.key", "-v2", "aes-256-cbc", "-passout", "pass:correct-horse")
	testkit.OK(t, os.Chmod(filepath.Join(dir, "enc.key"), 0o600))
	return dir
}

// Ctrl-Z at a prompt, and fg: the shell turns the echo on, the program turns it off and asks again.
func TestStoppedAtPrompt(t *testing.T) {
	dir := encryptedKey(t)
	term := startOnTerminal(t, dir, "sign", "--key", "file:enc.key", "--cert", "chain.pem", "--trust-root", "root.pem", "customer.csr")
	term.waitFor("passphrase of", 1)
	term.waitForEcho(false)
	// The program leads its session, and a terminal stops no group without a parent in the session, so the signal is sent
	// by hand.
	testkit.OK(t, term.cmd.Process.Signal(syscall.SIGSTOP))
	state := testkit.Value(unix.IoctlGetTermios(int(term.slave.Fd()), unix.TCGETS))(t)
	state.Lflag |= unix.ECHO
	testkit.OK(t, unix.IoctlSetTermios(int(term.slave.Fd()), unix.TCSETS, state))
	testkit.OK(t, term.cmd.Process.Signal(syscall.SIGCONT))
	term.waitFor("passphrase of", 2)
	term.waitForEcho(false)
	term.write("correct-horse\n")
	if code := term.exit(); code != 0 || term.stdout.String() != string(testkit.File(t, "golden/customer.req")) {
		t.Errorf("exit code %d: %s", code, term.shown())
	}
	if strings.Contains(term.shown(), "horse") {
		t.Errorf("the passphrase is shown: %q", term.shown())
	}
}

// An interruption at a prompt is reported as one, and the terminal is restored.
func TestInterruptedAtPrompt(t *testing.T) {
	dir := encryptedKey(t)
	ceremony := []string{"vendor", "ceremony", "--yes", "--dir", "c", "--key", "file:c.key", "--witness", "A", "--witness", "B",
		"--common-name", "Example", "--email", "mdm@example.com", "--country", "US"}
	for _, tt := range []struct {
		name   string
		signal syscall.Signal // 0: Ctrl-C is typed
		code   int
		args   []string
		want   string // on the terminal
		stdout string
	}{
		{"sign, Ctrl-C", 0, 130, []string{"sign", "--key", "file:enc.key", "--cert", "chain.pem", "--trust-root", "root.pem", "customer.csr"}, "hsmsign: interrupted\r\n", ""},
		{"doctor, SIGTERM", syscall.SIGTERM, 143, []string{"doctor", "--key", "file:enc.key"}, "", "FAIL     passphrase      interrupted\n"},
		{"ceremony, SIGTERM", syscall.SIGTERM, 143, ceremony, `interrupted at the step "generate"; run it again to complete the ceremony`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			term := startOnTerminal(t, dir, tt.args...)
			term.waitFor("passphrase of", 1)
			term.waitForEcho(false)
			if tt.signal == 0 {
				term.write("\x03")
			} else if err := term.cmd.Process.Signal(tt.signal); err != nil {
				t.Fatal(err)
			}
			if code := term.exit(); code != tt.code {
				t.Errorf("exit code %d, want %d: %s", code, tt.code, term.shown())
			}
			term.waitForEcho(true)
			if tt.want != "" {
				term.waitFor(tt.want, 1)
			}
			if strings.Contains(term.shown(), "unavailable") || !strings.Contains(term.stdout.String(), tt.stdout) {
				t.Errorf("the terminal shows %q; standard output is %q", term.shown(), term.stdout.String())
			}
		})
	}
	// The transcript keeps the interruption, and the next run completes the ceremony.
	text, err := os.ReadFile(filepath.Join(dir, "c", "transcript.txt"))
	if err != nil || !strings.Contains(string(text), `generate: failed: interrupted at the step "generate"`) || strings.Contains(string(text), "unavailable") {
		t.Errorf("%v: %s", err, text)
	}
	t.Setenv("HSMSIGN_PASSPHRASE", "correct-horse")
	if term := startOnTerminal(t, dir, ceremony...); term.exit() != 0 {
		t.Errorf("the next run: %s", term.shown())
	}
}

// A ceremony asks before it makes the key. It asks for the passphrase once, and once more to find typing errors.
func TestCeremonyIsConfirmed(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		answer string
		code   int
	}{{"\n", 2}, {"no\n", 2}, {"Yes\n", 0}} {
		term := startOnTerminal(t, dir, "vendor", "ceremony", "--dir", "c", "--key", "file:c.key", "--witness", "A", "--witness", "B",
			"--common-name", "Example", "--email", "mdm@example.com", "--country", "US")
		term.waitFor("make the vendor key file:c.key, which hsmsign cannot delete? [y/N] ", 1)
		_, err := os.Stat(filepath.Join(dir, "c.key"))
		term.write(tt.answer)
		if tt.code == 0 {
			for _, prompt := range []string{"hsmsign: new passphrase of", "hsmsign: repeat the new passphrase of"} {
				term.waitFor(prompt, 1)
				term.waitForEcho(false)
				term.write("correct-horse\n")
			}
		}
		if code := term.exit(); code != tt.code || !os.IsNotExist(err) {
			t.Errorf("%q: exit code %d, key file before the answer: %v: %s", tt.answer, code, err, term.shown())
		}
		if n := strings.Count(term.shown(), "passphrase of"); tt.code == 0 && n != 2 {
			t.Errorf("%d prompts: %s", n, term.shown())
		}
	}
}
