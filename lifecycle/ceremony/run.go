package ceremony

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/internal/wholefile"
	"hsmsign/keystore"
	"hsmsign/lifecycle/certreq"
	"hsmsign/lifecycle/vendorcert"
	"hsmsign/signer"
)

const (
	openTimeout     = 2 * time.Minute  // of opening the key, a person's typing included
	generateTimeout = 10 * time.Minute // of generating the key
	signTimeout     = time.Minute      // of one signature
)

// Config is one run of a ceremony.
type Config struct {
	Dir       string       // the ceremony's folder; made if it does not exist
	Key       keystore.Key // the key to generate; the same in each run
	Witnesses []string     // the people present, as NAME or NAME=ROLE
	// Subject returns the subject of the vendor's CSR; it is called until the CSR is written.
	Subject func() (certreq.Subject, error)
	Program string  // name and version of the program, for the transcript
	Import  *Import // the certificate that Apple issued; nil: there is none yet
	// Confirm asks whether to make the key; an error ends the run. Nil: nobody is asked.
	Confirm func(ctx context.Context) error
	Check   func(signer.Step) // is called for each step of the store's diagnosis, if it is not nil
	Report  func(step string) // is called after each recorded step, if it is not nil
}

// Import is the certificate that Apple issued for the ceremony's CSR.
type Import struct {
	Name    string // what errors call the file
	File    []byte // PEM, DER or PKCS#7
	Options vendorcert.ImportOptions
	Store   bool // also store the certificate with the key
}

// State is how far a ceremony is.
type State int

// The states after a successful run.
const (
	Waiting  State = iota // the CSR is written; Apple's certificate is missing
	Complete              // the certificate is imported
)

// Result is a successful run.
type Result struct {
	State    State
	Already  bool            // an earlier run reached the state, and this one did nothing
	Findings []fault.Finding // about the imported certificate: warnings and notes
}

// run is one run in progress.
type run struct {
	*Transcript
	Config
	subject  certreq.Subject
	findings []fault.Finding
}

// Run takes the steps of the ceremony that are missing. The transcript in the folder is the state: after an interruption
// the next run completes it, and a second key is never made. A failed step is recorded in the transcript.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	c, err := begin(cfg)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }() // every entry was flushed
	switch {
	case c.done(StepComplete):
		return &Result{State: Complete, Already: true}, nil
	case c.done(StepWait) && c.Import == nil:
		return &Result{State: Waiting, Already: true}, nil
	}
	if err := c.steps(ctx); err != nil {
		return nil, err
	}
	state := Waiting
	if c.Import != nil {
		state = Complete
	}
	return &Result{State: state, Findings: c.findings}, nil
}

func (c *run) done(step string) bool { _, ok := c.Done(step); return ok }

