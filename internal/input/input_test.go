//go:build unix

package input

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hsmsign/internal/testkit"
)

func TestRead(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	testkit.OK(t, os.WriteFile(path("file"), []byte("12345"), 0o600))
	testkit.OK(t, errors.Join(syscall.Mkfifo(path("fifo"), 0o600), os.Symlink(path("none"), path("dangling")), os.Symlink(path("fifo"), path("link"))))
	r := Reader{Stdin: strings.NewReader("abcdef")}
	for _, tt := range []struct{ name, want, wrong string }{
		{path("file"), "123", ""}, // two bytes and one more
		{"-", "abc", ""},
		{path("fifo"), "", "not a regular file"},
		{path("link"), "", "not a regular file"},
		{"/dev/null", "", "not a regular file"},
		{dir, "", "is a folder"},
		{path("none"), "", "no such file"},
		{path("dangling"), "", "no such file"},
	} {
		data, err := r.Read(t.Context(), tt.name, 2)
		if string(data) != tt.want || (err == nil) != (tt.wrong == "") || err != nil && (!strings.Contains(err.Error(), tt.wrong) || strings.Contains(err.Error(), dir)) {
			t.Errorf("%s: %q, %v", tt.name, data, err)
		}
	}
	if _, err := File(path("dangling"), 2); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a dangling link: %v", err)
	}
}

// A pipe that a shell hands over is read; one that stays silent ends with the context.
func TestReadDescriptor(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	defer write.Close()
	name := fmt.Sprintf("/dev/fd/%d", read.Fd())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := (Reader{}).Read(ctx, name, 10); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a silent pipe: %v", err)
	}
	other, otherWrite, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	_, err = otherWrite.WriteString("hello")
	testkit.OK(t, errors.Join(err, otherWrite.Close()))
	if data, err := (Reader{}).Read(t.Context(), fmt.Sprintf("/dev/fd/%d", other.Fd()), 10); err != nil || string(data) != "hello" {
		t.Errorf("%q, %v", data, err)
	}
}
