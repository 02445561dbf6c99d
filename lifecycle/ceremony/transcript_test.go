package ceremony

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hsmsign/internal/testkit"

	"github.com/google/go-cmp/cmp"
)

// sample is a transcript of three entries, and its two files.
func sample(t *testing.T) (dir string, jsonFile, textFile []byte) {
	t.Helper()
	dir = t.TempDir()
	tr, err := OpenTranscript(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tr.Close() }()
	for _, err := range []error{
		tr.Append(StepBegin, OK, Fact{FactReference, "pkcs11:token=a?module-path=/m.so&x=<y>"}, Fact{"empty", ""}),
		tr.Append("two\nlines", "failed: it\x1b[31m is \"so\"", Fact{"name", strings.Repeat("x", maxValue+10)}),
		tr.Append(StepComplete, OK, Fact{FactSignature, "A. Adams"}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir, read(t, dir, TranscriptJSON), read(t, dir, TranscriptText)
}

func read(t *testing.T, dir, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func put(t *testing.T, dir string, jsonFile, textFile []byte) {
	t.Helper()
	for name, data := range map[string][]byte{TranscriptJSON: jsonFile, TranscriptText: textFile} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTranscript(t *testing.T) {
	dir, jsonFile, textFile := sample(t)
	r, err := ReadTranscript(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Entries) != 3 || r.Head != sum(jsonFile) || r.Entries[2].Previous != sum(jsonFile[:bytes.LastIndexByte(jsonFile[:len(jsonFile)-1], '\n')+1]) {
		t.Errorf("%d entries, head %s", len(r.Entries), r.Head)
	}
	if got := r.Entries[0].Facts; !cmp.Equal(got, []Fact{{FactReference, "pkcs11:token=a?module-path=/m.so&x=<y>"}}) {
		t.Errorf("facts %v", got)
	}
	if bytes.ContainsAny(textFile, "\x1b\r") || !bytes.Contains(textFile, []byte("\n2. two lines: failed: it [31m is \"so\"\n")) {
		t.Errorf("a control character got in:\n%s", textFile)
	}
	if !bytes.Contains(textFile, []byte("________  A. Adams\n")) || !strings.HasSuffix(string(textFile), Group(r.Head)[1]+"\n\n") {
		t.Errorf("no line to sign on, or another SHA-256 at the end:\n%s", textFile)
	}
	// It goes on where it was.
	tr, err := OpenTranscript(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(tr.Append(StepBegin, OK), tr.Close()); err != nil {
		t.Fatal(err)
	}
	if more := read(t, dir, TranscriptJSON); !bytes.HasPrefix(more, jsonFile) || !bytes.HasPrefix(read(t, dir, TranscriptText), textFile) {
		t.Error("what was written was written again")
	}
	if r, err = ReadTranscript(dir); err != nil || len(r.Entries) != 4 {
		t.Errorf("%v", err)
	}
}

// Any byte that is changed, taken out or put in, in either file, shows.
func TestTranscriptShowsEdits(t *testing.T) {
	dir, jsonFile, textFile := sample(t)
	broken := func(what string, j, x []byte) {
		t.Helper()
		put(t, dir, j, x)
		if _, err := ReadTranscript(dir); !errors.Is(err, ErrTranscript) {
			t.Fatalf("%s: %v", what, err)
		}
	}
	for _, file := range []struct {
		name string
		data []byte
		with func(b []byte) (j, x []byte)
	}{
		{TranscriptJSON, jsonFile, func(b []byte) ([]byte, []byte) { return b, textFile }},
		{TranscriptText, textFile, func(b []byte) ([]byte, []byte) { return jsonFile, b }},
	} {
		for i := 0; i < len(file.data); i += 7 {
			for what, edited := range map[string][]byte{
				"changed":   append(append(bytes.Clone(file.data[:i]), file.data[i]^1), file.data[i+1:]...),
				"taken out": append(bytes.Clone(file.data[:i]), file.data[i+1:]...),
				"put in":    append(append(bytes.Clone(file.data[:i]), ' '), file.data[i:]...),
			} {
				if bytes.Equal(edited, file.data) {
					continue
				}
				j, x := file.with(edited)
				broken(file.name+" "+what, j, x)
			}
		}
	}
	// An entry that is changed in both files breaks the chain of those behind it.
	edited := bytes.ReplaceAll(jsonFile, []byte("/m.so"), []byte("/n.so"))
	var entries []Entry
	for line := range bytes.Lines(edited) {
		var e Entry
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
	}
	broken("first entry in both", edited, renderAll(entries, edited))
	lines := bytes.SplitAfter(jsonFile, []byte("\n"))
	broken("an entry taken out", bytes.Join([][]byte{lines[0], lines[2]}, nil), textFile)
	put(t, dir, jsonFile, textFile)
	if _, err := ReadTranscript(dir); err != nil {
		t.Errorf("as it was: %v", err)
	}
	for _, name := range []string{TranscriptJSON, TranscriptText} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadTranscript(dir); !errors.Is(err, ErrTranscript) || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("without %s: %v", name, err)
		}
	}
}

// A kill leaves a beginning of what is written: first the line of JSON, then the text. Wherever it was cut, the next
// run goes on, and what it leaves holds.
func TestTranscriptAfterKill(t *testing.T) {
	dir, jsonFile, textFile := sample(t)
	lines := bytes.SplitAfter(jsonFile, []byte("\n"))
	whole := bytes.Join(lines[:2], nil)
	before := bytes.Index(textFile, []byte("\n3. ")) + 1
	for cut := len(whole); cut <= len(jsonFile); cut += 11 {
		checkResumed(t, dir, jsonFile[:cut], textFile[:before])
	}
	for cut := before; cut <= len(textFile); cut += 11 {
		checkResumed(t, dir, jsonFile, textFile[:cut])
	}
	checkResumed(t, dir, nil, nil)
	// A text that says more than the JSON was not left by a kill.
	put(t, dir, whole, textFile)
	if _, err := OpenTranscript(dir); !errors.Is(err, ErrTranscript) {
		t.Errorf("an entry taken off the end: %v", err)
	}
	put(t, dir, jsonFile[:len(jsonFile)-5], textFile)
	if _, err := OpenTranscript(dir); !errors.Is(err, ErrTranscript) {
		t.Errorf("an entry cut at the end: %v", err)
	}
	if got := read(t, dir, TranscriptJSON); !bytes.Equal(got, jsonFile[:len(jsonFile)-5]) {
		t.Error("a transcript that is refused was written to")
	}
}

func checkResumed(t *testing.T, dir string, jsonFile, textFile []byte) {
	t.Helper()
	put(t, dir, jsonFile, textFile)
	tr, err := OpenTranscript(dir)
	if err != nil {
		t.Fatalf("%d and %d bytes: %v", len(jsonFile), len(textFile), err)
	}
	n := len(tr.Entries)
	if n != bytes.Count(jsonFile, []byte("\n")) {
		t.Errorf("%d bytes: %d entries", len(jsonFile), n)
	}
	if err := errors.Join(tr.Append(StepBegin, OK), tr.Close()); err != nil {
		t.Fatal(err)
	}
	if r, err := ReadTranscript(dir); err != nil || len(r.Entries) != n+1 {
		t.Fatalf("%d and %d bytes: %v", len(jsonFile), len(textFile), err)
	}
}

// Behind half an entry nothing is written: the next run could not tell what belongs together.
func TestTranscriptAfterFailedWrite(t *testing.T) {
	for _, name := range []string{TranscriptJSON, TranscriptText} {
		dir, _, _ := sample(t)
		tr, err := OpenTranscript(dir)
		if err != nil {
			t.Fatal(err)
		}
		full := &tr.text
		if name == TranscriptJSON {
			full = &tr.json
		}
		works := *full
		if *full, err = os.Open(filepath.Join(dir, name)); err != nil { // cannot be written to, as on a full disk
			t.Fatal(err)
		}
		first := tr.Append(StepCSR, OK)
		*full = works
		if again := tr.Append(StepCSR, "failed"); first == nil || !errors.Is(again, first) {
			t.Errorf("%s: %v, then %v", name, first, again)
		}
		if err := tr.Close(); err != nil {
			t.Fatal(err)
		}
		if tr, err = OpenTranscript(dir); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := errors.Join(tr.Append(StepCSR, OK), tr.Close()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := ReadTranscript(dir); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTranscriptIsLocked(t *testing.T) {
	dir, _, _ := sample(t)
	tr, err := OpenTranscript(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenTranscript(dir); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("opened twice: %v", err)
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := OpenTranscript(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

func TestTranscriptIsBounded(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, bytes.Repeat([]byte("x"), maxTranscript+1), nil)
	for _, open := range []func() error{
		func() error { _, err := ReadTranscript(dir); return err },
		func() error { _, err := OpenTranscript(dir); return err },
	} {
		if err := open(); !errors.Is(err, ErrTranscript) || !strings.Contains(err.Error(), "larger than") {
			t.Errorf("%v", err)
		}
	}
}

// FuzzParse: what is read as a transcript is, byte for byte, what its entries are written as, and each of them stands
// on lines of its own in the text.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"number":1,"previous":"` + sum(nil) + `","time":"2026-11-20T12:00:00Z","step":"begin","outcome":"ok","facts":[{"name":"a","value":"b"}]}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parse(data)
		if err != nil {
			if !errors.Is(err, ErrTranscript) {
				t.Fatal(err)
			}
			return
		}
		var again []byte
		lines := 0
		for i, e := range r.Entries {
			line, err := encode(e)
			if err != nil || e.Previous != sum(again) || e.Number != i+1 {
				t.Fatalf("entry %d: %v", i+1, err)
			}
			again = append(again, line...)
			lines += 5 // title, time, two of the SHA-256, empty
			for _, fact := range e.Facts {
				if fact.Name == FactSignature {
					lines += 3
				} else {
					lines += len(Group(fact.Value))
				}
			}
		}
		if !bytes.Equal(again, data) || r.Head != sum(data) {
			t.Errorf("%q is written as %q", data, again)
		}
		if text := renderAll(r.Entries, data); bytes.Count(text, []byte("\n")) != lines {
			t.Errorf("%d lines, want %d:\n%s", bytes.Count(text, []byte("\n")), lines, text)
		}
	})
}

func TestFuzzCorpus(t *testing.T) {
	for _, target := range []string{"FuzzParse"} {
		if entries, err := os.ReadDir(filepath.Join("testdata", "fuzz", target)); err != nil || len(entries) == 0 {
			t.Errorf("the seed corpus of %s is empty: %v", target, err)
		}
	}
}

// TestWriteFlushes: a pipe accepts the data, and cannot be flushed.
func TestWriteFlushes(t *testing.T) {
	r, w, err := os.Pipe()
	testkit.OK(t, err)
	defer r.Close()
	defer w.Close()
	if err := write(w, []byte("x")); err == nil {
		t.Error("no flush")
	}
}
