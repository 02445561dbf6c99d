package main

import (
	"context"
	"crypto"
	"fmt"
	"io/fs"
	"runtime"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/agent"
	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/keystore"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/request"
)

const (
	// openTimeout bounds opening a key, a person's typing included.
	openTimeout = 2 * time.Minute
	// signTimeout bounds one signature by default: network HSMs answer within a second, or not at all.
	signTimeout = time.Minute
	// recording is how many requests of a batch are in flight with a ledger: most of them wait for its commits.
	recording = 256
	// requestMode: a request contains no secret.
	requestMode = fs.FileMode(0o644)
)

func (p *program) signCommand() *cli.Command {
	return &cli.Command{
		Name:      "sign",
		Usage:     "sign customers' CSRs: makes the Push Certificate Requests that they upload to Apple",
		ArgsUsage: "CSR...",
		Description: "A CSR is a file (PEM, DER, or the base64 of either) or - for standard input. With --out-dir there may be\n" +
			"many, and folders of them; each FILE.csr becomes FILE.req. A rejected CSR does not stop the others.\n\n" +
			"  hsmsign sign --key file:vendor.key --cert vendor.pem -o acme.req acme.csr\n" +
			"  hsmsign sign --key 'pkcs11:token=mdm;object=vendor?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:pin' \\\n" +
			"      --cert mdm.cer --chain apple.pem --out-dir out/ csrs/",
		Flags: append([]cli.Flag{
			keyFlag(),
			outputFlag(),
			stringFlag("out-dir", "write each request into `FOLDER`, made if it does not exist"),
			stringFlag("format", "`FORMAT` of the request: base64 (what Apple accepts) or plist (the XML inside) (default: base64)"),
			stringFlag("digest", "`HASH` of the signature: sha256, or sha1 for vendor certificates older than 2021 (default: sha256)"),
			stringFlag("customer", "`NAME` of the customer, repeated in the JSON result; required with a ledger"),
			stringFlag("timeout", "`TIME` limit for one signature, 100ms to 10m (default: 1m)"),
			boolFlag("receipt", "also write a proof that the request is in the ledger: FILE.tlog-proof beside the request"),
			jsonFlag(), forceFlag(),
		}, append(ledgerFlags(), identityFlags()...)...),
		Action: p.sign,
	}
}

// signJob is one run of sign.
type signJob struct {
	p       *program
	output  string // -o; "-" is standard output
	outDir  string
	order   agent.Order // without the CSR
	caller  agent.Caller
	timeout time.Duration
	json    bool
	force   bool
	workers int // of a batch
	vendor  *agent.Vendor
	ledger  *ledger.Ledger // nil: nothing is recorded
	receipt bool           // write a proof beside each request

	closeLedger func()
}

func (job *signJob) close() {
	job.vendor.Close()
	job.closeLedger()
}

// record opens the ledger, if there is one, as the recorder of the vendor.
func (job *signJob) record(ctx context.Context, s *settings, cfg *agent.Config) error {
	job.closeLedger = func() {}
	job.receipt = s.boolean("receipt")
	if reference, _ := s.str("ledger"); reference == "" {
		if job.receipt {
			return fault.Usage.Errorf("--receipt without a ledger").Fix("name it with --ledger")
		}
		_, err := s.policy() // callers need a ledger
		return err
	}
	var err error
	if job.caller, err = s.caller(); err != nil {
		return err
	}
	if job.caller.Rules != nil {
		job.order.Customer = orDefault(job.order.Customer, job.caller.Rules.Customer)
	}
	if job.receipt && job.outDir == "" && (job.output == "" || job.output == "-") {
		return fault.Usage.Errorf("--receipt without a file").Fix("name the request's file with -o, or a folder with --out-dir")
	}
	if job.order.Customer == "" {
		return fault.Usage.Errorf("no customer given, and the ledger records one for each request").Fix("name the customer with --customer")
	}
	l, done, err := job.p.openLedger(ctx, s, true)
	if err != nil {
		return err
	}
	job.ledger, job.closeLedger, cfg.Recorder = l, done, l
	job.workers = max(job.workers, recording) // many share one commit
	return nil
}

func (p *program) sign(ctx *cli.Context) error {
	s, args, err := p.start(ctx, anyFiles)
	if err != nil {
		return err
	}
	if len(args) == 0 {
		return fault.Usage.Errorf("no CSR given").Fix("name the customer's CSR file, or - for standard input")
	}
	job, err := p.newSignJob(ctx.Context, s)
	if err != nil {
		return err
	}
	defer job.close()
	if job.outDir != "" {
		return job.batch(ctx.Context, args)
	}
	if len(args) > 1 {
		return fault.Usage.Errorf("%d CSRs and one output", len(args)).Fix("name a folder for the requests with --out-dir")
	}
	return job.single(ctx.Context, args[0])
}

func (p *program) newSignJob(ctx context.Context, s *settings) (*signJob, error) {
	job := &signJob{p: p}
	if err := job.readFlags(s); err != nil {
		return nil, err
	}
	key, err := s.key("vendor key")
	if err != nil {
		return nil, err
	}
	// More workers than cores: while some wait for the disk, others sign.
	job.workers = key.InFlight(4 * runtime.GOMAXPROCS(0))
	cfg, err := s.vendorConfig(key)
	if err != nil {
		return nil, err
	}
	cfg.SignTimeout = job.timeout
	if err := job.record(ctx, s, &cfg); err != nil {
		return nil, err
	}
	if job.vendor, err = agent.NewVendor(ctx, cfg); err != nil {
		job.closeLedger()
		return nil, err
	}
	cert, _ := s.str("cert")
	p.con.Warnings(keystore.Redact(cert), job.vendor.Chain().Findings)
	return job, nil
}

