//go:build cgo && linux

package softhsmtest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	softhsmtest "hsmsign/softhsm-test"
)

// batchOf is how many CSRs the batches have that faults are let loose on: about half a second of SoftHSM2.
const batchOf = 600

// bench is a folder with a batch of CSRs, and the program to sign them with.
type bench struct {
	dir  string
	want []byte // every request: all the CSRs are the golden one
	env  []string
}

func newBench(t *testing.T, env ...string) *bench {
	t.Helper()
	csr, err := os.ReadFile(goldenDir + "/customer.csr")
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{dir: t.TempDir(), env: env}
	if b.want, err = os.ReadFile(goldenDir + "/customer.req"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(b.dir, "in"), 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range batchOf {
		if err := os.WriteFile(filepath.Join(b.dir, "in", fmt.Sprintf("c%03d.csr", i)), csr, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// sign is "hsmsign sign" for the batch.
func (b *bench) sign(ctx context.Context, ref string, args ...string) *exec.Cmd {
	args = append([]string{"sign", "--key", ref, "--cert", goldenDir + "/chain.pem", "--trust-root", goldenDir + "/root.pem"}, args...)
	cmd := exec.CommandContext(ctx, filepath.Join(binary, "hsmsign"), append(args, "--out-dir", filepath.Join(b.dir, "out"), filepath.Join(b.dir, "in"))...)
	cmd.Env = append(os.Environ(), b.env...)
	cmd.WaitDelay = time.Second
	return cmd
}

// outputs checks that what was written is whole and right, and gives how much that is.
func (b *bench) outputs(t *testing.T) int {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(b.dir, "out", "*.req"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, b.want) {
			t.Fatalf("%s is not the golden request (%d bytes, %v)", file, len(got), err)
		}
	}
	return len(files)
}

// during runs the batch, lets the fault happen once it is well under way, and gives exit code and standard error.
func (b *bench) during(t *testing.T, ref string, args []string, fault func(*os.Process)) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := b.sign(ctx, ref, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		if files, _ := filepath.Glob(filepath.Join(b.dir, "out", "*.req")); len(files) >= 20 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the batch does not start: %s", stderr.String())
		}
		time.Sleep(time.Millisecond)
	}
	fault(cmd.Process)
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), stderr.String()
}

// complete runs the batch again without a fault: it must be done then.
func (b *bench) complete(t *testing.T, ref string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if out, err := b.sign(ctx, ref).CombinedOutput(); err != nil {
		t.Fatalf("the second run: %v\n%s", err, out)
	}
	if n := b.outputs(t); n != batchOf {
		t.Errorf("%d of %d requests after the second run", n, batchOf)
	}
}

func vendorToken(t *testing.T) *softhsmtest.Token {
	t.Helper()
	key, err := os.ReadFile(filepath.Join(goldenDir, "vendor.key"))
	if err != nil {
		t.Fatal(err)
	}
	token := softhsmtest.New(t)
	token.Import(t, key, "vendor", []byte{1})
	return token
}

func kill(t *testing.T, process *os.Process, sig syscall.Signal) {
	t.Helper()
	if err := process.Signal(sig); err != nil {
		t.Error(err)
	}
}

// TestFaultsInABatch: whatever happens in the middle of a batch, each request is whole and right or absent, the exit
// code says how it ended, and a second run completes it.
func TestFaultsInABatch(t *testing.T) {
	for _, fault := range []struct {
		name  string
		query string
		args  []string
		exits []int
		do    func(t *testing.T, token *softhsmtest.Token, kit *softhsmtest.P11Kit, faults *softhsmtest.FaultModule, program *os.Process)
	}{
		{
			name: "killed", exits: []int{-1},
			do: func(t *testing.T, _ *softhsmtest.Token, _ *softhsmtest.P11Kit, _ *softhsmtest.FaultModule, program *os.Process) {
				kill(t, program, syscall.SIGKILL)
			},
		},
		{
			name: "token folder away and back", exits: []int{0, 4, 6},
			do: func(t *testing.T, token *softhsmtest.Token, _ *softhsmtest.P11Kit, _ *softhsmtest.FaultModule, _ *os.Process) {
				tokens := filepath.Join(token.Dir, "tokens")
				if err := os.Rename(tokens, tokens+".away"); err != nil {
					t.Error(err)
				}
				time.Sleep(100 * time.Millisecond)
				if err := os.Rename(tokens+".away", tokens); err != nil {
					t.Error(err)
				}
			},
		},
		{
			name: "p11-kit's child killed", exits: []int{0},
			do: func(t *testing.T, _ *softhsmtest.Token, kit *softhsmtest.P11Kit, _ *softhsmtest.FaultModule, _ *os.Process) {
				kit.Signal(t, syscall.SIGKILL)
			},
		},
		{
			name: "p11-kit's child stopped past the deadline", args: []string{"--timeout", "500ms"}, exits: []int{6},
			do: func(t *testing.T, _ *softhsmtest.Token, kit *softhsmtest.P11Kit, _ *softhsmtest.FaultModule, _ *os.Process) {
				kit.Signal(t, syscall.SIGSTOP)
			},
		},
		{
			// SoftHSM2 itself crashes when its sessions are closed under a call, so there is one call at a time.
			name: "sessions closed behind our back", query: "&max-sessions=1", exits: []int{0},
			do: func(t *testing.T, _ *softhsmtest.Token, _ *softhsmtest.P11Kit, faults *softhsmtest.FaultModule, _ *os.Process) {
				faults.Script(t, "C_Sign 3 closeall")
			},
		},
		{
			name: "crash in C_Sign, isolated", query: "&isolate=yes", exits: []int{0},
			do: func(t *testing.T, _ *softhsmtest.Token, _ *softhsmtest.P11Kit, faults *softhsmtest.FaultModule, _ *os.Process) {
				faults.Script(t, "C_Sign 3 crash")
			},
		},
	} {
		t.Run(fault.name, func(t *testing.T) {
			token := vendorToken(t)
			ref, env := token.Ref("vendor"), token.Env()
			var kit *softhsmtest.P11Kit
			var faults *softhsmtest.FaultModule
			switch {
			case strings.Contains(fault.name, "p11-kit"):
				kit = softhsmtest.NewP11Kit(t, token)
				// The client of p11-kit 0.24 may lose a thread when its peer dies under calls side by side.
				ref, env = kit.Ref("vendor")+"&max-sessions=1", append(env, kit.Env()...)
			case strings.Contains(fault.name, "C_Sign") || strings.Contains(fault.name, "sessions"):
				faults = softhsmtest.BuildFaultModule(t)
				faults.Use(token)
				ref, env = token.Ref("vendor"), append(env, faults.Env()...)
			}
			b := newBench(t, env...)
			exit, stderr := b.during(t, ref+fault.query, fault.args, func(program *os.Process) {
				fault.do(t, token, kit, faults, program)
			})
			if !slices.Contains(fault.exits, exit) {
				t.Errorf("exit code %d, want one of %v: %s", exit, fault.exits, stderr)
			}
			if n := b.outputs(t); exit == 0 && n != batchOf || n < 20 {
				t.Errorf("%d requests after exit code %d", n, exit)
			}
			if faults != nil {
				faults.Script(t)
			}
			if kit != nil {
				kit.Signal(t, syscall.SIGKILL) // one that is stopped would go on holding the client's socket
			}
			b.complete(t, ref)
		})
	}
}

