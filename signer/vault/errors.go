package vault

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/kms"
)

// The hints that several errors have.
const (
	fixKey     = "create an RSA key: hsmsign key generate"
	fixVersion = "name a version that may sign, and the certificate that belongs to it"
	fixServer  = "check that the host is that of Vault or OpenBao"
)

// maxText is the most that an error quotes from an answer, in bytes.
const maxText = 400

// errDamaged: an answer cannot be read. It is retried.
var errDamaged = fmt.Errorf("%w: the answer is damaged", signer.ErrUnavailable)

// errNothing is a signer.ErrKeyNotFound: the path is that of an engine, and there is nothing.
var errNothing = fmt.Errorf("%w: nothing is there", signer.ErrKeyNotFound)

// sendError: there is no answer.
type sendError struct {
	action string
	err    error
}

func (e *sendError) Error() string { return e.action + ": " + e.err.Error() }

func (e *sendError) Unwrap() error { return e.err }

// apiError is an answer with an error.
type apiError struct {
	status   int
	messages []string
	action   string // the permission: "update transit/sign/vendor"
	vault    bool   // the answer has the form of Vault's errors
	login    bool
	location string // of a redirect
}

func (e *apiError) Error() string {
	return fmt.Sprintf("%s: status %d: %s", e.action, e.status, e.text())
}

// text returns the messages.
func (e *apiError) text() string { return strings.Join(e.messages, "; ") }

// has reports whether a message contains one of the texts.
func (e *apiError) has(texts ...string) bool {
	for _, text := range texts {
		if strings.Contains(strings.ToLower(e.text()), text) {
			return true
		}
	}
	return false
}

// invalidToken reports whether Vault says that the token itself is refused ("Tokens", Vault documentation).
func (e *apiError) invalidToken() bool { return e.has("invalid token", "bad token") }

// classify maps an error to a family.
func (s *session) classify(err error) error {
	answered, ok := errors.AsType[*apiError](err)
	if !ok {
		return s.unreachable(err)
	}
	fix, family := s.family(answered)
	text := fmt.Sprintf("status %d", answered.status)
	if len(answered.messages) > 0 {
		text += ": " + answered.text()
	} else if !answered.vault {
		text += " in an answer that is not from Vault"
	}
	return fault.Errorf("%w: %s: %s", family, answered.action, fault.Clip(text, maxText)).Fix(fix)
}

// unreachable returns the error of a request without an answer.
func (s *session) unreachable(err error) error {
	if sent, ok := errors.AsType[*sendError](err); ok {
		fix := "check the host, the port and the network path to it (DNS, proxy, firewall)"
		if strings.Contains(sent.err.Error(), "certificate") || strings.Contains(sent.err.Error(), "x509:") {
			fix = "name the CA that issued the server's certificate: ca=FILE"
		} else if strings.Contains(sent.err.Error(), "HTTP response to HTTPS") {
			fix = "the server does not use TLS; tls=off is allowed on loopback only"
		}
		return fault.Errorf("%w: %s at %s: %s", signer.ErrUnavailable, sent.action, s.host, fault.Clip(sent.err.Error(), maxText)).Fix(fix)
	}
	return fmt.Errorf("%w: %s", signer.ErrUnsupported, fault.Clip(err.Error(), maxText))
}

// family returns the hint and the family of an answer. Its message comes first: Vault answers some refusals of the transit
// engine with status 400 and, in older versions, 500 (path_sign_verify.go and policy.go of its source).
func (s *session) family(e *apiError) (fix string, family error) {
	switch {
	case e.has("version for signing is higher", "no such key version", "key version not found"):
		return "correct version= in the reference: hsmsign key list", signer.ErrKeyNotFound
	case e.has("key not found"):
		return fmt.Sprintf("check the name of the key, the mount %q and the namespace", s.mount), signer.ErrKeyNotFound
	case e.has("less than the minimum encryption key version"):
		return fixVersion, signer.ErrBadKey
	case e.has("private part"):
		return "the engine has only the public part of this version; " + fixVersion, signer.ErrBadKey
	case e.has("does not support signing", "signing not supported"):
		return fixKey, signer.ErrBadKey
	case e.has("vault is sealed", "sealed"):
		return "unseal the server: vault operator unseal", signer.ErrUnavailable
	}
	switch {
	case e.login && (e.status == http.StatusBadRequest || e.status == http.StatusUnauthorized || e.status == http.StatusForbidden):
		return "check the role, its secret, and where the login method is mounted (auth-mount, namespace)", signer.ErrAuth
	case e.status == http.StatusForbidden && e.vault && e.invalidToken():
		return s.identity.fixToken(), signer.ErrAuth
	case e.status == http.StatusForbidden && e.vault:
		return fmt.Sprintf("give the token a policy that allows %q (deploy/vault)", e.action), signer.ErrAuth
	case e.status == http.StatusUnauthorized || e.status == http.StatusForbidden:
		return "", signer.ErrAuth
	case e.status == http.StatusNotFound && e.vault && len(e.messages) == 0:
		return fmt.Sprintf("check the name of the key, the mount %q and the namespace", s.mount), errNothing
	case e.status == http.StatusNotFound && e.vault:
		return fmt.Sprintf("check that the transit engine is mounted at %q, and the namespace", s.mount), signer.ErrKeyNotFound
	case e.status == http.StatusTooManyRequests:
		return "lower max-rps or max-concurrent, or raise the rate limit quota of the server", kms.ErrThrottled
	case e.status == http.StatusTemporaryRedirect && e.location != "":
		return fmt.Sprintf("name the active node %q or the load balancer: redirects are not followed", e.target()), signer.ErrUnavailable
	case e.status == http.StatusPreconditionFailed: // a replica that is behind the primary
		return "", signer.ErrUnavailable
	case e.status == 472 || e.status == 473: // a node of a disaster recovery or a performance secondary
		return "name a node that serves this key", signer.ErrUnavailable
	case e.status >= http.StatusInternalServerError:
		return "", signer.ErrUnavailable
	}
	return fixServer, signer.ErrUnsupported
}

// target returns the host of a redirect.
func (e *apiError) target() string {
	u, err := url.Parse(e.location)
	if err != nil {
		return ""
	}
	return fault.Clip(u.Host, maxText)
}
