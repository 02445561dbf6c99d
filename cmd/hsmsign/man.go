package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/fault"
)

// manCommand is what make install and make release run to get the manual pages. It is hidden, as it is for packagers.
func (p *program) manCommand() *cli.Command {
	return &cli.Command{
		Name: "man", Hidden: true, Usage: "write the manual pages of all commands",
		Description: "Writes hsmsign.1 and a page for each command, such as hsmsign-vendor-csr.1. The date of the pages is $SOURCE_DATE_EPOCH\n" +
			"(seconds since 1970), else that of the commit. The same program writes the same bytes.\n\n" +
			"  hsmsign man --out-dir man/",
		Flags:  []cli.Flag{stringFlag("out-dir", "`FOLDER` for the pages, made if it does not exist"), forceFlag()},
		Action: p.man,
	}
}

func (p *program) man(ctx *cli.Context) error {
	s, _, err := p.startBare(ctx, noFiles)
	if err != nil {
		return err
	}
	dir, _ := s.str("out-dir")
	if dir == "" {
		return fault.Usage.Errorf("--out-dir is needed").Fix("hsmsign man --out-dir man/")
	}
	date, err := manDate(p.getenv("SOURCE_DATE_EPOCH"))
	if err != nil {
		return err
	}
	pages := manPages(p.app(""), date)
	if err := os.MkdirAll(dir, 0o755); err != nil { // #nosec G301 -- manual pages are public
		return fault.Usage.Errorf("--out-dir: %w", err).Fix("name another folder")
	}
	for _, page := range pages {
		if err := writeFile(filepath.Join(dir, page.file), []byte(page.text), requestMode, s.boolean("force")); err != nil {
			return err
		}
	}
	p.con.Infof("wrote %d pages into %s", len(pages), dir)
	return nil
}

// manDate returns the date of the pages: that of epoch, seconds since 1970, or of the program's commit if epoch is empty.
// It is empty for a program that was built outside a repository.
func manDate(epoch string) (string, error) {
	if epoch != "" {
		seconds, err := strconv.ParseInt(epoch, 10, 64)
		if err != nil || seconds < 0 || seconds > 253402300799 { // the last second of the year 9999
			return "", fault.Usage.Errorf("SOURCE_DATE_EPOCH is %q", epoch).Fix("it is a number of seconds since 1970, such as that of git log -1 --format=%ct")
		}
		return time.Unix(seconds, 0).UTC().Format(time.DateOnly), nil
	}
	build, ok := debug.ReadBuildInfo()
	for i := 0; ok && i < len(build.Settings); i++ {
		if build.Settings[i].Key == "vcs.time" {
			date, _, _ := strings.Cut(build.Settings[i].Value, "T") // RFC 3339
			return date, nil
		}
	}
	return "", nil
}

type manPage struct{ file, text string }

// manPages returns hsmsign.1 first, then a page for each command that is not hidden, in the order of the help.
func manPages(app *cli.App, date string) []manPage {
	m := manual{version: app.Version, date: date}
	pages := []manPage{m.program(app)}
	var walk func(path []string, commands []*cli.Command)
	walk = func(path []string, commands []*cli.Command) {
		for _, c := range commands {
			if c.Hidden {
				continue
			}
			below := append(path[:len(path):len(path)], c.Name)
			pages = append(pages, m.command(below, c))
			walk(below, c.Subcommands)
		}
	}
	walk([]string{app.Name}, app.Commands)
	return pages
}

// manExits are the exit codes, in the words of docs/cli.md.
var manExits = []struct {
	code int
	text string
}{
	{0, "done"},
	{1, "a fault of hsmsign or of the machine, such as a full disk"},
	{2, "usage or configuration; an output or a key that exists"},
	{3, "the input was refused: a CSR, a push certificate, a file that cannot be read"},
	{4, "vendor identity: key not found or unusable, key and certificate do not match, chain incomplete or expired"},
	{5, "authentication: the key store refused the PIN, passphrase or credentials; the caller is not known; the certificate of the service is not accepted"},
	{6, "the key store, a server or an entitlement program does not answer, or answers wrongly"},
	{7, "verification found defects"},
	{8, "accepted, waiting for approval: nothing was written; or approved, and it could not be signed now"},
	{130, "interrupted by SIGINT (Ctrl-C); after SIGTERM the code is 143. `serve` exits with 0 after it has finished, and with these after a second signal"},
	{134, "the Go runtime failed, for example without memory. Before the program starts, it exits with 2 instead"},
}

