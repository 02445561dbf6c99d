package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"hsmsign/fault"
	ceremonies "hsmsign/lifecycle/ceremony"

	"github.com/urfave/cli/v2"

	"hsmsign/chain"
	"hsmsign/lifecycle/certreq"
	"hsmsign/signer"
)

func (p *program) ceremonyCommand() *cli.Command {
	return &cli.Command{
		Name:  "ceremony",
		Usage: "generate the vendor key, make its CSR and, days later, import the certificate, with a transcript to sign",
		Description: "The state is what lies in the folder, so a run that was cut off is completed by running it again; a second key is\n" +
			"never made. transcript.txt is for people, transcript.json says the same; each entry holds the SHA-256 of all before.\n\n" +
			"  hsmsign vendor ceremony --dir ceremony/ --witness 'A. Adams' --witness 'B. Brown' \\\n" +
			"      --key 'pkcs11:token=mdm;object=vendor-2027?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:pin' \\\n" +
			"      --common-name 'Example MDM' --email mdm@example.com --country US\n" +
			"  hsmsign vendor ceremony --dir ceremony/ --witness 'A. Adams' --witness 'B. Brown' --key ... \\\n" +
			"      --certificate mdm.cer --fetch\n" +
			"  hsmsign vendor ceremony --verify ceremony/",
		Flags: append(append([]cli.Flag{
			stringFlag("dir", "`FOLDER` of the ceremony, made if it does not exist"),
			keyFlag(),
			listFlag("witness", "`NAME` of a person who is there; two at least"),
			stringFlag("certificate", "`FILE` that Apple's developer portal made of the CSR"),
			stringFlag("verify", "check the transcript in `FOLDER`, and do nothing else"),
			vendorFlag(), configFlag(),
		}, subjectFlags()...), importFlags()...),
		Action: p.vendorCeremony,
	}
}

// ceremony is one run of it.
type ceremony struct {
	*ceremonies.Transcript
	p         *program
	job       *keyJob
	dir       string
	witnesses []string
	subject   certreq.Subject
	in        *importing // nil: there is no certificate yet
}

func (p *program) vendorCeremony(cliCtx *cli.Context) error {
	s, err := p.startNone(cliCtx)
	if err != nil {
		return err
	}
	if dir, _ := s.str("verify"); dir != "" {
		return p.verifyCeremony(dir)
	}
	c, err := p.newCeremony(cliCtx)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	switch {
	case c.done(ceremonies.StepComplete):
		p.ui.info("the ceremony in %q is complete; check it with --verify", c.dir)
		return nil
	case c.done(ceremonies.StepWait) && c.in == nil:
		c.waiting()
		return nil
	}
	return c.run(cliCtx.Context)
}

func (c *ceremony) done(step string) bool { _, ok := c.Done(step); return ok }

