// Package console is what a command line prints, and what it asks. Results go to one file (standard output), everything
// else to another (standard error); each error is one line that says what, where and what to do; nothing from an input
// reaches the terminal with its control characters; progress is shown on a terminal only.
//
// A Console is safe for concurrent use. Its lock is held while it writes.
package console

import (
	"bufio"
	"bytes"
	"context"
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
	"hsmsign/internal/input"
)

// Console prints for one program.
type Console struct {
	name        string
	color       bool
	outTerminal bool
	errTerminal bool

	mu     sync.Mutex
	out    io.Writer
	err    io.Writer
	outErr error // the first failed write of a result: a full disk must not look like success
	bar    *progressbar.ProgressBar
}

// New returns a console. The name is that of the program, which begins each line on err. noColor is the value of the
// variable NO_COLOR (https://no-color.org): if it is not empty, nothing is colored.
func New(name string, out, err *os.File, noColor string) *Console {
	c := &Console{
		name: name, out: out, err: err, outTerminal: term.IsTerminal(int(out.Fd())), errTerminal: term.IsTerminal(int(err.Fd())),
	}
	c.color = c.outTerminal && noColor == ""
	return c
}

// Width returns the width of the terminal that results go to, in columns; without a terminal, one that wraps no line.
func (c *Console) Width() int {
	if file, ok := c.out.(*os.File); ok && c.outTerminal {
		if width, _, err := term.GetSize(int(file.Fd())); err == nil && width > 20 {
			return width
		}
	}
	return 10_000
}

// OutIsTerminal returns whether results go to a terminal.
func (c *Console) OutIsTerminal() bool { return c.outTerminal }

// Fail prints the line of an error.
func (c *Console) Fail(err error) { c.line(ErrorLine(err)) }

// ErrorLine returns the line of an error: what is wrong, the ID of the rule if it has one, and what to do.
func ErrorLine(err error) string {
	if errors.Is(err, context.Canceled) { // what was in progress did not fail by itself
		return "interrupted"
	}
	text := strings.ReplaceAll(err.Error(), "\n", "; ") // errors.Join separates with newlines
	if found, ok := errors.AsType[*fault.Finding](err); ok {
		text += " [" + found.ID + "]"
	}
	if hint := fault.Hint(err); hint != "" {
		text += "; " + hint
	}
	return text
}

// Warnf prints a warning.
func (c *Console) Warnf(format string, args ...any) {
	c.line("warning: " + fmt.Sprintf(format, args...))
}

// Infof prints what was done.
func (c *Console) Infof(format string, args ...any) { c.line(fmt.Sprintf(format, args...)) }

// Warnings prints the warnings among findings about one file.
func (c *Console) Warnings(file string, findings []fault.Finding) {
	for _, f := range findings {
		if f.Severity == fault.SeverityWarning {
			c.Warnf("%s: %s", file, ErrorLine(&f))
		}
	}
}

func (c *Console) line(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bar != nil {
		_ = c.bar.Clear()
	}
	_, _ = io.WriteString(c.err, c.name+": "+Printable(text)+"\n")
}

// Printf prints one line of a result. The format is ours; texts among args are made printable, and Styled ones get their
// color on a terminal.
func (c *Console) Printf(format string, args ...any) {
	shown := make([]any, len(args))
	for i, arg := range args {
		switch arg := arg.(type) {
		case Styled:
			shown[i] = c.paint(arg)
		case string:
			shown[i] = Printable(arg)
		default:
			shown[i] = arg
		}
	}
	c.Write([]byte(fmt.Sprintf(format, shown...) + "\n"))
}

// Styled is a word that has a color on a terminal. The color repeats what the word says.
type Styled struct {
	Level Level
	Text  string
}

// Level is how good a result is.
type Level int

// The levels and their colors. Plain: none, Good: green, Warning: yellow, Bad: red.
const (
	Plain Level = iota
	Good
	Warning
	Bad
)

func (c *Console) paint(s Styled) string {
	text := Printable(s.Text)
	if !c.color || s.Level == Plain {
		return text
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", [...]int{Good: 32, Warning: 33, Bad: 31}[s.Level], text)
}

// Field prints a named value of a result, indented; an empty value is omitted.
func (c *Console) Field(name, value string) {
	if value != "" {
		c.Printf("  %-12s %s", name, value)
	}
}

// Table prints rows of equal length in columns that are as wide as they need to be.
func (c *Console) Table(rows [][]string) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], len([]rune(Printable(cell))))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			fmt.Fprintf(&line, "%-*s  ", widths[i], Printable(cell))
		}
		c.Printf("%s", strings.TrimRight(line.String(), " "))
	}
}

