//go:build cgo

package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
)

// cryptoki is what this package uses of *pkcs11.Ctx. Each method is the C_ function of its name.
type cryptoki interface {
	Initialize(opts ...pkcs11.InitializeOption) error
	Finalize() error
	GetInfo() (pkcs11.Info, error)
	GetSlotList(tokenPresent bool) ([]uint, error)
	GetSlotInfo(slotID uint) (pkcs11.SlotInfo, error)
	GetTokenInfo(slotID uint) (pkcs11.TokenInfo, error)
	OpenSession(slotID uint, flags uint) (pkcs11.SessionHandle, error)
	CloseSession(sh pkcs11.SessionHandle) error
	CloseAllSessions(slotID uint) error
	GetSessionInfo(sh pkcs11.SessionHandle) (pkcs11.SessionInfo, error)
	Login(sh pkcs11.SessionHandle, userType uint, pin string) error
	FindObjectsInit(sh pkcs11.SessionHandle, template []*pkcs11.Attribute) error
	FindObjects(sh pkcs11.SessionHandle, limit int) ([]pkcs11.ObjectHandle, bool, error)
	FindObjectsFinal(sh pkcs11.SessionHandle) error
	GetAttributeValue(sh pkcs11.SessionHandle, o pkcs11.ObjectHandle, a []*pkcs11.Attribute) ([]*pkcs11.Attribute, error)
	SignInit(sh pkcs11.SessionHandle, m []*pkcs11.Mechanism, o pkcs11.ObjectHandle) error
	Sign(sh pkcs11.SessionHandle, message []byte) ([]byte, error)
	GetMechanismInfo(slotID uint, m []*pkcs11.Mechanism) (pkcs11.MechanismInfo, error)
	GenerateKeyPair(sh pkcs11.SessionHandle, m []*pkcs11.Mechanism, public, private []*pkcs11.Attribute) (pkcs11.ObjectHandle, pkcs11.ObjectHandle, error)
	CreateObject(sh pkcs11.SessionHandle, temp []*pkcs11.Attribute) (pkcs11.ObjectHandle, error)
}

// modules is the one package-level state of hsmsign. C_Initialize and C_Login work on the whole process
// (PKCS#11 3.0 sections 5.4 and 5.6.8), so whoever opens a module must find the one that is already loaded,
// and the PINs it has refused. Keyed by real path; an entry stays for the life of the process.
var modules struct {
	sync.Mutex
	byPath map[string]*module
}

// module is one loaded PKCS#11 library.
type module struct {
	path string // real path

	// mu makes opening, logging in, recovering and closing serial. Signing does not take it. It guards what follows.
	mu      mutex
	lib     cryptoki // nil until it is loaded
	keys    int      // open keys; the module is initialized while there are any
	ours    bool     // C_Initialize was called here, and C_Finalize has not ended it
	foreign bool     // somebody else in this process initialized it, and will finalize it
	tokens  map[tokenID]*token
	pause   time.Duration // how long after a recovery the next one may be
	wait    time.Duration // how long a recovery waits for calls of the module to end
	next    time.Time     // when the next recovery may be

	signing gate
	// serial: the module takes no concurrent calls, so that signing does take mu.
	serial        atomic.Bool
	reinitialized atomic.Uint64
}

// findModule gives the entry of a module's file. It is not loaded yet.
func findModule(r reference) (*module, error) {
	path, err := filepath.EvalSymlinks(r.module)
	if err != nil {
		family := signer.ErrUnavailable
		if errors.Is(err, fs.ErrNotExist) {
			family = signer.ErrKeyNotFound
		}
		return nil, r.fail("open", fmt.Errorf("%w: module %q: %w", family, r.module, errors.Unwrap(err)),
			"check module-path; the HSM's client package installs the module, Debian's softhsm2 as /usr/lib/softhsm/libsofthsm2.so")
	}
	modules.Lock()
	defer modules.Unlock()
	m := modules.byPath[path]
	if m == nil {
		m = &module{path: path, tokens: map[tokenID]*token{}, pause: recoveryPause, wait: recoveryWait}
		if modules.byPath == nil {
			modules.byPath = map[string]*module{}
		}
		modules.byPath[path] = m
	}
	return m, nil
}

// load loads the module's file, once. The caller holds m.mu.
func (m *module) load(r reference) error {
	if m.lib != nil {
		return nil
	}
	ctx := pkcs11.New(m.path)
	if ctx == nil {
		return r.fail("open", whyNotLoaded(m.path), "install the module for this system, or correct module-path")
	}
	m.lib = ctx
	return nil
}

// retain counts one key more, and loads and initializes the module for the first. The caller holds m.mu.
func (m *module) retain(r reference) error {
	if err := m.load(r); err != nil {
		return err
	}
	if m.keys == 0 {
		if err := m.initialize(); err != nil {
			return r.fail("open", err, "check the module's own configuration (SoftHSM2: the file that SOFTHSM2_CONF names) and that its device answers")
		}
	}
	m.keys++
	return nil
}

// A token whose files another process writes to at this moment (SoftHSM2's, at each login: it truncates them, and
// gives up their lock before it has written them) looks absent, damaged or without a PIN. What the module has read
// wrongly when it was initialized stays so until it is initialized anew.
const (
	settleTries = 8
	loginTries  = 3 // bounds how often one PIN is sent
	settlePause = 50 * time.Millisecond
)

// startAgain waits a moment and initializes the module anew, unless others of this program use it: they have found it
// well. It is false when there is nothing more to try. The caller holds m.mu and has retained the module.
func (m *module) startAgain(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(settlePause):
	}
	if m.keys > 1 || m.foreign {
		return true
	}
	_ = m.finalize() // C_Initialize says whether it matters
	return m.initialize() == nil
}

// initialize calls C_Initialize; a module that cannot lock (CKR_CANT_LOCK) is from then on used by one call at a
// time. The caller holds m.mu.
func (m *module) initialize() error {
	err := call("C_Initialize", m.lib.Initialize())
	if is(err, pkcs11.CKR_CANT_LOCK) {
		if err = call("C_Initialize", m.lib.Initialize(pkcs11.InitializeWithFlags(0))); err == nil {
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

// finalize calls C_Finalize, if C_Initialize was called here. The caller holds m.mu, and no call is under way.
func (m *module) finalize() error {
	if m.foreign {
		return nil
	}
	err := call("C_Finalize", m.lib.Finalize())
	m.ours = err != nil && !is(err, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED)
	return err
}

// release takes back one retain. The caller holds m.mu.
func (m *module) release() error {
	m.keys--
	if m.keys > 0 {
		return nil
	}
	return unlessDead(m.finalize())
}
