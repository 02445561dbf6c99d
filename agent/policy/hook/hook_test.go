//go:build unix

package hook

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
)

// script writes a shell script and returns its path.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	testkit.OK(t, os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700))
	return path
}

func open(t *testing.T, path string, timeout time.Duration) *Program {
	t.Helper()
	return testkit.Value(New().Open(path, timeout))(t)
}

// ended waits until the process whose number is in a file has ended.
func ended(t *testing.T, file string) {
	t.Helper()
	for range 100 {
		data, err := os.ReadFile(file)
		pid, _ := strconv.Atoi(strings.TrimSpace(string(data)))
		if err == nil && pid > 0 && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) || zombie(pid) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Error("a process of the program is still running")
}

// zombie returns whether a process has ended and waits for its parent: where no init process reaps orphans, it stays.
func zombie(pid int) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && strings.Contains(string(data), ") Z ")
}

func TestAnswers(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		exit       int
		line       string
		failure    string // "": it answers
	}{
		{"allows", "cat >/dev/null; echo yes; echo more", 0, "yes", ""},
		{"denies", "cat >/dev/null; echo '  no\tcontract '; exit 1", 1, "no contract", ""},
		{"prints nothing", "exit 1", 1, "", ""},
		{"control and format characters", `printf 'a\033[31m\342\200\256b\377\n'; exit 1`, 1, "a [31m?b?", ""},
		{"long line", "head -c 300 /dev/zero | tr '\\0' x", 0, strings.Repeat("x", maxLine-3) + "...", ""},
		{"another code", "exit 2", 0, "", "exit code 2"},
		{"not found inside", "exec /no/such", 0, "", "exit code 12"},
		{"signal", "kill -KILL $$", 0, "", "signal: killed"},
		{"standard error", "echo secret >&2; exit 1", 1, "", ""},
		{"question", `[ "$(cat)" = '{"a":1}' ] && echo same`, 0, "same", ""},
		{"folder", "[ $(pwd) = / ] && echo same", 0, "same", ""},
	} {
		path := script(t, tt.text)
		answer, err := open(t, path, 10*time.Second).Ask(t.Context(), []byte(`{"a":1}`))
		if tt.failure != "" {
			if fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), tt.failure) || !strings.Contains(err.Error(), path) || answer != (Answer{}) {
				t.Errorf("%s: %+v, %v", tt.name, answer, err)
			}
			continue
		}
		want := Answer{Program: sha256.Sum256(testkit.Value(os.ReadFile(path))(t)), Exit: tt.exit, Line: tt.line}
		if err != nil || answer != want || answer.Allowed() != (tt.exit == 0) {
			t.Errorf("%s: %+v, %v", tt.name, answer, err)
		}
	}
}

// The environment is PATH and nothing else; no file is open but the standard ones.
func TestEnvironment(t *testing.T) {
	t.Setenv("HSMSIGN_PIN", "1234")
	secret := testkit.Value(os.Open(script(t, "")))(t)
	defer secret.Close()
	out := filepath.Join(t.TempDir(), "out")
	program := open(t, script(t, "cat /proc/$$/environ >"+out+"; ls /proc/$$/fd >"+out+".fd"), 10*time.Second)
	if _, err := program.Ask(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(out)
	if err != nil || len(data) == 0 {
		t.Skip("no /proc")
	}
	if string(data) != "PATH=/usr/bin:/bin\x00" {
		t.Errorf("%q", data)
	}
	// The shell itself opens the script, above 9.
	for _, fd := range strings.Fields(string(testkit.Value(os.ReadFile(out + ".fd"))(t))) {
		if n, _ := strconv.Atoi(fd); n > 2 && n < 10 {
			t.Errorf("descriptor %d is open", n)
		}
	}
}

// A program that hangs is killed with its children.
func TestHangs(t *testing.T) {
	programs, paths := New(), map[string]string{}
	for name, text := range map[string]string{
		"sleeps": "echo $$ >$0.pid; exec sleep 100", "child": "sleep 100 & echo $! >$0.pid; wait", "ignores signals": "trap '' TERM INT HUP; echo $$ >$0.pid; while :; do sleep 100; done",
		"floods": "echo $$ >$0.pid; exec cat /dev/zero",
	} {
		paths[name] = script(t, text) // before the first program starts: a file that is open for writing cannot be run
	}
	var all sync.WaitGroup
	for name, path := range paths {
		program := testkit.Value(programs.Open(path, time.Second))(t)
		all.Go(func() {
			start := time.Now()
			_, err := program.Ask(t.Context(), nil)
			if fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "no answer within 1s") || time.Since(start) > 10*time.Second {
				t.Errorf("%s: %v after %v", name, err, time.Since(start))
			}
			ended(t, path+".pid")
		})
	}
	all.Wait()
}

// A child that keeps the output open delays the answer a moment, and is killed.
func TestChildKeepsOutput(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	start := time.Now()
	answer, err := open(t, script(t, "sleep 100 & echo $! >"+pid+"; echo no; exit 1"), 30*time.Second).Ask(t.Context(), nil)
	if err != nil || answer.Exit != 1 || answer.Line != "no" || time.Since(start) > 5*time.Second {
		t.Errorf("%+v, %v after %v", answer, err, time.Since(start))
	}
	ended(t, pid)
}

