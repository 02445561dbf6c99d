package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"hsmsign/fault"
	ceremonies "hsmsign/lifecycle/ceremony"
	"hsmsign/lifecycle/vendorcert"

	"hsmsign/chain"
	"hsmsign/lifecycle/certreq"
	"hsmsign/signer"
)

// key opens the ceremony's key, made now unless a run before made it. A second one is never made: what the transcript
// says and what is in the store must agree.
func (c *ceremony) key(ctx context.Context) (signer.Signer, []ceremonies.Fact, error) {
	key, err := c.job.open(ctx)
	made, wasMade := c.Done(ceremonies.StepGenerate)
	begun, wasBegun := c.Generating()
	absent := errors.Is(err, signer.ErrKeyNotFound)
	switch {
	case wasMade && absent:
		return nil, nil, fault.WithHint(fmt.Errorf("the key of this ceremony is gone: %w", err), "no second one is made; find the first, or begin a new ceremony in another --dir")
	case err != nil && !absent:
		return nil, nil, err
	case wasMade:
		if sum := chain.SPKISHA256(key.Public()); sum != made.Fact(ceremonies.FactKeySHA256) {
			_ = key.Close()
			return nil, nil, fmt.Errorf("%w: %s is not the key of this ceremony: it has SHA-256 %s, entry %d tells of %s", signer.ErrBadKey,
				c.job.ref, sum, made.Number, made.Fact(ceremonies.FactKeySHA256))
		}
		return key, nil, nil
	case wasBegun && begun.Fact(ceremonies.FactReference) != c.job.ref.String():
		if key != nil {
			_ = key.Close()
		}
		return nil, nil, usage("name the same --key", "a run that was cut off began to make %s; it may be there", begun.Fact(ceremonies.FactReference))
	case key != nil && !wasBegun:
		_ = key.Close()
		return nil, nil, fault.WithHint(fmt.Errorf("%w: %s; a ceremony makes its own", signer.ErrKeyExists, c.job.ref), "name a key that is not there yet")
	}
	how := "a run that was cut off made it"
	if absent {
		how = "made now"
		if key, err = c.generate(ctx, wasBegun); err != nil {
			return nil, nil, err
		}
	}
	return key, []ceremonies.Fact{
		{Name: "how", Value: how}, {Name: ceremonies.FactReference, Value: c.job.ref.String()},
		{Name: ceremonies.FactKeySHA256, Value: chain.SPKISHA256(key.Public())},
	}, nil
}

// generate makes the key. The decision is on the disk before: a run that is killed in between leaves a trace of it.
func (c *ceremony) generate(ctx context.Context, begun bool) (signer.Signer, error) {
	if !begun {
		if err := c.Append(ceremonies.StepIntent, ceremonies.OK, ceremonies.Fact{Name: ceremonies.FactReference, Value: c.job.ref.String()}); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, generateTimeout)
	defer cancel()
	return c.job.backend.Generate(ctx, c.job.ref, signer.KeySpec{Bits: vendorcert.KeyBits})
}

// examine writes down what the store says of the key, and has the backend say what it is made of: module, token,
// login, a signature.
func (c *ceremony) examine(ctx context.Context, key signer.Signer) ([]ceremonies.Fact, error) {
	if err := vendorcert.CheckKey(key.Public()); err != nil {
		return nil, err
	}
	info, err := c.job.describe(ctx, key)
	if err != nil {
		return nil, err
	}
	facts := []ceremonies.Fact{
		{Name: "key", Value: info.Ref}, {Name: "store", Value: info.Store}, {Name: "label", Value: info.Label}, {Name: "id", Value: info.ID},
		{Name: "algorithm", Value: fmt.Sprintf("%s %d bits", info.Algorithm, info.Bits)},
	}
	for _, p := range info.Properties {
		facts = append(facts, ceremonies.Fact{Name: p.Name, Value: p.Value})
	}
	if c.job.backend.Diagnose == nil {
		return facts, nil
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	again := c.job.backend.Diagnose(ctx, c.job.ref, signer.OpenOptions{}, func(step signer.Step) {
		if err == nil {
			err = step.Err
		}
		facts = append(facts, ceremonies.Fact{Name: "check: " + step.Name, Value: strings.TrimSpace(string(step.Status) + " " + step.Detail)})
	})
	if again != nil {
		_ = again.Close()
	}
	return facts, err
}

// csr makes vendor.csr. Made again for the same subject it is the same.
func (c *ceremony) csr(ctx context.Context, key signer.Signer) ([]ceremonies.Fact, error) {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	der, err := vendorcert.CreateCSR(ctx, key, c.subject)
	if err != nil {
		return nil, err
	}
	file, err := c.output(ceremonies.CSRFile, certreq.EncodePEM(der))
	if err != nil {
		return nil, err
	}
	return []ceremonies.Fact{
		{Name: "file", Value: ceremonies.CSRFile}, file, {Name: "CSR SHA-256", Value: hexSHA256(der)},
		{Name: ceremonies.FactKeySHA256, Value: chain.SPKISHA256(key.Public())},
		{Name: "email", Value: c.subject.Email}, {Name: "common name", Value: c.subject.CommonName},
		{Name: "organization", Value: c.subject.Organization}, {Name: "country", Value: c.subject.Country},
	}, nil
}

// certificate proves that Apple's certificate is the key's, and writes vendor.pem.
func (c *ceremony) certificate(ctx context.Context, key signer.Signer) ([]ceremonies.Fact, error) {
	built, err := c.in.prove(ctx, key)
	if err != nil {
		return nil, err
	}
	if err := c.in.store(ctx, built.Leaf()); err != nil {
		return nil, err
	}
	file, err := c.output(ceremonies.BundleFile, []byte(built.PEM()))
	if err != nil {
		return nil, err
	}
	c.p.ui.warnings(c.in.name, built.Findings)
	leaf := describeCert(built.Leaf(), time.Now())
	facts := []ceremonies.Fact{
		{Name: "file", Value: ceremonies.BundleFile}, file, {Name: ceremonies.FactKeySHA256, Value: leaf.KeySHA256},
		{Name: "proof", Value: "a signature over a random message verifies with the certificate"},
		{Name: "stored beside the key", Value: strconv.FormatBool(c.in.beside)},
	}
	for i, cert := range describeChain(built.Certs, time.Now()) {
		facts = append(facts, ceremonies.Fact{
			Name:  fmt.Sprintf("certificate %d", i+1),
			Value: fmt.Sprintf("%s; serial number %s; until %s; SHA-256 %s", cert.Subject, cert.Serial, cert.NotAfter, cert.SHA256),
		})
	}
	return facts, nil
}