// A wrong PIN is sent once, though a whole batch waits for it, and not at all to a token that would lock.
func TestWrongPINIsSentOnce(t *testing.T) {
	token := vendorToken(t)
	faults := softhsmtest.BuildFaultModule(t)
	faults.Use(token)
	wrong := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(wrong, []byte("0000"), 0o600); err != nil {
		t.Fatal(err)
	}
	ref := strings.Replace(token.Ref("vendor"), token.PINFile, wrong, 1)
	b := newBench(t, append(token.Env(), faults.Env()...)...)
	logins := func(want int, script ...string) string {
		t.Helper()
		faults.Script(t, script...)
		before := faults.Calls(t)["C_Login"]
		out, err := b.sign(t.Context(), ref).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 5 {
			t.Fatalf("%v: %s", err, out)
		}
		if n := faults.Calls(t)["C_Login"] - before; n != want {
			t.Errorf("%d logins, want %d", n, want)
		}
		return string(out)
	}
	if out := logins(1); strings.Contains(out, "0000") || !strings.Contains(out, "CKR_PIN_INCORRECT") {
		t.Errorf("got %s", out)
	}
	const finalTry, locked = "0x20000", "0x40000"
	if out := logins(0, "C_GetTokenInfo * flags "+finalTry); !strings.Contains(out, "CKF_USER_PIN_FINAL_TRY") {
		t.Errorf("got %s", out)
	}
	if out := logins(0, "C_GetTokenInfo * flags "+locked); !strings.Contains(out, "CKF_USER_PIN_LOCKED") {
		t.Errorf("got %s", out)
	}
}

// A token that is not there yet is exit code 4, and is found by the next run.
func TestTokenComesLater(t *testing.T) {
	token := vendorToken(t)
	tokens := filepath.Join(token.Dir, "tokens")
	if err := os.Rename(tokens, tokens+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(tokens, 0o700); err != nil {
		t.Fatal(err)
	}
	b := newBench(t, token.Env()...)
	out, err := b.sign(t.Context(), token.Ref("vendor")).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 4 || b.outputs(t) != 0 {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Remove(tokens); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tokens+".away", tokens); err != nil {
		t.Fatal(err)
	}
	b.complete(t, token.Ref("vendor"))
}

// Ten programs at once on one token, and on one batch: each request is written once and right.
func TestTenProgramsAtOnce(t *testing.T) {
	token := vendorToken(t)
	b := newBench(t, token.Env()...)
	var group sync.WaitGroup
	for range 10 {
		group.Go(func() {
			if out, err := b.sign(t.Context(), token.Ref("vendor")).CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	group.Wait()
	if n := b.outputs(t); n != batchOf {
		t.Errorf("%d of %d requests", n, batchOf)
	}
}

// The module is finalized when the work is done, in the program itself and in its worker: a real HSM would keep the
// session and the login of a program that goes without a word.
func TestModuleIsFinalized(t *testing.T) {
	token := vendorToken(t)
	faults := softhsmtest.BuildFaultModule(t)
	faults.Use(token)
	b := newBench(t, append(token.Env(), faults.Env()...)...)
	for _, query := range []string{"", "&isolate=yes"} {
		faults.Script(t)
		b.complete(t, token.Ref("vendor")+query+"&max-sessions=2")
		calls := faults.Calls(t)
		if calls["C_Initialize"] == 0 || calls["C_Finalize"] != calls["C_Initialize"] {
			t.Errorf("%q: %d C_Initialize, %d C_Finalize", query, calls["C_Initialize"], calls["C_Finalize"])
		}
		if err := os.RemoveAll(filepath.Join(b.dir, "out")); err != nil {
			t.Fatal(err)
		}
	}
}
