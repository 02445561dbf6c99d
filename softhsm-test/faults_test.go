//go:build cgo && linux

package softhsmtest_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"hsmsign/internal/testkit"
	softhsmtest "hsmsign/softhsm-test"
)

func faultyToken(t *testing.T) (*softhsmtest.Token, *softhsmtest.FaultModule) {
	t.Helper()
	token, faults := vendorToken(t), softhsmtest.BuildFaultModule(t)
	faults.Use(token)
	return token, faults
}

func kill(t *testing.T, process *os.Process, sig syscall.Signal) {
	t.Helper()
	if err := process.Signal(sig); err != nil {
		t.Error(err)
	}
}

// check checks the exit code of a batch that met a fault, and that a second run completes it.
func (b *batch) check(t *testing.T, ref string, exit int, stderr string, exits ...int) {
	t.Helper()
	if !slices.Contains(exits, exit) {
		t.Errorf("exit code %d, want one of %v: %s", exit, exits, stderr)
	}
	if n := b.outputs(t); exit == 0 && n != b.size {
		t.Errorf("%d requests after exit code 0", n)
	}
	b.complete(t, ref)
}

// Whatever happens in the middle of a batch, each request is whole and right or absent, the exit code says how it ended,
// and a second run completes it. The faults of the module come at the 80th call, the others when a third is written.
func TestFaultsInABatch(t *testing.T) {
	const size = 120
	for name, fault := range map[string]struct {
		query  string
		script string
		exit   int
	}{
		// SoftHSM2 itself crashes when its sessions are closed during a call, so there is one call at a time.
		"sessions closed": {"&max-sessions=1", "C_SignInit 40 closeall", 0},
		"device error":    {"", "C_SignInit 40 return 0x30", 0},
		"crash, isolated": {"&isolate=yes", "C_Sign 80 crash", 0},
		"crash":           {"", "C_Sign 80 crash", -1},
	} {
		t.Run(name, func(t *testing.T) {
			token, faults := faultyToken(t)
			faults.Script(t, fault.script)
			b := newBatch(t, size)
			exit, stderr := b.sign(t, token.Ref("vendor")+fault.query)
			faults.Script(t)
			b.check(t, token.Ref("vendor"), exit, stderr, fault.exit)
		})
	}
	t.Run("killed", func(t *testing.T) {
		token, faults := faultyToken(t)
		faults.Script(t, "C_SignInit 80+ hang")
		b := newBatch(t, size)
		exit, stderr := b.during(t, token.Ref("vendor"), nil, func(program *os.Process) { kill(t, program, syscall.SIGKILL) })
		faults.Script(t)
		b.check(t, token.Ref("vendor"), exit, stderr, -1)
	})
	t.Run("token folder away and back", func(t *testing.T) {
		token, faults := faultyToken(t)
		tokens := filepath.Join(token.Dir, "tokens")
		faults.Script(t, "C_SignInit 80+ hang")
		b := newBatch(t, size)
		exit, stderr := b.during(t, token.Ref("vendor"), nil, func(*os.Process) {
			rename(t, tokens, tokens+".away")
			before := faults.Calls(t)["C_GetSessionInfo"]
			faults.Script(t)
			testkit.Eventually(t, "a recovery", func() bool { return faults.Calls(t)["C_GetSessionInfo"] > before })
			rename(t, tokens+".away", tokens)
		})
		b.check(t, token.Ref("vendor"), exit, stderr, 0, 4, 6)
	})
	for name, fault := range map[string]struct {
		args  []string
		sig   syscall.Signal
		exits int
	}{
		"p11-kit's child killed":                    {nil, syscall.SIGKILL, 0},
		"p11-kit's child stopped past the deadline": {[]string{"--timeout", "500ms"}, syscall.SIGSTOP, 6},
	} {
		t.Run(name, func(t *testing.T) {
			kit := softhsmtest.NewP11Kit(t, vendorToken(t))
			// The client of p11-kit 0.24 may lose a thread when its peer dies during concurrent calls.
			ref := kit.Ref("vendor") + "&max-sessions=1"
			b := newBatch(t, 3*size)
			exit, stderr := b.during(t, ref, fault.args, func(*os.Process) { kit.Signal(t, fault.sig) })
			kit.Signal(t, syscall.SIGKILL) // a stopped child would keep the client's socket
			b.check(t, ref, exit, stderr, fault.exits)
		})
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Error(err)
	}
}

