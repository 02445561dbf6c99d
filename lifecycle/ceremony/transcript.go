package ceremony

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"hsmsign/fault"
)

// The files of a ceremony's folder.
const (
	TranscriptJSON = "transcript.json" // an Entry a line
	TranscriptText = "transcript.txt"  // the same for people
	CSRFile        = "vendor.csr"
	BundleFile     = "vendor.pem"
)

// ErrTranscript means that the transcript was changed, or its folder contains other files than it records.
var ErrTranscript = fault.Defects.New("the transcript fails verification")

const (
	maxTranscript = 4 << 20 // bytes of one file that are read
	maxValue      = 4 << 10 // bytes of one value
)

// Fact is one thing that a transcript records. It contains no secret.
type Fact struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Entry is one step of a ceremony.
type Entry struct {
	Number int `json:"number"` // from 1
	// Previous is the SHA-256 (hex) of transcript.json before this entry; for the first entry, of no bytes.
	Previous string `json:"previous"`
	Time     string `json:"time"` // RFC 3339, UTC
	Step     string `json:"step"`
	Outcome  string `json:"outcome"` // OK, or why not
	Facts    []Fact `json:"facts"`
}

// Fact returns the value of the first fact of a name; "" if there is none.
func (e Entry) Fact(name string) string {
	for _, f := range e.Facts {
		if f.Name == name {
			return f.Value
		}
	}
	return ""
}

// Transcript is the record of a ceremony, open for appending.
type Transcript struct {
	Record
	whole      []byte // transcript.json
	json, text *os.File
	failed     error // of a write: nothing may follow half an entry
}

// Record is the content of a transcript.
type Record struct {
	Entries []Entry
	// Head is the SHA-256 (hex) of transcript.json. On paper, it shows whether an entry was changed or removed later.
	Head string
}

// OpenTranscript opens the transcript in a folder, or begins one. A folder in use by another process is an error.
//
// If a process was killed while it wrote, OpenTranscript removes an entry that is half written and adds the text of an
// entry that lacks it. Any other difference between the two files wraps ErrTranscript.
func OpenTranscript(dir string) (t *Transcript, err error) {
	t = &Transcript{}
	defer func() {
		if err != nil {
			_ = t.Close()
			err = fmt.Errorf("transcript in %q: %w", dir, err)
		}
	}()
	const mode = os.O_RDWR | os.O_CREATE | os.O_APPEND
	if t.json, err = os.OpenFile(filepath.Join(dir, TranscriptJSON), mode, 0o644); err != nil { // #nosec G302 G304 -- no secret; the caller's own folder
		return t, err
	}
	if err := lock(t.json); err != nil {
		return t, fault.Usage.Errorf("another process has it open: %w", err).Fix("let that ceremony end first")
	}
	if t.text, err = os.OpenFile(filepath.Join(dir, TranscriptText), mode, 0o644); err != nil { // #nosec G302 G304 -- as above
		return t, err
	}
	whole, text, err := readBoth(t.json, t.text)
	if err != nil {
		return t, err
	}
	torn := whole[bytes.LastIndexByte(whole, '\n')+1:]
	whole = whole[:len(whole)-len(torn)]
	if t.Record, err = parse(whole); err != nil {
		return t, err
	}
	t.whole = whole
	want := renderAll(t.Entries, whole)
	missing, ok := bytes.CutPrefix(want, text)
	if !ok {
		return t, differs()
	}
	if len(torn) > 0 {
		if err := t.json.Truncate(int64(len(whole))); err != nil {
			return t, err
		}
	}
	return t, write(t.text, missing)
}

