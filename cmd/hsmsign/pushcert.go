package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/lifecycle/pushcert"
)

// readPush reads the push certificate in a file.
func (p *program) readPush(ctx context.Context, name string) (*pushcert.Certificate, error) {
	data, err := p.read(ctx, name, pushcert.MaxCertificate, "name a readable push certificate")
	if err != nil {
		return nil, err
	}
	cert, err := pushcert.ParseCertificate(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return cert, nil
}

func (p *program) pushInspect(ctx *cli.Context) error {
	s, args, err := p.start(ctx, oneFile)
	if err != nil {
		return err
	}
	cert, err := p.readPush(ctx.Context, args[0])
	if err != nil {
		return err
	}
	now := time.Now()
	result := api.PushResult{File: args[0], Certificate: api.NewCertificate(cert.Certificate, now), Findings: cert.Check(now)}
	if value, _ := s.str("push-key"); value != "" {
		key, err := p.openPushKey(ctx.Context, s, value)
		if err != nil {
			return err
		}
		defer func() { _ = key.Close() }()
		err = cert.MatchKey(key.Public())
		matches := err == nil
		result.KeyMatches = &matches
		if f, ok := errors.AsType[*fault.Finding](err); ok {
			result.Findings = append(result.Findings, *f)
		}
	}
	p.showPush(result, s.json)
	if fault.First(result.Findings) != nil {
		return errDefects
	}
	return nil
}

func (p *program) showPush(r api.PushResult, asJSON bool) {
	if asJSON {
		if r.Findings == nil {
			r.Findings = []fault.Finding{}
		}
		p.con.JSON(r)
		return
	}
	p.printCert(r.File, r.Certificate)
	if r.KeyMatches != nil && *r.KeyMatches {
		p.con.Field("the key", "matches the certificate")
	}
	p.printFindings(r.Findings)
}

func (p *program) pushRenew(ctx *cli.Context) error {
	s, _, err := p.startBare(ctx, noFiles)
	if err != nil {
		return err
	}
	oldName, _ := s.str("old")
	newName, _ := s.str("new")
	if oldName == "" || newName == "" {
		return fault.Usage.Errorf("--old and --new are both needed").Fix("hsmsign push renew --old MDM_2025.pem --new MDM_2026.pem")
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
	p.con.Printf("%s: renews %s", newName, oldName)
	p.con.Field("topic", renewed.Topic)
	p.con.Field("valid until", fmt.Sprintf("%s (before: %s)", renewed.NotAfter.UTC().Format(time.RFC3339), old.NotAfter.UTC().Format(time.RFC3339)))
	key := "another than before: give it to the MDM server too"
	if bytes.Equal(old.RawSubjectPublicKeyInfo, renewed.RawSubjectPublicKeyInfo) {
		key = "the same as before"
	}
	p.con.Field("key", key)
	return nil
}

func (p *program) pushTopic(ctx *cli.Context) error {
	args, err := arguments(ctx, oneFile)
	if err != nil {
		return err
	}
	cert, err := p.readPush(ctx.Context, args[0])
	if err != nil {
		return err
	}
	p.con.Printf("%s", cert.Topic)
	return nil
}
