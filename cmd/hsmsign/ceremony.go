package main

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"hsmsign/fault"
	"hsmsign/internal/console"
	"hsmsign/keystore"
	"hsmsign/lifecycle/ceremony"
	"hsmsign/lifecycle/certreq"
	"hsmsign/signer"
)

func (p *program) ceremonyCommand() *cli.Command {
	return &cli.Command{
		Name:  "ceremony",
		Usage: "generate the vendor key, make its CSR and, days later, import the certificate, with a transcript to sign",
		Description: "First it checks the key store as doctor does, and asks before it makes the key (--yes: it does not ask). The folder\n" +
			"contains the state: to complete an interrupted run, run it again; a second key is never made.\n" +
			"transcript.txt is for people, transcript.json says the same; each entry contains the SHA-256 of all entries before it.\n\n" +
			"  hsmsign vendor ceremony --dir ceremony/ --witness 'A. Adams=operator' --witness 'B. Brown=auditor' \\\n" +
			"      --key 'pkcs11:token=mdm;object=vendor-2027?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:pin' \\\n" +
			"      --common-name 'Example MDM' --email mdm@example.com --country US\n" +
			"  hsmsign vendor ceremony --dir ceremony/ --witness 'A. Adams' --witness 'B. Brown' --key ... \\\n" +
			"      --certificate mdm.cer --fetch\n" +
			"  hsmsign vendor ceremony --verify ceremony/",
		Flags: append(append([]cli.Flag{
			stringFlag("dir", "`FOLDER` of the ceremony, made if it does not exist"),
			keyFlag(),
			listFlag("witness", "`NAME[=ROLE]` of a person who is present; two at least"),
			boolFlag("yes", "make the key without asking for confirmation"),
			stringFlag("certificate", "`FILE` that Apple's developer portal made from the CSR"),
			stringFlag("verify", "check the transcript in `FOLDER`, and do nothing else"),
			vendorFlag(), configFlag(),
		}, subjectFlags()...), importFlags()...),
		Action: p.vendorCeremony,
	}
}

func (p *program) vendorCeremony(ctx *cli.Context) error {
	s, _, err := p.start(ctx, noFiles)
	if err != nil {
		return err
	}
	if dir, _ := s.str("verify"); dir != "" {
		return p.verifyCeremony(dir)
	}
	p.prompt = askOnce(p.prompt)
	cfg, err := p.ceremonyConfig(ctx)
	if err != nil {
		return err
	}
	result, err := ceremony.Run(ctx.Context, cfg)
	if err != nil {
		return err
	}
	transcript := filepath.Join(cfg.Dir, ceremony.TranscriptText)
	switch {
	case result.State == ceremony.Waiting:
		p.con.Infof("print and sign %s; upload %s to https://developer.apple.com/account as \"MDM CSR\"; then run this again with --certificate mdm.cer",
			transcript, filepath.Join(cfg.Dir, ceremony.CSRFile))
	case result.Already:
		p.con.Infof("the ceremony in %q is complete; check it with --verify", cfg.Dir)
	default:
		p.con.Warnings(cfg.Import.Name, result.Findings)
		p.con.Infof("print and sign %s; %s is for --cert", transcript, filepath.Join(cfg.Dir, ceremony.BundleFile))
	}
	return nil
}

// ceremonyConfig reads everything that the command line gives.
func (p *program) ceremonyConfig(ctx *cli.Context) (ceremony.Config, error) {
	job, _, err := p.newKeyJob(ctx, noFiles)
	if err != nil {
		return ceremony.Config{}, err
	}
	v := readVersion()
	cfg := ceremony.Config{
		Key: job.Key, Subject: job.subject, Program: strings.Join(strings.Fields("hsmsign "+v.Version+" "+v.Revision+" "+v.Go+" "+v.Platform), " "),
		Report: func(step string) { p.con.Infof("recorded: %s", step) },
		Check:  func(step signer.Step) { p.printStep(step, false) },
	}
	if !job.boolean("yes") {
		cfg.Confirm = func(ctx context.Context) error { return confirmKey(ctx, job.Key) }
	}
	if cfg.Dir, _ = job.str("dir"); cfg.Dir == "" {
		return cfg, fault.Usage.Errorf("no folder given").Fix("name the ceremony's folder with --dir")
	}
	cfg.Witnesses, _ = job.list("witness")
	if err := ceremony.CheckWitnesses(cfg.Witnesses); err != nil {
		return cfg, err
	}
	if name, _ := job.str("certificate"); name != "" {
		in, err := p.readImport(ctx.Context, job, name)
		if err != nil {
			return cfg, err
		}
		cfg.Import = &in
	}
	return cfg, nil
}

// confirmKey asks whether to make the vendor key: nothing deletes it again.
func confirmKey(ctx context.Context, key keystore.Key) error {
	yes, err := console.Confirm(ctx, fmt.Sprintf("hsmsign: make the vendor key %s, which hsmsign cannot delete? [y/N] ", key))
	if err == nil && !yes {
		err = fault.Usage.Errorf("the new key was not confirmed, and not made").Fix("run this again when everything is ready; --yes confirms it in scripts")
	}
	return err
}

// askOnce returns a prompt that asks for each secret once: a ceremony opens the key several times. The answers stay in
// memory until the program ends. A wrong PIN is not sent twice, because the run ends at its refusal.
func askOnce(prompt func(context.Context, string) ([]byte, error)) func(context.Context, string) ([]byte, error) {
	if prompt == nil {
		return nil
	}
	answers := map[string][]byte{}
	return func(ctx context.Context, label string) ([]byte, error) {
		secret := strings.TrimPrefix(label, "new ") // that of a new key file opens it
		if answer, ok := answers[secret]; ok {
			return bytes.Clone(answer), nil
		}
		answer, err := prompt(ctx, label)
		if err == nil {
			answers[secret] = bytes.Clone(answer)
		}
		return answer, err
	}
}

// verifyCeremony checks the transcript in a folder.
func (p *program) verifyCeremony(dir string) error {
	r, err := ceremony.Verify(dir)
	if err != nil {
		return err
	}
	last := r.Entries[len(r.Entries)-1]
	p.con.Printf("%d entries are intact, the last is %q, %s", len(r.Entries), last.Step, last.Time)
	p.con.Printf("SHA-256 of %s: %s; compare it with the last one on the signed copy", ceremony.TranscriptJSON, strings.Join(ceremony.Group(r.Head), " "))
	var rows [][]string
	for _, step := range []string{ceremony.StepGenerate, ceremony.StepExamine, ceremony.StepCSR, ceremony.StepImport, ceremony.StepComplete} {
		done := "not yet"
		if e, ok := r.Done(step); ok {
			done = "entry " + strconv.Itoa(e.Number)
		}
		rows = append(rows, []string{"", step, done})
	}
	p.con.Table(rows)
	return nil
}

// subject returns the vendor's subject that the flags give, checked.
func (s *settings) subject() (certreq.Subject, error) {
	subject := s.csrSubject()
	for _, f := range []struct{ name, value string }{{"common-name", subject.CommonName}, {"email", subject.Email}, {"country", subject.Country}} {
		if f.value == "" {
			return subject, fault.Usage.Errorf("no %s given", f.name).Fix("give it with --" + f.name)
		}
	}
	return subject, subject.Check()
}
