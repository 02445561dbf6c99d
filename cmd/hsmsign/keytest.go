package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/chain"
	"hsmsign/signer"
)

// maxTestCount bounds --count: at 100 signatures a second it is a quarter of an hour.
const maxTestCount = 100_000

// testResult is what key test --json prints.
type testResult struct {
	Ref         string  `json:"ref"`
	Count       int     `json:"count"`
	Rate        float64 `json:"rate"` // signatures a second, one after the other
	MedianMS    float64 `json:"median_ms"`
	SlowestMS   float64 `json:"slowest_ms"`
	KeySHA256   string  `json:"key_sha256"`            // of the SubjectPublicKeyInfo
	Certificate string  `json:"certificate,omitempty"` // subject of the certificate that matches, where one was given
}

func (p *program) keyTest(cliCtx *cli.Context) error {
	job, _, err := p.newKeyJob(cliCtx, false)
	if err != nil {
		return err
	}
	count, err := job.number("count", 10, 1, maxTestCount)
	if err != nil {
		return err
	}
	var certs []*x509.Certificate
	if name, _ := job.str("cert"); name != "" {
		if certs, err = p.readCerts(cliCtx.Context, name); err != nil {
			return err
		}
	}
	key, err := job.open(cliCtx.Context)
	if err != nil {
		return err
	}
	defer func() { _ = key.Close() }()
	result := testResult{Ref: job.ref.String(), Count: count, KeySHA256: chain.SPKISHA256(key.Public())}
	if len(certs) > 0 {
		own, err := ownCertificates(certs, key.Public())
		if err != nil {
			return err
		}
		result.Certificate = describeName(own[0].Subject)
	}
	took, err := measure(cliCtx.Context, key, count)
	if err != nil {
		return err
	}
	result.summarize(took)
	if job.json {
		p.ui.json(result)
		return nil
	}
	p.ui.print("%d signatures made and verified: %.0f a second, median %.2f ms, slowest %.2f ms", count, result.Rate, result.MedianMS, result.SlowestMS)
	if result.Certificate != "" {
		p.ui.print("the certificate is the key's: %s", result.Certificate)
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

// measure signs count random messages, one after the other, and gives the time of each. What it signs is verified.
func measure(ctx context.Context, key signer.Signer, count int) ([]time.Duration, error) {
	took := make([]time.Duration, count)
	message := make([]byte, 64)
	for i := range took {
		_, _ = rand.Read(message) // never fails (Go 1.24)
		start := time.Now()
		if err := signOnce(ctx, key, message); err != nil {
			return nil, fmt.Errorf("signature %d of %d: %w", i+1, count, err)
		}
		took[i] = time.Since(start)
	}
	return took, nil
}

func signOnce(ctx context.Context, key signer.Signer, message []byte) error {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	_, err := signer.Sign(ctx, key, message, crypto.SHA256)
	return err
}

// summarize sorts the times.
func (r *testResult) summarize(took []time.Duration) {
	slices.Sort(took)
	var total time.Duration
	for _, d := range took {
		total += d
	}
	milliseconds := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	r.Rate = float64(len(took)) / total.Seconds()
	r.MedianMS, r.SlowestMS = milliseconds(took[len(took)/2]), milliseconds(took[len(took)-1])
}

// importResult is what key import-cert --json prints.
type importResult struct {
	Ref         string   `json:"ref"` // names the key, and as --cert the certificate
	Status      string   `json:"status"`
	Certificate certInfo `json:"certificate"`
}

func (p *program) keyImportCert(cliCtx *cli.Context) error {
	job, args, err := p.newKeyJob(cliCtx, true)
	if err != nil {
		return err
	}
	if len(args) != 1 {
		return usage("name one certificate file", "%d files given", len(args))
	}
	if job.backend.Certificates == nil {
		return usage("keep the certificate in a file", "%s: keys hold no certificates", job.ref.Scheme)
	}
	certs, err := p.readCerts(cliCtx.Context, args[0])
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
		return fmt.Errorf("%s: %w", certName(args[0]), err)
	}
	info, err := job.describe(cliCtx.Context, key)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cliCtx.Context, openTimeout)
	defer cancel()
	for _, cert := range own {
		result := importResult{Ref: info.Ref, Status: "stored", Certificate: describeCert(cert, time.Now())}
		if info.Cert != nil && info.Cert.Equal(cert) {
			result.Status = statusUnchanged
		}
		// Also where it is there already: whether it is, is for the backend to say.
		if err := job.backend.Certificates.Import(ctx, job.ref, cert); err != nil {
			return err
		}
		switch {
		case job.json:
			p.ui.json(result)
		case result.Status == statusUnchanged:
			p.ui.info("%q was there already; --cert takes %s", cert.Subject.CommonName, info.Ref)
		default:
			p.ui.info("%q lies beside the key; --cert takes %s", cert.Subject.CommonName, info.Ref)
		}
	}
	return nil
}
