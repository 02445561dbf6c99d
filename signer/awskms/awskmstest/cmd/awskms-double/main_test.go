package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"io"
	"net/http"
	"strings"
	"testing"

	"hsmsign/internal/testkit"
)

const vendorKey = "../../../../../testdata/golden/vendor.key"

// TestRun: it imports the keys, prints its address and their names, answers there, and ends with its context.
func TestRun(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	read, write := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{"--key", "alias/v=" + vendorKey, "--key", vendorKey, "--faults", "Sign=ThrottlingException,ok", "--delay", "1ms", "--listen", "127.0.0.1:0"}, write)
		_ = write.Close()
	}()
	var printed []string
	for lines := bufio.NewScanner(read); len(printed) < 5 && lines.Scan(); {
		printed = append(printed, lines.Text())
	}
	if len(printed) != 5 || !strings.HasPrefix(printed[3], "arn:aws:kms:eu-west-1:111122223333:key/") {
		t.Fatalf("printed %q", printed)
	}
	resp := testkit.Value(http.Post(printed[0], "", strings.NewReader("Action=none")))(t) //nolint:noctx // a test
	if _ = resp.Body.Close(); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("status %d", resp.StatusCode)
	}
	cancel()
	testkit.OK(t, <-ended)
}

func TestRunRefuses(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // what is not refused ends at once
	for _, tt := range []struct{ args, text string }{
		{"--key v=" + vendorKey, "alias/NAME"},
		{"--faults Sing=ok", "Sing"},
		{"--listen nowhere", "nowhere"},
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
