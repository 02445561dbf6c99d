package gcpkmstest

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
)

// Operation is a method of KeyManagementService, by its own name.
type Operation string

// The operations that the double knows.
const (
	GetPublicKey          Operation = "GetPublicKey"
	AsymmetricSign        Operation = "AsymmetricSign"
	GetCryptoKeyVersion   Operation = "GetCryptoKeyVersion"
	CreateKeyRing         Operation = "CreateKeyRing"
	CreateCryptoKey       Operation = "CreateCryptoKey"
	ListKeyRings          Operation = "ListKeyRings"
	ListCryptoKeys        Operation = "ListCryptoKeys"
	ListCryptoKeyVersions Operation = "ListCryptoKeyVersions"
)

func operations() []Operation {
	return []Operation{GetPublicKey, AsymmetricSign, GetCryptoKeyVersion, CreateKeyRing, CreateCryptoKey, ListKeyRings, ListCryptoKeys, ListCryptoKeyVersions}
}

// Fault is what happens to one request. Its text is also how a script on the command line names it.
type Fault string

// The faults.
const (
	OK                  Fault = "ok"                    // none
	Throttle            Fault = "throttle"              // RESOURCE_EXHAUSTED
	Unavailable         Fault = "unavailable"           // UNAVAILABLE
	Internal            Fault = "internal"              // INTERNAL
	PermissionDenied    Fault = "permission-denied"     // PERMISSION_DENIED, with the permission in an ErrorInfo
	ServiceDisabled     Fault = "service-disabled"      // PERMISSION_DENIED: the API is not turned on
	Unauthenticated     Fault = "unauthenticated"       // UNAUTHENTICATED, as for an expired token
	Disabled            Fault = "disabled"              // FAILED_PRECONDITION: the version is disabled
	Reset               Fault = "reset"                 // the connection is reset, whatever else is under way on it
	Lost                Fault = "lost"                  // the work is done, and UNAVAILABLE is answered
	CorruptSignature    Fault = "corrupt-signature"     // one bit of the signature is turned, with a checksum that fits
	CorruptSignatureCRC Fault = "corrupt-signature-crc" // signature_crc32c is wrong
	NoSignatureCRC      Fault = "no-signature-crc"      // signature_crc32c is absent
	CorruptDigest       Fault = "corrupt-digest"        // INVALID_ARGUMENT: digest_crc32c and digest do not fit
	CorruptDigestFlag   Fault = "corrupt-digest-flag"   // verified_digest_crc32c is false
	WrongName           Fault = "wrong-name"            // the answer is that of another version
	CorruptPEMCRC       Fault = "corrupt-pem-crc"       // pem_crc32c is wrong
	NoPEMCRC            Fault = "no-pem-crc"            // pem_crc32c is absent
)

func faults() []Fault {
	return []Fault{OK, Throttle, Unavailable, Internal, PermissionDenied, ServiceDisabled, Unauthenticated, Disabled, Reset, Lost,
		CorruptSignature, CorruptSignatureCRC, NoSignatureCRC, CorruptDigest, CorruptDigestFlag, WrongName, CorruptPEMCRC, NoPEMCRC}
}

const delayPrefix = "delay="

// Delay makes the answer come d later. As text it is "delay=2s".
func Delay(d time.Duration) Fault { return Fault(delayPrefix + d.String()) }

// ParseScript reads "AsymmetricSign=throttle,delay=2s,ok".
func ParseScript(text string) (Operation, []Fault, error) {
	name, list, ok := strings.Cut(text, "=")
	op := Operation(name)
	if !ok || !slices.Contains(operations(), op) {
		return "", nil, fmt.Errorf("script %q: write OPERATION=FAULT,FAULT,...; operations are %v", text, operations())
	}
	var script []Fault
	for _, word := range strings.Split(list, ",") {
		f := Fault(word)
		if _, delay := f.delay(); !delay && !slices.Contains(faults(), f) {
			return "", nil, fmt.Errorf("script %q: unknown fault %q; known are %v and delay=2s", text, word, faults())
		}
		script = append(script, f)
	}
	return op, script, nil
}

func (f Fault) delay() (time.Duration, bool) {
	text, ok := strings.CutPrefix(string(f), delayPrefix)
	if !ok {
		return 0, false
	}
	d, err := time.ParseDuration(text)
	return d, err == nil && d >= 0
}

// Script appends faults for the next requests of an operation, one each. After them comes the standing fault.
func (s *Server) Script(op Operation, script ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scripts[op] = append(s.scripts[op], script...)
}

// Standing sets the fault of every request of an operation that no script speaks of. OK ends it.
func (s *Server) Standing(op Operation, f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.standing[op] = f
}

// next counts a request and takes its fault.
func (s *Server) next(op Operation) Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[op]++
	if script := s.scripts[op]; len(script) > 0 {
		s.scripts[op] = script[1:]
		return script[0]
	}
	if f, ok := s.standing[op]; ok {
		return f
	}
	return OK
}