// manTerms are a word and what it means, for the sections ENVIRONMENT and FILES.
type manTerms []struct{ term, text string }

var manEnvironment = manTerms{
	{"HSMSIGN_FLAG", "The value of --flag, in capitals and with _ instead of -: HSMSIGN_OUT_DIR for --out-dir. An empty variable counts as unset. A flag overrides its variable, and the variable overrides the configuration."},
	{"HSMSIGN_PIN", "PIN of the token, if the key reference has no pin-source."},
	{"HSMSIGN_PASSPHRASE", "Passphrase of the key file, if the reference has no passphrase-file."},
	{"HSMSIGN_EXPORT_PASSPHRASE", "Passphrase of the file that push p12 or key convert writes."},
	{"HSMSIGN_API_KEY", "API key of mdmcert request."},
	{"HSMSIGN_AGENT_TOKEN", "Token for the service of --agent."},
	{"NO_COLOR", "If it is not empty, the output has no colors."},
}

var manFiles = manTerms{
	{"~/.config/hsmsign/hsmsign.yaml", "The configuration of a user."},
	{"/etc/hsmsign/hsmsign.yaml", "The configuration of the machine, if the user has none."},
	{"PATH.key, PATH.last", "The checkpoint key of the ledger sqlite:PATH, and its newest checkpoint outside the store."},
}

// manual writes pages in the macros of man(7).
type manual struct{ version, date string }

func (m manual) program(app *cli.App) manPage {
	var b roff
	m.head(&b, []string{app.Name}, app.Usage)
	b.macro("SH", "SYNOPSIS")
	b.synopsis([]string{app.Name}, "[--config FILE] COMMAND [OPTION...] [ARGUMENT...]")
	b.macro("SH", "DESCRIPTION")
	b.text(app.Description)
	b.commands([]string{app.Name}, app.Commands)
	b.flags(app.Flags)
	for _, name := range []string{"keys", "secrets"} {
		title, body, _ := strings.Cut(topics[name], "\n")
		b.macro("SH", title)
		b.verbatim(body)
	}
	b.macro("SH", "EXIT STATUS")
	for _, e := range manExits {
		b.term(fmt.Sprintf(`\fB%d\fR`, e.code), e.text)
	}
	b.terms("ENVIRONMENT", manEnvironment)
	b.terms("FILES", manFiles)
	return manPage{app.Name + ".1", b.out.String()}
}

func (m manual) command(path []string, c *cli.Command) manPage {
	var b roff
	m.head(&b, path, c.Usage)
	b.macro("SH", "SYNOPSIS")
	if len(c.Subcommands) == 0 || len(c.Flags) > 0 { // strict gives every command an action
		b.synopsis(path, strings.TrimSpace("[OPTION...] "+c.ArgsUsage))
		if len(c.Subcommands) > 0 {
			b.macro("br")
		}
	}
	if len(c.Subcommands) > 0 {
		b.synopsis(path, "COMMAND [OPTION...] [ARGUMENT...]")
	}
	if c.Description != "" {
		b.macro("SH", "DESCRIPTION")
		b.text(c.Description)
	}
	b.commands(path, c.Subcommands)
	b.flags(c.Flags)
	b.macro("SH", "SEE ALSO")
	for i := 1; i < len(path); i++ {
		b.line(fmt.Sprintf(`\fB%s\fR(1)%s`, escape(strings.Join(path[:i], "-")), map[bool]string{true: ","}[i < len(path)-1]))
	}
	return manPage{strings.Join(path, "-") + ".1", b.out.String()}
}

func (m manual) head(b *roff, path []string, usage string) {
	name := strings.Join(path, "-")
	b.line(fmt.Sprintf(`.TH "%s" "1" "%s" "hsmsign %s" "hsmsign manual"`, escape(strings.ToUpper(name)), m.date, escape(m.version)))
	b.macro("nh")
	b.macro("ad", "l")
	b.macro("SH", "NAME")
	b.line(escape(name) + ` \- ` + escape(usage))
}

// roff is the source of a page.
type roff struct{ out strings.Builder }

