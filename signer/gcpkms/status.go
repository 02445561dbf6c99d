package gcpkms

import (
	"fmt"
	"hash/crc32"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"hsmsign/signer"
	remote "hsmsign/signer/kms"
)

// #nosec G101 -- a hint, no credential
const fixCredentials = "check the application default credentials: gcloud auth application-default login on a workstation, " +
	"the attached service account in Google Cloud, GOOGLE_APPLICATION_CREDENTIALS elsewhere"

// fault is an error with what to do about it.
type faultError struct {
	error
	fix string
}

// Hint is what to do about it.
func (f *faultError) Hint() string { return f.fix }

func (f *faultError) Unwrap() error { return f.error }

// damaged is an answer whose checksum or name is wrong. It may be retried a little; when that does not help it is
// an error of its family.
type damaged struct {
	family error
	text   string
}

func (d *damaged) Error() string { return signer.ErrUnavailable.Error() + ": " + d.text }
func (d *damaged) Unwrap() error { return signer.ErrUnavailable }

// explain brings an error of the service into a family. The codes are those of google.rpc.Code; their use is told in
// https://cloud.google.com/kms/docs/error-codes and https://google.aip.dev/193.
func explain(err error) error {
	s, isStatus := status.FromError(err)
	if !isStatus {
		return err // our own
	}
	text := oneLine(s.Message())
	wrap := func(family error, fix string) error {
		return &faultError{fmt.Errorf("%w: %s: %s", family, codeName(s.Code()), text), fix}
	}
	info, precondition := details(s)
	if info.GetReason() == "SERVICE_DISABLED" {
		return wrap(signer.ErrAuth, "turn the API on: gcloud services enable cloudkms.googleapis.com")
	}
	switch s.Code() {
	case codes.PermissionDenied:
		permission := oneLine(info.GetMetadata()["permission"])
		if permission != "" && !strings.Contains(text, permission) {
			text += fmt.Sprintf(" (permission %q)", permission)
		}
		return wrap(signer.ErrAuth, fixPermission(permission))
	case codes.Unauthenticated:
		return wrap(signer.ErrAuth, fixCredentials)
	case codes.NotFound:
		return wrap(signer.ErrKeyNotFound, "check project, location, key ring, key and version: gcloud kms keys list, or hsmsign key list with the key ring's name")
	case codes.AlreadyExists:
		return wrap(signer.ErrKeyExists, "name another key; nothing is replaced, and a key in Cloud KMS keeps its name for ever")
	case codes.FailedPrecondition:
		return wrap(signer.ErrBadKey, fixState(precondition, text))
	case codes.InvalidArgument:
		// AsymmetricSignRequest.digest_crc32c: "will report an error if the checksum verification failed".
		if lower := strings.ToLower(text); strings.Contains(lower, "crc32c") || strings.Contains(lower, "checksum") {
			return &damaged{signer.ErrBadSignature, "the digest did not arrive as it was sent: " + text}
		}
		return wrap(signer.ErrBadKey, "the key must be ASYMMETRIC_SIGN with RSA_SIGN_PKCS1_2048_SHA256, 3072 or 4096")
	case codes.Unimplemented:
		return wrap(signer.ErrUnsupported, "the endpoint does not speak Cloud KMS; check endpoint= in the reference")
	case codes.ResourceExhausted:
		if strings.HasPrefix(text, "grpc: ") { // the client's own word: the answer is longer than maxAnswer
			return wrap(signer.ErrUnavailable, "")
		}
		return wrap(remote.ErrThrottled, "set max-rps in the reference below the project's share of the quota, or ask for more: IAM & Admin, Quotas, in the console")
	default: // UNAVAILABLE, DEADLINE_EXCEEDED, INTERNAL, ABORTED, UNKNOWN: signing again does no harm
		return wrap(signer.ErrUnavailable, "")
	}
}

// details are the parts of a status that say why. Either may be nil, and its getters then give nothing.
func details(s *status.Status) (info *errdetails.ErrorInfo, precondition *errdetails.PreconditionFailure) {
	for _, d := range s.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			info = d
		case *errdetails.PreconditionFailure:
			precondition = d
		}
	}
	return info, precondition
}

func fixPermission(permission string) string {
	switch permission {
	case "":
		return "grant roles/cloudkms.signer and roles/cloudkms.publicKeyViewer on the key to this identity"
	case "cloudkms.cryptoKeyVersions.useToSign":
		return "grant roles/cloudkms.signer on the key to this identity"
	case "cloudkms.cryptoKeyVersions.viewPublicKey":
		return "grant roles/cloudkms.publicKeyViewer on the key to this identity"
	}
	return fmt.Sprintf("grant a role with %s to this identity", permission)
}

// fixState knows the states of a key version (CryptoKeyVersionState). The service names the state in a violation
// ("KEY_DISABLED") and in its text ("is not enabled, current state is: DISABLED.").
func fixState(precondition *errdetails.PreconditionFailure, text string) string {
	for _, v := range precondition.GetViolations() {
		text += " current state is: " + strings.TrimPrefix(v.GetType(), "KEY_")
	}
	for _, state := range []struct{ name, fix string }{
		{"DISABLED", "if it may sign again, enable it: gcloud kms keys versions enable"},
		{"DESTROY_SCHEDULED", "restore it before the date of its destruction: gcloud kms keys versions restore, then enable"},
		{"DESTROYED", "it is gone for good: make a new key, and have Apple certify that"},
		{"PENDING_GENERATION", "it is being made: try again in a minute"},
		{"PENDING_IMPORT", "it is being imported: try again in a minute"},
		{"GENERATION_FAILED", "it was never made: make another key"},
		{"IMPORT_FAILED", "it was never imported: import it again, as another version"},
	} {
		if strings.Contains(text, "current state is: "+state.name) {
			return state.fix
		}
	}
	return "the version must be ENABLED, of a key with purpose ASYMMETRIC_SIGN"
}

// codeName is the code as Google writes it: "PERMISSION_DENIED".
func codeName(c codes.Code) string {
	var b strings.Builder
	for i, r := range c.String() {
		if i > 0 && 'A' <= r && r <= 'Z' {
			b.WriteByte('_')
		}
		b.WriteRune(r)
	}
	return strings.ToUpper(b.String())
}

// oneLine makes text of others fit for an error: one line, and not endless.
func oneLine(text string) string {
	const most = 400
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r <= ' ' || r == 0x7f }), " ")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "..."
	}
	return text
}

// crc32c is the checksum of all Cloud KMS answers (Castagnoli). crc32.MakeTable gives one shared table for it.
func crc32c(data []byte) int64 { return int64(crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))) }

// fits says whether a checksum is there and right. An absent one must not pass as zero.
func fits(sum *wrapperspb.Int64Value, data []byte) bool {
	return sum != nil && sum.GetValue() == crc32c(data)
}
