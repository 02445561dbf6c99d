package file

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"hsmsign/secret"
	"hsmsign/signer"
)

// walk is one diagnosis: what the steps so far have got hold of.
type walk struct {
	opening
	ctx     context.Context
	data    []byte
	der     []byte
	private *rsa.PrivateKey
	err     error // why the key could not be read
}

// diagnose walks from the reference to a signature; see signer.Diagnose.
func (o Options) diagnose(ctx context.Context, ref signer.Ref, _ signer.OpenOptions, report func(signer.Step)) signer.Signer {
	w := &walk{opening: opening{Options: o, ref: ref}, ctx: ctx}
	defer func() { clear(w.data); clear(w.der) }()
	failed := false
	for _, s := range []struct {
		name  string
		check func() signer.Step
	}{
		{"reference", w.checkReference}, {"file", w.checkFile}, {"mode", w.checkMode}, {"kind", w.checkKind},
		{"passphrase", w.checkPassphrase}, {"key", w.checkKey}, {"signature", w.checkSignature},
	} {
		step := signer.Step{Status: signer.StatusSkipped}
		if !failed {
			step = s.check()
		}
		switch {
		case step.Err != nil:
			step.Status, step.Detail, step.Fix, failed = signer.StatusFail, step.Err.Error(), w.fix, true
		case step.Status == "":
			step.Status = signer.StatusOK
		}
		step.Name = s.name
		report(step)
	}
	if failed {
		return nil
	}
	return newKey(ref, w.private)
}

func ok(format string, args ...any) signer.Step {
	return signer.Step{Detail: fmt.Sprintf(format, args...)}
}

func warning(fix, format string, args ...any) signer.Step {
	return signer.Step{Status: signer.StatusWarn, Detail: fmt.Sprintf(format, args...), Fix: fix}
}

func (w *walk) checkReference() signer.Step {
	if err := w.settings(); err != nil {
		return signer.Step{Err: err}
	}
	return ok("%s", w.ref)
}

func (w *walk) checkFile() signer.Step {
	// What insecure-mode=allow lets pass is said by the next step.
	w.Warn = nil
	var err error
	w.data, err = w.readKey()
	if err != nil && !errors.Is(err, secret.ErrInsecureMode) {
		return signer.Step{Err: err}
	}
	w.err = err
	return ok("%s", w.path)
}

func (w *walk) checkMode() signer.Step {
	if w.err != nil {
		return signer.Step{Err: w.err}
	}
	stat, err := os.Stat(w.path)
	if err != nil {
		return signer.Step{Err: fmt.Errorf("%w: %w", signer.ErrUnavailable, err)}
	}
	mode := stat.Mode().Perm()
	if mode&0o077 != 0 && runtime.GOOS != "windows" {
		return warning("chmod 600 "+w.path, "others can read it (mode %04o), and insecure-mode=allow lets it pass", mode)
	}
	return ok("%04o", mode)
}

func (w *walk) checkKind() signer.Step {
	var err error
	if w.der, err = w.keyBlock(w.data); err != nil {
		return signer.Step{Err: err}
	}
	form := formOf(w.der)
	if form == "" {
		return ok("none of the known kinds") // the key's step says what it is instead
	}
	if form == formPKCS8 || form == formPKCS1 {
		return warning("keep it encrypted, or better in an HSM: who can read the file can sign", "%s, not encrypted", form)
	}
	return ok("%s", form)
}

func (w *walk) checkPassphrase() signer.Step {
	w.private, w.err = w.parse(w.ctx, w.der)
	if errors.Is(w.err, signer.ErrAuth) {
		return signer.Step{Err: w.err}
	}
	if form := formOf(w.der); form != formEncrypted && form != formPKCS12 {
		return ok("none needed")
	}
	return ok("right")
}

func (w *walk) checkKey() signer.Step {
	if w.err != nil {
		return signer.Step{Err: w.err}
	}
	der, err := x509.MarshalPKIXPublicKey(&w.private.PublicKey)
	if err != nil {
		return signer.Step{Err: fmt.Errorf("%w: %w", signer.ErrBadKey, err)}
	}
	return ok("RSA of %d bits; SHA-256 of its public key %x", w.private.N.BitLen(), sha256.Sum256(der))
}

func (w *walk) checkSignature() signer.Step {
	message := make([]byte, 32)
	_, _ = rand.Read(message) // never fails (Go 1.24)
	start := time.Now()
	if _, err := signer.Sign(w.ctx, newKey(w.ref, w.private), message, crypto.SHA256); err != nil {
		return signer.Step{Err: err}
	}
	return ok("made and verified in %v", time.Since(start).Round(10*time.Microsecond))
}