// keyboard replaces the characters for which roff prints typographic ones, and its own.
var keyboard = strings.NewReplacer(`\`, `\(rs`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, `"`, `\(dq`, "^", `\(ha`, "~", `\(ti`)

// escape returns the source of a text of one line. A dot at its start is text, not a request.
func escape(text string) string {
	source := keyboard.Replace(text)
	if strings.HasPrefix(source, ".") {
		return `\&` + source
	}
	return source
}

// line writes one line of source.
func (b *roff) line(source string) { b.out.WriteString(source + "\n") }

// macro writes a request with its arguments, each quoted.
func (b *roff) macro(name string, args ...string) {
	b.out.WriteString("." + name)
	for _, arg := range args {
		b.out.WriteString(` "` + escape(arg) + `"`)
	}
	b.out.WriteString("\n")
}

// text writes paragraphs, which an empty line separates; indented lines are examples.
func (b *roff) text(text string) {
	for i, paragraph := range strings.Split(strings.Trim(text, "\n"), "\n\n") {
		if i > 0 {
			b.macro("PP")
		}
		lines := strings.Split(paragraph, "\n")
		for len(lines) > 0 {
			n := 0
			for n < len(lines) && strings.HasPrefix(lines[n], " ") == strings.HasPrefix(lines[0], " ") {
				n++
			}
			if strings.HasPrefix(lines[0], " ") {
				b.verbatim(strings.Join(lines[:n], "\n"))
			} else {
				for _, line := range lines[:n] {
					b.line(escape(line))
				}
			}
			lines = lines[n:]
		}
	}
}

// verbatim writes lines as they are, without the indentation that all of them have.
func (b *roff) verbatim(text string) {
	lines := strings.Split(strings.Trim(text, "\n"), "\n")
	indent := len(lines[0]) - len(strings.TrimLeft(lines[0], " "))
	b.macro("nf")
	for _, line := range lines {
		b.line(escape(strings.TrimPrefix(line, strings.Repeat(" ", indent))))
	}
	b.macro("fi")
}

func (b *roff) synopsis(path []string, arguments string) {
	b.line(`\fB` + escape(strings.Join(path, " ")) + `\fR ` + escape(arguments))
}

// term writes a word, whose source it is, and its meaning.
func (b *roff) term(source, text string) {
	b.macro("TP")
	b.line(source)
	b.line(placeholders(text))
}

func (b *roff) terms(section string, terms manTerms) {
	b.macro("SH", section)
	for _, t := range terms {
		b.term(`\fB`+escape(t.term)+`\fR`, t.text)
	}
}

func (b *roff) commands(path []string, commands []*cli.Command) {
	if len(commands) > 0 {
		b.macro("SH", "COMMANDS")
	}
	for _, c := range commands {
		if !c.Hidden {
			b.term(`\fB`+escape(strings.Join(append(path[:len(path):len(path)], c.Name), "-"))+`\fR(1)`, c.Usage)
		}
	}
}

var placeholder = regexp.MustCompile("`([^`]+)`")

// placeholders returns the source of a flag's usage: the word in backquotes is in italics.
func placeholders(usage string) string {
	var source strings.Builder
	end := 0
	for _, m := range placeholder.FindAllStringSubmatchIndex(usage, -1) {
		source.WriteString(escape(usage[end:m[0]]) + `\fI` + escape(usage[m[2]:m[3]]) + `\fR`)
		end = m[1]
	}
	return source.String() + escape(usage[end:])
}

func (b *roff) flags(flags []cli.Flag) {
	b.macro("SH", "OPTIONS")
	for _, f := range flags {
		usage := f.(cli.DocGenerationFlag).GetUsage()
		value := ""
		if m := placeholder.FindStringSubmatch(usage); m != nil && f.(cli.DocGenerationFlag).TakesValue() {
			value = ` \fI` + escape(m[1]) + `\fR`
		}
		var names []string
		for _, name := range f.Names() {
			dashes := "--"
			if len(name) == 1 {
				dashes = "-"
			}
			names = append(names, `\fB`+escape(dashes+name)+`\fR`+value)
		}
		b.term(strings.Join(names, ", "), usage)
	}
	if len(flags) == 0 || flags[len(flags)-1] != cli.HelpFlag {
		b.term(`\fB\-\-help\fR, \fB\-h\fR`, "show help")
	}
}
