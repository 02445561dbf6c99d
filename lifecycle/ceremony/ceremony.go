// Package ceremony makes the vendor key before witnesses and keeps a transcript of it.
//
//	t, err := ceremony.OpenTranscript(dir)
//	err = t.Append(ceremony.StepCSR, ceremony.OK, ceremony.Fact{Name: "SHA-256", Value: sum})
//
// A Transcript is for one goroutine; its folder is locked against other processes while it is open.
package ceremony

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/lifecycle/vendorcert"
)

// The steps of a ceremony, in order.
const (
	StepBegin    = "begin"              // who is there, with which program, for which key
	StepIntent   = "generate, begun"    // no such key is there, and one is about to be made
	StepGenerate = "generate"           // the key, as its store describes it
	StepExamine  = "examine"            // the key's properties; module and token, step by step
	StepCSR      = "csr"                // vendor.csr was written
	StepWait     = "wait for Apple"     // end of the first part
	StepImport   = "import certificate" // vendor.pem was written
	StepComplete = "complete"           // end of the second part
)

// OK is the outcome of a step that went well.
const OK = "ok"

// The names of facts that are looked up again.
const (
	FactReference  = "key reference"
	FactKeySHA256  = "key SHA-256"
	FactFileSHA256 = "file SHA-256"
	FactSignature  = "signature" // a line for a witness to sign on
)

// MinWitnesses is how many people see a ceremony at least.
const MinWitnesses = 2

// maxWitness is the most characters of a witness's name.
const maxWitness = 64

// ErrWitness is the family of witnesses that a transcript cannot name: none, too few, one twice.
var ErrWitness = fault.Usage.New("unusable value")

// CheckWitnesses refuses names that do not say who was there; the error is one that wraps ErrWitness.
func CheckWitnesses(names []string) error {
	seen := map[string]bool{}
	for _, name := range names {
		switch folded := strings.ToLower(strings.Join(strings.Fields(name), " ")); {
		case folded == "" || name != oneLine(name) || utf8.RuneCountInString(name) > maxWitness:
			return fault.Errorf("%w: the witness %q", ErrWitness, fault.Clip(name, 64)).Fix(fmt.Sprintf("write a name of at most %d characters", maxWitness))
		case seen[folded]:
			return fault.Errorf("%w: the witness %q is named twice", ErrWitness, name).Fix("name two people")
		default:
			seen[folded] = true
		}
	}
	if len(names) < MinWitnesses {
		return fault.Errorf("%w: %d witnesses; a ceremony has %d or more", ErrWitness, len(names), MinWitnesses).Fix("name each with --witness")
	}
	return nil
}

// Done is the entry of a step that ended well, if there is one.
func (r *Record) Done(step string) (Entry, bool) {
	i := slices.IndexFunc(r.Entries, func(e Entry) bool { return e.Step == step && e.Outcome == OK })
	if i < 0 {
		return Entry{}, false
	}
	return r.Entries[i], true
}

// Generating is whether a run was cut off between the decision to make a key and the record of it. The entry is
// that of the decision.
func (r *Record) Generating() (Entry, bool) {
	for _, e := range slices.Backward(r.Entries) {
		switch e.Step {
		case StepIntent:
			return e, true
		case StepGenerate:
			return Entry{}, false
		}
	}
	return Entry{}, false
}

// Verify checks the transcript of a finished or waiting ceremony (ReadTranscript), and that the folder's vendor.csr
// and vendor.pem are what it tells of. What is wrong wraps ErrTranscript.
func Verify(dir string) (*Record, error) {
	r, err := ReadTranscript(dir)
	if err != nil {
		return nil, err
	}
	if len(r.Entries) == 0 {
		return nil, fmt.Errorf("%w: it is empty", ErrTranscript)
	}
	made, _ := r.Done(StepGenerate)
	for _, file := range []struct {
		step, name string
		key        func([]byte) string
	}{{StepCSR, CSRFile, csrKey}, {StepImport, BundleFile, bundleKey}} {
		entry, done := r.Done(file.step)
		if !done {
			continue
		}
		data, err := readFile(filepath.Join(dir, file.name))
		switch {
		case err != nil:
			return nil, fmt.Errorf("%w: %w", ErrTranscript, err)
		case sum(data) != entry.Fact(FactFileSHA256):
			return nil, fmt.Errorf("%w: %s has SHA-256 %s, entry %d says %s", ErrTranscript, file.name, sum(data), entry.Number, entry.Fact(FactFileSHA256))
		case file.key(data) != made.Fact(FactKeySHA256):
			return nil, fmt.Errorf("%w: %s is not of the key that entry %d tells of", ErrTranscript, file.name, made.Number)
		}
	}
	return r, nil
}

// csrKey and bundleKey are the SPKI SHA-256 of the file; empty where it cannot be read.
func csrKey(data []byte) string {
	csr := vendorcert.FindCSR(data)
	if csr == nil || csr.CheckSignature() != nil {
		return ""
	}
	return chain.SPKISHA256(csr.PublicKey)
}

func bundleKey(data []byte) string {
	block, _ := pem.Decode(data)
	if block == nil {
		return ""
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return ""
	}
	return chain.SPKISHA256(cert.PublicKey)
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path) // #nosec G304 -- the caller's own folder
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, chain.MaxFile))
}
