//go:build cgo

package pkcs11

import (
	"cmp"
	"context"
	"debug/elf"
	"debug/macho"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/miekg/pkcs11"

	"hsmsign/fault"
	"hsmsign/signer"
)

// diagnosis is what the steps so far have found. The steps run one after the other.
type diagnosis struct {
	ctx     context.Context
	opts    Options
	source  signer.Ref
	wanted  signer.OpenOptions
	ref     reference
	module  *module
	loaded  bool   // the module is retained
	library string // its description
	found   foundToken
	token   *token // retained
	object  pkcs11.ObjectHandle
	session finder
	key     signer.Signer
	hung    chan struct{} // of a step that the context has cut off: closed when it has ended
}

// diagnose walks from the reference to a signature; see signer.Backend. It sends the PIN at most once, and not to a token
// that may lock.
func (o Options) diagnose(ctx context.Context, ref signer.Ref, wanted signer.OpenOptions, report func(signer.Step)) signer.Signer {
	d := &diagnosis{ctx: ctx, opts: o, source: ref, wanted: wanted}
	ok := signer.RunSteps(ctx, report, []signer.Check{
		{Name: "reference", Run: d.limited(d.checkReference)},
		{Name: "module file", Run: d.limited(d.checkFile)},
		{Name: "architecture", Run: d.limited(d.checkArchitecture)},
		{Name: "load", Run: d.locked(d.checkLoad)},
		{Name: "initialize", Run: d.locked(d.checkInitialize)},
		{Name: "slots", Run: d.locked(d.checkSlots)},
		{Name: "token", Run: d.locked(d.checkToken)},
		{Name: "token state", Run: d.limited(d.checkState)},
		{Name: "login", Run: d.locked(d.checkLogin)},
		{Name: "mechanisms", Run: d.locked(d.checkMechanisms)},
		{Name: "generation", Run: d.locked(d.checkGeneration)},
		{Name: "key", Run: d.locked(d.checkKey)},
		{Name: "key attributes", Run: d.locked(d.checkAttributes)},
		{Name: signer.StepSignature, Run: d.limited(d.checkSignature)},
	})
	if d.hung != nil {
		// The module still works on a call. What it uses is released when it returns.
		go func() {
			<-d.hung
			d.release(false)
		}()
		return nil
	}
	d.release(ok)
	if !ok {
		return nil
	}
	return d.key
}

// limited returns a step that fails when the context ends before the check.
func (d *diagnosis) limited(check func() (signer.Step, error)) func(context.Context) signer.Step {
	return func(ctx context.Context) signer.Step {
		ended := make(chan struct{})
		step, late := await(ctx, "the module has not answered", func() (signer.Step, error) {
			defer close(ended)
			step, err := check()
			if err != nil {
				step = signer.StepFail(err)
			}
			return step, nil
		}, nil)
		if late != nil {
			d.hung = ended
			return signer.StepFail(fault.WithHint(late, "check the connection to the HSM, and restart its client software"))
		}
		return step
	}
}

// locked is limited for a check that holds the module's mu.
func (d *diagnosis) locked(check func() (signer.Step, error)) func(context.Context) signer.Step {
	return d.limited(func() (signer.Step, error) {
		if err := d.module.mu.LockContext(d.ctx); err != nil {
			return signer.Step{}, err
		}
		defer d.module.mu.Unlock()
		return check()
	})
}

// release releases what the diagnosis itself uses, and the key unless keep.
func (d *diagnosis) release(keep bool) {
	if d.key != nil && !keep {
		_ = d.key.Close()
	}
	if !d.loaded {
		return
	}
	d.module.mu.Lock()
	defer d.module.mu.Unlock()
	if d.token != nil {
		_ = d.module.releaseToken(d.token)
	}
	_ = d.module.release()
}

// The checks return a step, or the error of a step that fails.

