//go:build cgo

package pkcs11

import (
	"bytes"
	"maps"
	"sync"
	"testing"

	"github.com/miekg/pkcs11"
)

// scripted is the real module with faults put in its way, and its calls counted. Set its fields while no call
// is under way.
type scripted struct {
	cryptoki

	flags     uint                                                      // added to what C_GetTokenInfo gives
	login     func() error                                              // before C_Login; an error replaces it
	pad       func(pin string) string                                   // the PIN that C_Login is given in the place of the one sent
	open      func() error                                              // before C_OpenSession
	attribute func(a *pkcs11.Attribute) error                           // before C_GetAttributeValue, for each
	signed    func(sh pkcs11.SessionHandle, sig []byte) ([]byte, error) // after C_Sign
	before    func(sh pkcs11.SessionHandle)                             // before C_SignInit

	hideModulus bool // as tokens do that do not look for private keys by their modulus

	mu    sync.Mutex
	calls map[string]int
}

// load loads a module apart from the table of those that Backend knows.
func load(tb testing.TB, path string) cryptoki {
	tb.Helper()
	lib := pkcs11.New(path)
	if lib == nil {
		tb.Fatalf("module %q cannot be loaded", path)
	}
	return lib
}

// script puts a scripted module in the place of the one at path, until the test ends. No key may be open.
func script(tb testing.TB, path string) *scripted {
	tb.Helper()
	m, err := findModule(reference{module: path})
	if err != nil {
		tb.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keys != 0 {
		tb.Fatalf("%d keys are open", m.keys)
	}
	before := m.lib
	s := &scripted{cryptoki: load(tb, path), calls: map[string]int{}}
	m.lib = s
	tb.Cleanup(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.lib = before
	})
	return s
}

func (s *scripted) count(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[name]++
}

// counts are the calls so far, by function.
func (s *scripted) counts() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.calls)
}

func (s *scripted) Initialize(opts ...pkcs11.InitializeOption) error {
	s.count("C_Initialize")
	return s.cryptoki.Initialize(opts...)
}

func (s *scripted) Finalize() error {
	s.count("C_Finalize")
	return s.cryptoki.Finalize()
}

func (s *scripted) GetTokenInfo(slot uint) (pkcs11.TokenInfo, error) {
	info, err := s.cryptoki.GetTokenInfo(slot)
	info.Flags |= s.flags
	return info, err
}

func (s *scripted) OpenSession(slot, flags uint) (pkcs11.SessionHandle, error) {
	s.count("C_OpenSession")
	if s.open != nil {
		if err := s.open(); err != nil {
			return 0, err
		}
	}
	return s.cryptoki.OpenSession(slot, flags)
}

func (s *scripted) CloseSession(sh pkcs11.SessionHandle) error {
	s.count("C_CloseSession")
	return s.cryptoki.CloseSession(sh)
}

func (s *scripted) Login(sh pkcs11.SessionHandle, user uint, pin string) error {
	s.count("C_Login")
	if s.login != nil {
		if err := s.login(); err != nil {
			return err
		}
	}
	if s.pad != nil {
		pin = s.pad(pin)
	}
	return s.cryptoki.Login(sh, user, pin)
}

func (s *scripted) GetAttributeValue(sh pkcs11.SessionHandle, o pkcs11.ObjectHandle, a []*pkcs11.Attribute) ([]*pkcs11.Attribute, error) {
	for _, attr := range a {
		if s.attribute == nil {
			break
		}
		if err := s.attribute(attr); err != nil {
			return nil, err
		}
	}
	return s.cryptoki.GetAttributeValue(sh, o, a)
}

func (s *scripted) FindObjectsInit(sh pkcs11.SessionHandle, template []*pkcs11.Attribute) error {
	private := pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY)
	if s.hideModulus && bytes.Equal(template[0].Value, private.Value) && template[len(template)-1].Type == pkcs11.CKA_MODULUS {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_LABEL, "no such label"))
	}
	return s.cryptoki.FindObjectsInit(sh, template)
}

func (s *scripted) SignInit(sh pkcs11.SessionHandle, m []*pkcs11.Mechanism, o pkcs11.ObjectHandle) error {
	if s.before != nil {
		s.before(sh)
	}
	return s.cryptoki.SignInit(sh, m, o)
}

func (s *scripted) Sign(sh pkcs11.SessionHandle, message []byte) ([]byte, error) {
	sig, err := s.cryptoki.Sign(sh, message)
	if err == nil && s.signed != nil {
		return s.signed(sh, sig)
	}
	return sig, err
}
