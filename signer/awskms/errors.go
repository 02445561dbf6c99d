package awskms

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/kms"
)

// The hints that several errors have.
const (
	fixCredentials = "provide credentials: a role of the instance, container or service account, AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" // #nosec G101 -- names
	fixClock       = "check the secret access key and the clock of this machine: KMS accepts a difference of 5 minutes"
	fixKey         = "create an RSA key with usage SIGN_VERIFY: hsmsign key generate"
	fixReplaced    = "choose another alias; nothing is replaced"
)

// maxText is the most that an error quotes from an answer, in bytes.
const maxText = 400

// unknownCode is the error code that the SDK uses for an answer without one.
const unknownCode = "UnknownError"

// errPlain: a request would be sent unencrypted to another machine.
var errPlain = errors.New("plain http is allowed on loopback only")

// credentialsError: no credentials could be obtained.
type credentialsError struct{ err error }

func (e *credentialsError) Error() string { return e.err.Error() }
func (e *credentialsError) Unwrap() error { return e.err }

func noRegion(configured string) error {
	text := "no region is set"
	if configured != "" {
		text = fmt.Sprintf("%q is not a region", fault.Clip(configured, maxText))
	}
	return fault.Errorf("%w: %s", signer.ErrReference, text).Fix("add ?region=REGION to the reference, or set AWS_REGION")
}

// badConfiguration returns the error of LoadDefaultConfig.
func badConfiguration(err error) error {
	fix := "correct the AWS configuration (~/.aws/config, AWS_...)"
	var missing config.SharedConfigProfileNotExistError
	if errors.As(err, &missing) {
		fix = "use a profile that is in ~/.aws/config, or in the file that AWS_CONFIG_FILE names"
	}
	return fault.Errorf("%w: invalid AWS configuration: %s", signer.ErrAuth, fault.Clip(err.Error(), maxText)).Fix(fix)
}

// classify maps an error of the SDK to a family. It keeps only text that is known to contain no secret: of an error of
// the service its code, message and request id.
func (c *regionClient) classify(err error) error {
	var credentials *credentialsError
	for errors.As(err, &credentials) { // a role's credentials fail if those of its caller do
		err = credentials.err
	}
	if credentials != nil && !fromService(err) {
		return fault.Errorf("%w: no AWS credentials: %s", signer.ErrAuth, fault.Clip(err.Error(), maxText)).Fix(fixCredentials)
	}
	action, status := actionOf(err), statusOf(err)
	var answer smithy.APIError
	var sent *smithyhttp.RequestSendError
	var damaged *smithy.DeserializationError
	switch {
	case errors.Is(err, errPlain):
		return fault.Errorf("%w: %s: %s", signer.ErrReference, action, fault.Clip(err.Error(), maxText)).Fix("use an https endpoint")
	case errors.As(err, &damaged) && status < http.StatusMultipleChoices:
		return fmt.Errorf("%w: %s: the answer is damaged", signer.ErrUnavailable, action)
	case errors.As(err, &answer) && answer.ErrorCode() != unknownCode:
		family, fix := c.family(action, answer, status)
		return fault.Errorf("%w: %s: %s", family, action, describe(answer, err)).Fix(fix)
	case status != 0:
		family, _ := c.family(action, &smithy.GenericAPIError{}, status)
		return fault.Errorf("%w: %s in %s: status %d in an answer that is not from KMS", family, action, c.region, status).Fix("check that the endpoint is that of AWS KMS")
	case errors.As(err, &sent):
		return fault.Errorf("%w: %s in %s: %s", signer.ErrUnavailable, action, c.region, fault.Clip(sent.Err.Error(), maxText)).
			Fix("check the region and the network path to it (DNS, proxy, VPC endpoint)")
	}
	return fmt.Errorf("%w: %s in %s: %s", signer.ErrUnsupported, action, c.region, fault.Clip(err.Error(), maxText))
}

// fromService reports whether an error of credentials is the answer of a service such as STS, which is classified as
// those of KMS are. Any other error, also that of the metadata service of a machine without an instance role (ec2imds),
// means that there are no credentials.
func fromService(err error) bool {
	found := false
	var op *smithy.OperationError
	for rest := err; errors.As(rest, &op); rest = op.Err {
		if op.ServiceID == "ec2imds" {
			return false
		}
		found = true
	}
	return found
}

// describe returns the code, message and request id of a service's error.
func describe(answer smithy.APIError, err error) string {
	text := answer.ErrorCode()
	// The message about a wrong signature may quote the request, session token included.
	if !strings.Contains(text, "Signature") {
		text += ": " + fault.Clip(answer.ErrorMessage(), maxText)
	}
	var id interface{ ServiceRequestID() string }
	if errors.As(err, &id) && id.ServiceRequestID() != "" {
		text += " (request " + fault.Clip(id.ServiceRequestID(), maxText) + ")"
	}
	return text
}

