package main

import (
	"context"
	"crypto"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/agent"
	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/internal/console"
	"hsmsign/keystore"
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
			"many, and folders of them; each FILE.csr becomes FILE.req. A rejected CSR does not stop the others. With --agent a\n" +
			"service (hsmsign serve) signs, with its own key, certificates and ledger. If other people must approve a request\n" +
			"first, nothing is written and the exit code is 8: run the same command again later, or let it wait (--wait).\n\n" +
			"  hsmsign sign --key file:vendor.key --cert vendor.pem -o acme.req acme.csr\n" +
			"  hsmsign sign --key 'pkcs11:token=mdm;object=vendor?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:pin' \\\n" +
			"      --cert mdm.cer --chain apple.pem --out-dir out/ csrs/\n" +
			"  hsmsign sign --agent https://sign.example.com:8443 --client-cert ci.pem --client-key ci.key --customer acme -o acme.req acme.csr\n" +
			"  hsmsign sign --agent unix:///run/hsmsign/agent.sock --customer acme --wait 8h -o acme.req acme.csr",
		Flags: append([]cli.Flag{
			keyFlag(),
			outputFlag(),
			stringFlag("out-dir", "write each request into `FOLDER`, made if it does not exist"),
			stringFlag("format", "`FORMAT` of the request: base64 (what Apple accepts) or plist (the XML inside) (default: base64)"),
			stringFlag("digest", "`HASH` of the signature: sha256, or sha1 for vendor certificates older than 2021 (default: sha256)"),
			stringFlag("customer", "`NAME` of the customer, repeated in the JSON result; required with a ledger"),
			stringFlag("timeout", "`TIME` limit for one signature, 100ms to 10m (default: 1m)"),
			stringFlag("wait", "`TIME` to wait until other people have approved what they must, 1s to 720h (default: exit with code 8)"),
			boolFlag("receipt", "also write a proof that the request is in the ledger: FILE.tlog-proof beside the request"),
			jsonFlag(), forceFlag(),
		}, slices.Concat(ledgerFlags(), identityFlags(), agentFlags())...),
		Action: p.sign,
	}
}

// signJob is one run of sign.
type signJob struct {
	p       *program
	output  string // -o; "-" is standard output
	outDir  string
	order   agent.Order // without the CSR
	timeout time.Duration
	json    bool
	force   bool
	receipt bool      // write a proof beside each request
	wait    time.Time // until when approvals are waited for; zero: they are not
	stdin   []byte    // the CSR of standard input, once it was read
	issuer  issuer
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
	defer job.issuer.close()
	if job.outDir != "" {
		return job.batch(ctx.Context, args)
	}
	if len(args) > 1 {
		return fault.Usage.Errorf("%d CSRs and one output", len(args)).Fix("name a folder for the requests with --out-dir")
	}
	return job.single(ctx.Context, args[0])
}

func (p *program) newSignJob(ctx context.Context, s *settings) (*signJob, error) {
	job := &signJob{p: p, receipt: s.boolean("receipt")}
	service, err := s.agentURL()
	if err == nil {
		err = job.readFlags(s)
	}
	if err != nil {
		return nil, err
	}
	if service == "" {
		job.issuer, err = job.newLocalIssuer(ctx, s)
	} else {
		job.issuer, err = job.newServiceIssuer(s, service)
	}
	return job, err
}

// checkReceipt refuses a receipt for a request without a file.
func (job *signJob) checkReceipt() error {
	if job.receipt && job.outDir == "" && (job.output == "" || job.output == "-") {
		return fault.Usage.Errorf("--receipt without a file").Fix("name the request's file with -o, or a folder with --out-dir")
	}
	return nil
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
	wait, err := s.duration("wait", 0, time.Second, 720*time.Hour)
	if err != nil {
		return err
	}
	if wait > 0 {
		job.wait = time.Now().Add(wait)
	}
	format, from := s.str("format")
	if job.order.Format, err = request.ParseFormat(orDefault(format, "base64")); err != nil {
		return fault.Usage.Errorf("%s: %w", from, err)
	}
	if job.order.Digest, err = job.digest(s); err != nil {
		return err
	}
	job.json, job.force = s.json, s.boolean("force")
	return nil
}