func (d *diagnosis) checkReference() (step signer.Step, err error) {
	if d.ref, err = d.opts.reference("diagnose", d.source); err == nil && d.ref.pinValue != "" {
		return signer.StepWarn("the reference contains the PIN (pin-value), where process lists and logs show it").WithFix("use pin-source=file:PATH"), nil
	}
	return signer.StepOK("%s", d.source), err
}

func (d *diagnosis) checkFile() (step signer.Step, err error) {
	if d.module, err = findModule(d.ref); err != nil {
		return step, err
	}
	info, err := os.Stat(d.module.path)
	if err != nil {
		return step, fmt.Errorf("%w: %w", signer.ErrUnavailable, err)
	}
	// Whoever can write to the module can run code in this program. Windows reports 0666 for every writable file.
	if info.Mode().Perm()&0o022 != 0 && runtime.GOOS != "windows" {
		return signer.StepWarn("others can write to %s (mode %04o)", d.module.path, info.Mode().Perm()).WithFix("chmod go-w " + d.module.path), nil
	}
	return signer.StepOK("%s, %d bytes", d.module.path, info.Size()), nil
}

func (d *diagnosis) checkArchitecture() (signer.Step, error) {
	if lib, err := elf.Open(d.module.path); err == nil {
		defer func() { _ = lib.Close() }()
		if want, known := thisMachine(); !known || lib.Machine == want {
			return signer.StepOK("ELF, %v", lib.Machine), nil
		}
	}
	if lib, err := macho.OpenFat(d.module.path); err == nil && runtime.GOOS == "darwin" {
		defer func() { _ = lib.Close() }()
		return signer.StepOK("Mach-O, for %d processors", len(lib.Arches)), nil
	}
	if lib, err := macho.Open(d.module.path); err == nil && runtime.GOOS == "darwin" {
		defer func() { _ = lib.Close() }()
		return signer.StepOK("Mach-O, %v", lib.Cpu), nil
	}
	return signer.Step{}, whyNotLoaded(d.module.path)
}

func (d *diagnosis) checkLoad() (signer.Step, error) {
	return signer.StepOK("loaded"), d.module.load(d.ref)
}

func (d *diagnosis) checkInitialize() (step signer.Step, err error) {
	if err := d.module.retain(d.ref); err != nil {
		return step, err
	}
	d.loaded = true
	info, err := d.module.lib.GetInfo()
	d.library = info.LibraryDescription
	return signer.StepOK("%s, version %d.%d, of %s; PKCS#11 %d.%d", info.LibraryDescription, info.LibraryVersion.Major, info.LibraryVersion.Minor,
		info.ManufacturerID, info.CryptokiVersion.Major, info.CryptokiVersion.Minor), call("C_GetInfo", err)
}

func (d *diagnosis) checkSlots() (step signer.Step, err error) {
	all, err := d.module.lib.GetSlotList(false)
	if err != nil {
		return step, call("C_GetSlotList", err)
	}
	present, err := d.module.lib.GetSlotList(true)
	if err != nil {
		return step, call("C_GetSlotList", err)
	}
	_, initialized, err := d.module.findTokens(d.ref)
	const detail = "slots: %d, with a token: %d, initialized: %d"
	if err == nil && len(present) > 0 && len(initialized) == 0 {
		return signer.StepWarn(detail, len(all), len(present), len(initialized)).
			WithFix("have the security officer initialize the token (C_InitToken; pkcs11-tool --init-token)"), nil
	}
	return signer.StepOK(detail, len(all), len(present), len(initialized)), err
}

func (d *diagnosis) checkToken() (step signer.Step, err error) {
	d.found, err = d.module.findSettledToken(d.ctx, d.ref)
	return signer.StepOK("%s model=%q manufacturer=%q in slot %d", d.found.id, d.found.id.model, d.found.id.manufacturer, d.found.slot), err
}

