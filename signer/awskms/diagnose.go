package awskms

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"

	"hsmsign/signer"
)

// walk is one diagnosis: what the steps so far have got hold of.
type walk struct {
	Options
	ref signer.Ref
	key *key
	err error // why the service gave no key, though it answered
}

// diagnose walks from the reference to a signature; see signer.Diagnose. It asks KMS for the public key even where
// Options.PublicKey is set, and compares the two.
func (o Options) diagnose(ctx context.Context, ref signer.Ref, open signer.OpenOptions, report func(signer.Step)) signer.Signer {
	o.PublicKey = open.PublicKey
	w := &walk{Options: o, ref: ref}
	failed := false
	for _, s := range []struct {
		name  string
		check func(context.Context) signer.Step
	}{
		{"reference", w.checkReference}, {"credentials", w.checkCredentials}, {"reach", w.checkReach},
		{"key", w.checkKey}, {"protection", w.checkProtection}, {"signature", w.checkSignature},
	} {
		step := signer.Step{Status: signer.StatusSkipped}
		if !failed {
			step = s.check(ctx)
		}
		switch {
		case step.Err != nil:
			step.Status, step.Detail, step.Fix, failed = signer.StatusFail, step.Err.Error(), fixOf(step.Err), true
		case step.Status == "":
			step.Status = signer.StatusOK
		}
		step.Name = s.name
		report(step)
	}
	if !failed {
		return w.key
	}
	if w.key != nil {
		_ = w.key.Close() // never fails
	}
	return nil
}

func fine(format string, args ...any) signer.Step {
	return signer.Step{Detail: fmt.Sprintf(format, args...)}
}

func (w *walk) checkReference(ctx context.Context) signer.Step {
	k, err := Options{Policy: w.Policy, Warn: w.Warn}.dial(ctx, w.ref)
	if err != nil {
		return signer.Step{Err: err}
	}
	w.key = k
	var regions []string
	for _, s := range k.sites {
		regions = append(regions, s.region)
	}
	return fine("%s in %s", *k.sites[0].id.Load(), strings.Join(regions, ", "))
}

func (w *walk) checkCredentials(ctx context.Context) signer.Step {
	ctx, cancel := context.WithTimeout(ctx, w.Policy.WithDefaults().Total)
	defer cancel()
	c, err := w.key.credentials.Retrieve(ctx)
	if err != nil {
		return signer.Step{Err: w.key.sites[0].classify(ctx, err)}
	}
	if c.CanExpire {
		return fine("from %s, for %v", c.Source, time.Until(c.Expires).Round(time.Second))
	}
	return fine("from %s", c.Source)
}

// checkReach asks for the key: any answer at all shows that the service is there.
func (w *walk) checkReach(ctx context.Context) signer.Step {
	start := time.Now()
	w.err = w.key.resolve(ctx)
	if errors.Is(w.err, signer.ErrUnavailable) {
		return signer.Step{Err: w.err}
	}
	return fine("answered in %v", time.Since(start).Round(time.Millisecond))
}

func (w *walk) checkKey(context.Context) signer.Step {
	if w.err != nil {
		return signer.Step{Err: w.err}
	}
	if w.PublicKey != nil && !w.key.public.Equal(w.PublicKey) {
		return signer.Step{Err: fmt.Errorf("%w: it is not the key of the vendor's certificate", signer.ErrBadKey)}
	}
	der, err := x509.MarshalPKIXPublicKey(w.key.public)
	if err != nil {
		return signer.Step{Err: fmt.Errorf("%w: %w", signer.ErrBadKey, err)}
	}
	return fine("%s, RSA of %d bits for %s; SHA-256 of its public key %x", *w.key.site().id.Load(), w.key.public.N.BitLen(), algorithm, sha256.Sum256(der))
}

// checkProtection tells what DescribeKey says, where that may be asked; signing does not need it.
func (w *walk) checkProtection(ctx context.Context) signer.Step {
	s := w.key.site()
	out, err := ask(ctx, s, s.client.DescribeKey, &kms.DescribeKeyInput{KeyId: s.id.Load()})
	if errors.Is(err, signer.ErrAuth) {
		return fine("not to be seen without kms:DescribeKey, which signing does not need")
	}
	if err != nil {
		return signer.Step{Err: err}
	}
	if out.KeyMetadata == nil {
		return signer.Step{Err: fmt.Errorf("%w: kms:DescribeKey left out the key", signer.ErrUnavailable)}
	}
	var facts []string
	for _, p := range properties(out.KeyMetadata) {
		facts = append(facts, p.Name+" "+p.Value)
	}
	step := fine("%s", strings.Join(facts, ", "))
	if out.KeyMetadata.Origin == "EXTERNAL" {
		step.Status, step.Fix = signer.StatusWarn, "the key was made outside of KMS: who made it may still have it"
	}
	return step
}

func (w *walk) checkSignature(ctx context.Context) signer.Step {
	message := make([]byte, 32)
	_, _ = rand.Read(message) // never fails (Go 1.24)
	start := time.Now()
	if _, err := signer.Sign(ctx, w.key, message, crypto.SHA256); err != nil {
		return signer.Step{Err: err}
	}
	return fine("made and verified in %v", time.Since(start).Round(10*time.Microsecond))
}

// site is the one that answered last.
func (k *key) site() *site { return k.sites[k.serves.Load()] }
