package gcpkms

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"

	"hsmsign/signer"
)

// walk is one diagnosis: what the steps so far have got hold of.
type walk struct {
	*session
	answer *kmspb.PublicKey
	err    error // why there is no answer
	took   time.Duration
	public *rsa.PublicKey
	key    *key
}

// diagnose walks from the reference to a signature; see signer.Diagnose. It asks the service for the public key even
// where Options has one.
func (o Options) diagnose(ctx context.Context, ref signer.Ref, open signer.OpenOptions, report func(signer.Step)) signer.Signer {
	o.PublicKey = open.PublicKey
	w := &walk{session: &session{Options: o, ref: ref}}
	failed := false
	for _, s := range []struct {
		name  string
		check func(context.Context) (string, error)
	}{
		{"reference", w.checkReference}, {"credentials", w.checkCredentials}, {"reach", w.checkReach}, {"access", w.checkAccess},
		{"key", w.checkKey}, {"algorithm", w.checkAlgorithm}, {"protection", w.checkProtection}, {"signature", w.checkSignature},
	} {
		step := signer.Step{Name: s.name, Status: signer.StatusSkipped}
		if !failed {
			detail, err := s.check(ctx)
			step.Status, step.Detail = signer.StatusOK, detail
			if err != nil {
				failed = true
				step.Status, step.Detail, step.Err = signer.StatusFail, oneLine(err.Error()), err
				if f, ok := errors.AsType[*faultError](err); ok {
					step.Fix = f.fix
				}
			} else if s.name == "protection" && !isHSM(w.answer.GetProtectionLevel()) {
				step.Status, step.Fix = signer.StatusWarn, "a key of protection level HSM never leaves Cloud HSM; say require-hsm=yes in the reference"
			}
		}
		report(step)
	}
	if failed {
		if w.client != nil {
			_ = w.client.Close()
		}
		return nil
	}
	return w.key
}

func (w *walk) checkReference(ctx context.Context) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := w.read(); err != nil {
		return "", err
	}
	if w.name.key == "" {
		return "", w.refuseUnversioned(ctx)
	}
	return w.name.String(), nil
}

func (w *walk) checkCredentials(ctx context.Context) (string, error) {
	if err := w.connect(ctx); err != nil {
		return "", err
	}
	if w.loopback {
		return "none: the endpoint is a double on this machine", nil
	}
	return "application default credentials found", nil
}

// checkReach makes the one call that the next steps speak of. Whatever the service says, it has been reached.
func (w *walk) checkReach(ctx context.Context) (string, error) {
	start := time.Now()
	if w.name.version == "" {
		w.err = w.refuseUnversioned(ctx)
	} else {
		w.answer, w.err = w.publicKey(ctx)
	}
	w.took = time.Since(start)
	if errors.Is(w.err, signer.ErrUnavailable) {
		return "", w.err
	}
	endpoint := w.endpoint
	if endpoint == "" {
		endpoint = "cloudkms.googleapis.com:443"
	}
	return fmt.Sprintf("%s answers in %v", endpoint, w.took.Round(time.Millisecond)), nil
}

func (w *walk) checkAccess(context.Context) (string, error) {
	if errors.Is(w.err, signer.ErrAuth) {
		return "", w.err
	}
	return "allowed", nil
}

func (w *walk) checkKey(context.Context) (string, error) {
	if w.err != nil {
		return "", w.err
	}
	return "enabled", nil
}

func (w *walk) checkAlgorithm(context.Context) (string, error) {
	free := *w.session
	free.requireHSM = false // the next step's business
	var err error
	if w.public, err = free.judge(w.answer); err != nil {
		return "", err
	}
	der, err := x509.MarshalPKIXPublicKey(w.public)
	if err != nil {
		return "", fmt.Errorf("%w: %w", signer.ErrBadKey, err)
	}
	return fmt.Sprintf("%v; SHA-256 of its public key %x", w.answer.GetAlgorithm(), sha256.Sum256(der)), nil
}

func (w *walk) checkProtection(context.Context) (string, error) {
	return w.answer.GetProtectionLevel().String(), w.judgeProtection(w.answer.GetProtectionLevel())
}

func (w *walk) checkSignature(ctx context.Context) (string, error) {
	message := make([]byte, 32)
	_, _ = rand.Read(message) // never fails (Go 1.24)
	w.key = w.newKey(w.public, true)
	start := time.Now()
	if _, err := signer.Sign(ctx, w.key, message, crypto.SHA256); err != nil {
		return "", errors.Join(err, w.key.Close())
	}
	return fmt.Sprintf("made and verified in %v", time.Since(start).Round(10*time.Microsecond)), nil
}