func (d *diagnosis) checkState() (signer.Step, error) {
	info := d.found.info
	has := func(flag uint) bool { return info.Flags&flag != 0 }
	if err := checkPINFlags(d.ref, d.found); err != nil {
		return signer.Step{}, err
	}
	switch {
	case !has(pkcs11.CKF_LOGIN_REQUIRED):
		return signer.StepWarn("the token needs no login (no CKF_LOGIN_REQUIRED): everyone who reaches it can sign").WithFix("protect the token with a PIN"), nil
	case !has(pkcs11.CKF_USER_PIN_INITIALIZED):
		return signer.Step{}, fault.Errorf("%w: the token has no user PIN yet (no CKF_USER_PIN_INITIALIZED)", signer.ErrAuth).
			Fix("have the security officer set one (pkcs11-tool --init-pin)")
	case has(pkcs11.CKF_USER_PIN_COUNT_LOW):
		return signer.StepWarn("a wrong PIN was sent since the last login (CKF_USER_PIN_COUNT_LOW)").
			WithFix("log in once with the right PIN, which resets the counter"), nil
	}
	login := "login required"
	if has(pkcs11.CKF_PROTECTED_AUTHENTICATION_PATH) {
		login = "login required, at the token's PIN pad if the reference names no PIN"
	}
	// opencryptoki's value for "unavailable" is one less than that of the standard.
	if limit := info.MaxSessionCount; limit != pkcs11.CK_EFFECTIVELY_INFINITE && limit < pkcs11.CK_UNAVAILABLE_INFORMATION-1 {
		if info.SessionCount != pkcs11.CK_UNAVAILABLE_INFORMATION && info.SessionCount+2 > limit {
			return signer.StepWarn("%d of %d sessions are in use", info.SessionCount, limit).
				WithFix("end programs that use the token, or raise its limit; signing needs two sessions"), nil
		}
		return signer.StepOK("%s; at most %d sessions", login, limit), nil
	}
	return signer.StepOK("%s; no limit of sessions", login), nil
}

func (d *diagnosis) checkLogin() (step signer.Step, err error) {
	if d.token, err = d.module.retainToken(d.ctx, d.ref, &d.found, d.opts); err != nil {
		return step, err
	}
	d.session = finder{d.module.lib, d.token.anchor, d.ref, d.wanted.PublicKey}
	if !d.token.needsLogin {
		return signer.StepOK("not needed"), nil
	}
	return signer.StepOK("logged in as the user"), nil
}

func (d *diagnosis) checkKey() (step signer.Step, err error) {
	object, pub, err := d.session.privateKey()
	if err != nil {
		return step, err
	}
	d.object = object
	line, err := signer.DescribeKey(pub)
	line = strings.Join(d.session.describe([]pkcs11.ObjectHandle{object}), "") + ": " + line
	if err == nil && pub.N.BitLen() < 2048 {
		return signer.StepWarn("%s", line).WithFix("Apple accepts RSA of 2048 bits or more: generate another key"), nil
	}
	return signer.StepOK("%s", line), err
}

func (d *diagnosis) checkAttributes() (signer.Step, error) {
	values := map[string]string{}
	var all []string
	for _, p := range d.session.protection(d.object) {
		values[p.Name] = p.Value
		all = append(all, p.Name+" "+p.Value)
	}
	step := signer.StepWarn("%s", strings.Join(all, ", "))
	switch {
	case values["CKA_SIGN"] == no:
		return step, fault.Errorf("%w: the key is not for signing (CKA_SIGN is no)", signer.ErrBadKey).
			Fix("name a key that is, or generate one with hsmsign key generate")
	case values["CKA_EXTRACTABLE"] != no || values["CKA_SENSITIVE"] != yes:
		_, tool := ownTool(d.library)
		return step.WithFix("the key can leave the token: " + cmp.Or(tool, "generate another one inside it, with hsmsign key generate")), nil
	case values["CKA_NEVER_EXTRACTABLE"] != yes || values["CKA_ALWAYS_SENSITIVE"] != yes || values["CKA_LOCAL"] != yes:
		return step.WithFix("the key was outside the token, or may have been: find out who has copies"), nil
	}
	return signer.StepOK("%s", step.Detail), nil
}