// vendorConfig is where the vendor's identity is.
func (s *settings) vendorConfig(key keystore.Key) (agent.Config, error) {
	cert, _ := s.str("cert")
	if cert == "" {
		return agent.Config{}, s.missing("cert", "vendor certificate")
	}
	extra, _ := s.list("chain")
	roots, _ := s.list("trust-root")
	return agent.Config{
		Name: s.vendor, Key: key, OpenTimeout: openTimeout, SignTimeout: signTimeout, Certificates: agent.CertificateFiles(s.store, cert, extra, roots),
	}, nil
}

func (job *signJob) readFlags(s *settings) error {
	var from string
	job.output, from = s.str("output")
	job.outDir, _ = s.str("out-dir")
	if job.output != "" && job.outDir != "" {
		if s.given("out-dir") == s.given("output") {
			return fault.Usage.Errorf("%s and --out-dir together", from).Fix("leave one out")
		}
		// The command line wins over the environment and the configuration.
		if s.given("output") {
			job.outDir = ""
		} else {
			job.output = ""
		}
	}
	job.order.Customer, _ = s.str("customer")
	var err error
	if job.timeout, err = s.duration("timeout", signTimeout, 100*time.Millisecond, 10*time.Minute); err != nil {
		return err
	}
	format, from := s.str("format")
	if job.order.Format, err = request.ParseFormat(orDefault(format, "base64")); err != nil {
		return fault.Usage.Errorf("%s: %w", from, err)
	}
	digest, from := s.str("digest")
	switch orDefault(digest, "sha256") {
	case "sha256":
		job.order.Digest = crypto.SHA256
	case "sha1":
		job.order.Digest = crypto.SHA1
		job.p.con.Warnf("signing with SHA-1: Apple accepts it from vendor certificates older than 2021 only")
	default:
		return fault.Usage.Errorf("%s: unknown digest %q", from, digest).Fix("it is sha256 or sha1")
	}
	job.json, job.force = s.json, s.boolean("force")
	return nil
}

// single signs one CSR to -o or standard output.
func (job *signJob) single(ctx context.Context, file string) error {
	if job.output != "" && job.output != "-" {
		if err := checkOutput(job.output, job.force, file); err != nil {
			return err
		}
	}
	result := job.newResult(file)
	err := job.signTo(ctx, result)
	job.report(result, err)
	return err
}

func (job *signJob) signTo(ctx context.Context, result *api.SignResult) error {
	prepared, err := job.prepare(ctx, result)
	if err != nil {
		return err
	}
	issued, err := job.vendor.Issue(ctx, prepared)
	if err != nil {
		return err
	}
	result.Output, result.RequestID, result.UseBefore = job.output, issued.RequestID, api.Time(prepared.UseBefore())
	if job.json && (job.output == "" || job.output == "-") {
		result.Output, result.Request = "", string(issued.Request)
		return nil
	}
	if err := job.p.emit(job.output, issued.Request, requestMode, job.force); err != nil {
		return err
	}
	if err := job.writeReceipt(ctx, job.output, issued); err != nil {
		return err
	}
	if !job.json && job.output != "" && job.output != "-" {
		job.p.con.Infof("wrote %s; the customer uploads it to https://identity.apple.com/pushcert before %s", job.output, prepared.UseBefore().Format(time.DateOnly))
	}
	return nil
}

// writeReceipt writes the proof of an issued request beside it, if receipts are asked for.
func (job *signJob) writeReceipt(ctx context.Context, output string, issued *agent.Issued) error {
	if !job.receipt {
		return nil
	}
	id, err := record.ParseID(issued.RequestID)
	if err != nil {
		return err
	}
	proof, err := job.ledger.Prove(ctx, id)
	if err != nil {
		return err
	}
	return writeFile(output+".tlog-proof", proof, requestMode, true)
}

func (job *signJob) newResult(file string) *api.SignResult {
	return &api.SignResult{File: file, Status: api.StatusSigned, Customer: job.order.Customer}
}

// prepare reads and checks one CSR file.
func (job *signJob) prepare(ctx context.Context, result *api.SignResult) (*agent.Prepared, error) {
	order := job.order
	var err error
	if order.CSR, err = job.p.read(ctx, result.File, request.MaxCSR, "name a readable CSR file"); err != nil {
		return nil, err
	}
	prepared, err := job.vendor.Prepare(ctx, job.caller, order)
	if err != nil {
		if fault.KindOf(err) == fault.Refused {
			err = fmt.Errorf("%s: %w", result.File, err)
		}
		return nil, err
	}
	result.Findings = prepared.CSR.Findings
	if job.json { // a batch may be large
		parsed := prepared.CSR.Parsed
		result.Subject = api.Name(parsed.Subject)
		result.CSRSHA256, result.KeySHA256 = api.SHA256(prepared.CSR.DER), api.SHA256(parsed.RawSubjectPublicKeyInfo)
	}
	return prepared, nil
}

// report reports one CSR: its JSON object, or its warnings. An error is left to the caller.
func (job *signJob) report(r *api.SignResult, err error) {
	if err != nil {
		r.Status, r.Output = api.StatusFailed, ""
		if fault.KindOf(err) == fault.Refused {
			r.Status = api.StatusRefused
		}
		r.Error = api.NewError(err)
	}
	if job.json {
		job.p.con.JSON(r)
		job.p.json = false // the object has the error
		return
	}
	job.p.con.Warnings(r.File, r.Findings)
}

func orDefault(value, def string) string {
	if value == "" {
		return def
	}
	return value
}
