//go:build cgo

package pkcs11

import (
	"context"
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
	classSession              // the session, or a handle in it, is dead: open another, find the key again
	classModule               // the module or its device is in doubt: C_Finalize and C_Initialize
	classAuth                 // about the PIN; never tried again, because tokens lock themselves
)

// Return values of PKCS#11 3.0 and 3.1 that miekg/pkcs11 does not name yet.
const (
	ckrAEADDecryptFailed     pkcs11.Error = 0x42
	ckrTokenResourceExceeded pkcs11.Error = 0x201
	ckrOperationCancelFailed pkcs11.Error = 0x202
	ckrKeyExhausted          pkcs11.Error = 0x203
)

// judge is the one table of PKCS#11 return values (PKCS#11 3.0 section 5.1): the class, and the family the
// caller is told. What is not listed, vendor-defined values included, counts against the session.
func judge(code pkcs11.Error) (c class, family error) {
	switch code {
	case pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE, pkcs11.CKR_PIN_EXPIRED,
		pkcs11.CKR_PIN_LOCKED, pkcs11.CKR_PIN_TOO_WEAK,
		pkcs11.CKR_NEW_PIN_MODE, pkcs11.CKR_NEXT_OTP:
		return classAuth, signer.ErrAuth
	case pkcs11.CKR_USER_NOT_LOGGED_IN:
		return classSession, signer.ErrAuth // somebody logged out, or the token did by itself
	case pkcs11.CKR_USER_ANOTHER_ALREADY_LOGGED_IN, pkcs11.CKR_USER_TOO_MANY_TYPES, pkcs11.CKR_USER_TYPE_INVALID,
		pkcs11.CKR_SESSION_READ_ONLY_EXISTS:
		return classRequest, signer.ErrAuth // another program of this token must log out first
	case pkcs11.CKR_USER_PIN_NOT_INITIALIZED:
		return classRequest, signer.ErrAuth // there is no PIN that a wrong one could lock
	case pkcs11.CKR_MECHANISM_INVALID, pkcs11.CKR_MECHANISM_PARAM_INVALID, pkcs11.CKR_FUNCTION_NOT_SUPPORTED,
		pkcs11.CKR_FUNCTION_NOT_PARALLEL, pkcs11.CKR_SESSION_PARALLEL_NOT_SUPPORTED, pkcs11.CKR_CANT_LOCK,
		pkcs11.CKR_NEED_TO_CREATE_THREADS, pkcs11.CKR_DATA_INVALID, pkcs11.CKR_DATA_LEN_RANGE,
		pkcs11.CKR_ACTION_PROHIBITED, pkcs11.CKR_CURVE_NOT_SUPPORTED, pkcs11.CKR_DOMAIN_PARAMS_INVALID,
		pkcs11.CKR_RANDOM_SEED_NOT_SUPPORTED, pkcs11.CKR_RANDOM_NO_RNG, pkcs11.CKR_STATE_UNSAVEABLE,
		pkcs11.CKR_TOKEN_WRITE_PROTECTED, pkcs11.CKR_LIBRARY_LOAD_FAILED:
		return classRequest, signer.ErrUnsupported
	case pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, pkcs11.CKR_KEY_TYPE_INCONSISTENT, pkcs11.CKR_KEY_SIZE_RANGE,
		pkcs11.CKR_KEY_UNEXTRACTABLE, pkcs11.CKR_KEY_NOT_WRAPPABLE, pkcs11.CKR_KEY_INDIGESTIBLE,
		pkcs11.CKR_KEY_NOT_NEEDED, pkcs11.CKR_KEY_NEEDED, pkcs11.CKR_PUBLIC_KEY_INVALID, ckrKeyExhausted,
		pkcs11.CKR_ATTRIBUTE_SENSITIVE, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID,
		pkcs11.CKR_ATTRIBUTE_READ_ONLY, pkcs11.CKR_TEMPLATE_INCOMPLETE, pkcs11.CKR_TEMPLATE_INCONSISTENT,
		pkcs11.CKR_INFORMATION_SENSITIVE,
		pkcs11.CKR_WRAPPED_KEY_INVALID, pkcs11.CKR_WRAPPED_KEY_LEN_RANGE, pkcs11.CKR_WRAPPING_KEY_HANDLE_INVALID,
		pkcs11.CKR_WRAPPING_KEY_SIZE_RANGE, pkcs11.CKR_WRAPPING_KEY_TYPE_INCONSISTENT,
		pkcs11.CKR_UNWRAPPING_KEY_HANDLE_INVALID, pkcs11.CKR_UNWRAPPING_KEY_SIZE_RANGE,
		pkcs11.CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT, pkcs11.CKR_ENCRYPTED_DATA_INVALID,
		pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE, ckrAEADDecryptFailed:
		return classRequest, signer.ErrBadKey
	case pkcs11.CKR_SIGNATURE_INVALID, pkcs11.CKR_SIGNATURE_LEN_RANGE:
		return classRequest, signer.ErrBadSignature
	case pkcs11.CKR_SESSION_COUNT, pkcs11.CKR_SESSION_EXISTS, pkcs11.CKR_SESSION_READ_WRITE_SO_EXISTS,
		pkcs11.CKR_FUNCTION_CANCELED, pkcs11.CKR_CANCEL, pkcs11.CKR_FUNCTION_REJECTED, pkcs11.CKR_NO_EVENT,
		pkcs11.CKR_ARGUMENTS_BAD, pkcs11.CKR_BUFFER_TOO_SMALL, pkcs11.CKR_EXCEEDED_MAX_ITERATIONS,
		ckrTokenResourceExceeded:
		return classRequest, signer.ErrUnavailable
	case pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_DEVICE_MEMORY, pkcs11.CKR_TOKEN_NOT_PRESENT,
		pkcs11.CKR_TOKEN_NOT_RECOGNIZED, pkcs11.CKR_SLOT_ID_INVALID, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED,
		pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED, pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_HOST_MEMORY,
		pkcs11.CKR_MUTEX_BAD, pkcs11.CKR_MUTEX_NOT_LOCKED, pkcs11.CKR_FIPS_SELF_TEST_FAILED:
		return classModule, signer.ErrUnavailable
	case pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_SESSION_READ_ONLY,
		pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_KEY_HANDLE_INVALID, pkcs11.CKR_KEY_CHANGED,
		pkcs11.CKR_OPERATION_ACTIVE, pkcs11.CKR_OPERATION_NOT_INITIALIZED, ckrOperationCancelFailed,
		pkcs11.CKR_SAVED_STATE_INVALID, pkcs11.CKR_USER_ALREADY_LOGGED_IN, pkcs11.CKR_FUNCTION_FAILED:
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

// classOf is the class of an error. One that holds no return value was made here: what this package refuses is
// refused again the next time, and no session is to blame.
func classOf(err error) class {
	var code pkcs11.Error
	if !errors.As(err, &code) {
		return classRequest
	}
	c, _ := judge(code)
	return c
}

// fixFor is what to do about a key that does not sign.
func fixFor(err error) string {
	switch {
	case errors.Is(err, signer.ErrClosed), errors.Is(err, context.Canceled):
		return ""
	case errors.Is(err, errBusy):
		return "the module hangs: start the program anew; with isolate=yes in the reference it is spared that"
	case errors.Is(err, signer.ErrAuth):
		return "check the PIN, then start the program anew; a token locks itself after a few wrong ones"
	case errors.Is(err, signer.ErrUnsupported):
		return "\"pkcs11-tool --list-mechanisms\" shows what the token offers; mechanism= in the reference chooses"
	case errors.Is(err, signer.ErrKeyNotFound):
		return "check that the token still holds the key of the reference"
	case errors.Is(err, signer.ErrBadKey):
		return "the key must be an RSA key with CKA_SIGN"
	case errors.Is(err, signer.ErrBadSignature):
		return "do not use this token until its vendor has explained it"
	}
	return "check that the HSM answers and that its client is connected, then try again"
}
