package softhsmtest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"hsmsign/internal/testkit"
	softhsmtest "hsmsign/softhsm-test"
)

// batch is a folder with CSRs, and the program to sign them with.
type batch struct {
	dir  string
	size int
	want []byte // every request: all the CSRs are the golden one
	env  []string
}

func newBatch(t *testing.T, size int, env ...string) *batch {
	t.Helper()
	b := &batch{dir: t.TempDir(), size: size, env: env, want: testkit.File(t, "golden/customer.req")}
	csr := testkit.File(t, "golden/customer.csr")
	testkit.OK(t, os.Mkdir(filepath.Join(b.dir, "in"), 0o700))
	for i := range size {
		testkit.OK(t, os.WriteFile(filepath.Join(b.dir, "in", fmt.Sprintf("c%03d.csr", i)), csr, 0o600))
	}
	return b
}

// command returns "hsmsign sign" for the batch.
func (b *batch) command(ctx context.Context, ref string, args ...string) *exec.Cmd {
	args = append([]string{"sign", "--key", ref, "--cert", goldenDir + "/chain.pem", "--trust-root", goldenDir + "/root.pem"}, args...)
	cmd := exec.CommandContext(ctx, filepath.Join(binary, "hsmsign"), append(args, "--out-dir", filepath.Join(b.dir, "out"), filepath.Join(b.dir, "in"))...)
	cmd.Env = append(os.Environ(), b.env...)
	cmd.WaitDelay = time.Second
	return cmd
}

// sign runs the batch to its end, and returns exit code and standard error.
func (b *batch) sign(t *testing.T, ref string) (int, string) {
	t.Helper()
	return b.during(t, ref, nil, nil)
}

// during runs the batch, calls do when a third of it is written, and returns exit code and standard error.
func (b *batch) during(t *testing.T, ref string, args []string, do func(*os.Process)) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := b.command(ctx, ref, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	testkit.OK(t, cmd.Start())
	if do != nil {
		testkit.Eventually(t, "a third of the batch", func() bool {
			files, _ := filepath.Glob(filepath.Join(b.dir, "out", "*.req"))
			return len(files) >= b.size/3
		})
		do(cmd.Process)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), stderr.String()
}

// outputs checks that each request that was written is whole and right, and returns their number.
func (b *batch) outputs(t *testing.T) int {
	t.Helper()
	files := testkit.Value(filepath.Glob(filepath.Join(b.dir, "out", "*.req")))(t)
	for _, file := range files {
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, b.want) {
			t.Fatalf("%s is not the golden request (%d bytes, %v)", file, len(got), err)
		}
	}
	return len(files)
}

// complete runs the batch again without a fault, after which every request is written.
func (b *batch) complete(t *testing.T, ref string) {
	t.Helper()
	if exit, stderr := b.sign(t, ref); exit != 0 {
		t.Fatalf("a run without a fault: exit code %d: %s", exit, stderr)
	}
	if n := b.outputs(t); n != b.size {
		t.Errorf("%d of %d requests after a run without a fault", n, b.size)
	}
}

// vendorToken returns a token with the golden vendor key as "vendor", id 01.
func vendorToken(t *testing.T, opts ...softhsmtest.Option) *softhsmtest.Token {
	t.Helper()
	token := softhsmtest.New(t, opts...)
	token.Import(t, testkit.File(t, "golden/vendor.key"), "vendor", []byte{1})
	return token
}
