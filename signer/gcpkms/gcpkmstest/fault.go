package gcpkmstest

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	"hsmsign/internal/double"
)

// Fault is how a request fails.
type Fault string

// The faults that awskmstest has as well.
const (
	OK          Fault = double.OK           // no fault
	Throttle    Fault = "throttle"          // RESOURCE_EXHAUSTED
	Internal    Fault = "internal"          // INTERNAL
	Unavailable Fault = "unavailable"       // UNAVAILABLE
	Denied      Fault = "permission-denied" // PERMISSION_DENIED, with the permission in an ErrorInfo
	Expired     Fault = "unauthenticated"   // UNAUTHENTICATED, as for an expired token
	Disabled    Fault = "disabled"          // FAILED_PRECONDITION: the version is disabled
	Reset       Fault = "reset"             // the connection is reset, with all requests that are in flight on it
	Lost        Fault = "lost"              // the request is executed, and UNAVAILABLE is answered
	FlipBit     Fault = "corrupt-signature" // one bit of the signature is wrong; the checksum matches
	OtherKey    Fault = "wrong-name"        // the answer names another version
	Hang        Fault = double.Hang         // no answer until the client leaves
)

// The faults of this double alone.
const (
	ServiceDisabled     Fault = "service-disabled"      // PERMISSION_DENIED: the API is not enabled
	CorruptSignatureCRC Fault = "corrupt-signature-crc" // signature_crc32c is wrong
	NoSignatureCRC      Fault = "no-signature-crc"      // signature_crc32c is absent
	CorruptDigest       Fault = "corrupt-digest"        // INVALID_ARGUMENT: digest_crc32c does not match the digest
	CorruptDigestFlag   Fault = "corrupt-digest-flag"   // verified_digest_crc32c is false
	CorruptPEMCRC       Fault = "corrupt-pem-crc"       // pem_crc32c is wrong
	NoPEMCRC            Fault = "no-pem-crc"            // pem_crc32c is absent
)

// Delay returns the fault of an answer that is d late. Its text is "delay=2s".
func Delay(d time.Duration) Fault { return double.Delay[Fault](d) }

func faults() []Fault {
	return []Fault{Throttle, Unavailable, Internal, Denied, ServiceDisabled, Expired, Disabled, Reset, Lost,
		FlipBit, CorruptSignatureCRC, NoSignatureCRC, CorruptDigest, CorruptDigestFlag, OtherKey, CorruptPEMCRC, NoPEMCRC}
}

// permissions returns the operations of the double, and the permission that each of them needs.
func permissions() map[string]string {
	return map[string]string{
		"GetPublicKey":           "cloudkms.cryptoKeyVersions.viewPublicKey",
		"AsymmetricSign":         "cloudkms.cryptoKeyVersions.useToSign",
		"GetCryptoKeyVersion":    "cloudkms.cryptoKeyVersions.get",
		"GetKeyRing":             "cloudkms.keyRings.get",
		"GetCryptoKey":           "cloudkms.cryptoKeys.get",
		"CreateKeyRing":          "cloudkms.keyRings.create",
		"CreateCryptoKey":        "cloudkms.cryptoKeys.create",
		"CreateCryptoKeyVersion": "cloudkms.cryptoKeyVersions.create",
		"ListKeyRings":           "cloudkms.keyRings.list",
		"ListCryptoKeys":         "cloudkms.cryptoKeys.list",
		"ListCryptoKeyVersions":  "cloudkms.cryptoKeyVersions.list",
	}
}

func operations() []string { return slices.Sorted(maps.Keys(permissions())) }

// intercept handles every request: it counts, authenticates, and applies the fault.
func (s *Server) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	operation := path.Base(info.FullMethod)
	s.script.Count(operation)
	if err := s.authenticate(ctx); err != nil {
		return nil, err
	}
	f := s.script.Next(operation, "")
	if !double.Wait(ctx, s.closed, f, s.config.Delay) {
		return nil, status.Error(codes.Unavailable, "the client left, or the server is closed")
	}
	if err := s.refuse(ctx, operation, f, req); err != nil {
		s.record(ctx, operation, req, err)
		return nil, err
	}
	answer, err := handle(ctx, req)
	s.record(ctx, operation, req, err)
	if err != nil {
		return nil, err
	}
	if f == Lost {
		return nil, status.Error(codes.Unavailable, "the answer was lost")
	}
	damage(answer, f)
	return answer, nil
}

