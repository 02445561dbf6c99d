package azurekms

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/kms"
)

// The hints that several errors have.
const (
	fixCredentials = "provide credentials: a workload identity or a managed identity, or AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET or AZURE_CLIENT_CERTIFICATE_PATH" // #nosec G101 -- names
	fixKey         = "create an RSA key for signing: hsmsign key generate"
	fixDisabled    = "enable the version, or correct its dates (az keyvault key set-attributes)"
	fixReplaced    = "choose another name; nothing is replaced, and a key is not rotated"
)

// maxText is the most that an error quotes from an answer, in bytes.
const maxText = 400

// errOtherHost: a request with a token would be sent to another server.
var errOtherHost = errors.New("it is not the host of the vault")

// credentialError: no token could be obtained.
type credentialError struct {
	error
	unanswered bool // the server of the tokens did not answer
}

func (e *credentialError) Unwrap() error { return e.error }

// NonRetriable marks the error for the SDK, which would hide it in one of its own otherwise.
func (*credentialError) NonRetriable() {}

// answered is the body of an error of Key Vault ("Authentication, requests, and responses" and "Azure Key Vault REST API
// error codes", Azure documentation).
type answered struct {
	Error struct {
		Code       string `json:"code"`
		Message    string `json:"message"`
		InnerError struct {
			Code string `json:"code"`
		} `json:"innererror"`
	} `json:"error"`
}

// classify maps an error of the SDK to a family. It keeps only text that is known to contain no secret: of an error of the
// service its codes, message and request id.
func (s *session) classify(err error) error {
	if failed, ok := errors.AsType[*credentialError](err); ok {
		return s.classifyCredential(failed)
	}
	if errors.Is(err, errOtherHost) {
		return fmt.Errorf("%w: the answer is damaged: it leads to another host", signer.ErrUnavailable)
	}
	if failed, ok := errors.AsType[*azcore.ResponseError](err); ok {
		return s.classifyAnswer(failed)
	}
	text := err.Error()
	switch {
	case strings.Contains(text, "challenge resource"):
		return fault.Errorf("%w: the challenge is not that of %s", signer.ErrAuth, s.service()).Fix("check that the host is that of your vault; something else answers there")
	case strings.Contains(text, "WWW-Authenticate"):
		return fault.Errorf("%w: status 401 in an answer that is not from %s", signer.ErrAuth, s.service()).Fix("check that the host is that of your vault")
	case strings.HasPrefix(text, "unmarshalling type"), strings.Contains(text, "unexpected EOF"):
		return fmt.Errorf("%w: the answer is damaged", signer.ErrUnavailable)
	}
	return fault.Errorf("%w: %s: %s", signer.ErrUnavailable, s.host, fault.Clip(text, maxText)).
		Fix("check the name of the vault and the network path to it (DNS, proxy, private endpoint, firewall of the vault)")
}

// classifyCredential is classify for the error of a credential.
func (s *session) classifyCredential(e *credentialError) error {
	status := 0
	text, _, _ := strings.Cut(e.Error(), ". To troubleshoot, visit ")
	if failed, ok := errors.AsType[*azidentity.AuthenticationFailedError](e.error); ok && failed.RawResponse != nil {
		status = failed.RawResponse.StatusCode
		text = fmt.Sprintf("status %d: %s", status, tokenError(failed.RawResponse))
	}
	text = fault.Clip(text, maxText)
	switch {
	case status == http.StatusTooManyRequests:
		return fault.Errorf("%w: no token: %s", kms.ErrThrottled, text).Fix("lower max-concurrent; the server of the tokens throttles")
	case status >= http.StatusInternalServerError, e.unanswered && !s.managed: // without a managed identity nothing answers
		return fmt.Errorf("%w: no token: %s", signer.ErrUnavailable, text)
	}
	return fault.Errorf("%w: no Azure token: %s", signer.ErrAuth, text).Fix(fixCredentials)
}

// tokenError returns the error of a server of tokens (RFC 6749 section 5.2), without the ids and the time that Entra adds.
func tokenError(resp *http.Response) string {
	var body struct {
		Error       any    `json:"error"`
		Description string `json:"error_description"`
	}
	text, err := runtime.Payload(resp)
	if err != nil || json.Unmarshal(text, &body) != nil {
		return "an answer that is not from a server of tokens"
	}
	description, _, _ := strings.Cut(body.Description, " Trace ID:")
	name, _ := body.Error.(string)
	return name + ": " + description
}

// classifyAnswer is classify for an answer with an error.
func (s *session) classifyAnswer(failed *azcore.ResponseError) error {
	var a answered
	text, err := runtime.Payload(failed.RawResponse)
	isVault := err == nil && json.Unmarshal(text, &a) == nil && a.Error.Code != ""
	fix, family := s.family(failed.StatusCode, a)
	if !isVault {
		return fault.Errorf("%w: status %d in an answer that is not from %s", family, failed.StatusCode, s.service()).Fix("check that the host is that of your vault")
	}
	said := a.Error.Code
	if a.Error.InnerError.Code != "" {
		said += " (" + a.Error.InnerError.Code + ")"
	}
	said += ": " + a.Error.Message
	id := ""
	if text := failed.RawResponse.Header.Get(requestHeader); text != "" {
		id = " (request " + fault.Clip(text, maxText) + ")"
	}
	return fault.Errorf("%w: %s%s", family, fault.Clip(said, maxText), id).Fix(fix)
}

// family returns the hint and the family of an error of Key Vault, or of a status without a code.
func (s *session) family(status int, a answered) (fix string, family error) {
	inner := a.Error.InnerError.Code
	switch {
	case inner == "KeyDisabled", inner == "KeyExpired", inner == "KeyNotYetValid", strings.Contains(a.Error.Message, "disabled key"):
		return fixDisabled, signer.ErrBadKey
	case inner == "ForbiddenByFirewall", inner == "ForbiddenByConnection":
		return "allow this machine in the network rules of the vault, or use its private endpoint", signer.ErrAuth
	case status == http.StatusForbidden && a.Error.Code != "":
		return fmt.Sprintf("give this identity the role of deploy/terraform/azure on the key (%s)", s.service()), signer.ErrAuth
	case status == http.StatusForbidden:
		return "", signer.ErrAuth
	case status == http.StatusUnauthorized:
		return "check the credentials, the tenant of the vault and the clock of this machine", signer.ErrAuth
	case status == http.StatusNotFound && a.Error.Code == "KeyNotFound" && s.created:
		return "", fmt.Errorf("%w: %w", signer.ErrUnavailable, signer.ErrKeyNotFound)
	case status == http.StatusNotFound && a.Error.Code != "":
		return "check the names of the vault, the key and the version: hsmsign key list", signer.ErrKeyNotFound
	case status == http.StatusConflict:
		return "a deleted key of this name can be recovered, or the service is still working on it; " + fixReplaced, signer.ErrKeyExists
	case status == http.StatusTooManyRequests:
		return "lower max-rps or max-concurrent: the limits of a vault cannot be raised, a Managed HSM has higher ones", kms.ErrThrottled
	case status == http.StatusBadRequest && strings.Contains(strings.ToLower(a.Error.Message), "sku"):
		return "a vault of the standard tier has no HSM keys: use protection=software, a premium vault or a Managed HSM", signer.ErrUnsupported
	case status == http.StatusBadRequest && a.Error.Code == "BadParameter":
		return fixKey, signer.ErrBadKey
	case status >= http.StatusInternalServerError, status == http.StatusRequestTimeout:
		return "", signer.ErrUnavailable
	}
	return "", signer.ErrUnsupported
}
