package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"io/fs"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/agent"
	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/request"
	"hsmsign/signer"
)

const (
	// openTimeout bounds opening a key, a person's typing included.
	openTimeout = 2 * time.Minute
	// signTimeout bounds one signature, unless --timeout does: network HSMs answer within a second, or not at all.
	signTimeout = time.Minute
	// requestMode: a request holds no secret.
	requestMode = fs.FileMode(0o644)
)

func (p *program) signCommand() *cli.Command {
	return &cli.Command{
		Name:      "sign",
		Usage:     "sign customers' CSRs: makes the Push Certificate Requests that they upload to Apple",
		ArgsUsage: "CSR...",
		Description: "A CSR is a file (PEM, DER, or the base64 of either) or - for standard input. With --out-dir there may be\n" +
			"many, and folders of them; each FILE.csr gives FILE.req. A refused CSR does not stop the others.\n\n" +
			"  hsmsign sign --key file:vendor.key --cert vendor.pem -o acme.req acme.csr\n" +
			"  hsmsign sign --key 'pkcs11:token=mdm;object=vendor?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:pin' \\\n" +
			"      --cert mdm.cer --chain apple.pem --out-dir out/ csrs/",
		Flags: append([]cli.Flag{
			keyFlag(),
			outputFlag(),
			stringFlag("out-dir", "write each request into `FOLDER`, made if it does not exist"),
			stringFlag("format", "`FORMAT` of the request: base64 (what Apple takes) or plist (the XML inside) (default: base64)"),
			stringFlag("digest", "`HASH` of the signature: sha256, or sha1 for vendor certificates older than 2021 (default: sha256)"),
			stringFlag("customer", "`NAME` of the customer, repeated in the JSON result"),
			stringFlag("timeout", "give one signature up after this `TIME`, 100ms to 10m (default: 1m)"),
			jsonFlag(), forceFlag(),
		}, identityFlags()...),
		Action: p.sign,
	}
}

// signJob is one run of sign: what to sign with, and where to.
type signJob struct {
	p        *program
	output   string // -o; "-" is standard output
	outDir   string
	format   request.Format
	digest   crypto.Hash
	customer string
	timeout  time.Duration // of one signature
	json     bool
	force    bool
	workers  int // of a batch
	chain    *chain.Chain
	encoder  *request.Encoder
	// agent opens the key when the first CSR has passed its checks: nobody is asked for a PIN in vain.
	agent func() (*agent.Agent, error)
	close func()
}

func (p *program) sign(ctx *cli.Context) error {
	s, args, _, err := p.start(ctx)
	if err != nil {
		return err
	}
	if len(args) == 0 {
		return usage("name the customer's CSR file, or - for standard input", "no CSR given")
	}
	job, err := p.newSignJob(ctx.Context, s)
	if err != nil {
		return err
	}
	defer func() { job.close() }() // what it is by then
	if job.outDir != "" {
		return job.batch(ctx.Context, args)
	}
	if len(args) > 1 {
		return usage("name a folder for the requests with --out-dir", "%d CSRs and one output", len(args))
	}
	return job.single(ctx.Context, args[0])
}

func (p *program) newSignJob(ctx context.Context, s *settings) (*signJob, error) {
	job := &signJob{p: p, close: func() {}}
	if err := job.readFlags(s); err != nil {
		return nil, err
	}
	key, from := s.str("key")
	if key == "" {
		return nil, s.missing("key", "vendor key")
	}
	ref, backend, err := p.backend(key, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	// More workers than cores: while some wait for the disk, others sign.
	job.workers = 4 * runtime.GOMAXPROCS(0)
	if backend.InFlight != nil {
		job.workers = backend.InFlight(ref)
	}
	if job.chain, err = p.vendorChain(ctx, s); err != nil {
		return nil, err
	}
	if job.encoder, err = request.NewEncoder(job.chain.Raw(), job.format); err != nil {
		return nil, err
	}
	cert, _ := s.str("cert")
	p.ui.warnings(certName(cert), job.chain.Findings)
	job.agent = sync.OnceValues(func() (*agent.Agent, error) {
		opened, err := p.openKey(ctx, key, job.chain.Leaf().PublicKey)
		if err != nil {
			return nil, err
		}
		job.close = func() { _ = opened.Close() }
		return agent.New(job.chain, opened, job.digest)
	})
	return job, nil
}

func (job *signJob) readFlags(s *settings) error {
	var from string
	job.output, from = s.str("output")
	job.outDir, _ = s.str("out-dir")
	if job.output != "" && job.outDir != "" {
		if s.ctx.IsSet("out-dir") == s.ctx.IsSet("output") {
			return usage("leave one out", "%s and --out-dir together", from)
		}
		// The one on the command line beats the one from the environment or the configuration.
		if s.ctx.IsSet("output") {
			job.outDir = ""
		} else {
			job.output = ""
		}
	}
	job.customer, _ = s.str("customer")
	var err error
	if job.timeout, err = s.duration("timeout", signTimeout, 100*time.Millisecond, 10*time.Minute); err != nil {
		return err
	}
	format, from := s.str("format")
	if job.format, err = request.ParseFormat(orDefault(format, "base64")); err != nil {
		return usage("", "%s: %w", from, err)
	}
	digest, from := s.str("digest")
	switch orDefault(digest, "sha256") {
	case "sha256":
		job.digest = crypto.SHA256
	case "sha1":
		job.digest = crypto.SHA1
		job.p.ui.warn("signing with SHA-1: Apple takes it from vendor certificates older than 2021 only")
	default:
		return usage("it is sha256 or sha1", "%s: unknown digest %q", from, digest)
	}
	if job.json, err = s.boolean("json"); err != nil {
		return err
	}
	job.force, err = s.boolean("force")
	return err
}

func orDefault(value, standard string) string {
	if value == "" {
		return standard
	}
	return value
}

// vendorChain builds the chain from --cert, --chain and --trust-root.
func (p *program) vendorChain(ctx context.Context, s *settings) (*chain.Chain, error) {
	certFile, _ := s.str("cert")
	if certFile == "" {
		return nil, s.missing("cert", "vendor certificate")
	}
	cert, err := p.readCerts(ctx, certFile)
	if err != nil {
		return nil, err
	}
	chainFiles, _ := s.list("chain")
	extra, err := p.readCerts(ctx, chainFiles...)
	if err != nil {
		return nil, err
	}
	roots, err := p.trustRoots(ctx, s)
	if err != nil {
		return nil, err
	}
	c, err := chain.Build(cert, extra, chain.Options{TrustRoots: roots})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", certName(certFile), err)
	}
	return c, nil
}

