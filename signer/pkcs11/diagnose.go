//go:build cgo

package pkcs11

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"debug/elf"
	"debug/macho"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
)

// walk is one diagnosis: what the steps so far have got hold of. The steps run one after the other.
type walk struct {
	ctx     context.Context
	opts    Options
	source  signer.Ref
	ref     reference
	module  *module
	loaded  bool // the module is retained
	found   foundToken
	token   *token // retained
	object  pkcs11.ObjectHandle
	pub     *rsa.PublicKey
	session finder
	key     *key
}

// diagnose walks from the reference to a signature; see signer.Diagnose. It sends the PIN at most once, and not at
// all to a token that is about to lock.
func (o Options) diagnose(ctx context.Context, ref signer.Ref, open signer.OpenOptions, report func(signer.Step)) signer.Signer {
	o.PublicKey = open.PublicKey
	w := &walk{ctx: ctx, opts: o, source: ref}
	steps := []struct {
		name  string
		check func() signer.Step
	}{
		{"reference", w.checkReference}, {"module file", w.checkFile}, {"architecture", w.checkArchitecture},
		{"load", w.locked(w.checkLoad)}, {"initialize", w.locked(w.checkInitialize)}, {"slots", w.locked(w.checkSlots)},
		{"token", w.locked(w.checkToken)}, {"token state", w.checkState}, {"login", w.locked(w.checkLogin)},
		{"key", w.locked(w.checkKey)}, {"key attributes", w.locked(w.checkAttributes)}, {"mechanisms", w.locked(w.checkMechanisms)},
		{"signature", w.checkSignature},
	}
	failed, hung := false, (<-chan struct{})(nil)
	for _, s := range steps {
		step := signer.Step{Status: signer.StatusSkipped}
		if !failed {
			step, hung = w.run(s.check)
		}
		step.Name = s.name
		failed = failed || step.Status == signer.StatusFail
		report(step)
	}
	if hung != nil {
		// The module still works on a call, and what it holds is given back when it is done.
		go func() {
			<-hung
			w.end()
		}()
		return nil
	}
	w.end()
	if failed {
		if w.key != nil {
			_ = w.key.Close()
		}
		return nil
	}
	return w.key
}

// run makes one check, and gives up waiting when the context ends; then hung is closed when the check is done.
func (w *walk) run(check func() signer.Step) (step signer.Step, hung <-chan struct{}) {
	done, ended := make(chan signer.Step, 1), make(chan struct{})
	go func() {
		defer close(ended)
		done <- check()
	}()
	select {
	case step = <-done:
	case <-w.ctx.Done():
		err := fmt.Errorf("%w: the module has not answered: %w", signer.ErrUnavailable, w.ctx.Err())
		return signer.Step{Status: signer.StatusFail, Detail: err.Error(), Err: err, Fix: "check the connection to the HSM, and start its client software anew"}, ended
	}
	switch {
	case step.Err != nil:
		step = signer.StepFail(step.Err)
	case step.Status == "":
		step.Status = signer.StatusOK
	}
	return step, nil
}

// end gives back what the walk itself holds; an open key holds its own share.
func (w *walk) end() {
	if !w.loaded {
		return
	}
	w.module.mu.Lock()
	defer w.module.mu.Unlock()
	if w.token != nil {
		_ = w.module.releaseToken(w.token)
	}
	_ = w.module.release()
}

// locked is a check that needs the module to itself.
func (w *walk) locked(check func() signer.Step) func() signer.Step {
	return func() signer.Step {
		if err := w.module.mu.LockContext(w.ctx); err != nil {
			return stepFail(w.ref.fail("diagnose", err, ""))
		}
		defer w.module.mu.Unlock()
		return check()
	}
}

func stepOK(format string, args ...any) signer.Step {
	return signer.Step{Detail: fmt.Sprintf(format, args...)}
}

func stepWarn(fix, format string, args ...any) signer.Step {
	return signer.Step{Status: signer.StatusWarn, Detail: fmt.Sprintf(format, args...), Fix: fix}
}

func stepFail(err error) signer.Step { return signer.Step{Err: err} }

func (w *walk) checkReference() signer.Step {
	var err error
	if w.ref, err = w.opts.reference("diagnose", w.source); err != nil {
		return stepFail(err)
	}
	w.ref.public = w.opts.PublicKey
	if w.ref.pinValue != "" {
		return stepWarn("use pin-source=file:PATH", "the PIN stands in the reference (pin-value), where process lists and logs show it")
	}
	return stepOK("%s", w.source)
}