// authenticate checks the metadata of a request. Cloud KMS requires the routing header and answers NOT_FOUND without it
// (https://cloud.google.com/kms/docs/grpc).
func (s *Server) authenticate(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if s.config.Token != "" && !slices.Contains(md.Get("authorization"), "Bearer "+s.config.Token) {
		return status.Error(codes.Unauthenticated, "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid authentication credential.")
	}
	if len(md.Get("x-goog-request-params")) == 0 {
		return status.Error(codes.NotFound, "The request was sent to location 'global': gRPC clients must ensure that 'x-goog-request-params' is specified in request metadata.")
	}
	return nil
}

// refuse returns the error that the fault is, or nil.
func (s *Server) refuse(ctx context.Context, operation string, f Fault, req any) error {
	name := ""
	if named, ok := req.(interface{ GetName() string }); ok {
		name = named.GetName()
	}
	switch f {
	case Throttle:
		return status.Error(codes.ResourceExhausted, "Quota exceeded for quota metric 'Cryptographic requests' and limit 'Cryptographic requests per minute' of service 'cloudkms.googleapis.com'.")
	case Unavailable:
		return status.Error(codes.Unavailable, "The service is currently unavailable.")
	case Internal:
		return status.Error(codes.Internal, "Internal error encountered.")
	case Denied:
		permission := permissions()[operation]
		return detailed(codes.PermissionDenied, fmt.Sprintf("Permission '%s' denied on resource '%s' (or it may not exist).", permission, name),
			&errdetails.ErrorInfo{Reason: "IAM_PERMISSION_DENIED", Domain: "cloudkms.googleapis.com", Metadata: map[string]string{"permission": permission, "resource": name}})
	case ServiceDisabled:
		return detailed(codes.PermissionDenied, "Cloud Key Management Service (KMS) API has not been used in project 1 before or it is disabled.",
			&errdetails.ErrorInfo{Reason: "SERVICE_DISABLED", Domain: "googleapis.com", Metadata: map[string]string{"service": "cloudkms.googleapis.com"}})
	case Expired:
		return detailed(codes.Unauthenticated, "Request had invalid authentication credentials.",
			&errdetails.ErrorInfo{Reason: "ACCESS_TOKEN_EXPIRED", Domain: "googleapis.com"})
	case Disabled:
		return notEnabled(name, kmspb.CryptoKeyVersion_DISABLED)
	case CorruptDigest:
		return status.Error(codes.InvalidArgument, "The checksum in field digest_crc32c did not match the data in field digest.")
	case Reset:
		if p, ok := peer.FromContext(ctx); ok {
			s.listener.reset(p.Addr.String())
		}
		return status.Error(codes.Unavailable, "reset") // does not arrive
	}
	return nil
}

// damage changes an answer as the fault says.
func damage(answer any, f Fault) {
	switch a := answer.(type) {
	case *kmspb.AsymmetricSignResponse:
		switch f {
		case FlipBit:
			a.Signature[len(a.Signature)/2] ^= 1
			a.SignatureCrc32C = checksum(a.Signature)
		case CorruptSignatureCRC:
			a.SignatureCrc32C.Value ^= 1
		case NoSignatureCRC:
			a.SignatureCrc32C = nil
		case CorruptDigestFlag:
			a.VerifiedDigestCrc32C = false
		case OtherKey:
			a.Name += "1"
		}
	case *kmspb.PublicKey:
		switch f {
		case CorruptPEMCRC:
			a.PemCrc32C.Value ^= 1
		case NoPEMCRC:
			a.PemCrc32C = nil
		case OtherKey:
			a.Name += "1"
		}
	}
}

// detailed returns a status with one detail.
func detailed(code codes.Code, text string, detail protoadapt.MessageV1) error {
	s, err := status.New(code, text).WithDetails(detail)
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	return s.Err()
}

// notEnabled returns the error of Cloud KMS for a version that is not ENABLED.
func notEnabled(name string, state kmspb.CryptoKeyVersion_CryptoKeyVersionState) error {
	return detailed(codes.FailedPrecondition, fmt.Sprintf("%s is not enabled, current state is: %s.", name, state),
		&errdetails.PreconditionFailure{Violations: []*errdetails.PreconditionFailure_Violation{{Type: "KEY_" + state.String(), Subject: name}}})
}
