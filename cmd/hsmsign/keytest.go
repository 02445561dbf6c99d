package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/agent"
	"hsmsign/api"
	"hsmsign/chain"
	"hsmsign/keystore"
	"hsmsign/signer"
)

// maxTestCount bounds --count: a quarter of an hour at 100 signatures a second.
const maxTestCount = 100_000

func (p *program) keyTest(cliCtx *cli.Context) error {
	job, _, err := p.newKeyJob(cliCtx, noFiles)
	if err != nil {
		return err
	}
	count, err := job.number("count", 10, 1, maxTestCount)
	if err != nil {
		return err
	}
	if _, err := job.ledgerConfig(); err != nil {
		return err
	}
	var certs []*x509.Certificate
	if name, _ := job.str("cert"); name != "" {
		if certs, err = job.store.LoadCertificates(cliCtx.Context, name); err != nil {
			return err
		}
	}
	key, err := job.open(cliCtx.Context)
	if err != nil {
		return err
	}
	defer func() { _ = key.Close() }()
	result := api.TestResult{Ref: job.String(), Count: count, KeySHA256: chain.SPKISHA256(key.Public())}
	if len(certs) > 0 {
		own, err := ownCertificates(certs, key.Public())
		if err != nil {
			return err
		}
		result.Certificate = api.Name(own[0].Subject)
	}
	run := agent.NewProbeRun(time.Now())
	took, err := measure(cliCtx.Context, run, key, count)
	p.recordProbe(cliCtx.Context, job.settings, run.Record(err), key, certs)
	if err != nil {
		return err
	}
	summarize(&result, took)
	if job.json {
		p.con.JSON(result)
		return nil
	}
	p.con.Printf("%d signatures made and verified: %.0f a second, median %.2f ms, slowest %.2f ms", count, result.Rate, result.MedianMS, result.SlowestMS)
	if result.Certificate != "" {
		p.con.Printf("the certificate matches the key: %s", result.Certificate)
	}
	return nil
}

// ownCertificates are those of the certificates that hold the key; there is at least one, or the error is a
// *fault.Finding.
func ownCertificates(certs []*x509.Certificate, pub crypto.PublicKey) ([]*x509.Certificate, error) {
	var own []*x509.Certificate
	for _, cert := range certs {
		if (&chain.Chain{Certs: []*x509.Certificate{cert}}).MatchKey(pub) == nil {
			own = append(own, cert)
		}
	}
	if len(own) == 0 {
		return nil, (&chain.Chain{Certs: certs}).MatchKey(pub)
	}
	return own, nil
}

// measure signs the probe message count times, one after the other, verifies the signatures, and returns the time of each.
func measure(ctx context.Context, run *agent.ProbeRun, key signer.Signer, count int) ([]time.Duration, error) {
	took := make([]time.Duration, count)
	for i := range took {
		start := time.Now()
		if err := probeOnce(run.Context(ctx), key); err != nil {
			return nil, fmt.Errorf("signature %d of %d: %w", i+1, count, err)
		}
		took[i] = time.Since(start)
	}
	return took, nil
}

func probeOnce(ctx context.Context, key signer.Signer) error {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	return signer.Probe(ctx, key)
}

// summarize sets rate, median and slowest, and sorts the times.
func summarize(r *api.TestResult, took []time.Duration) {
	slices.Sort(took)
	var total time.Duration
	for _, d := range took {
		total += d
	}
	milliseconds := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	r.Rate = float64(len(took)) / total.Seconds()
	r.MedianMS, r.SlowestMS = milliseconds(took[len(took)/2]), milliseconds(took[len(took)-1])
}

func (p *program) keyImportCert(cliCtx *cli.Context) error {
	job, args, err := p.newKeyJob(cliCtx, oneFile)
	if err != nil {
		return err
	}
	if err := job.StoresCertificates(); err != nil {
		return err
	}
	certs, err := job.store.LoadCertificates(cliCtx.Context, args[0])
	if err != nil {
		return err
	}
	key, err := job.open(cliCtx.Context)
	if err != nil {
		return err
	}
	defer func() { _ = key.Close() }()
	own, err := ownCertificates(certs, key.Public())
	if err != nil {
		return fmt.Errorf("%s: %w", keystore.Redact(args[0]), err)
	}
	info, err := job.describe(cliCtx.Context, key)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cliCtx.Context, openTimeout)
	defer cancel()
	for _, cert := range own {
		result := api.ImportResult{Ref: info.Ref, Status: api.StatusStored, Certificate: api.NewCertificate(cert, time.Now())}
		if info.Cert != nil && info.Cert.Equal(cert) {
			result.Status = api.StatusUnchanged
		}
		// Even if it seems to be stored: the backend decides.
		if err := job.ImportCertificate(ctx, cert); err != nil {
			return err
		}
		switch {
		case job.json:
			p.con.JSON(result)
		case result.Status == api.StatusUnchanged:
			p.con.Infof("%q was already stored; --cert accepts %s", cert.Subject.CommonName, info.Ref)
		default:
			p.con.Infof("%q is stored with the key; --cert accepts %s", cert.Subject.CommonName, info.Ref)
		}
	}
	return nil
}