// begin checks everything that was given before anything is written or made, and opens the transcript.
func begin(cfg Config) (*run, error) {
	if cfg.Report == nil {
		cfg.Report = func(string) {}
	}
	if cfg.Check == nil {
		cfg.Check = func(signer.Step) {}
	}
	c := &run{Config: cfg}
	if err := CheckWitnesses(c.Witnesses); err != nil {
		return nil, err
	}
	if _, err := os.Lstat(filepath.Join(c.Dir, TranscriptJSON)); err != nil { // the first run
		if _, err := c.Subject(); err != nil {
			return nil, err
		}
		if c.Import != nil {
			return nil, fault.Usage.Errorf("no ceremony has begun in %q", c.Dir).Fix("run it without --certificate first: that makes the key and the CSR")
		}
	}
	if err := os.MkdirAll(c.Dir, 0o750); err != nil {
		return nil, fault.Usage.Errorf("make the folder: %w", err).Fix("name another --dir")
	}
	var err error
	if c.Transcript, err = OpenTranscript(c.Dir); err != nil {
		return nil, err
	}
	if !c.done(StepCSR) {
		c.subject, err = c.Subject()
	}
	if err == nil && len(c.Entries) > 0 {
		_, err = Verify(c.Dir)
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// steps takes the steps that are missing.
func (c *run) steps(ctx context.Context) error {
	if err := c.record(); err != nil {
		return err
	}
	key, facts, err := c.key(ctx)
	if err != nil {
		return c.failed(StepGenerate, err, nil)
	}
	defer func() { _ = key.Close() }()
	take := func(name string, do func(context.Context, signer.Signer) ([]Fact, error)) {
		if err == nil && !c.done(name) {
			err = c.take(name, func() ([]Fact, error) { return do(ctx, key) })
		}
	}
	take(StepGenerate, func(context.Context, signer.Signer) ([]Fact, error) { return facts, nil })
	take(StepExamine, c.examine)
	take(StepCSR, c.csr)
	if c.Import == nil {
		take(StepWait, c.signatures)
	} else {
		take(StepImport, c.certificate)
		take(StepComplete, c.signatures)
	}
	return err
}

// take takes one step and records its outcome.
func (c *run) take(name string, do func() ([]Fact, error)) error {
	facts, err := do()
	if err != nil {
		return c.failed(name, err, facts)
	}
	if err := c.Append(name, OK, facts...); err != nil {
		return err
	}
	c.Report(name)
	return nil
}

// failed records why a step failed and returns that error, joined with the error of the recording if that failed too.
func (c *run) failed(name string, err error, facts []Fact) error {
	if errors.Is(err, context.Canceled) {
		err = fault.Interrupted.Errorf("interrupted at the step %q", name).Fix("run it again to complete the ceremony")
	}
	if recordErr := c.Append(name, "failed: "+err.Error(), facts...); !errors.Is(err, recordErr) {
		return errors.Join(err, recordErr)
	}
	return err
}

// record writes down who is present, and with which program, module and machine.
func (c *run) record() error {
	facts := []Fact{{FactReference, c.Key.String()}, {"program", c.Program}}
	if path, err := os.Executable(); err == nil {
		facts = append(facts, fileFact("program SHA-256", path))
	}
	if path, ok := c.Key.Ref.Query("module-path"); ok {
		facts = append(facts, Fact{"module", path}, fileFact("module SHA-256", path))
	}
	if host, err := os.Hostname(); err == nil {
		facts = append(facts, Fact{"machine", host})
	}
	for _, name := range c.Witnesses {
		facts = append(facts, Fact{"witness", person(name)})
	}
	return c.Append(StepBegin, OK, facts...)
}

// maxHashed bounds the files whose SHA-256 is in the transcript: modules and this program have some 10 MB.
const maxHashed = 256 << 20

func fileFact(name, path string) Fact {
	sum, err := hashFile(path)
	if err != nil {
		sum = "unknown: " + err.Error()
	}
	return Fact{name, sum}
}

func hashFile(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() || info.Size() > maxHashed {
		return "", errors.New("not a regular file of reasonable size")
	}
	f, err := os.Open(path) // #nosec G304 -- the program's own file, or a module that is about to be loaded
	if err != nil {
		return "", err
	}
	defer f.Close()
	digest := sha256.New()
	_, err = io.Copy(digest, io.LimitReader(f, maxHashed))
	return hex.EncodeToString(digest.Sum(nil)), err
}

// signatures ends a part of the ceremony with lines for the witnesses to sign on.
func (c *run) signatures(context.Context, signer.Signer) ([]Fact, error) {
	var facts []Fact
	for _, name := range c.Witnesses {
		facts = append(facts, Fact{FactSignature, person(name)})
	}
	return facts, nil
}

// output writes a file of the ceremony. A file that an interrupted run left behind is accepted if it is identical.
func (c *run) output(name string, data []byte) (Fact, error) {
	fact := Fact{FactFileSHA256, sum(data)}
	path := filepath.Join(c.Dir, name)
	wholefile.Sweep(c.Dir)
	err := wholefile.Write(path, data, 0o644, false)
	if !errors.Is(err, fs.ErrExist) {
		return fact, err
	}
	found, err := readFile(path)
	if err == nil && !bytes.Equal(found, data) {
		err = fault.Usage.Errorf("%q exists and is not of this ceremony", path).Fix("move it away, or name another --dir")
	}
	return fact, err
}

// open opens the key within the time limit.
func (c *run) open(ctx context.Context) (signer.Signer, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	return c.Key.Open(ctx, signer.OpenOptions{})
}

// key opens the ceremony's key, and generates it unless an earlier run did. A second key is never made: the transcript
// and the store must agree.
func (c *run) key(ctx context.Context) (signer.Signer, []Fact, error) {
	key, err := c.open(ctx)
	absent := errors.Is(err, signer.ErrKeyNotFound)
	if err != nil && !absent {
		return nil, nil, err
	}
	_, begun := c.Generating()
	if err := c.checkKey(key, err); err != nil {
		if key != nil {
			_ = key.Close()
		}
		return nil, nil, err
	}
	if c.done(StepGenerate) {
		return key, nil, nil
	}
	how := "an interrupted run made it"
	if absent {
		how = "made now"
		key, err = c.generate(ctx, begun)
	} else if err = c.checkFound(ctx, key); err != nil {
		_ = key.Close()
	}
	if err != nil {
		return nil, nil, err
	}
	return key, []Fact{{"how", how}, {FactReference, c.Key.String()}, {FactKeySHA256, chain.SPKISHA256(key.Public())}}, nil
}

// checkKey holds what is in the store to what the transcript says. The key is nil if it was not found, for the reason
// notFound.
func (c *run) checkKey(key signer.Signer, notFound error) error {
	made, wasMade := c.Done(StepGenerate)
	begun, wasBegun := c.Generating()
	switch {
	case wasMade && key == nil:
		return fault.Errorf("the key of this ceremony is gone: %w", notFound).
			Fix("no second one is made; find the first, or begin a new ceremony in another --dir")
	case wasMade:
		if sum := chain.SPKISHA256(key.Public()); sum != made.Fact(FactKeySHA256) {
			return fmt.Errorf("%w: %s is not the key of this ceremony: it has SHA-256 %s, and entry %d records %s", signer.ErrBadKey,
				c.Key, sum, made.Number, made.Fact(FactKeySHA256))
		}
	case wasBegun && begun.Fact(FactReference) != c.Key.String():
		return fault.Usage.Errorf("an interrupted run began to make %s, and may have made it", begun.Fact(FactReference)).Fix("name the same --key")
	case key != nil && !wasBegun:
		return fault.Errorf("%w: %s; a ceremony makes its own", signer.ErrKeyExists, c.Key).Fix("name a key that does not exist")
	}
	return nil
}

// checkFound holds a key that an interrupted run may have made to the protections of a generated one: meanwhile, someone
// else may have stored a key of that name.
func (c *run) checkFound(ctx context.Context, key signer.Signer) error {
	info, err := c.describe(ctx, key)
	if err != nil {
		return err
	}
	if wrong := info.Unprotected(); len(wrong) > 0 {
		return fault.Errorf("%w: %s was not made by this ceremony: %s", signer.ErrBadKey, c.Key, strings.Join(wrong, ", ")).
			Fix("find out who stored it; begin a new ceremony in another --dir with another key name")
	}
	return nil
}

// describe returns the store's description of the key within the time limit.
func (c *run) describe(ctx context.Context, key signer.Signer) (signer.KeyInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	return c.Key.Describe(ctx, key)
}

// generate makes the key. The decision is flushed to the transcript before: a run that is killed in between leaves a
// trace. Before the decision the store is checked as far as it goes without the key, and the people confirm it.
func (c *run) generate(ctx context.Context, begun bool) (signer.Signer, error) {
	if !begun {
		checks, err := c.diagnose(ctx, false)
		if err != nil {
			return nil, err
		}
		if c.Confirm != nil {
			if err := c.Confirm(ctx); err != nil {
				return nil, err
			}
		}
		if err := c.Append(StepIntent, OK, append([]Fact{{FactReference, c.Key.String()}}, checks...)...); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, generateTimeout)
	defer cancel()
	return c.Key.Generate(ctx, signer.KeySpec{Bits: vendorcert.KeyBits})
}
