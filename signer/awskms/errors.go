package awskms

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
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
	fixRegion      = "name the region that the endpoint serves: ?region=REGION"
	fixReplaced    = "choose another alias; nothing is replaced"
)

// maxText is the most that an error quotes from an answer, in bytes.
const maxText = 400

// unknownCode is the error code that the SDK uses for an answer without one.
const unknownCode = "UnknownError"

// errPlain: a request would be sent unencrypted to another machine.
var errPlain = errors.New("plain http is allowed on loopback only")

// credentialsError: no credentials could be obtained.
type credentialsError struct{ error }

func (e *credentialsError) Unwrap() error { return e.error }

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
	if _, ok := errors.AsType[config.SharedConfigProfileNotExistError](err); ok {
		fix = "use a profile that is in ~/.aws/config, or in the file that AWS_CONFIG_FILE names"
	}
	return fault.Errorf("%w: invalid AWS configuration: %s", signer.ErrAuth, fault.Clip(err.Error(), maxText)).Fix(fix)
}

// classify maps an error of the SDK to a family. It keeps only text that is known to contain no secret: of an error of
// the service its code, message and request id.
func (c *regionClient) classify(err error) error {
	var credentials *credentialsError
	for errors.As(err, &credentials) { // a role's credentials fail if those of its caller do
		err = credentials.error
	}
	action := actionOf(err)
	// The answer of a service such as STS is classified as those of KMS are. Any other error, also that of the metadata
	// service of a machine without an instance role (ec2imds), means that there are no credentials.
	if credentials != nil && (action == "kms" || strings.HasPrefix(action, "ec2imds:")) {
		return fault.Errorf("%w: no AWS credentials: %s", signer.ErrAuth, fault.Clip(err.Error(), maxText)).Fix(fixCredentials)
	}
	status := 0
	if resp, ok := errors.AsType[*smithyhttp.ResponseError](err); ok {
		status = resp.HTTPStatusCode()
	}
	var answer smithy.APIError
	var sent *smithyhttp.RequestSendError
	var damaged *smithy.DeserializationError
	switch {
	case errors.Is(err, errPlain):
		return fault.Errorf("%w: %s: %s", signer.ErrReference, action, fault.Clip(err.Error(), maxText)).Fix("use an https endpoint")
	case errors.As(err, &damaged) && status < http.StatusMultipleChoices:
		return fmt.Errorf("%w: %s: the answer is damaged", signer.ErrUnavailable, action)
	case errors.As(err, &answer) && answer.ErrorCode() != unknownCode:
		fix, family := c.family(action, answer, status)
		return fault.Errorf("%w: %s: %s", family, action, describe(answer, err)).Fix(fix)
	case status != 0:
		_, family := c.family(action, &smithy.GenericAPIError{}, status)
		return fault.Errorf("%w: %s in %s: status %d in an answer that is not from KMS", family, action, c.region, status).Fix("check that the endpoint is that of AWS KMS")
	case errors.As(err, &sent):
		return fault.Errorf("%w: %s in %s: %s", signer.ErrUnavailable, action, c.region, fault.Clip(sent.Err.Error(), maxText)).
			Fix("check the region and the network path to it (DNS, proxy, VPC endpoint)")
	}
	return fmt.Errorf("%w: %s in %s: %s", signer.ErrUnsupported, action, c.region, fault.Clip(err.Error(), maxText))
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

// family returns the hint and the family of an error code of KMS or STS ("Common errors" and the pages of the
// operations in their API references), or of an HTTP status without a code.
func (c *regionClient) family(action string, answer smithy.APIError, status int) (fix string, family error) {
	switch code := answer.ErrorCode(); {
	case code == "NotFoundException" && c.elsewhere(answer.ErrorMessage()):
		return fixRegion, signer.ErrReference
	case code == "NotFoundException" && c.created:
		return "", fmt.Errorf("%w: %w", signer.ErrUnavailable, signer.ErrKeyNotFound)
	case code == "KMSInvalidStateException":
		return stateFamily(answer.ErrorMessage())
	}
	for _, f := range []struct {
		codes  string
		family error
		fix    string
	}{
		{"NotFoundException", signer.ErrKeyNotFound, fmt.Sprintf("check the key, the account and the region %q; aliases are case-sensitive", c.region)},
		{"DisabledException", signer.ErrBadKey, "enable the key (kms:EnableKey)"},
		{"InvalidKeyUsageException UnsupportedOperationException", signer.ErrBadKey, fixKey},
		{"AlreadyExistsException", signer.ErrKeyExists, fixReplaced},
		{"ThrottlingException Throttling RequestLimitExceeded TooManyRequestsException SlowDown", kms.ErrThrottled,
			"lower max-rps or max-concurrent, or request a higher quota under Service Quotas"},
		{"LimitExceededException", signer.ErrUnsupported, "a quota of the account is exhausted; request a higher one under Service Quotas"},
		{"AccessDeniedException AccessDenied", signer.ErrAuth,
			fmt.Sprintf("grant %s to this principal, in its IAM policy or the key's policy", missingPermission(action, answer.ErrorMessage()))},
		{"InvalidSignatureException SignatureDoesNotMatch RequestExpired RequestTimeTooSkewed", signer.ErrAuth, fixClock},
		{"ExpiredTokenException ExpiredToken", signer.ErrAuth, "get new credentials; those of a role are renewed automatically"},
		{"MissingAuthenticationTokenException MissingAuthenticationToken UnrecognizedClientException InvalidClientTokenId IncompleteSignatureException " +
			"IncompleteSignature OptInRequired NotAuthorized InvalidAccessKeyId", signer.ErrAuth, fixCredentials},
		{"ValidationException InvalidArnException InvalidAliasNameException", signer.ErrReference, ""},
		{"KMSInternalException KeyUnavailableException DependencyTimeoutException ServiceUnavailable ServiceUnavailableException InternalFailure",
			signer.ErrUnavailable, ""},
	} {
		if slices.Contains(strings.Fields(f.codes), answer.ErrorCode()) {
			return f.fix, f.family
		}
	}
	switch {
	case status >= 500:
		return "", signer.ErrUnavailable
	case status == http.StatusTooManyRequests:
		return "", kms.ErrThrottled
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return fixCredentials, signer.ErrAuth
	}
	return "", signer.ErrUnsupported
}

// elsewhere reports whether a message names an ARN of another region: the endpoint serves that region only.
func (c *regionClient) elsewhere(message string) bool {
	m := notFoundARN().FindStringSubmatch(message)
	return m != nil && m[1] != c.region
}

// stateFamily is family for KMSInvalidStateException, whose message alone names the state. The last two states end
// without action ("Key states of AWS KMS keys", KMS developer guide).
func stateFamily(message string) (fix string, family error) {
	message = strings.ReplaceAll(strings.ToLower(message), " ", "")
	switch {
	case strings.Contains(message, "pendingdeletion"):
		return "cancel the deletion (kms:CancelKeyDeletion) before its date, then enable the key", signer.ErrBadKey
	case strings.Contains(message, "pendingimport"):
		return "import the key material (kms:ImportKeyMaterial)", signer.ErrBadKey
	case strings.Contains(message, "creating"), strings.Contains(message, "updating"):
		return "", signer.ErrUnavailable
	}
	return "check the state of the key (kms:DescribeKey)", signer.ErrBadKey
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