// A wrong PIN is sent once, though a whole batch waits for it, and not at all to a token that would lock.
func TestWrongPINIsSentOnce(t *testing.T) {
	token, faults := faultyToken(t)
	wrong := filepath.Join(t.TempDir(), "pin")
	testkit.OK(t, os.WriteFile(wrong, []byte("0000"), 0o600))
	b := newBatch(t, 20)
	for _, tt := range []struct {
		script, says string
		logins       int
	}{
		{"", "CKR_PIN_INCORRECT", 1},
		{"C_GetTokenInfo * flags 0x20000", "CKF_USER_PIN_FINAL_TRY", 0},
		{"C_GetTokenInfo * flags 0x40000", "CKF_USER_PIN_LOCKED", 0},
	} {
		faults.Script(t, tt.script)
		before := faults.Calls(t)["C_Login"]
		exit, stderr := b.sign(t, strings.Replace(token.Ref("vendor"), token.PINFile, wrong, 1))
		if exit != 5 || strings.Contains(stderr, "0000") || !strings.Contains(stderr, tt.says) {
			t.Errorf("exit code %d: %s; want 5 and %s", exit, stderr, tt.says)
		}
		if n := faults.Calls(t)["C_Login"] - before; n != tt.logins {
			t.Errorf("%d logins, want %d", n, tt.logins)
		}
	}
}

// A token that does not exist yet is exit code 4, and the next run finds it.
func TestTokenComesLater(t *testing.T) {
	token := vendorToken(t)
	tokens := filepath.Join(token.Dir, "tokens")
	rename(t, tokens, tokens+".away")
	testkit.OK(t, os.Mkdir(tokens, 0o700))
	b := newBatch(t, 20)
	if exit, stderr := b.sign(t, token.Ref("vendor")); exit != 4 || b.outputs(t) != 0 {
		t.Fatalf("exit code %d: %s", exit, stderr)
	}
	testkit.OK(t, os.Remove(tokens))
	rename(t, tokens+".away", tokens)
	b.complete(t, token.Ref("vendor"))
}

// Ten programs sign one batch with one token at the same time: each request is written once and right.
func TestTenProgramsAtOnce(t *testing.T) {
	token := vendorToken(t)
	b := newBatch(t, 200)
	var group sync.WaitGroup
	for range 10 {
		group.Go(func() {
			if exit, stderr := b.sign(t, token.Ref("vendor")); exit != 0 {
				t.Errorf("exit code %d: %s", exit, stderr)
			}
		})
	}
	group.Wait()
	if n := b.outputs(t); n != b.size {
		t.Errorf("%d of %d requests", n, b.size)
	}
}

// Six programs that found no key of a name make one each at the same time: at most one succeeds, and the others name the
// keys.
func TestGenerateAtOnce(t *testing.T) {
	token, faults := faultyToken(t)
	faults.Script(t, "C_GenerateKeyPair * hang")
	const programs = 6
	var group sync.WaitGroup
	var results [programs]struct {
		exit           int
		stdout, stderr strings.Builder
	}
	for i := range programs {
		cmd := exec.CommandContext(t.Context(), filepath.Join(binary, "hsmsign"), "key", "generate", "--key", token.Ref("new"))
		cmd.Stdout, cmd.Stderr = &results[i].stdout, &results[i].stderr
		testkit.OK(t, cmd.Start())
		group.Go(func() {
			_ = cmd.Wait() // the exit code counts
			results[i].exit = cmd.ProcessState.ExitCode()
		})
		testkit.Eventually(t, "a program that makes a key", func() bool { return faults.Calls(t)["C_GenerateKeyPair"] == i+1 })
	}
	faults.Script(t)
	group.Wait()
	made, succeeded := run(t, filepath.Join(binary, "hsmsign"), "key", "list", "--key", token.Ref("new")), 0
	if n := strings.Count(string(made), " new "); n != programs {
		t.Errorf("%d keys:\n%s", n, made)
	}
	for i := range results {
		r := &results[i]
		own := regexp.MustCompile(`the key .*;id=([%0-9A-F]+) was made, but: key exists: another program`).FindStringSubmatch(r.stderr.String())
		switch {
		case r.exit == 0 && r.stderr.Len() == 0:
			succeeded++
		case r.exit != 2 || own == nil || strings.Count(r.stderr.String(), own[1]) != 2 || r.stdout.Len() > 0:
			t.Errorf("exit code %d: %s%s", r.exit, &r.stdout, &r.stderr)
		case !strings.Contains(string(made), strings.ToLower(strings.ReplaceAll(own[1], "%", ""))):
			t.Errorf("no key has id %s:\n%s", own[1], made)
		}
	}
	if succeeded > 1 {
		t.Errorf("%d programs succeeded", succeeded)
	}
}

// The module is finalized at the end, in the program itself and in its worker: a real HSM would keep the session and the
// login of a program that ends without it.
func TestModuleIsFinalized(t *testing.T) {
	token, faults := faultyToken(t)
	for _, query := range []string{"", "&isolate=yes"} {
		before := faults.Calls(t)
		newBatch(t, 20).complete(t, token.Ref("vendor")+query+"&max-sessions=2")
		calls := faults.Calls(t)
		if calls["C_Initialize"] == before["C_Initialize"] || calls["C_Finalize"] != calls["C_Initialize"] {
			t.Errorf("%q: %d C_Initialize, %d C_Finalize", query, calls["C_Initialize"], calls["C_Finalize"])
		}
	}
}