func (p *program) trustRoots(ctx context.Context, s *settings) ([]*x509.Certificate, error) {
	files, _ := s.list("trust-root")
	return p.readCerts(ctx, files...)
}

// readCerts reads all certificates of the files. A reference whose backend can hold certificates is as good as a file.
func (p *program) readCerts(ctx context.Context, files ...string) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for _, file := range files {
		if load := p.certStore(file); load != nil {
			certs, err := load(ctx)
			if err != nil {
				return nil, err
			}
			all = append(all, certs...)
			continue
		}
		data, err := p.readInput(ctx, file, chain.MaxFile)
		if err != nil {
			return nil, fault.Vendor.Errorf("certificate file %q: %w", file, err).Fix("check the path")
		}
		certs, err := chain.Parse(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		all = append(all, certs...)
	}
	return all, nil
}

// certStore gives the function that loads the certificates of a reference; nil for the name of a file.
func (p *program) certStore(name string) func(context.Context) ([]*x509.Certificate, error) {
	scheme, _, _ := strings.Cut(name, ":")
	store := p.backends(nil)[strings.ToLower(scheme)].Certificates
	if store == nil {
		return nil
	}
	return func(ctx context.Context) ([]*x509.Certificate, error) {
		ref, err := signer.ParseRef(name)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(ctx, openTimeout)
		defer cancel()
		return store.Load(ctx, ref)
	}
}

// certName is what is shown of a value of --cert: a reference without its PIN.
func certName(value string) string {
	if ref, err := signer.ParseRef(value); err == nil {
		return ref.String()
	}
	return value
}

// single signs one CSR to -o or standard output.
func (job *signJob) single(ctx context.Context, file string) error {
	if job.output != "" && job.output != "-" {
		if err := checkOutput(job.output, job.force, file); err != nil {
			return err
		}
	}
	result, encoded, err := job.signFile(ctx, file)
	if err == nil {
		result.Output = job.output
		switch {
		case job.json && (job.output == "" || job.output == "-"):
			result.Output, result.Request = "", string(encoded)
		default:
			err = job.p.emit(job.output, encoded, requestMode, job.force)
		}
	}
	job.report(result, err)
	return err
}

// signFile makes the request for one CSR file: all but the writing.
func (job *signJob) signFile(ctx context.Context, file string) (*signResult, []byte, error) {
	result := &signResult{File: file, Customer: job.customer}
	p, err := job.prepare(ctx, result)
	if err != nil {
		return result, nil, err
	}
	encoded, err := job.issue(ctx, p)
	return result, encoded, err
}

// prepare reads and checks one CSR file.
func (job *signJob) prepare(ctx context.Context, result *signResult) (*agent.Prepared, error) {
	data, err := job.p.readInput(ctx, result.File, request.MaxCSR)
	if err != nil {
		return nil, fault.Refused.Errorf("%s: %w", result.File, err).Fix("name a readable CSR file")
	}
	p, err := agent.Prepare(job.chain, data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", result.File, err)
	}
	result.describe(p.CSR, job.json)
	return p, nil
}

func (job *signJob) issue(ctx context.Context, p *agent.Prepared) ([]byte, error) {
	a, err := job.agent()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, job.timeout)
	defer cancel()
	req, err := a.Issue(ctx, p)
	if err != nil {
		return nil, err
	}
	return job.encoder.Encode(req.CSR, req.Signature), nil
}
