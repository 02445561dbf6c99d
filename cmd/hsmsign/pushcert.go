package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/fault"
	"hsmsign/lifecycle/pushcert"
)

// pushResult is what push inspect --json prints.
type pushResult struct {
	File        string          `json:"file"`
	Certificate certInfo        `json:"certificate"`
	KeyMatches  *bool           `json:"key_matches,omitempty"` // absent where no key was named
	Findings    []fault.Finding `json:"findings"`
}

// readPush reads the push certificate in a file.
func (p *program) readPush(ctx context.Context, name string) (*pushcert.Certificate, error) {
	data, err := p.readInput(ctx, name, pushcert.MaxCertificate)
	if err != nil {
		return nil, fault.Refused.Errorf("%s: %w", name, err).Fix("name a readable push certificate")
	}
	cert, err := pushcert.ParseCertificate(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return cert, nil
}

func (p *program) pushInspect(ctx *cli.Context) error {
	s, name, asJSON, err := p.startOne(ctx)
	if err != nil {
		return err
	}
	cert, err := p.readPush(ctx.Context, name)
	if err != nil {
		return err
	}
	now := time.Now()
	result := pushResult{File: name, Certificate: describeCert(cert.Certificate, now), Findings: cert.Check(now)}
	if value, _ := s.str("push-key"); value != "" {
		key, err := p.openPushKey(ctx.Context, s, value)
		if err != nil {
			return err
		}
		defer func() { _ = key.Close() }()
		err = cert.MatchKey(key.Public())
		matches := err == nil
		result.KeyMatches = &matches
		result.add(err)
	}
	p.ui.showPush(result, asJSON)
	if fault.First(result.Findings) != nil {
		return errDefects
	}
	return nil
}

// add takes in an error that is a *fault.Finding.
func (r *pushResult) add(err error) {
	var f *fault.Finding
	if errors.As(err, &f) {
		r.Findings = append(r.Findings, *f)
	}
}

func (u *ui) showPush(r pushResult, asJSON bool) {
	if asJSON {
		if r.Findings == nil {
			r.Findings = []fault.Finding{}
		}
		u.json(r)
		return
	}
	u.printCert(r.File, r.Certificate)
	if r.KeyMatches != nil && *r.KeyMatches {
		u.field("the key", "is the certificate's")
	}
	u.printFindings(r.Findings)
}

func (p *program) pushRenew(ctx *cli.Context) error {
	s := p.bareSettings(ctx)
	if err := noArguments(ctx); err != nil {
		return err
	}
	oldName, _ := s.str("old")
	newName, _ := s.str("new")
	if oldName == "" || newName == "" {
		return usage("hsmsign push renew --old MDM_2025.pem --new MDM_2026.pem", "--old and --new are both needed")
	}
	old, err := p.readPush(ctx.Context, oldName)
	if err != nil {
		return err
	}
	renewed, err := p.readPush(ctx.Context, newName)
	if err != nil {
		return err
	}
	if err := pushcert.CheckRenewal(old, renewed, time.Now()); err != nil {
		return fmt.Errorf("%s: %w", newName, err)
	}
	p.ui.print("%s: renews %s", newName, oldName)
	p.ui.field("topic", renewed.Topic)
	p.ui.field("valid until", fmt.Sprintf("%s (before: %s)", renewed.NotAfter.UTC().Format(time.RFC3339), old.NotAfter.UTC().Format(time.RFC3339)))
	key := "another than before: the MDM server needs it too"
	if bytes.Equal(old.RawSubjectPublicKeyInfo, renewed.RawSubjectPublicKeyInfo) {
		key = "the same as before"
	}
	p.ui.field("key", key)
	return nil
}

func (p *program) pushTopic(ctx *cli.Context) error {
	name, err := oneArgument(ctx)
	if err != nil {
		return err
	}
	cert, err := p.readPush(ctx.Context, name)
	if err != nil {
		return err
	}
	p.ui.print("%s", cert.Topic)
	return nil
}