func (d *diagnosis) checkMechanisms() (signer.Step, error) {
	var signs []string
	for _, m := range []struct {
		name string
		kind uint
	}{{"CKM_RSA_PKCS", pkcs11.CKM_RSA_PKCS}, {"CKM_SHA256_RSA_PKCS", pkcs11.CKM_SHA256_RSA_PKCS}} {
		info, err := d.module.lib.GetMechanismInfo(d.found.slot, []*pkcs11.Mechanism{pkcs11.NewMechanism(m.kind, nil)})
		if err == nil && info.Flags&pkcs11.CKF_SIGN != 0 {
			signs = append(signs, fmt.Sprintf("%s for keys of %d to %d bits", m.name, info.MinKeySize, info.MaxKeySize))
		}
	}
	if len(signs) == 0 {
		return signer.Step{}, fault.Errorf("%w: the token signs with neither CKM_RSA_PKCS nor CKM_SHA256_RSA_PKCS", signer.ErrUnsupported).
			Fix("allow one of them in the HSM's policy")
	}
	return signer.StepOK("%s", strings.Join(signs, ", ")), nil
}

// ownTool returns why "key generate" makes no key with a module, and the tool that does; both are empty for other modules.
// C_GetMechanismInfo does not tell: these modules offer CKM_RSA_PKCS_KEY_PAIR_GEN.
// "make tpm" and "make nss" try it.
func ownTool(library string) (why, fix string) {
	switch {
	case strings.HasPrefix(library, "TPM2.0 Cryptoki"):
		return "tpm2-pkcs11 refuses keys that cannot decrypt (CKR_GENERAL_ERROR), as key generate makes them", hintTPM
	case strings.HasPrefix(library, "NSS "):
		return "NSS does not report that it generated a key (CKA_LOCAL is no), so key generate refuses its keys",
			"make the key with certutil -G --keyAttrFlags token,private,sensitive,unextractable; hsmsign key list shows its id"
	}
	return "", ""
}

// checkGeneration warns if the token cannot make a vendor key; one that is there signs nevertheless.
func (d *diagnosis) checkGeneration() (signer.Step, error) {
	info, err := d.module.lib.GetMechanismInfo(d.found.slot, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, nil)})
	const fix = "generate the key with the vendor's own tool, or allow it in the HSM's policy"
	why, tool := ownTool(d.library)
	switch {
	case err != nil || info.Flags&pkcs11.CKF_GENERATE_KEY_PAIR == 0:
		return signer.StepWarn("the token does not generate RSA keys (CKM_RSA_PKCS_KEY_PAIR_GEN)").WithFix(fix), nil
	case info.MinKeySize > 2048 || info.MaxKeySize < 2048:
		return signer.StepWarn("the token generates RSA keys of %d to %d bits; Apple wants 2048", info.MinKeySize, info.MaxKeySize).WithFix(fix), nil
	case d.found.info.Flags&pkcs11.CKF_WRITE_PROTECTED != 0:
		return signer.StepWarn("the token is write-protected (CKF_WRITE_PROTECTED), so no key can be generated").WithFix(fix), nil
	case why != "":
		return signer.StepWarn("%s", why).WithFix(tool), nil
	}
	return signer.StepOK("RSA keys of %d to %d bits", info.MinKeySize, info.MaxKeySize), nil
}

// checkSignature opens the key and signs. The diagnosis is still logged in, so no PIN is sent again.
func (d *diagnosis) checkSignature() (step signer.Step, err error) {
	if d.key, err = d.opts.retainAndOpen(d.ctx, d.ref, d.wanted); err != nil {
		return step, err
	}
	return signer.StepSign(d.ctx, d.key), nil
}
