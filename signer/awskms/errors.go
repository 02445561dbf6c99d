package awskms

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"hsmsign/signer"
	remote "hsmsign/signer/kms"
)

// What to do about a failure.
const (
	fixCredentials = "give this process credentials: a role of the instance, container or service account, AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" // #nosec G101 -- names
	fixClock       = "compare the secret key, and this machine's clock with the time: KMS takes 5 minutes of difference"
	fixKey         = "make an RSA key with usage SIGN_VERIFY; hsmsign key generate does"
	fixHash        = "sign with SHA-256"
)

// failure is an error with what to do about it.
type failure struct {
	family, cause error // cause may be nil
	text, fix     string
}

// Hint is what to do about it.
func (f *failure) Hint() string { return f.fix }

func (f *failure) Error() string { return f.family.Error() + ": " + f.text }

func (f *failure) Unwrap() []error {
	if f.cause == nil {
		return []error{f.family}
	}
	return []error{f.family, f.cause}
}

// fixOf is the hint of the failure within an error.
func fixOf(err error) string {
	var f *failure
	if errors.As(err, &f) {
		return f.fix
	}
	return ""
}

// credentialsError: credentials were not to be had.
type credentialsError struct{ err error }

func (e *credentialsError) Error() string { return e.err.Error() }
func (e *credentialsError) Unwrap() error { return e.err }

// unknownCode is what the SDK calls an answer without a code of the service.
const unknownCode = "UnknownError"

// errPlain: the configuration would send requests readable for anybody on the way.
var errPlain = errors.New("plain http is for this machine only")

func unsupportedHash(err error) error {
	return &failure{family: signer.ErrUnsupported, cause: err, fix: fixHash,
		text: "AWS KMS signs digests of SHA-256 here: " + strings.TrimPrefix(err.Error(), signer.ErrUnsupported.Error()+": ")}
}

func wrongKey(format string, args ...any) error {
	return &failure{family: signer.ErrBadKey, text: fmt.Sprintf(format, args...), fix: fixKey}
}

func noRegion(configured string) error {
	text := "no region is set"
	if configured != "" {
		text = fmt.Sprintf("%q is no region", clip(configured))
	}
	return &failure{family: signer.ErrReference, text: text, fix: "add ?region=REGION to the reference, or set AWS_REGION"}
}

// badConfiguration is for what LoadDefaultConfig finds wrong.
func badConfiguration(err error) error {
	fix := "mend the AWS configuration (~/.aws/config, AWS_...)"
	var missing config.SharedConfigProfileNotExistError
	if errors.As(err, &missing) {
		fix = "name a profile that is in ~/.aws/config or in the file that AWS_CONFIG_FILE names"
	}
	return &failure{family: signer.ErrAuth, text: "the AWS configuration cannot be used: " + clip(err.Error()), fix: fix}
}

// classify puts an error of the SDK into its family. It keeps of it what is known to hold no secret: an error of the
// service as its code, message and request id. ctx is that of the attempt.
func (s *site) classify(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		// Whatever the SDK makes of it. Whether it was the caller who gave up is for package remote to say.
		return fmt.Errorf("%w: %s: no answer in time", signer.ErrUnavailable, action(err))
	}
	var credentials *credentialsError
	for errors.As(err, &credentials) { // a role's credentials fail when those it is assumed with do
		err = credentials.err
	}
	if credentials != nil {
		return s.classifyCredentials(err)
	}
	return s.classifyCall(err)
}

// classifyCredentials: STS and its like fail as KMS does, and may be asked again. Anything else, a machine without
// an instance role (ec2imds) included, means that there are no credentials.
func (s *site) classifyCredentials(err error) error {
	var metadata, op *smithy.OperationError
	for rest := err; errors.As(rest, &op); rest = op.Err {
		if op.ServiceID == "ec2imds" {
			metadata = op
		}
	}
	if op != nil && metadata == nil {
		return s.classifyCall(err)
	}
	return &failure{family: signer.ErrAuth, text: "no AWS credentials: " + clip(err.Error()), fix: fixCredentials}
}

func (s *site) classifyCall(err error) error {
	action, status := action(err), statusOf(err)
	var fault smithy.APIError
	var damaged *smithy.DeserializationError
	switch {
	case errors.Is(err, errPlain):
		return &failure{family: signer.ErrReference, text: action + ": " + clip(err.Error()), fix: "write an https endpoint"}
	case errors.As(err, &damaged) && status < http.StatusMultipleChoices:
		return fmt.Errorf("%w: %s: the answer is damaged", signer.ErrUnavailable, action)
	case !errors.As(err, &fault) && status == 0:
		return s.classifyTransport(action, err)
	case fault == nil || fault.ErrorCode() == unknownCode:
		f := s.family(action, &smithy.GenericAPIError{}, status)
		f.text, f.fix = fmt.Sprintf("%s in %s: status %d in words that are not KMS's", action, s.region, status), "see whether the endpoint is that of AWS KMS"
		return f
	}
	f := s.family(action, fault, status)
	f.text = fmt.Sprintf("%s: %s", action, fault.ErrorCode())
	// The message about a wrong signature may quote the request, session token included.
	if !strings.Contains(fault.ErrorCode(), "Signature") {
		f.text += ": " + clip(fault.ErrorMessage())
	}
	var id interface{ ServiceRequestID() string }
	if errors.As(err, &id) && id.ServiceRequestID() != "" {
		f.text += " (request " + clip(id.ServiceRequestID()) + ")"
	}
	return f
}

