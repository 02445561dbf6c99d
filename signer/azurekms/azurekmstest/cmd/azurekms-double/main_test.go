package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hsmsign/internal/testkit"
)

const (
	vendorKey = "../../../../../testdata/golden/vendor.key"
	version   = "0123456789abcdef0123456789abcdef"
)

// TestRun: it imports the keys, prints its address and their paths, answers there, and ends with its context.
func TestRun(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	read, write := io.Pipe()
	ended := make(chan error, 1)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	go func() {
		ended <- run(ctx, []string{"--key", "v/" + version + "=" + vendorKey, "--key", "v=" + vendorKey, "--faults", "Sign=throttle,ok", "--delay", "1ms", "--listen", "127.0.0.1:0", "--ca", ca}, write)
		_ = write.Close()
	}()
	var printed []string
	for lines := bufio.NewScanner(read); len(printed) < 7 && lines.Scan(); {
		printed = append(printed, lines.Text())
	}
	if len(printed) != 7 || printed[5] != "keys/v/"+version || !strings.HasPrefix(printed[6], "keys/v/") || printed[1] != "AZURE_AUTHORITY_HOST=https://"+printed[0]+"/" {
		t.Fatalf("printed %q", printed)
	}
	if text := testkit.Value(os.ReadFile(ca))(t); !strings.HasPrefix(string(text), "-----BEGIN CERTIFICATE") {
		t.Errorf("%s", text)
	}
	resp := testkit.Value(http.Get("http://" + printed[0]))(t)           //nolint:noctx // a test
	if _ = resp.Body.Close(); resp.StatusCode != http.StatusBadRequest { // HTTP to HTTPS
		t.Errorf("status %d", resp.StatusCode)
	}
	cancel()
	testkit.OK(t, <-ended)
}

func TestRunRefuses(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // what is not refused ends at once
	ca := "--ca " + filepath.Join(t.TempDir(), "ca.pem") + " "
	for _, tt := range []struct{ args, text string }{
		{"", "--ca is required"},
		{ca + "--key " + vendorKey, "NAME=FILE"},
		{ca + "--key a_b=" + vendorKey, "letters"},
		{ca + "--faults Sing=ok", "Sing"},
		{ca + "--listen nowhere", "nowhere"},
		{"--ca /no/such/folder/ca.pem", "no such file"},
	} {
		err := run(ctx, append([]string{"--listen", "127.0.0.1:0"}, strings.Fields(tt.args)...), io.Discard)
		if err == nil || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: got %v, want %q", tt.args, err, tt.text)
		}
	}
	var out strings.Builder
	if err := run(ctx, []string{"--help"}, &out); !errors.Is(err, flag.ErrHelp) || strings.Count(out.String(), "\n  -") != 5 {
		t.Errorf("%v: %s", err, out.String())
	}
}
