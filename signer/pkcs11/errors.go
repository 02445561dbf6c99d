//go:build cgo

package pkcs11

import (
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
)

// class says what a return value means for what comes after it.
type class int

const (
	classRequest class = iota // this call failed; the session is as good as before
	classSession              // the session, or a handle in it, is dead
	classModule               // the module or its device is in doubt; no session of it is worth keeping
	classAuth                 // about the PIN; never tried again, because tokens lock themselves
)

// judge is the one table of PKCS#11 return values (PKCS#11 3.0 section 5.1): the class, and the
// family the caller is told. What is not listed, vendor-defined values included, counts against the session.
func judge(code pkcs11.Error) (c class, family error) {
	switch code {
	case pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE, pkcs11.CKR_PIN_EXPIRED,
		pkcs11.CKR_PIN_LOCKED, pkcs11.CKR_USER_PIN_NOT_INITIALIZED:
		return classAuth, signer.ErrAuth
	case pkcs11.CKR_USER_NOT_LOGGED_IN, pkcs11.CKR_USER_ANOTHER_ALREADY_LOGGED_IN, pkcs11.CKR_USER_TOO_MANY_TYPES,
		pkcs11.CKR_USER_TYPE_INVALID:
		return classSession, signer.ErrAuth
	case pkcs11.CKR_MECHANISM_INVALID, pkcs11.CKR_MECHANISM_PARAM_INVALID, pkcs11.CKR_FUNCTION_NOT_SUPPORTED,
		pkcs11.CKR_DATA_INVALID, pkcs11.CKR_DATA_LEN_RANGE, pkcs11.CKR_SESSION_PARALLEL_NOT_SUPPORTED:
		return classRequest, signer.ErrUnsupported
	case pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, pkcs11.CKR_KEY_TYPE_INCONSISTENT, pkcs11.CKR_KEY_SIZE_RANGE,
		pkcs11.CKR_ATTRIBUTE_SENSITIVE, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID:
		return classRequest, signer.ErrBadKey
	case pkcs11.CKR_SESSION_COUNT, pkcs11.CKR_FUNCTION_CANCELED, pkcs11.CKR_CANCEL, pkcs11.CKR_FUNCTION_REJECTED:
		return classRequest, signer.ErrUnavailable
	case pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_DEVICE_MEMORY, pkcs11.CKR_TOKEN_NOT_PRESENT,
		pkcs11.CKR_TOKEN_NOT_RECOGNIZED, pkcs11.CKR_SLOT_ID_INVALID, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED,
		pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_HOST_MEMORY, pkcs11.CKR_CANT_LOCK, pkcs11.CKR_NEED_TO_CREATE_THREADS:
		return classModule, signer.ErrUnavailable
	case pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_OBJECT_HANDLE_INVALID,
		pkcs11.CKR_KEY_HANDLE_INVALID, pkcs11.CKR_OPERATION_ACTIVE, pkcs11.CKR_OPERATION_NOT_INITIALIZED,
		pkcs11.CKR_FUNCTION_FAILED:
		return classSession, signer.ErrUnavailable
	}
	return classSession, signer.ErrUnavailable
}

// callError says which function of the module answered what.
type callError struct {
	function string // "C_Sign"
	code     pkcs11.Error
}

// call turns what miekg/pkcs11 returned for a function into an error that wraps its family, or nil.
func call(function string, err error) error {
	var code pkcs11.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &code):
		return &callError{function, code}
	}
	return fmt.Errorf("%w: %s: %w", signer.ErrUnavailable, function, err)
}

func (e *callError) Error() string {
	_, family := judge(e.code)
	return family.Error() + ": " + e.function + " gives " + ckrName(e.code)
}

func (e *callError) Unwrap() []error {
	_, family := judge(e.code)
	return []error{family, e.code}
}

// ckrName is the name of a return value in the PKCS#11 headers, or its number where it has none.
func ckrName(code pkcs11.Error) string {
	// miekg/pkcs11 prints "pkcs11: 0xA0: CKR_PIN_INCORRECT" and keeps its table to itself.
	s := code.Error()
	if name := s[strings.LastIndexByte(s, ' ')+1:]; name != "" {
		return name
	}
	return fmt.Sprintf("CKR 0x%08X", uint(code))
}

// is: the error is this return value of some function.
func is(err error, code pkcs11.Error) bool { return errors.Is(err, code) }

// classOf is the class of an error that call made; one that holds no return value counts against the session.
func classOf(err error) class {
	var code pkcs11.Error
	if !errors.As(err, &code) {
		return classSession
	}
	c, _ := judge(code)
	return c
}
