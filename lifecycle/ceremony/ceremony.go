// Package ceremony generates the vendor key before witnesses, makes its CSR and, days later, imports the certificate. It
// keeps a transcript, which is also the state: Run takes the steps that are missing, so an interrupted run is completed
// by running it again, and a second key is never made. Verify checks a finished or waiting ceremony.
//
// transcript.json has an Entry a line, and each entry contains the SHA-256 of everything before it; transcript.txt says
// the same for people, who print and sign it. Without the signed paper neither proves anything: anybody who can write to
// the folder can rewrite both.
//
// A Transcript is for one goroutine; its folder is locked against other processes while it is open. The functions are
// safe for concurrent use on different folders.
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
	StepBegin    = "begin"              // who is present, with which program, for which key
	StepIntent   = "generate, begun"    // the key does not exist, and is about to be made
	StepGenerate = "generate"           // the key exists
	StepExamine  = "examine"            // the key's properties, and the diagnosis of its store
	StepCSR      = "csr"                // vendor.csr was written
	StepWait     = "wait for Apple"     // end of the first part
	StepImport   = "import certificate" // vendor.pem was written
	StepComplete = "complete"           // end of the second part
)

// OK is the outcome of a successful step.
const OK = "ok"

// The names of facts that later steps and Verify read.
const (
	FactReference  = "key reference"
	FactKeySHA256  = "key SHA-256"
	FactFileSHA256 = "file SHA-256"
	FactSignature  = "signature" // a line for a witness to sign on
)

// MinWitnesses is the least number of witnesses.
const MinWitnesses = 2

// maxWitness is the maximum length of a witness's name with its role, in characters.
const maxWitness = 64

// ErrWitness means that the witnesses are too few, or one has no usable name or is named twice.
var ErrWitness = fault.Usage.New("unusable value")

// CheckWitnesses returns an error that wraps ErrWitness unless the witnesses, NAME or NAME=ROLE, are at least MinWitnesses
// people.
func CheckWitnesses(witnesses []string) error {
	seen := map[string]bool{}
	for _, witness := range witnesses {
		name, role, hasRole := strings.Cut(witness, "=")
		switch folded := strings.ToLower(strings.Join(strings.Fields(name), " ")); {
		case folded == "" || hasRole && strings.TrimSpace(role) == "" || witness != oneLine(witness) || utf8.RuneCountInString(witness) > maxWitness:
			return fault.Errorf("%w: the witness %q", ErrWitness, fault.Clip(witness, 64)).
				Fix(fmt.Sprintf("write NAME or NAME=ROLE, of at most %d characters", maxWitness))
		case seen[folded]:
			return fault.Errorf("%w: the witness %q is named twice", ErrWitness, name).Fix("name two people")
		default:
			seen[folded] = true
		}
	}
	if len(witnesses) < MinWitnesses {
		return fault.Errorf("%w: %d witnesses; a ceremony has %d or more", ErrWitness, len(witnesses), MinWitnesses).Fix("name each with --witness")
	}
	return nil
}

// person returns a witness as the transcript shows it: "NAME" or "NAME, ROLE".
func person(witness string) string { return strings.Replace(witness, "=", ", ", 1) }

// Done returns the entry of a successful step, and whether there is one.
func (r *Record) Done(step string) (Entry, bool) {
	i := slices.IndexFunc(r.Entries, func(e Entry) bool { return e.Step == step && e.Outcome == OK })
	if i < 0 {
		return Entry{}, false
	}
	return r.Entries[i], true
}

// Generating returns whether a run was interrupted between the decision to make a key and the record that it exists. The
// entry is that of the decision.
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

// Verify checks the transcript of a finished or waiting ceremony (ReadTranscript), and that the folder's vendor.csr and
// vendor.pem are the files that it records. Errors wrap ErrTranscript.
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
			return nil, fmt.Errorf("%w: %s has SHA-256 %s, entry %d records %s", ErrTranscript, file.name, sum(data), entry.Number, entry.Fact(FactFileSHA256))
		case file.key(data) != made.Fact(FactKeySHA256):
			return nil, fmt.Errorf("%w: %s is not of the key that entry %d records", ErrTranscript, file.name, made.Number)
		}
	}
	return r, nil
}

// csrKey and bundleKey return the SPKI SHA-256 of the file; "" if it cannot be read.
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
