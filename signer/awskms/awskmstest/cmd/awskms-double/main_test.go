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
	"time"
)

const vendorKey = "../../../../../testdata/golden/vendor.key"

// TestRun: it imports the key, prints where it is, answers there, and ends with its context.
func TestRun(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	read, write := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{"--key", "alias/v=" + vendorKey, "--faults", "Sign=ThrottlingException,delay=1ms,ok", "--delay", "1ms", "--listen", "127.0.0.1:0"}, write)
		_ = write.Close()
	}()
	lines := bufio.NewScanner(read)
	var printed []string
	for len(printed) < 4 && lines.Scan() {
		printed = append(printed, lines.Text())
	}
	if len(printed) != 4 || !strings.HasPrefix(printed[3], "arn:aws:kms:eu-west-1:111122223333:key/") {
		t.Fatalf("printed %q", printed)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, printed[0], strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Amz-Target", "TrentService.Sign")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(body), "MissingAuthenticationTokenException") {
		t.Errorf("%s, %v", body, err)
	}
	_ = resp.Body.Close()
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
	}
}

func TestRunRefuses(t *testing.T) {
	garbage := filepath.Join(t.TempDir(), "garbage.pem")
	if err := os.WriteFile(garbage, []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		text string
	}{
		{[]string{"--key", "no/such/file"}, "no/such/file"},
		{[]string{"--key", garbage}, "garbage.pem"},
		{[]string{"--key", "main.go"}, "no private key"},
		{[]string{"--key", "v=" + vendorKey}, "alias/NAME"},
		{[]string{"--faults", "Sign"}, "OPERATION=FAULT"},
		{[]string{"--faults", "Sign=explode"}, "explode"},
		{[]string{"--faults", "Sing=ok"}, "Sing"},
		{[]string{"--listen", "nowhere"}, "nowhere"},
		{[]string{"extra"}, "extra"},
		{[]string{"--no-such-flag"}, "no-such-flag"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		err := run(ctx, append([]string{"--listen", "127.0.0.1:0"}, tt.args...), io.Discard)
		cancel()
		if err == nil || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%q: got %v, which must hold %q", tt.args, err, tt.text)
		}
	}
}

// TestHelp: every flag is told, and nothing is served.
func TestHelp(t *testing.T) {
	var out strings.Builder
	if err := run(t.Context(), []string{"--help"}, &out); !errors.Is(err, flag.ErrHelp) || strings.Count(out.String(), "\n  -") != 5 {
		t.Errorf("%v: %s", err, out.String())
	}
}