// Close closes the files and releases the lock. Every entry was flushed by Append.
func (t *Transcript) Close() error {
	var errs []error
	for _, f := range []*os.File{t.text, t.json} { // the lock last
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// Append adds an entry with the current time to both files and flushes them to the disk. Control characters become
// spaces; a fact without a value is omitted. After a failed write every Append returns that error and writes nothing;
// OpenTranscript repairs the files.
func (t *Transcript) Append(step, outcome string, facts ...Fact) error {
	if t.failed != nil {
		return t.failed
	}
	entry := Entry{
		Number: len(t.Entries) + 1, Previous: t.Head, Time: time.Now().UTC().Format(time.RFC3339),
		Step: oneLine(step), Outcome: oneLine(outcome), Facts: []Fact{},
	}
	for _, f := range facts {
		if f.Value != "" {
			entry.Facts = append(entry.Facts, Fact{Name: oneLine(f.Name), Value: oneLine(f.Value)})
		}
	}
	line, err := encode(entry)
	if err != nil {
		return fmt.Errorf("transcript: %w", err)
	}
	if len(t.whole)+len(line) > maxTranscript/2 { // the text needs room too
		return fmt.Errorf("transcript: it would be larger than %d bytes", maxTranscript/2)
	}
	if err = write(t.json, line); err == nil {
		t.whole = append(t.whole, line...)
		t.Entries, t.Head = append(t.Entries, entry), sum(t.whole)
		err = write(t.text, render(entry, t.Head))
	}
	if err != nil {
		t.failed = fmt.Errorf("transcript: %w", err)
	}
	return t.failed
}

// ReadTranscript reads the transcript in a folder and checks it: every entry contains the SHA-256 of everything before
// it, and the text says the same as the JSON. Errors wrap ErrTranscript.
func ReadTranscript(dir string) (*Record, error) {
	var files [2]*os.File
	var err error
	for i, name := range []string{TranscriptJSON, TranscriptText} {
		if files[i], err = os.Open(filepath.Join(dir, name)); err != nil { // #nosec G304 -- the caller's own folder
			return nil, fault.Errorf("%w: %w", ErrTranscript, err).Fix("name the folder of a ceremony")
		}
		defer files[i].Close()
	}
	whole, text, err := readBoth(files[0], files[1])
	if err != nil {
		return nil, err
	}
	r, err := parse(whole)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(text, renderAll(r.Entries, whole)) {
		return nil, differs()
	}
	return &r, nil
}

func readBoth(jsonFile, textFile io.Reader) (whole, text []byte, err error) {
	for _, in := range []struct {
		from io.Reader
		to   *[]byte
		name string
	}{{jsonFile, &whole, TranscriptJSON}, {textFile, &text, TranscriptText}} {
		if *in.to, err = io.ReadAll(io.LimitReader(in.from, maxTranscript+1)); err != nil {
			return nil, nil, err
		}
		if len(*in.to) > maxTranscript {
			return nil, nil, fmt.Errorf("%w: %s is larger than %d bytes", ErrTranscript, in.name, maxTranscript)
		}
	}
	return whole, text, nil
}

const fixCutOff = "run the ceremony again if it was interrupted; otherwise compare both files with the signed copy"

func differs() error {
	return fault.Errorf("%w: %s does not say what %s says: one of them was changed, or a run was interrupted", ErrTranscript, TranscriptText, TranscriptJSON).Fix(fixCutOff)
}

// parse reads transcript.json and checks its hash chain.
func parse(whole []byte) (Record, error) {
	r := Record{Head: sum(nil)}
	for end := 0; end < len(whole); {
		n := bytes.IndexByte(whole[end:], '\n') + 1
		bad := func(format string, args ...any) (Record, error) {
			return Record{}, fmt.Errorf("%w: entry %d of %s: %s", ErrTranscript, len(r.Entries)+1, TranscriptJSON, fmt.Sprintf(format, args...))
		}
		if n == 0 {
			_, err := bad("it is incomplete")
			return Record{}, fault.WithHint(err, fixCutOff)
		}
		line := whole[end : end+n]
		var e Entry
		if err := json.Unmarshal(line, &e); err != nil {
			return bad("it is not the JSON of an entry")
		}
		// An entry has exactly one form: another form could hide something from a reader.
		again, err := encode(e)
		switch {
		case err != nil || !bytes.Equal(again, line):
			return bad("it is not in the form in which it was written")
		case e.multiline():
			return bad("a value with a control character, or of more than %d bytes", maxValue)
		case e.Number != len(r.Entries)+1:
			return bad("its number is %d", e.Number)
		case e.Previous != r.Head:
			return bad("an entry before it was changed: their SHA-256 is %s, and was %s", r.Head, fault.Clip(e.Previous, 64))
		}
		end += n
		r.Entries, r.Head = append(r.Entries, e), sum(whole[:end])
	}
	return r, nil
}

// multiline returns whether a value does not fit on one line of the text; Append writes no such value.
func (e Entry) multiline() bool {
	values := []string{e.Time, e.Step, e.Outcome}
	for _, f := range e.Facts {
		values = append(values, f.Name, f.Value)
	}
	return slices.ContainsFunc(values, func(s string) bool { return s != oneLine(s) })
}

func encode(e Entry) ([]byte, error) {
	var line bytes.Buffer
	enc := json.NewEncoder(&line)
	enc.SetEscapeHTML(false) // a reference contains '&'
	err := enc.Encode(e)
	return line.Bytes(), err
}

// renderAll returns the text of a transcript; whole is its JSON.
func renderAll(entries []Entry, whole []byte) []byte {
	var text bytes.Buffer
	end := 0
	for _, e := range entries {
		end += bytes.IndexByte(whole[end:], '\n') + 1
		text.Write(render(e, sum(whole[:end])))
	}
	return text.Bytes()
}

// render returns the text of one entry. head is the SHA-256 of transcript.json up to and including the entry.
func render(e Entry, head string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%d. %s: %s\n", e.Number, e.Step, e.Outcome)
	line := func(name, value string) {
		for _, part := range Group(value) {
			fmt.Fprintf(&b, "   %-24s %s\n", name, part)
			name = ""
		}
	}
	line("time", e.Time)
	for _, f := range e.Facts {
		if f.Name == FactSignature {
			fmt.Fprintf(&b, "\n   %-24s ________________________________  %s\n   %-24s ________________\n", f.Name, f.Value, "date")
			continue
		}
		line(f.Name, f.Value)
	}
	line("so far SHA-256", head)
	b.WriteByte('\n')
	return b.Bytes()
}

// Group returns the lines in which people compare a value. A SHA-256 in hex is two lines of eight groups of four digits;
// any other value is one line.
func Group(value string) []string {
	if _, err := hex.DecodeString(value); err != nil || len(value) != hex.EncodedLen(sha256.Size) {
		return []string{value}
	}
	groups := make([]string, 0, 16)
	for digits := range slices.Chunk([]byte(value), 4) {
		groups = append(groups, string(digits))
	}
	return []string{strings.Join(groups[:8], " "), strings.Join(groups[8:], " ")}
}

// write appends data and flushes it to the disk.
func write(f *os.File, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

func sum(data []byte) string {
	digest := sha256.Sum256(data)
	return hex.EncodeToString(digest[:])
}

func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	const cut = "..."
	if len(s) > maxValue {
		s = strings.ToValidUTF8(s[:maxValue-len(cut)], "") + cut
	}
	return s
}
