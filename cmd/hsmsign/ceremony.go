package main

import (
	"path/filepath"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"hsmsign/fault"
	"hsmsign/lifecycle/ceremony"
	"hsmsign/lifecycle/certreq"
)

func (p *program) ceremonyCommand() *cli.Command {
	return &cli.Command{
		Name:  "ceremony",
		Usage: "generate the vendor key, make its CSR and, days later, import the certificate, with a transcript to sign",
		Description: "The folder contains the state: to complete an interrupted run, run it again; a second key is never made.\n" +
			"transcript.txt is for people, transcript.json says the same; each entry contains the SHA-256 of all entries before it.\n\n" +
			"  hsmsign vendor ceremony --dir ceremony/ --witness 'A. Adams' --witness 'B. Brown' \\\n" +
			"      --key 'pkcs11:token=mdm;object=vendor-2027?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:pin' \\\n" +
			"      --common-name 'Example MDM' --email mdm@example.com --country US\n" +
			"  hsmsign vendor ceremony --dir ceremony/ --witness 'A. Adams' --witness 'B. Brown' --key ... \\\n" +
			"      --certificate mdm.cer --fetch\n" +
			"  hsmsign vendor ceremony --verify ceremony/",
		Flags: append(append([]cli.Flag{
			stringFlag("dir", "`FOLDER` of the ceremony, made if it does not exist"),
			keyFlag(),
			listFlag("witness", "`NAME` of a person who is present; two at least"),
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

// verifyCeremony checks the transcript in a folder.
func (p *program) verifyCeremony(dir string) error {
	r, err := ceremony.Verify(dir)
	if err != nil {
		return err
	}
	last := r.Entries[len(r.Entries)-1]
	p.con.Printf("%d entries are intact, the last is %q, %s", len(r.Entries), last.Step, last.Time)
	p.con.Printf("SHA-256 of %s: %s; compare it with the last one on the signed copy", ceremony.TranscriptJSON, r.Head)
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