func (w *walk) checkFile() signer.Step {
	var err error
	if w.module, err = findModule(w.ref); err != nil {
		return stepFail(err)
	}
	info, err := os.Stat(w.module.path)
	if err != nil {
		return stepFail(w.ref.fail("open", fmt.Errorf("%w: %w", signer.ErrUnavailable, err), ""))
	}
	// Who can write to the module runs code in this program; Windows reports 0666 for every writable file.
	if info.Mode().Perm()&0o022 != 0 && runtime.GOOS != "windows" {
		return stepWarn("chmod go-w "+w.module.path, "%s can be written to by others (mode %04o)", w.module.path, info.Mode().Perm())
	}
	return stepOK("%s, %d bytes", w.module.path, info.Size())
}

func (w *walk) checkArchitecture() signer.Step {
	if lib, err := elf.Open(w.module.path); err == nil {
		defer func() { _ = lib.Close() }()
		if want, known := thisMachine(); !known || lib.Machine == want {
			return stepOK("ELF, %v", lib.Machine)
		}
	}
	if lib, err := macho.OpenFat(w.module.path); err == nil && runtime.GOOS == "darwin" {
		defer func() { _ = lib.Close() }()
		return stepOK("Mach-O, for %d processors", len(lib.Arches))
	}
	if lib, err := macho.Open(w.module.path); err == nil && runtime.GOOS == "darwin" {
		defer func() { _ = lib.Close() }()
		return stepOK("Mach-O, %v", lib.Cpu)
	}
	return stepFail(w.ref.fail("open", whyNotLoaded(w.module.path), "install the module for this system, or correct module-path"))
}

func (w *walk) checkLoad() signer.Step {
	if err := w.module.load(w.ref); err != nil {
		return stepFail(err)
	}
	return stepOK("loaded")
}

func (w *walk) checkInitialize() signer.Step {
	if err := w.module.retain(w.ref); err != nil {
		return stepFail(err)
	}
	w.loaded = true
	info, err := w.module.lib.GetInfo()
	if err != nil {
		return stepFail(w.ref.fail("open", call("C_GetInfo", err), ""))
	}
	return stepOK("%s, version %d.%d, of %s; PKCS#11 %d.%d", info.LibraryDescription, info.LibraryVersion.Major, info.LibraryVersion.Minor,
		info.ManufacturerID, info.CryptokiVersion.Major, info.CryptokiVersion.Minor)
}

func (w *walk) checkSlots() signer.Step {
	all, err := w.module.lib.GetSlotList(false)
	if err != nil {
		return stepFail(w.ref.fail("open", call("C_GetSlotList", err), ""))
	}
	present, err := w.module.lib.GetSlotList(true)
	if err != nil {
		return stepFail(w.ref.fail("open", call("C_GetSlotList", err), ""))
	}
	_, there, err := w.module.findTokens(w.ref)
	if err != nil {
		return stepFail(err)
	}
	const detail = "slots: %d, with a token: %d, initialized: %d"
	if len(present) > 0 && len(there) == 0 {
		return stepWarn("have the security officer initialize the token (C_InitToken; pkcs11-tool --init-token)", detail, len(all), len(present), len(there))
	}
	return stepOK(detail, len(all), len(present), len(there))
}

func (w *walk) checkToken() signer.Step {
	var err error
	if w.found, err = w.module.findSettledToken(w.ctx, w.ref); err != nil {
		return stepFail(err)
	}
	return stepOK("%s model=%q manufacturer=%q in slot %d", w.found.id, w.found.id.model, w.found.id.manufacturer, w.found.slot)
}

func (w *walk) checkState() signer.Step {
	info := w.found.info
	has := func(flag uint) bool { return info.Flags&flag != 0 }
	if err := checkPINFlags(w.ref, w.found); err != nil {
		return stepFail(err)
	}
	switch {
	case !has(pkcs11.CKF_LOGIN_REQUIRED):
		return stepWarn("protect the token with a PIN", "the token asks for no login (no CKF_LOGIN_REQUIRED): who reaches it can sign")
	case !has(pkcs11.CKF_USER_PIN_INITIALIZED):
		return stepFail(w.ref.fail("open", fmt.Errorf("%w: the token has no user PIN yet (no CKF_USER_PIN_INITIALIZED)", signer.ErrAuth),
			"have the security officer set one (pkcs11-tool --init-pin)"))
	case has(pkcs11.CKF_USER_PIN_COUNT_LOW):
		return stepWarn("log in once with the right PIN, which resets the counter", "a wrong PIN was sent since the last login (CKF_USER_PIN_COUNT_LOW)")
	}
	login := "login required"
	if has(pkcs11.CKF_PROTECTED_AUTHENTICATION_PATH) {
		login = "login required, at the token's PIN pad where the reference names no PIN"
	}
	// opencryptoki's "unavailable" is one less than that of the standard.
	if limit := info.MaxSessionCount; limit != pkcs11.CK_EFFECTIVELY_INFINITE && limit < pkcs11.CK_UNAVAILABLE_INFORMATION-1 {
		if info.SessionCount != pkcs11.CK_UNAVAILABLE_INFORMATION && info.SessionCount+2 > limit {
			return stepWarn("end programs that use the token, or raise its limit; signing needs two sessions", "%d of %d sessions are in use", info.SessionCount, limit)
		}
		return stepOK("%s; at most %d sessions", login, limit)
	}
	return stepOK("%s; no limit of sessions", login)
}

