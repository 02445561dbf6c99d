//go:build cgo

package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/isolate"
)

// class says what to do after a return value.
type class int

const (
	classRequest class = iota // only this call failed; the session is still good
	classSession              // the session, or a handle in it, is dead: open another, find the key again
	classModule               // the module or its device may be dead: C_Finalize and C_Initialize
	classAuth                 // the PIN was refused: never retry, because tokens lock themselves
)

// Return values of PKCS#11 3.0 and 3.1 that miekg/pkcs11 does not name.
const (
	ckrAEADDecryptFailed     pkcs11.Error = 0x42
	ckrTokenResourceExceeded pkcs11.Error = 0x201
	ckrKeyExhausted          pkcs11.Error = 0x203
)

// classify returns class and error family of a PKCS#11 return value (PKCS#11 3.0 section 5.1). Values that are not listed,
// CKR_SESSION_HANDLE_INVALID, CKR_KEY_HANDLE_INVALID and vendor-defined ones for example, count against the session.
func classify(code pkcs11.Error) (c class, family error) {
	switch code {
	case pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE, pkcs11.CKR_PIN_EXPIRED,
		pkcs11.CKR_PIN_LOCKED, pkcs11.CKR_PIN_TOO_WEAK, pkcs11.CKR_NEW_PIN_MODE, pkcs11.CKR_NEXT_OTP:
		return classAuth, signer.ErrAuth
	case pkcs11.CKR_USER_NOT_LOGGED_IN:
		return classSession, signer.ErrAuth // another program logged out, or the token did
	case pkcs11.CKR_USER_ANOTHER_ALREADY_LOGGED_IN, pkcs11.CKR_USER_TOO_MANY_TYPES, pkcs11.CKR_USER_TYPE_INVALID,
		pkcs11.CKR_SESSION_READ_ONLY_EXISTS, pkcs11.CKR_USER_PIN_NOT_INITIALIZED:
		return classRequest, signer.ErrAuth // another program must log out first, or there is no PIN that a wrong one could lock
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
	}
	return classSession, signer.ErrUnavailable
}

// callError is the return value of a function of the module.
type callError struct {
	function string // "C_Sign"
	code     pkcs11.Error
}

// call converts an error of miekg/pkcs11 for a function into one that wraps its family; nil stays nil.
func call(function string, err error) error {
	if err == nil {
		return nil
	}
	if code, ok := errors.AsType[pkcs11.Error](err); ok {
		return &callError{function, code}
	}
	return fmt.Errorf("%w: %s: %w", signer.ErrUnavailable, function, err)
}

func (e *callError) Error() string {
	_, family := classify(e.code)
	return family.Error() + ": " + e.function + " returns " + ckrName(e.code)
}

func (e *callError) Unwrap() []error {
	c, family := classify(e.code)
	if c == classAuth {
		return []error{family, e.code, isolate.ErrSecretRefused}
	}
	return []error{family, e.code}
}

// ckrName returns the name of a return value in the PKCS#11 headers, or its number if it has no name.
func ckrName(code pkcs11.Error) string {
	// miekg/pkcs11 prints "pkcs11: 0xA0: CKR_PIN_INCORRECT" and does not export its table.
	s := code.Error()
	if name := s[strings.LastIndexByte(s, ' ')+1:]; name != "" {
		return name
	}
	return fmt.Sprintf("CKR 0x%08X", uint(code))
}

// is reports whether the error is this return value of some function.
func is(err error, code pkcs11.Error) bool { return errors.Is(err, code) }

// classOf returns the class of an error. An error without a return value is of this package: it would refuse the same
// request again, and the session is still good.
func classOf(err error) class {
	code, ok := errors.AsType[pkcs11.Error](err)
	if !ok {
		return classRequest
	}
	c, _ := classify(code)
	return c
}

const hintLocked = "unlock the PIN: have the security officer set a new user PIN (pkcs11-tool --init-pin, or the vendor's own tool); " +
	"a TPM: wait, or clear its lockout (tpm2_dictionarylockout --clear-lockout)"

// advise adds to an error what to do about it, unless it says so already or the caller has left.
func advise(err error) error {
	var hint string
	switch {
	case err == nil, fault.Hint(err) != "", errors.Is(err, signer.ErrClosed), errors.Is(err, context.Canceled):
		return err
	case is(err, pkcs11.CKR_PIN_LOCKED):
		hint = hintLocked
	case errors.Is(err, signer.ErrAuth):
		hint = "check the PIN, then restart the program; a token locks itself after a few wrong PINs"
	case errors.Is(err, signer.ErrUnsupported):
		hint = "\"pkcs11-tool --list-mechanisms\" shows what the token offers; mechanism= in the reference selects one"
	case errors.Is(err, signer.ErrKeyNotFound):
		hint = "check that the token still has the key of the reference"
	case errors.Is(err, signer.ErrBadKey):
		hint = "the key must be an RSA key with CKA_SIGN"
	case errors.Is(err, signer.ErrBadSignature):
		hint = "do not use this token until its vendor has explained the error"
	default:
		hint = "check that the HSM answers and that its client is connected, then try again"
	}
	return fault.WithHint(err, hint)
}
