package gcpkms

import (
	"fmt"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/kms"
)

// The hints that several errors have.
const (
	// #nosec G101 -- a hint, no credential
	fixCredentials = "check the application default credentials: gcloud auth application-default login on a workstation, " +
		"the attached service account in Google Cloud, GOOGLE_APPLICATION_CREDENTIALS elsewhere"
	fixKey = "Apple accepts RSASSA-PKCS1-v1_5 with SHA-256: use a key with purpose ASYMMETRIC_SIGN and algorithm RSA_SIGN_PKCS1_2048_SHA256, 3072 or 4096"
)

// maxText is the most that an error quotes from an answer, in bytes.
const maxText = 400

// classify maps an error of the service to a family. The codes are those of google.rpc.Code; their use is described in
// https://cloud.google.com/kms/docs/error-codes and https://google.aip.dev/193.
func classify(err error) error {
	fix, family := familyOf(err)
	name := code.Code(status.Code(err)) // #nosec G115 -- a code is small; in Google's spelling: "PERMISSION_DENIED"
	return fault.Errorf("%w: %s: %s", family, name, textOf(err)).Fix(fix)
}

func familyOf(err error) (fix string, family error) {
	info, precondition := detailsOf(err)
	if info.GetReason() == "SERVICE_DISABLED" {
		return "enable the API: gcloud services enable cloudkms.googleapis.com", signer.ErrAuth
	}
	switch status.Code(err) {
	case codes.PermissionDenied:
		return fixPermission(permissionOf(info)), signer.ErrAuth
	case codes.Unauthenticated:
		return fixCredentials, signer.ErrAuth
	case codes.NotFound:
		return "check project, location, key ring, key and version: gcloud kms keys list, or hsmsign key list with the name of the key ring", signer.ErrKeyNotFound
	case codes.AlreadyExists:
		return "choose another key name; nothing is replaced, and the name of a key in Cloud KMS cannot be used again", signer.ErrKeyExists
	case codes.FailedPrecondition:
		return fixState(precondition, textOf(err)), signer.ErrBadKey
	case codes.InvalidArgument:
		return fixKey, signer.ErrBadKey
	case codes.Unimplemented:
		if text := textOf(err); strings.HasPrefix(text, "unknown service ") || strings.HasPrefix(text, "unexpected HTTP status code ") {
			return "the endpoint does not speak Cloud KMS; check the attribute endpoint of the reference", signer.ErrUnsupported
		}
		return "", signer.ErrUnsupported // a method, a field or an algorithm
	case codes.ResourceExhausted:
		if strings.HasPrefix(textOf(err), "grpc: ") { // from the client itself: the answer is longer than maxAnswer
			return "", signer.ErrUnavailable
		}
		return "set max-rps in the reference below your share of the project's quota, or request a higher quota: IAM & Admin, Quotas, in the console", kms.ErrThrottled
	default: // UNAVAILABLE, DEADLINE_EXCEEDED, INTERNAL, ABORTED, UNKNOWN: a repeated signature is harmless
		return "", signer.ErrUnavailable
	}
}

// textOf returns the message of a status on one line. It names the missing permission.
func textOf(err error) string {
	text := fault.Clip(status.Convert(err).Message(), maxText)
	info, _ := detailsOf(err)
	if permission := permissionOf(info); permission != "" && !strings.Contains(text, permission) {
		text += fmt.Sprintf(" (permission %q)", permission)
	}
	return text
}

// digestDamaged reports whether the service refused a digest because of its checksum. AsymmetricSignRequest,
// digest_crc32c: "will report an error if the checksum verification failed".
func digestDamaged(err error) bool {
	text := strings.ToLower(status.Convert(err).Message())
	return status.Code(err) == codes.InvalidArgument && (strings.Contains(text, "crc32c") || strings.Contains(text, "checksum"))
}

// detailsOf returns the details of a status. Either may be nil; the getters of nil return zero values.
func detailsOf(err error) (info *errdetails.ErrorInfo, precondition *errdetails.PreconditionFailure) {
	for _, d := range status.Convert(err).Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			info = d
		case *errdetails.PreconditionFailure:
			precondition = d
		}
	}
	return info, precondition
}

func permissionOf(info *errdetails.ErrorInfo) string {
	return fault.Clip(info.GetMetadata()["permission"], maxText)
}

func fixPermission(permission string) string {
	role, known := map[string]string{
		"":                                     "roles/cloudkms.signer and roles/cloudkms.publicKeyViewer on the key",
		"cloudkms.cryptoKeyVersions.useToSign": "roles/cloudkms.signer on the key",
		"cloudkms.cryptoKeyVersions.viewPublicKey": "roles/cloudkms.publicKeyViewer on the key",
	}[permission]
	if !known {
		role = "a role with " + permission
	}
	return fmt.Sprintf("grant %s to this identity", role)
}

// fixState returns the hint for the state of a key version (CryptoKeyVersionState). The service names the state in a
// violation ("KEY_DISABLED") and in its text ("is not enabled, current state is: DISABLED.").
func fixState(precondition *errdetails.PreconditionFailure, text string) string {
	for _, v := range precondition.GetViolations() {
		text += " current state is: " + strings.TrimPrefix(v.GetType(), "KEY_")
	}
	for _, state := range []struct{ name, fix string }{
		{"DISABLED", "enable it if it may sign: gcloud kms keys versions enable"},
		{"DESTROY_SCHEDULED", "restore it before it is destroyed: gcloud kms keys versions restore, then enable"},
		{"DESTROYED", "it cannot be restored: create a new key and get a new vendor certificate for it"},
		{"PENDING_GENERATION", "it is being generated: try again in a minute"},
		{"PENDING_IMPORT", "it is being imported: try again in a minute"},
		{"GENERATION_FAILED", "its generation failed: create another key"},
		{"IMPORT_FAILED", "its import failed: import it again, as another version"},
	} {
		if strings.Contains(text, "current state is: "+state.name) {
			return state.fix
		}
	}
	return "the version must be ENABLED, of a key with purpose ASYMMETRIC_SIGN"
}
