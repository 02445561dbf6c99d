package ceremony

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"hsmsign/api"
	"hsmsign/chain"
	"hsmsign/lifecycle/certreq"
	"hsmsign/lifecycle/vendorcert"
	"hsmsign/signer"
)

// examine records what the store says about the key, and the backend's diagnosis: module, token, login, a signature.
func (c *run) examine(ctx context.Context, key signer.Signer) ([]Fact, error) {
	if err := vendorcert.CheckKey(key.Public()); err != nil {
		return nil, err
	}
	info, err := c.describe(ctx, key)
	if err != nil {
		return nil, err
	}
	facts := []Fact{
		{"key", info.Ref}, {"store", info.Store}, {"label", info.Label}, {"id", info.ID},
		{"algorithm", fmt.Sprintf("%s %d bits", info.Algorithm, info.Bits)},
	}
	for _, p := range info.Properties {
		facts = append(facts, Fact{p.Name, p.Value})
	}
	checks, err := c.diagnose(ctx, true)
	return append(facts, checks...), err
}

// diagnose shows the steps of the store's diagnosis and returns them as facts, with the error of the step that failed.
// Unless made, the diagnosis ends well at the step that looks for the key and does not find it.
func (c *run) diagnose(ctx context.Context, made bool) (facts []Fact, err error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	ended := false
	key := c.Key.Diagnose(ctx, signer.OpenOptions{}, func(step signer.Step) {
		if ended {
			return
		}
		if !made && (step.Name == "key" || step.Name == "file") && errors.Is(step.Err, signer.ErrKeyNotFound) {
			ended, step = true, signer.Step{Name: step.Name, Status: signer.StatusOK, Detail: "does not exist yet"}
		}
		if err == nil {
			err = step.Err
		}
		c.Check(step)
		facts = append(facts, Fact{"check: " + step.Name, strings.TrimSpace(string(step.Status) + " " + step.Detail)})
	})
	if key != nil {
		_ = key.Close()
	}
	return facts, err
}

// csr writes vendor.csr. For the same key and subject it is always the same.
func (c *run) csr(ctx context.Context, key signer.Signer) ([]Fact, error) {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	der, err := vendorcert.CreateCSR(ctx, key, c.subject)
	if err != nil {
		return nil, err
	}
	file, err := c.output(CSRFile, certreq.EncodePEM(der))
	if err != nil {
		return nil, err
	}
	return []Fact{
		{"file", CSRFile}, file, {"CSR SHA-256", sum(der)}, {FactKeySHA256, chain.SPKISHA256(key.Public())},
		{"email", c.subject.Email}, {"common name", c.subject.CommonName},
		{"organization", c.subject.Organization}, {"country", c.subject.Country},
	}, nil
}

// certificate proves that Apple's certificate belongs to the key, and writes vendor.pem.
func (c *run) certificate(ctx context.Context, key signer.Signer) ([]Fact, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*signTimeout) // downloads have time limits of their own
	defer cancel()
	built, err := vendorcert.Import(ctx, key, c.Import.File, c.Import.Options)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.Import.Name, err)
	}
	if c.Import.Store {
		if err := c.Key.ImportCertificate(ctx, built.Leaf()); err != nil {
			return nil, err
		}
	}
	file, err := c.output(BundleFile, []byte(built.PEM()))
	if err != nil {
		return nil, err
	}
	c.findings = built.Findings
	facts := []Fact{
		{"file", BundleFile}, file, {FactKeySHA256, chain.SPKISHA256(built.Leaf().PublicKey)},
		{"proof", "a signature over the probe message verifies with the certificate"},
		{"stored with the key", strconv.FormatBool(c.Import.Store)},
	}
	for i, cert := range api.NewCertificates(built.Certs, time.Now()) {
		facts = append(facts, Fact{
			fmt.Sprintf("certificate %d", i+1),
			fmt.Sprintf("%s; serial number %s; until %s; SHA-256 %s", cert.Subject, cert.Serial, cert.NotAfter, cert.SHA256),
		})
	}
	return facts, nil
}