// family returns the family and the hint of an error code of KMS or STS ("Common errors" and the pages of the
// operations in their API references), or of an HTTP status without a code.
func (c *regionClient) family(action string, answer smithy.APIError, status int) (family error, fix string) {
	switch answer.ErrorCode() {
	case "NotFoundException":
		if c.created {
			return fmt.Errorf("%w: %w", signer.ErrUnavailable, signer.ErrKeyNotFound), ""
		}
		return signer.ErrKeyNotFound, fmt.Sprintf("check the key, the account and the region %q; aliases are case-sensitive", c.region)
	case "DisabledException":
		return signer.ErrBadKey, "enable the key (kms:EnableKey)"
	case "KMSInvalidStateException":
		return stateFamily(answer.ErrorMessage())
	case "InvalidKeyUsageException", "UnsupportedOperationException":
		return signer.ErrBadKey, fixKey
	case "AlreadyExistsException":
		return signer.ErrKeyExists, fixReplaced
	case "ThrottlingException", "Throttling", "RequestLimitExceeded", "TooManyRequestsException", "SlowDown":
		return kms.ErrThrottled, "lower max-rps or max-concurrent, or request a higher quota under Service Quotas"
	case "LimitExceededException":
		return signer.ErrUnsupported, "a quota of the account is exhausted; request a higher one under Service Quotas"
	case "AccessDeniedException", "AccessDenied":
		return signer.ErrAuth, fmt.Sprintf("grant %s to this principal, in its IAM policy or the key's policy", missingPermission(action, answer.ErrorMessage()))
	case "InvalidSignatureException", "SignatureDoesNotMatch", "RequestExpired", "RequestTimeTooSkewed":
		return signer.ErrAuth, fixClock
	case "ExpiredTokenException", "ExpiredToken":
		return signer.ErrAuth, "get new credentials; those of a role are renewed automatically"
	case "MissingAuthenticationTokenException", "MissingAuthenticationToken", "UnrecognizedClientException", "InvalidClientTokenId",
		"IncompleteSignatureException", "IncompleteSignature", "OptInRequired", "NotAuthorized", "InvalidAccessKeyId":
		return signer.ErrAuth, fixCredentials
	case "ValidationException", "InvalidArnException", "InvalidAliasNameException":
		return signer.ErrReference, ""
	case "KMSInternalException", "KeyUnavailableException", "DependencyTimeoutException", "ServiceUnavailable", "ServiceUnavailableException", "InternalFailure":
		return signer.ErrUnavailable, ""
	}
	switch {
	case status >= 500:
		return signer.ErrUnavailable, ""
	case status == http.StatusTooManyRequests:
		return kms.ErrThrottled, ""
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return signer.ErrAuth, fixCredentials
	}
	return signer.ErrUnsupported, ""
}

// stateFamily is family for KMSInvalidStateException, whose message alone names the state. The last two states end
// without action ("Key states of AWS KMS keys", KMS developer guide).
func stateFamily(message string) (family error, fix string) {
	message = strings.ReplaceAll(strings.ToLower(message), " ", "")
	switch {
	case strings.Contains(message, "pendingdeletion"):
		return signer.ErrBadKey, "cancel the deletion (kms:CancelKeyDeletion) before its date, then enable the key"
	case strings.Contains(message, "pendingimport"):
		return signer.ErrBadKey, "import the key material (kms:ImportKeyMaterial)"
	case strings.Contains(message, "creating"), strings.Contains(message, "updating"):
		return signer.ErrUnavailable, ""
	}
	return signer.ErrBadKey, "check the state of the key (kms:DescribeKey)"
}

// actionOf returns the permission of the call that failed: kms:Sign, sts:AssumeRole.
func actionOf(err error) string {
	name := "kms"
	var op *smithy.OperationError
	for rest := err; errors.As(rest, &op); rest = op.Err {
		name = strings.ToLower(op.ServiceID) + ":" + op.OperationName
	}
	return name
}

// missingPermission returns the permission that a message names as missing, or that of the call.
func missingPermission(action, message string) string {
	if _, after, ok := strings.Cut(message, "to perform: "); ok {
		if named, _, _ := strings.Cut(after, " "); named != "" {
			return fault.Clip(named, maxText)
		}
	}
	return action
}

func statusOf(err error) int {
	var resp *smithyhttp.ResponseError
	if errors.As(err, &resp) {
		return resp.HTTPStatusCode()
	}
	return 0
}
