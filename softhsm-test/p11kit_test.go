//go:build linux

package softhsmtest

import (
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"hsmsign/internal/testkit"
)

func TestP11Kit(t *testing.T) {
	tok := New(t)
	tok.Import(t, testkit.File(t, "golden/vendor.key"), "vendor", []byte{1})
	p := NewP11Kit(t, tok)
	if ref := p.Ref("vendor"); !strings.Contains(ref, p.Module) || strings.Contains(ref, tok.Module) {
		t.Errorf("%q does not go through the socket", ref)
	}
	if out, err := tool(t, p.Module, tok.PIN, signArgs(t)...); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	await(t, "the end of the client's child", func() bool { return p.Signal(t, syscall.SIGCONT) == 0 })

	// A client that reads its message from a pipe exists until the pipe ends.
	client := exec.CommandContext(t.Context(), "pkcs11-tool", "--module", p.Module, "--login", "--pin", tok.PIN,
		"--sign", "--mechanism", "RSA-PKCS", "--label", "vendor")
	in, err := client.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "the client's child", func() bool { return p.Signal(t, syscall.SIGCONT) == 1 })
	if n := p.Signal(t, syscall.SIGKILL); n != 1 {
		t.Errorf("%d children; want one", n)
	}
	// A client that has noticed it is gone, and reads nothing.
	_, _ = in.Write([]byte("something"))
	_ = in.Close()
	if err := client.Wait(); err == nil { // CKR_DEVICE_ERROR, or SIGPIPE
		t.Error("the client has signed without its peer")
	}
}
