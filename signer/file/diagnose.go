package file

import (
	"context"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"runtime"

	"hsmsign/secret"
	"hsmsign/signer"
)

// diagnosis is one call of Diagnose and what its steps have found.
type diagnosis struct {
	session
	data    []byte
	block   *pem.Block
	readErr error // the mode of the file
	keyErr  error // why the key cannot be used
	private *rsa.PrivateKey
	key     signer.Signer
}

// diagnose implements signer.Backend.Diagnose.
func (o Options) diagnose(ctx context.Context, ref signer.Ref, _ signer.OpenOptions, report func(signer.Step)) signer.Signer {
	d := &diagnosis{session: session{Options: o, ref: ref}}
	d.Warn = nil // the step "mode" reports it
	defer func() {
		clear(d.data)
		if d.block != nil {
			clear(d.block.Bytes)
		}
	}()
	signer.RunSteps(ctx, report, []signer.Check{
		{Name: "reference", Run: d.checkReference}, {Name: "file", Run: d.checkFile}, {Name: "mode", Run: d.checkMode}, {Name: "kind", Run: d.checkKind},
		{Name: "passphrase", Run: d.checkPassphrase}, {Name: "key", Run: d.checkKey}, {Name: signer.StepSignature, Run: d.checkSignature},
	})
	return d.key
}

func (d *diagnosis) checkReference(context.Context) signer.Step {
	var err error
	d.reference, err = parseReference(d.ref)
	return signer.StepResult(err, "%s", d.ref)
}

func (d *diagnosis) checkFile(context.Context) signer.Step {
	d.data, d.readErr = d.readKey()
	if d.readErr != nil && !errors.Is(d.readErr, secret.ErrInsecureMode) {
		return signer.StepFail(d.readErr)
	}
	return signer.StepOK("%s", d.path)
}

func (d *diagnosis) checkMode(context.Context) signer.Step {
	if d.readErr != nil {
		return signer.StepFail(d.readErr)
	}
	stat, err := os.Stat(d.path)
	if err != nil {
		return signer.StepFail(fmt.Errorf("%w: %w", signer.ErrUnavailable, err))
	}
	mode := stat.Mode().Perm()
	if mode&0o077 != 0 && runtime.GOOS != "windows" {
		return signer.StepWarn("others can read it (mode %04o), which insecure-mode=allow permits", mode).WithFix("chmod 600 " + d.path)
	}
	return signer.StepOK("%04o", mode)
}

func (d *diagnosis) checkKind(context.Context) signer.Step {
	var err error
	if d.block, err = d.keyBlock(d.data); err != nil {
		return signer.StepFail(withHint(err))
	}
	switch form := formOf(d.block); form {
	case "":
		return signer.StepOK("not a known kind of key file") // the step "key" reports what it is
	case formPKCS8, formPKCS1:
		return signer.StepWarn("%s, not encrypted", form).WithFix("encrypt it, or use an HSM: everyone who can read the file can sign")
	case formOldPEM:
		return signer.StepWarn("%s, which is weak", form).WithFix(fixOldPEM)
	default:
		return signer.StepOK("%s", form)
	}
}

func (d *diagnosis) checkPassphrase(ctx context.Context) signer.Step {
	d.private, d.keyErr = d.parse(ctx, d.block)
	if errors.Is(d.keyErr, signer.ErrAuth) || errors.Is(d.keyErr, secret.ErrNoFile) {
		return signer.StepFail(d.keyErr)
	}
	if !isEncrypted(formOf(d.block)) {
		return signer.StepOK("not needed")
	}
	return signer.StepOK("accepted")
}

func (d *diagnosis) checkKey(context.Context) signer.Step {
	if d.keyErr != nil {
		return signer.StepFail(withHint(d.keyErr))
	}
	return signer.StepKey("", &d.private.PublicKey, signer.OpenOptions{})
}

func (d *diagnosis) checkSignature(ctx context.Context) signer.Step {
	key := newKey(d.ref, d.private)
	step := signer.StepSign(ctx, key)
	if step.Status == signer.StatusOK {
		d.key = key
	}
	return step
}