func (w *walk) checkLogin() signer.Step {
	var err error
	if w.token, err = w.module.retainToken(w.ctx, w.ref, &w.found, w.opts); err != nil {
		return stepFail(err)
	}
	w.session = finder{w.module.lib, w.token.anchor, w.ref}
	if w.found.info.Flags&pkcs11.CKF_LOGIN_REQUIRED == 0 {
		return stepOK("not needed")
	}
	return stepOK("logged in as the user")
}

func (w *walk) checkKey() signer.Step {
	var err error
	if w.object, w.pub, err = w.session.privateKey(); err != nil {
		return stepFail(err)
	}
	der, err := x509.MarshalPKIXPublicKey(w.pub)
	if err != nil {
		return stepFail(w.ref.fail("find", fmt.Errorf("%w: %w", signer.ErrBadKey, err), ""))
	}
	detail := fmt.Sprintf("RSA of %d bits, %s; SHA-256 of its public key %x", w.pub.N.BitLen(), strings.Join(w.session.describe([]pkcs11.ObjectHandle{w.object}), ""), sha256.Sum256(der))
	if w.pub.N.BitLen() < 2048 {
		return stepWarn("Apple takes RSA of 2048 bits or more: generate another key", "%s", detail)
	}
	return stepOK("%s", detail)
}

func (w *walk) checkAttributes() signer.Step {
	values := map[string]string{}
	var all []string
	for _, p := range w.session.protection(w.object) {
		values[p.Name] = p.Value
		all = append(all, p.Name+" "+p.Value)
	}
	detail := strings.Join(all, ", ")
	switch {
	case values["CKA_SIGN"] == no:
		return stepFail(w.ref.fail("sign with", fmt.Errorf("%w: the key is not for signing (CKA_SIGN is no)", signer.ErrBadKey), "name a key that is, or generate one with hsmsign key generate"))
	case values["CKA_EXTRACTABLE"] != no || values["CKA_SENSITIVE"] != yes:
		return stepWarn("the key can leave the token: generate another one inside, with hsmsign key generate", "%s", detail)
	case values["CKA_NEVER_EXTRACTABLE"] != yes || values["CKA_ALWAYS_SENSITIVE"] != yes || values["CKA_LOCAL"] != yes:
		return stepWarn("the key was outside once, or may have been: know where its copies are", "%s", detail)
	}
	return stepOK("%s", detail)
}

func (w *walk) checkMechanisms() signer.Step {
	var signs []string
	for _, m := range []struct {
		name string
		kind uint
	}{{"CKM_RSA_PKCS", pkcs11.CKM_RSA_PKCS}, {"CKM_SHA256_RSA_PKCS", pkcs11.CKM_SHA256_RSA_PKCS}} {
		info, err := w.module.lib.GetMechanismInfo(w.found.slot, []*pkcs11.Mechanism{pkcs11.NewMechanism(m.kind, nil)})
		if err == nil && info.Flags&pkcs11.CKF_SIGN != 0 {
			signs = append(signs, fmt.Sprintf("%s for keys of %d to %d bits", m.name, info.MinKeySize, info.MaxKeySize))
		}
	}
	if len(signs) == 0 {
		return stepFail(w.ref.fail("sign with", fmt.Errorf("%w: the token signs with neither CKM_RSA_PKCS nor CKM_SHA256_RSA_PKCS", signer.ErrUnsupported), "allow one of them in the HSM's policy"))
	}
	return stepOK("%s", strings.Join(signs, ", "))
}

// checkSignature opens the key; the walk is still logged in, so no PIN is sent again.
func (w *walk) checkSignature() signer.Step {
	var err error
	if w.key, err = openKey(w.ctx, w.ref, w.opts); err != nil {
		return stepFail(err)
	}
	message := make([]byte, 32)
	_, _ = rand.Read(message) // never fails (Go 1.24)
	start := time.Now()
	if _, err := signer.Sign(w.ctx, w.key, message, crypto.SHA256); err != nil {
		return stepFail(err)
	}
	return stepOK("made and verified in %v", time.Since(start).Round(10*time.Microsecond))
}