// JSON prints a result as one line of JSON.
func (c *Console) JSON(v any) {
	var line bytes.Buffer
	enc := json.NewEncoder(&line)
	enc.SetEscapeHTML(false) // a reference contains '&'
	if err := enc.Encode(v); err != nil {
		fmt.Fprintf(&line, "{%q:%q}\n", "error", err)
	}
	c.Write(line.Bytes())
}

// Write writes a result as it is. Flush reports whether it failed.
func (c *Console) Write(data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.out.Write(data); err != nil && c.outErr == nil {
		c.outErr = err
	}
}

// Flush returns an error if a result could not be written.
func (c *Console) Flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.outErr == nil {
		return nil
	}
	return fmt.Errorf("write to standard output: %w", c.outErr)
}

// Progress shows a bar for n items if a person watches. Call step for each item, and end once.
func (c *Console) Progress(n int, description string) (step, end func()) {
	if !c.errTerminal || n < 2 {
		return func() {}, func() {}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bar = progressbar.NewOptions(n, progressbar.OptionSetWriter(c.err), progressbar.OptionSetDescription(description),
		progressbar.OptionShowCount(), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
	step = func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		_ = c.bar.Add(1)
	}
	end = func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		_ = c.bar.Clear()
		c.bar = nil
	}
	return step, end
}

// Printable replaces the characters that a terminal would obey instead of show. Names in a CSR or certificate are
// chosen by strangers.
func Printable(s string) string {
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

// promptTimeout bounds a person's typing.
const promptTimeout = 2 * time.Minute

// openTerminal opens the terminal of the person who started the program, even if standard input is a file or a pipe.
func openTerminal() (*os.File, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil && term.IsTerminal(int(os.Stdin.Fd())) {
		return os.Stdin, nil // Windows has no /dev/tty
	}
	return tty, err
}

// Prompt returns the function that asks the person at the terminal for a secret, without echo, for secret.Reader; nil if
// there is no terminal. The name is that of the program.
func Prompt(name string) func(ctx context.Context, label string) ([]byte, error) {
	tty, err := openTerminal()
	if err != nil {
		return nil
	}
	return func(ctx context.Context, label string) ([]byte, error) { return ask(ctx, tty, name+": "+label+": ") }
}

// Confirm asks a question at the terminal. The answers y and yes confirm it. Without a terminal, the error is of kind usage.
func Confirm(ctx context.Context, question string) (bool, error) {
	answer, err := askLine(ctx, question, promptTimeout)
	text := strings.ToLower(answer)
	return text == "y" || text == "yes", err
}

// dialogueTimeout bounds one answer of a dialogue: a person may have to look something up.
const dialogueTimeout = 30 * time.Minute

// Ask asks for a line at the terminal, with echo, and returns it without the spaces around it. Without a terminal, the error is of
// kind usage.
func Ask(ctx context.Context, question string) (string, error) {
	return askLine(ctx, question, dialogueTimeout)
}

// maxLine is the longest line of an answer, in bytes; a terminal has 4096.
const maxLine = 4096

func askLine(ctx context.Context, question string, timeout time.Duration) (string, error) {
	tty, err := openTerminal()
	if err != nil {
		return "", fault.Usage.Errorf("there is no terminal to ask at").Fix("add --yes to do it without a question")
	}
	_, _ = fmt.Fprint(tty, Printable(question)) // a person who cannot read it cannot type either
	answer, err := input.Wait(ctx, timeout, func() ([]byte, error) {
		return bufio.NewReader(io.LimitReader(tty, maxLine)).ReadBytes('\n')
	})
	if err != nil {
		return "", fmt.Errorf("no answer at the terminal: %w", err)
	}
	return strings.TrimSpace(string(answer)), nil
}

// ask asks on the terminal. If ctx or the person's time ends first, the terminal is restored. A shell turns the echo on
// when it continues a stopped program (Ctrl-Z, fg), so ask turns it off again and repeats the question.
func ask(ctx context.Context, tty *os.File, text string) ([]byte, error) {
	fd := int(tty.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return nil, err
	}
	defer func() { _ = term.Restore(fd, before) }()
	show := func() error {
		err := hideInput(fd) // first: a fast typist's answer must not be shown either
		if err == nil {
			_, _ = fmt.Fprint(tty, Printable(text)) // a person who cannot read it cannot type either
		}
		return err
	}
	stop := whenContinued(func() { _ = show() }) // first: a person may stop the program as soon as the prompt is shown
	if err := show(); err != nil {
		stop()
		return nil, err
	}
	answer, err := input.Wait(ctx, promptTimeout, func() ([]byte, error) { return readHidden(tty) })
	stop()
	_, _ = fmt.Fprintln(tty)
	if err != nil {
		return nil, fmt.Errorf("no answer at the terminal: %w", err)
	}
	return answer, nil
}
