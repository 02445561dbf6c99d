package main

import (
	"bufio"
	"context"
	"crypto"
	"errors"
	"flag"
	"io"
	"strings"
	"testing"

	"hsmsign/signer"
	"hsmsign/signer/gcpkms"
)

// The program serves an imported key through the real client, faults included, until its context ends.
func TestRun(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	read, write := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{"--listen", "127.0.0.1:0", "--delay", "1ms", "--key", "../../../../../testdata/golden/vendor.key", "--faults", "AsymmetricSign=throttle,ok"}, write)
	}()
	address, err := bufio.NewReader(read).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	ref, err := signer.ParseRef("gcpkms://projects/test/locations/global/keyRings/mdm/cryptoKeys/vendor/cryptoKeyVersions/1?endpoint=" + strings.TrimSpace(address))
	if err != nil {
		t.Fatal(err)
	}
	key, err := gcpkms.Backend(gcpkms.Options{}).Open(ctx, ref, signer.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := signer.Sign(ctx, key, []byte("message"), crypto.SHA256); err != nil {
		t.Error(err)
	}
	if err := key.Close(); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestRunRefuses(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // what is not refused ends at once, without an error
	for _, args := range [][]string{
		{"--listen", "0.0.0.0:0"}, {"--listen", "nonsense"}, {"--key", "none.key"}, {"--key", "main.go"}, {"--faults", "Sign=ok"}, {"stray"},
		{"--key", "../../../../../testdata/golden/vendor.key", "--name", "k"},
		{"--key", "../../../../../testdata/golden/chain.pem"},
	} {
		args = append([]string{"--listen", "127.0.0.1:0"}, args...)
		if err := run(ctx, args, io.Discard); err == nil {
			t.Errorf("%v is taken", args)
		}
	}
}

// Every flag is told, and nothing is served.
func TestHelp(t *testing.T) {
	var out strings.Builder
	if err := run(t.Context(), []string{"--help"}, &out); !errors.Is(err, flag.ErrHelp) || strings.Count(out.String(), "\n  -") != 6 {
		t.Errorf("%v: %s", err, out.String())
	}
}
