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

	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/gcpkms"
)

const vendorKey = "../../../../../testdata/golden/vendor.key"

// TestRun: the backend signs with an imported key, faults included, until the context ends.
func TestRun(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	read, write := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{"--listen", "127.0.0.1:0", "--delay", "1ms", "--key", vendorKey, "--faults", "AsymmetricSign=throttle,ok"}, write)
	}()
	address := testkit.Value(bufio.NewReader(read).ReadString('\n'))(t)
	ref := testkit.Value(signer.ParseRef("gcpkms://projects/test/locations/global/keyRings/mdm/cryptoKeys/vendor/cryptoKeyVersions/1?endpoint=" + strings.TrimSpace(address)))(t)
	key := testkit.Value(gcpkms.Backend(gcpkms.Options{}).Open(ctx, ref, signer.OpenOptions{}))(t)
	testkit.Value(signer.Sign(ctx, key, []byte("message"), crypto.SHA256))(t)
	testkit.OK(t, key.Close())
	cancel()
	testkit.OK(t, <-ended)
}

func TestRunRefuses(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // what is not refused ends at once
	for _, args := range []string{"--listen 0.0.0.0:0", "--key none.key", "--faults Sign=ok", "extra", "--name k --key " + vendorKey} {
		if err := run(ctx, append([]string{"--listen", "127.0.0.1:0"}, strings.Fields(args)...), io.Discard); err == nil {
			t.Errorf("%s: accepted", args)
		}
	}
	var out strings.Builder
	if err := run(t.Context(), []string{"--help"}, &out); !errors.Is(err, flag.ErrHelp) || strings.Count(out.String(), "\n  -") != 6 {
		t.Errorf("%v: %s", err, out.String())
	}
}
