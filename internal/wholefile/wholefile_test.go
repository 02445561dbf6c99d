package wholefile

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"time"
)

type writer = func(path string, data []byte, mode fs.FileMode, replace bool) error

// ways are the two implementations.
var ways = map[string]writer{
	"Write": Write,
	"with a temporary name": func(path string, data []byte, mode fs.FileMode, replace bool) error {
		if err := writeNamed(path, bytesOf(data), mode, replace); err != nil {
			return cause(err)
		}
		return nil
	},
}

func TestWrite(t *testing.T) {
	for name, write := range ways {
		t.Run(name, func(t *testing.T) { testWrite(t, write) })
		t.Run(name+", race", func(t *testing.T) { testWriteRace(t, write) })
	}
}

func testWrite(t *testing.T, write writer) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	for _, tt := range []struct {
		data    string
		replace bool
		want    string
		err     error
	}{
		{"one", false, "one", nil},
		{"two", false, "one", fs.ErrExist},
		{"three", true, "three", nil},
	} {
		if err := write(path, []byte(tt.data), 0o600, tt.replace); !errors.Is(err, tt.err) {
			t.Errorf("%s: %v, want %v", tt.data, err, tt.err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != tt.want {
			t.Errorf("%s: the file contains %q, %v; want %q", tt.data, got, err, tt.want)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v; want mode 0600", info, err)
	}
	if err := write(filepath.Join(dir, "none", "a"), nil, 0o600, false); !errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), tempPrefix) {
		t.Errorf("a missing folder: %v", err)
	}
	if err := write(dir, []byte("x"), 0o600, true); err == nil || strings.Contains(err.Error(), tempPrefix) {
		t.Errorf("an existing folder: %v", err)
	}
	onlyFile(t, dir, "a")
}

// onlyFile checks that the folder contains only this file.
func onlyFile(t *testing.T, dir, name string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != name {
		t.Errorf("left: %v, %v", left, err)
	}
}

// testWriteRace: of many writers of one name one succeeds, and its file is complete.
func testWriteRace(t *testing.T, write writer) {
	path := filepath.Join(t.TempDir(), "a")
	var wrote atomic.Int32
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			switch err := write(path, []byte(strings.Repeat(fmt.Sprint(i), 1<<16)), 0o600, false); {
			case err == nil:
				wrote.Add(1)
			case !errors.Is(err, fs.ErrExist):
				t.Error(err)
			}
		})
	}
	all.Wait()
	got, err := os.ReadFile(path)
	if err != nil || len(got) != 1<<16 || strings.Count(string(got), string(got[:1])) != len(got) || wrote.Load() != 1 {
		t.Errorf("%d wrote; %d bytes, %v", wrote.Load(), len(got), err)
	}
	onlyFile(t, filepath.Dir(path), "a")
}

// childVariable is set for the child process of TestKill, which writes files to its folder.
const childVariable = "WHOLEFILE_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		for i := range 100_000 {
			if err := Write(fmt.Sprint(i), make([]byte, 1<<16), 0o600, false); err != nil {
				panic(err)
			}
			fmt.Println(i)
		}
	}
	os.Exit(m.Run())
}

// A killed process leaves only complete files, if the system supports files without a name.
func TestKill(t *testing.T) {
	for range 10 {
		dir := t.TempDir()
		err := writeUnnamed(filepath.Join(dir, "probe"), bytesOf(make([]byte, 1<<16)), 0o600, false)
		if errors.Is(err, errors.ErrUnsupported) {
			t.Skip("this file system does not support files without a name")
		}
		child := exec.Command(os.Args[0]) // #nosec G204 -- this test
		child.Dir, child.Env = dir, append(os.Environ(), childVariable+"=1")
		wrote, err := child.StdoutPipe()
		if err == nil {
			err = child.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		for line := bufio.NewScanner(wrote); line.Scan() && line.Text() != "10"; {
		}
		_ = child.Process.Kill()
		_ = child.Wait() // it was killed
		left, err := os.ReadDir(dir)
		if err != nil || len(left) < 10 {
			t.Fatalf("%d files, %v", len(left), err)
		}
		for _, file := range left {
			if info, err := file.Info(); err != nil || info.Size() != 1<<16 || strings.HasPrefix(file.Name(), tempPrefix) {
				t.Errorf("%v, %v", info, err)
			}
		}
	}
}

// The folder is flushed when the file has its name, and an error of the flush is returned.
func TestWriteFlushesTheFolder(t *testing.T) {
	dir := t.TempDir()
	broken := errors.New("broken disk")
	for _, replace := range []bool{false, true} {
		path := filepath.Join(dir, fmt.Sprint(replace))
		flushed := ""
		err := write(path, bytesOf([]byte("x")), 0o600, replace, func(dir string) error {
			if data, err := os.ReadFile(path); err != nil || string(data) != "x" {
				t.Errorf("flushed before the file was complete: %q, %v", data, err)
			}
			flushed = dir
			return broken
		})
		if flushed != dir || !errors.Is(err, broken) {
			t.Errorf("flushed %q, %v", flushed, err)
		}
	}
	if err := write(filepath.Join(dir, "false"), bytesOf(nil), 0o600, false, func(string) error { t.Error("flushed without a file"); return nil }); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	if err := FlushFolder(dir); err != nil {
		t.Error(err)
	}
	if err := FlushFolder(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing folder: %v", err)
	}
}

// The name of the folder is not a pattern.
func TestSweep(t *testing.T) {
	parent := t.TempDir()
	dir, other := filepath.Join(parent, "g[1]"), filepath.Join(parent, "g1")
	past := time.Now().Add(-2 * unfinishedAge)
	for _, d := range []string{dir, other} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	foreign := filepath.Join(other, tempPrefix+"old")
	if err := errors.Join(os.WriteFile(foreign, nil, 0o600), os.Chtimes(foreign, past, past)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"old", tempPrefix + "old", tempPrefix + "young"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"old", tempPrefix + "old"} {
		if err := os.Chtimes(filepath.Join(dir, name), past, past); err != nil {
			t.Fatal(err)
		}
	}
	Sweep(dir)
	if _, err := os.Lstat(foreign); err != nil {
		t.Errorf("a file of another folder: %v", err)
	}
	for name, want := range map[string]bool{"old": true, tempPrefix + "old": false, tempPrefix + "young": true} {
		if _, err := os.Lstat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s: exists %v, want %v", name, err == nil, want)
		}
	}
}

// A file that its function did not finish has no name, and Place replaces nothing.
func TestWriteFromAndPlace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	failed := errors.New("failed")
	if err := WriteFrom(path, func(w io.Writer) error { _, _ = w.Write([]byte("half")); return failed }, 0o600, false); !errors.Is(err, failed) {
		t.Errorf("a failed function: %v", err)
	}
	folder, err := Folder(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(folder); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}
	from := filepath.Join(folder, "copy")
	if err := os.WriteFile(from, []byte("placed"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Place(from, path); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "other"), []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Place(filepath.Join(folder, "other"), path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("an existing file: %v", err)
	}
	if got, _ := os.ReadFile(path); string(got) != "placed" {
		t.Errorf("the file contains %q", got)
	}
	Sweep(dir) // the folder may be in use
	if _, err := os.Stat(folder); err != nil {
		t.Error(err)
	}
	old := time.Now().Add(-25 * time.Hour)
	if err := os.Chtimes(folder, old, old); err != nil {
		t.Fatal(err)
	}
	Sweep(dir)
	if _, err := os.Stat(folder); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder of a killed process: %v", err)
	}
}
