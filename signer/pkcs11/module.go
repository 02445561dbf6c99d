//go:build cgo

package pkcs11

import (
	"errors"
	"io/fs"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/miekg/pkcs11"

	"hsmsign/fault"
	"hsmsign/signer"
)

// modules maps real paths to *module. It is the one package-level state of hsmsign: C_Initialize and C_Login work on the
// whole process (PKCS#11 3.0 sections 5.4 and 5.6.8), so everyone who opens a module must find the one that is loaded, and
// the PINs that its tokens have refused. An entry exists as long as the process.
var modules sync.Map

// module is one PKCS#11 library: loaded into this process, into workers, or both.
type module struct {
	path string // real path

	turn mutex    // held during the start of a worker: SoftHSM2 does not find a token while another process logs in to it
	pins sync.Map // from tokenID to *pinState

	// mu makes opening, logging in, recovering and closing serial. Signing does not take it. It guards what follows.
	mu      mutex
	lib     *pkcs11.Ctx // nil until it is loaded
	keys    int         // open keys; the module is initialized while there are any
	ours    bool        // C_Initialize was called here, and C_Finalize has not followed
	foreign bool        // another part of this process initialized it, and will finalize it
	tokens  map[tokenID]*token
	pause   time.Duration // between two recoveries
	wait    time.Duration // how long a recovery waits for calls of the module to end
	init    string        // what C_Initialize gets as pReserved
	pinned  runtime.Pinner
	next    time.Time // when the next recovery may start

	signing gate
	// serial: the module accepts no concurrent calls, so signing takes mu.
	serial        atomic.Bool
	reinitialized atomic.Uint64
}

// findModule returns the entry of a module's file, which is not loaded yet.
func findModule(r reference) (*module, error) {
	path, err := filepath.EvalSymlinks(r.module)
	if err != nil {
		family := signer.ErrUnavailable
		if errors.Is(err, fs.ErrNotExist) {
			family = signer.ErrKeyNotFound
		}
		return nil, r.wrap("open", fault.Errorf("%w: module %q: %w", family, r.module, errors.Unwrap(err)).
			Fix("check module-path; the HSM's client package installs the module, Debian's softhsm2 as /usr/lib/softhsm/libsofthsm2.so"))
	}
	m, _ := modules.LoadOrStore(path, &module{
		path: path, tokens: map[tokenID]*token{}, pause: recoveryPause, wait: recoveryWait, signing: newGate(),
	})
	return m.(*module), nil
}

// load loads the module's file once. The caller holds m.mu.
func (m *module) load(r reference) error {
	if m.lib != nil {
		return nil
	}
	if m.lib = pkcs11.New(m.path); m.lib == nil {
		return r.wrap("open", whyNotLoaded(m.path))
	}
	return nil
}

// hintInitialize is for a module that C_Initialize does not start.
const hintInitialize = "check the module's own configuration (SoftHSM2: the file that SOFTHSM2_CONF names; NSS: module-init in the reference; " +
	"TPM: TPM2_PKCS11_STORE, TPM2_PKCS11_TCTI) and that its device answers"

// retain counts one more key, and loads and initializes the module for the first. The caller holds m.mu.
func (m *module) retain(r reference) error {
	if err := m.load(r); err != nil {
		return err
	}
	if m.keys > 0 && m.init != r.moduleInit {
		return r.wrap("open", fault.Errorf("%w: module %q is in use with another module-init", signer.ErrReference, r.module).
			Fix("write the same module-init in all references to this module, or isolate=yes"))
	}
	if m.keys == 0 {
		m.init = r.moduleInit
		if err := m.initialize(); err != nil {
			return r.wrap("open", fault.WithHint(err, hintInitialize))
		}
	}
	m.keys++
	return nil
}

// release follows each retain that returned nil. The caller holds m.mu.
func (m *module) release() error {
	m.keys--
	if m.keys > 0 {
		return nil
	}
	return unlessDead(m.finalize())
}

// initialize calls C_Initialize. A module that cannot lock (CKR_CANT_LOCK) gets one call at a time from then on. The
// caller holds m.mu.
func (m *module) initialize() error {
	reserved := pkcs11.InitializeWithReserved(nil)
	if m.init != "" {
		text := append([]byte(m.init), 0)
		m.pinned.Unpin()
		m.pinned.Pin(&text[0])                                             // until the next C_Initialize: the module may keep the address
		reserved = pkcs11.InitializeWithReserved(unsafe.Pointer(&text[0])) // #nosec G103 -- C_Initialize wants an address
	}
	err := call("C_Initialize", m.lib.Initialize(reserved))
	if is(err, pkcs11.CKR_CANT_LOCK) {
		if err = call("C_Initialize", m.lib.Initialize(pkcs11.InitializeWithFlags(0), reserved)); err == nil {
			m.serial.Store(true)
		}
	}
	if is(err, pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED) {
		m.foreign = !m.ours
		return nil
	}
	m.ours, m.foreign = err == nil, false
	return err
}

// finalize calls C_Finalize if C_Initialize was called here. The caller holds m.mu, and no call is in progress.
func (m *module) finalize() error {
	if m.foreign {
		return nil
	}
	err := call("C_Finalize", m.lib.Finalize())
	m.ours = err != nil && !is(err, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED)
	return err
}