// newCeremony reads and checks all that the command line gives before anything is written or made.
func (p *program) newCeremony(cliCtx *cli.Context) (*ceremony, error) {
	job, _, err := p.newKeyJob(cliCtx, false)
	if err != nil {
		return nil, err
	}
	c := &ceremony{p: p, job: job}
	if c.dir, _ = job.str("dir"); c.dir == "" {
		return nil, usage("name the ceremony's folder with --dir", "no folder given")
	}
	c.witnesses, _ = job.list("witness")
	if err := ceremonies.CheckWitnesses(c.witnesses); err != nil {
		return nil, err
	}
	if name, _ := job.str("certificate"); name != "" {
		if c.in, err = p.readImport(cliCtx.Context, job, name); err != nil {
			return nil, err
		}
	}
	if _, err := os.Lstat(filepath.Join(c.dir, ceremonies.TranscriptJSON)); err != nil {
		// The first run: before the folder is made.
		if c.subject, err = job.subject(); err != nil {
			return nil, err
		}
		if c.in != nil {
			return nil, usage("run it without --certificate first: it makes the key and the CSR", "no ceremony has begun in %q", c.dir)
		}
	}
	if err := os.MkdirAll(c.dir, 0o750); err != nil {
		return nil, usage("name another --dir", "make the folder: %w", err)
	}
	if c.Transcript, err = ceremonies.OpenTranscript(c.dir); err != nil {
		return nil, err
	}
	if !c.done(ceremonies.StepCSR) {
		c.subject, err = job.subject()
	}
	if err == nil && len(c.Entries) > 0 {
		_, err = ceremonies.Verify(c.dir)
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// run takes the steps that are still to be taken.
func (c *ceremony) run(ctx context.Context) error {
	if err := c.begin(); err != nil {
		return err
	}
	key, facts, err := c.key(ctx)
	if err != nil {
		return c.failed(ceremonies.StepGenerate, err, nil)
	}
	defer func() { _ = key.Close() }()
	take := func(name string, do func(context.Context, signer.Signer) ([]ceremonies.Fact, error)) {
		if err == nil && !c.done(name) {
			err = c.take(name, func() ([]ceremonies.Fact, error) { return do(ctx, key) })
		}
	}
	take(ceremonies.StepGenerate, func(context.Context, signer.Signer) ([]ceremonies.Fact, error) { return facts, nil })
	take(ceremonies.StepExamine, c.examine)
	take(ceremonies.StepCSR, c.csr)
	if c.in == nil {
		take(ceremonies.StepWait, c.sign)
		if err == nil {
			c.waiting()
		}
		return err
	}
	take(ceremonies.StepImport, c.certificate)
	take(ceremonies.StepComplete, c.sign)
	if err == nil {
		c.p.ui.info("print and sign %s; %s is for --cert", filepath.Join(c.dir, ceremonies.TranscriptText), filepath.Join(c.dir, ceremonies.BundleFile))
	}
	return err
}

// take takes one step and writes down how it went.
func (c *ceremony) take(name string, do func() ([]ceremonies.Fact, error)) error {
	facts, err := do()
	if err != nil {
		return c.failed(name, err, facts)
	}
	if err := c.Append(name, ceremonies.OK, facts...); err != nil {
		return err
	}
	c.p.ui.info("wrote down: %s", name)
	return nil
}

// failed writes down why a step failed, and gives that error; it may be that nothing can be written down any more.
func (c *ceremony) failed(name string, err error, facts []ceremonies.Fact) error {
	if told := c.Append(name, "failed: "+err.Error(), facts...); !errors.Is(err, told) {
		return errors.Join(err, told)
	}
	return err
}

// begin says who is there, with what.
func (c *ceremony) begin() error {
	version := readVersion()
	program := strings.Join(strings.Fields("hsmsign "+version.Version+" "+version.Revision+" "+version.Go+" "+version.Platform), " ")
	facts := []ceremonies.Fact{
		{Name: ceremonies.FactReference, Value: c.job.ref.String()},
		{Name: "program", Value: program},
	}
	if path, err := os.Executable(); err == nil {
		facts = append(facts, fileFact("program SHA-256", path))
	}
	if path, ok := c.job.ref.Query("module-path"); ok {
		facts = append(facts, ceremonies.Fact{Name: "module", Value: path}, fileFact("module SHA-256", path))
	}
	if host, err := os.Hostname(); err == nil {
		facts = append(facts, ceremonies.Fact{Name: "machine", Value: host})
	}
	for _, name := range c.witnesses {
		facts = append(facts, ceremonies.Fact{Name: "witness", Value: name})
	}
	return c.Append(ceremonies.StepBegin, ceremonies.OK, facts...)
}

// maxHashed bounds the files of which the transcript holds the SHA-256: modules and this program have some 10 MB.
const maxHashed = 256 << 20

func fileFact(name, path string) ceremonies.Fact {
	f, err := os.Open(path) // #nosec G304 -- the program's own file, or a module that is about to be loaded
	if err != nil {
		return ceremonies.Fact{Name: name, Value: "unknown: " + pathCause(err).Error()}
	}
	defer f.Close()
	digest := sha256.New()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() || info.Size() > maxHashed {
		return ceremonies.Fact{Name: name, Value: "unknown: not a regular file of a fit size"}
	}
	if _, err := io.Copy(digest, io.LimitReader(f, maxHashed)); err != nil {
		return ceremonies.Fact{Name: name, Value: "unknown: " + pathCause(err).Error()}
	}
	return ceremonies.Fact{Name: name, Value: hex.EncodeToString(digest.Sum(nil))}
}

// sign ends a part of the ceremony: with lines for the witnesses to sign on.
func (c *ceremony) sign(context.Context, signer.Signer) ([]ceremonies.Fact, error) {
	var facts []ceremonies.Fact
	for _, name := range c.witnesses {
		facts = append(facts, ceremonies.Fact{Name: ceremonies.FactSignature, Value: name})
	}
	return facts, nil
}

func (c *ceremony) waiting() {
	c.p.ui.info("print and sign %s; upload %s to https://developer.apple.com/account as \"MDM CSR\"; then run this again with --certificate mdm.cer",
		filepath.Join(c.dir, ceremonies.TranscriptText), filepath.Join(c.dir, ceremonies.CSRFile))
}

// output writes a file of the ceremony. One that a run left behind which was cut off is taken if it is the very same.
func (c *ceremony) output(name string, data []byte) (ceremonies.Fact, error) {
	fact := ceremonies.Fact{Name: ceremonies.FactFileSHA256, Value: hexSHA256(data)}
	path := filepath.Join(c.dir, name)
	sweep(c.dir)
	err := writeFile(path, data, requestMode, false)
	if !errors.Is(err, errExists) {
		return fact, err
	}
	there, err := readFile(path, chain.MaxFile)
	if err != nil {
		return fact, err
	}
	if !bytes.Equal(there, data) {
		return fact, fault.Usage.Errorf("%q is there, and not of this ceremony", path).Fix("take it away, or name another --dir")
	}
	return fact, nil
}

// verifyCeremony checks the transcript of a folder.
func (p *program) verifyCeremony(dir string) error {
	r, err := ceremonies.Verify(dir)
	if err != nil {
		return err
	}
	last := r.Entries[len(r.Entries)-1]
	p.ui.print("%d entries hold, the last is %q, %s", len(r.Entries), last.Step, last.Time)
	p.ui.print("SHA-256 of %s: %s; compare it with the last one on the signed copy", ceremonies.TranscriptJSON, r.Head)
	var rows [][]string
	for _, step := range []string{ceremonies.StepGenerate, ceremonies.StepExamine, ceremonies.StepCSR, ceremonies.StepImport, ceremonies.StepComplete} {
		done := "not yet"
		if e, ok := r.Done(step); ok {
			done = "entry " + strconv.Itoa(e.Number)
		}
		rows = append(rows, []string{"", step, done})
	}
	p.ui.table(rows)
	return nil
}
