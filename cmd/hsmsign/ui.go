package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"hsmsign/fault"
)

// ui owns all printing. Its rules: results go to stdout, all else to stderr; one line for each thing that is
// wrong, which says what, where and what to do; nothing that came from an input reaches the terminal with its
// control characters; a progress bar only where a person looks. Safe for concurrent use.
type ui struct {
	mu     sync.Mutex
	out    io.Writer
	err    io.Writer
	outErr error // the first failed write to stdout: a full disk must not look like success
	bar    *progressbar.ProgressBar
	tty    bool // stderr is a terminal
	ttyOut bool
}

func newUI(out, err *os.File) *ui {
	return &ui{out: out, err: err, tty: term.IsTerminal(int(err.Fd())), ttyOut: term.IsTerminal(int(out.Fd()))}
}

// fail prints the one line of a refusal on stderr.
func (u *ui) fail(err error) {
	if isSilent(err) {
		return
	}
	u.line(describeError(err))
}

// describeError is the line of an error: what is wrong, the rule's name where it has one, what to do.
func describeError(err error) string {
	text := strings.ReplaceAll(err.Error(), "\n", "; ") // errors.Join gives each a line
	var found *fault.Finding
	if errors.As(err, &found) {
		text += " [" + found.ID + "]"
	}
	if hint := fault.Hint(err); hint != "" {
		text += "; " + hint
	}
	return text
}

// warn prints a finding that does not refuse, or anything else worth saying, on stderr.
func (u *ui) warn(format string, args ...any) { u.line("warning: " + fmt.Sprintf(format, args...)) }

// info prints what was done on stderr.
func (u *ui) info(format string, args ...any) { u.line(fmt.Sprintf(format, args...)) }

// warnings prints the warnings among findings, for one file.
func (u *ui) warnings(file string, findings []fault.Finding) {
	for _, f := range findings {
		if f.Severity != fault.SeverityWarning {
			continue
		}
		text := f.Message + " [" + f.ID + "]"
		if f.Fix != "" {
			text += "; " + f.Fix
		}
		u.warn("%s: %s", file, text)
	}
}

func (u *ui) line(text string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.bar != nil {
		_ = u.bar.Clear()
	}
	_, _ = io.WriteString(u.err, "hsmsign: "+printable(text)+"\n")
}

// print writes a line of a result to stdout.
func (u *ui) print(format string, args ...any) {
	u.write([]byte(printable(fmt.Sprintf(format, args...)) + "\n"))
}

// json writes one object as one line to stdout.
func (u *ui) json(v any) {
	var line bytes.Buffer
	enc := json.NewEncoder(&line)
	enc.SetEscapeHTML(false) // a reference holds '&'
	if err := enc.Encode(v); err != nil {
		fmt.Fprintf(&line, "{%q:%q}\n", "error", err)
	}
	u.write(line.Bytes())
}

// write writes bytes to stdout as they are.
func (u *ui) write(data []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, err := u.out.Write(data); err != nil && u.outErr == nil {
		u.outErr = err
	}
}

// flush says whether all results could be written.
func (u *ui) flush() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.outErr == nil {
		return nil
	}
	return fmt.Errorf("write to standard output: %w", u.outErr)
}

// progress shows a bar for n files where stderr is a terminal. step adds one; end takes the bar away.
func (u *ui) progress(n int) (step, end func()) {
	if !u.tty || n < 2 {
		return func() {}, func() {}
	}
	u.bar = progressbar.NewOptions(n, progressbar.OptionSetWriter(u.err), progressbar.OptionSetDescription("signing"),
		progressbar.OptionShowCount(), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
	step = func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		_ = u.bar.Add(1)
	}
	end = func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		_ = u.bar.Clear()
		u.bar = nil
	}
	return step, end
}

// printable replaces what a terminal would obey rather than show. Names in a CSR or certificate are a stranger's.
func printable(s string) string {
	if !strings.ContainsFunc(s, unprintable) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if unprintable(r) {
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func unprintable(r rune) bool { return !unicode.IsPrint(r) }