// digest returns the hash of the signature. A service signs with SHA-256 only.
func (job *signJob) digest(s *settings) (crypto.Hash, error) {
	digest, from := s.str("digest")
	service, err := s.agentURL()
	if err != nil {
		return 0, err
	}
	switch orDefault(digest, "sha256") {
	case "sha256":
		return crypto.SHA256, nil
	case "sha1":
		if service != "" && s.given("digest") {
			return 0, fault.Usage.Errorf("--agent and --digest sha1 together: a service signs with SHA-256 only").Fix("leave one out")
		}
		if service != "" {
			return crypto.SHA256, nil // newServiceIssuer says so
		}
		job.p.con.Warnf("signing with SHA-1: Apple accepts it from vendor certificates older than 2021 only")
		return crypto.SHA1, nil
	}
	return 0, fault.Usage.Errorf("%s: unknown digest %q", from, digest).Fix("it is sha256 or sha1")
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
	if isWaiting(err) && !job.wait.IsZero() {
		job.p.con.Infof("%s", console.ErrorLine(err))
		err = job.untilApproved(ctx, result, err)
	}
	job.report(result, err)
	return err
}

func (job *signJob) signTo(ctx context.Context, result *api.SignResult) error {
	prepared, err := job.prepare(ctx, result)
	if err != nil {
		return err
	}
	issued, err := prepared.issue(ctx)
	if err != nil {
		return err
	}
	result.Output = job.output
	setIssued(result, issued)
	if job.json && (job.output == "" || job.output == "-") {
		result.Output, result.Request = "", string(issued.file)
		return nil
	}
	if err := job.p.emit(job.output, issued.file, requestMode, job.force); err != nil {
		return err
	}
	if err := writeReceipt(job.output, issued); err != nil {
		return err
	}
	if !job.json && job.output != "" && job.output != "-" {
		job.p.con.Infof("wrote %s; the customer uploads it to https://identity.apple.com/pushcert before %s", job.output, issued.useBefore.Format(time.DateOnly))
	}
	return nil
}

// writeReceipt writes the proof of an issued request beside it, if there is one.
func writeReceipt(output string, issued *issuedRequest) error {
	if issued.receipt == nil {
		return nil
	}
	return writeFile(output+".tlog-proof", issued.receipt, requestMode, true)
}

func (job *signJob) newResult(file string) *api.SignResult {
	return &api.SignResult{File: file, Status: api.StatusSigned, Customer: job.order.Customer}
}

// setIssued sets what a result says of the issued request.
func setIssued(result *api.SignResult, issued *issuedRequest) {
	result.RequestID, result.Customer, result.UseBefore = issued.id, issued.customer, api.Time(issued.useBefore)
}

// prepare reads and checks one CSR file.
func (job *signJob) prepare(ctx context.Context, result *api.SignResult) (preparedRequest, error) {
	order := job.order
	var err error
	if order.CSR, err = job.read(ctx, result.File); err != nil {
		return nil, err
	}
	prepared, err := job.issuer.prepare(ctx, order)
	if err != nil {
		if fault.KindOf(err) == fault.Refused {
			err = fmt.Errorf("%s: %w", result.File, err)
		}
		return nil, err
	}
	csr := prepared.csr()
	result.Findings = csr.Findings
	if job.json { // a batch may be large
		result.Subject = api.Name(csr.Parsed.Subject)
		result.CSRSHA256, result.KeySHA256 = api.SHA256(csr.DER), api.SHA256(csr.Parsed.RawSubjectPublicKeyInfo)
	}
	return prepared, nil
}

// read reads a CSR file. Standard input can be read once, and a request that was approved is prepared again.
func (job *signJob) read(ctx context.Context, file string) (csr []byte, err error) {
	if file == "-" && job.stdin != nil {
		return job.stdin, nil
	}
	csr, err = job.p.read(ctx, file, request.MaxCSR, "name a readable CSR file")
	if file == "-" {
		job.stdin = csr
	}
	return csr, err
}

// report reports one CSR: its JSON object, or its warnings. An error is left to the caller.
func (job *signJob) report(r *api.SignResult, err error) {
	if err != nil {
		r.Status, r.Output = api.StatusFailed, ""
		switch {
		case fault.KindOf(err) == fault.Refused:
			r.Status = api.StatusRefused
		case isWaiting(err):
			r.Status = api.StatusPending
			r.RequestID, r.Approval = waitingFor(err)
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