// classifyTransport is for failures without an answer.
func (s *site) classifyTransport(action string, err error) error {
	var sent *smithyhttp.RequestSendError
	text := action + " in " + s.region + ": "
	if errors.As(err, &sent) {
		return &failure{family: signer.ErrUnavailable, text: text + clip(sent.Err.Error()), fix: "see whether the region and the way to it (DNS, proxy, VPC endpoint) are right"}
	}
	return &failure{family: signer.ErrUnsupported, text: text + clip(err.Error())}
}

// family maps an error code of KMS or STS ("Common errors" and the operations' pages of their API references).
func (s *site) family(action string, fault smithy.APIError, status int) *failure {
	switch code := fault.ErrorCode(); code {
	case "NotFoundException":
		if s.fresh {
			return &failure{family: signer.ErrUnavailable, cause: signer.ErrKeyNotFound}
		}
		return &failure{family: signer.ErrKeyNotFound, fix: fmt.Sprintf("see whether key, account and region %q are right; aliases keep their case", s.region)}
	case "DisabledException":
		return &failure{family: signer.ErrBadKey, fix: "enable the key (kms:EnableKey)"}
	case "KMSInvalidStateException":
		return badState(fault.ErrorMessage())
	case "InvalidKeyUsageException", "UnsupportedOperationException":
		return &failure{family: signer.ErrBadKey, fix: fixKey}
	case "AlreadyExistsException":
		return &failure{family: signer.ErrKeyExists, fix: "choose another alias; nothing is replaced"}
	case "ThrottlingException", "Throttling", "RequestLimitExceeded", "TooManyRequestsException", "SlowDown":
		return &failure{family: remote.ErrThrottled, fix: "lower max-rps or max-concurrent, or ask for more under Service Quotas"}
	case "LimitExceededException":
		return &failure{family: signer.ErrUnsupported, fix: "a quota of the account is used up; ask for more under Service Quotas"}
	case "AccessDeniedException", "AccessDenied":
		return &failure{family: signer.ErrAuth, fix: fmt.Sprintf("grant %s to this principal, in its IAM policy or the key's policy", missing(action, fault.ErrorMessage()))}
	case "InvalidSignatureException", "SignatureDoesNotMatch", "RequestExpired", "RequestTimeTooSkewed":
		return &failure{family: signer.ErrAuth, fix: fixClock}
	case "ExpiredTokenException", "ExpiredToken":
		return &failure{family: signer.ErrAuth, fix: "get new credentials; a role renews them by itself"}
	case "MissingAuthenticationTokenException", "MissingAuthenticationToken", "UnrecognizedClientException", "InvalidClientTokenId",
		"IncompleteSignatureException", "IncompleteSignature", "OptInRequired", "NotAuthorized", "InvalidAccessKeyId":
		return &failure{family: signer.ErrAuth, fix: fixCredentials}
	case "ValidationException", "InvalidArnException", "InvalidAliasNameException":
		return &failure{family: signer.ErrReference}
	case "KMSInternalException", "KeyUnavailableException", "DependencyTimeoutException", "ServiceUnavailable", "ServiceUnavailableException", "InternalFailure":
		return &failure{family: signer.ErrUnavailable}
	}
	switch {
	case status >= 500:
		return &failure{family: signer.ErrUnavailable}
	case status == http.StatusTooManyRequests:
		return &failure{family: remote.ErrThrottled}
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return &failure{family: signer.ErrAuth, fix: fixCredentials}
	}
	return &failure{family: signer.ErrUnsupported}
}

// badState: the message names the state, and there is no other way to tell them apart. Two of them pass by
// themselves ("Key states of AWS KMS keys", KMS developer guide).
func badState(message string) *failure {
	message = strings.ToLower(message)
	switch {
	case strings.Contains(message, "pending deletion"), strings.Contains(message, "pendingdeletion"):
		return &failure{family: signer.ErrBadKey, fix: "cancel the deletion (kms:CancelKeyDeletion) while there is time, then enable the key"}
	case strings.Contains(message, "pending import"), strings.Contains(message, "pendingimport"):
		return &failure{family: signer.ErrBadKey, fix: "import the key material (kms:ImportKeyMaterial)"}
	case strings.Contains(message, "creating"), strings.Contains(message, "updating"):
		return &failure{family: signer.ErrUnavailable}
	}
	return &failure{family: signer.ErrBadKey, fix: "look at the key's state (kms:DescribeKey)"}
}

// action names the permission of the call that failed: kms:Sign, sts:AssumeRole.
func action(err error) string {
	name := "kms"
	var op *smithy.OperationError
	for rest := err; errors.As(rest, &op); rest = op.Err {
		name = strings.ToLower(op.ServiceID) + ":" + op.OperationName
	}
	return name
}

// missing is the permission that the service says is missing, or else that of the call.
func missing(action, message string) string {
	if _, after, ok := strings.Cut(message, "to perform: "); ok {
		if named, _, _ := strings.Cut(after, " "); named != "" {
			return clip(named)
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

// clip makes what somebody else wrote fit into one line.
func clip(s string) string {
	const most = 400
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
}