// intercept is what every request goes through.
func (s *Server) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	op := Operation(path.Base(info.FullMethod))
	f := s.next(op)
	wait := s.config.Delay
	if d, ok := f.delay(); ok {
		wait, f = wait+d, OK
	}
	if wait > 0 {
		select {
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		case <-time.After(wait):
		}
	}
	if err := s.admit(ctx); err != nil {
		return nil, err
	}
	if err := s.refuse(ctx, op, f, req); err != nil {
		return nil, err
	}
	answer, err := handle(ctx, req)
	if err != nil {
		return nil, err
	}
	if f == Lost {
		return nil, status.Error(codes.Unavailable, "the answer was lost")
	}
	damage(answer, f)
	return answer, nil
}

// admit checks what comes beside the request. Cloud KMS needs the routing header and answers NOT_FOUND without it
// (https://cloud.google.com/kms/docs/grpc).
func (s *Server) admit(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if s.config.Token != "" && !slices.Contains(md.Get("authorization"), "Bearer "+s.config.Token) {
		return status.Error(codes.Unauthenticated, "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid authentication credential.")
	}
	if len(md.Get("x-goog-request-params")) == 0 {
		return status.Error(codes.NotFound, "The request was sent to location 'global': gRPC clients must ensure that 'x-goog-request-params' is specified in request metadata.")
	}
	return nil
}

// refuse gives the error of a fault that keeps the request from being served; nil for the others.
func (s *Server) refuse(ctx context.Context, op Operation, f Fault, req any) error {
	name := ""
	if named, ok := req.(interface{ GetName() string }); ok {
		name = named.GetName()
	}
	switch f {
	case Throttle:
		return status.Errorf(codes.ResourceExhausted, "Quota exceeded for quota metric 'Cryptographic requests' and limit 'Cryptographic requests per minute' of service 'cloudkms.googleapis.com'.")
	case Unavailable:
		return status.Error(codes.Unavailable, "The service is currently unavailable.")
	case Internal:
		return status.Error(codes.Internal, "Internal error encountered.")
	case PermissionDenied:
		permission := permissionOf(op)
		return detailed(codes.PermissionDenied, fmt.Sprintf("Permission '%s' denied on resource '%s' (or it may not exist).", permission, name),
			&errdetails.ErrorInfo{Reason: "IAM_PERMISSION_DENIED", Domain: "cloudkms.googleapis.com", Metadata: map[string]string{"permission": permission, "resource": name}})
	case ServiceDisabled:
		return detailed(codes.PermissionDenied, "Cloud Key Management Service (KMS) API has not been used in project 1 before or it is disabled.",
			&errdetails.ErrorInfo{Reason: "SERVICE_DISABLED", Domain: "googleapis.com", Metadata: map[string]string{"service": "cloudkms.googleapis.com"}})
	case Unauthenticated:
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
		return status.Error(codes.Unavailable, "reset") // nobody hears it
	}
	if !slices.Contains(faults(), f) {
		return status.Errorf(codes.Unimplemented, "kmstest knows no fault %q", f)
	}
	return nil
}

// damage changes an answer as the fault says.
func damage(answer any, f Fault) {
	switch a := answer.(type) {
	case *kmspb.AsymmetricSignResponse:
		switch f {
		case CorruptSignature:
			a.Signature[len(a.Signature)/2] ^= 1
			a.SignatureCrc32C = checksum(a.Signature)
		case CorruptSignatureCRC:
			a.SignatureCrc32C.Value ^= 1
		case NoSignatureCRC:
			a.SignatureCrc32C = nil
		case CorruptDigestFlag:
			a.VerifiedDigestCrc32C = false
		case WrongName:
			a.Name += "1"
		}
	case *kmspb.PublicKey:
		switch f {
		case CorruptPEMCRC:
			a.PemCrc32C.Value ^= 1
		case NoPEMCRC:
			a.PemCrc32C = nil
		case WrongName:
			a.Name += "1"
		}
	}
}

func permissionOf(op Operation) string {
	return map[Operation]string{
		GetPublicKey:          "cloudkms.cryptoKeyVersions.viewPublicKey",
		AsymmetricSign:        "cloudkms.cryptoKeyVersions.useToSign",
		GetCryptoKeyVersion:   "cloudkms.cryptoKeyVersions.get",
		CreateKeyRing:         "cloudkms.keyRings.create",
		CreateCryptoKey:       "cloudkms.cryptoKeys.create",
		ListKeyRings:          "cloudkms.keyRings.list",
		ListCryptoKeys:        "cloudkms.cryptoKeys.list",
		ListCryptoKeyVersions: "cloudkms.cryptoKeyVersions.list",
	}[op]
}

// detailed is a status with one detail.
func detailed(code codes.Code, text string, detail protoadapt.MessageV1) error {
	s, err := status.New(code, text).WithDetails(detail)
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	return s.Err()
}

// notEnabled is what Cloud KMS says of a version that is not ENABLED.
func notEnabled(name string, state kmspb.CryptoKeyVersion_CryptoKeyVersionState) error {
	return detailed(codes.FailedPrecondition, fmt.Sprintf("%s is not enabled, current state is: %s.", name, state),
		&errdetails.PreconditionFailure{Violations: []*errdetails.PreconditionFailure_Violation{{Type: "KEY_" + state.String(), Subject: name}}})
}