// The question need not be read, and a long answer is cut.
func TestPipes(t *testing.T) {
	question := bytes.Repeat([]byte("x"), 1<<20)
	for name, text := range map[string]string{"does not read": "echo yes", "closes its input": "exec <&-; echo yes", "prints much": "echo yes; head -c 10000000 /dev/zero", "closes its output": "echo yes; exec >&-"} {
		answer, err := open(t, script(t, text), 10*time.Second).Ask(t.Context(), question)
		if err != nil || answer.Exit != 0 || answer.Line != "yes" {
			t.Errorf("%s: %+v, %v", name, answer, err)
		}
	}
	kept := &beginning{}
	for range 3 {
		if n, err := kept.Write(make([]byte, maxOutput-1)); n != maxOutput-1 || err != nil || len(kept.data) > maxOutput {
			t.Errorf("%d, %v; %d bytes are kept", n, err, len(kept.data))
		}
	}
}

// A caller that leaves ends the program; it is not a failure of the program.
func TestCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	if _, err := open(t, script(t, "exec sleep 100"), 30*time.Second).Ask(ctx, nil); fault.KindOf(err) != fault.Interrupted {
		t.Errorf("%v", err)
	}
}

// No more than atOnce programs run at once; the next waits, and longer than its own limit if need be.
func TestAtOnce(t *testing.T) {
	dir := t.TempDir()
	programs := New()
	slow := testkit.Value(programs.Open(script(t, "echo >"+dir+"/$$; sleep 1"), 20*time.Second))(t)
	hasty := testkit.Value(programs.Open(script(t, ""), 500*time.Millisecond))(t)
	var all sync.WaitGroup
	for range atOnce {
		all.Go(func() {
			if _, err := slow.Ask(t.Context(), nil); err != nil {
				t.Error(err)
			}
		})
	}
	for range 500 {
		if running := testkit.Value(os.ReadDir(dir))(t); len(running) == atOnce {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := hasty.Ask(short, nil); fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "8 programs are running") {
		t.Errorf("%v", err)
	}
	if _, err := hasty.Ask(t.Context(), nil); err != nil {
		t.Errorf("when others have ended: %v", err)
	}
	all.Wait()
}

// A program that others could write, or that is another one by now, is not run.
func TestTrusted(t *testing.T) {
	for want, change := range map[string]func(t *testing.T, path string) string{
		"can be written by group or others (mode 0720)": func(t *testing.T, path string) string {
			testkit.OK(t, os.Chmod(path, 0o720))
			return path
		},
		"can be written by group or others (mode 0702)": func(t *testing.T, path string) string {
			testkit.OK(t, os.Chmod(path, 0o702))
			return path
		},
		"can be written by group or others (mode 0777)": func(t *testing.T, path string) string {
			testkit.OK(t, os.Chmod(filepath.Dir(path), 0o777))
			return path
		},
		"sticky, and writable itself": func(t *testing.T, path string) string {
			testkit.OK(t, os.Chmod(path, 0o702|os.ModeSticky))
			return path
		},
		"is not executable": func(t *testing.T, path string) string {
			testkit.OK(t, os.Chmod(path, 0o600))
			return path
		},
		"is a symbolic link": func(t *testing.T, path string) string {
			testkit.OK(t, os.Symlink(path, path+".link"))
			return path + ".link"
		},
		"folder is a symbolic link": func(t *testing.T, path string) string {
			link := filepath.Join(t.TempDir(), "folder")
			testkit.OK(t, os.Symlink(filepath.Dir(path), link))
			return filepath.Join(link, "program")
		},
		"is not a regular file": func(_ *testing.T, path string) string { return filepath.Dir(path) },
		"pipe": func(t *testing.T, path string) string {
			testkit.OK(t, syscall.Mkfifo(path+".p", 0o700))
			return path + ".p"
		},
		"not an absolute path":    func(*testing.T, string) string { return "program" },
		"with dots":               func(_ *testing.T, path string) string { return filepath.Dir(path) + "/./program" },
		"no such file":            func(_ *testing.T, path string) string { return path + "x" },
		"belongs neither to root": nil,
		"larger than": func(t *testing.T, path string) string {
			testkit.OK(t, os.Truncate(path, maxProgram+1))
			return path
		},
	} {
		if change == nil {
			if os.Geteuid() != 0 {
				continue
			}
			change = func(t *testing.T, path string) string {
				testkit.OK(t, os.Chown(path, 4000000, 0))
				return path
			}
		}
		path := script(t, "")
		program := open(t, path, 10*time.Second)
		changed := change(t, path)
		text := want
		for name, refusal := range map[string]string{"sticky, and writable itself": "can be written", "folder is a symbolic link": "is a symbolic link", "pipe": "is not a regular file", "with dots": "not an absolute path"} {
			if want == name {
				text = refusal
			}
		}
		if _, err := New().Open(changed, time.Second); fault.KindOf(err) != fault.Usage || !strings.Contains(err.Error(), text) || fault.Hint(err) == "" && text != "larger than" {
			t.Errorf("%s: %v", want, err)
		}
		program.path = changed
		if _, err := program.Ask(t.Context(), nil); fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), text) {
			t.Errorf("%s, after it was opened: %v", want, err)
		}
	}
	path := script(t, "exit 1")
	program := open(t, path, 10*time.Second)
	testkit.OK(t, os.WriteFile(path, []byte("#!/bin/sh\nexit 0\n"), 0o700))
	if _, err := program.Ask(t.Context(), nil); fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "has changed since the configuration was read") {
		t.Errorf("replaced: %v", err)
	}
	testkit.OK(t, os.WriteFile(path, []byte("#!/no/such/interpreter\n"), 0o700))
	if _, err := open(t, path, time.Second).Ask(t.Context(), nil); fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "not started: no such file") {
		t.Errorf("an interpreter that does not exist: %v", err)
	}
}
