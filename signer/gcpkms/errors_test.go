package gcpkms

import (
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/gcpkms/gcpkmstest"
)

// TestFaults: the family and the hint of each failure, and how many requests it costs. A damaged answer is requested
// again twice.
func TestFaults(t *testing.T) {
	const signature, publicKey = "AsymmetricSign", "GetPublicKey"
	for _, tt := range []struct {
		operation string
		faults    []gcpkmstest.Fault // one for each request that is expected; then the answer is good
		family    error              // nil: the last request succeeds
		text, fix string
	}{
		{signature, []gcpkmstest.Fault{gcpkmstest.Throttle}, nil, "", ""},
		{signature, []gcpkmstest.Fault{gcpkmstest.Unavailable}, nil, "", ""},
		{signature, []gcpkmstest.Fault{gcpkmstest.Internal}, nil, "", ""},
		{signature, []gcpkmstest.Fault{gcpkmstest.Reset}, nil, "", ""},
		{signature, []gcpkmstest.Fault{gcpkmstest.CorruptSignatureCRC, gcpkmstest.OtherKey}, nil, "", ""},
		{signature, []gcpkmstest.Fault{gcpkmstest.CorruptDigest, gcpkmstest.Throttle, gcpkmstest.CorruptDigestFlag}, nil, "", ""},
		{signature, []gcpkmstest.Fault{gcpkmstest.CorruptSignatureCRC, gcpkmstest.CorruptSignatureCRC, gcpkmstest.CorruptSignatureCRC}, signer.ErrBadSignature, "CRC-32C, 3 times", ""},
		{signature, []gcpkmstest.Fault{gcpkmstest.CorruptDigest, gcpkmstest.CorruptDigestFlag, gcpkmstest.NoSignatureCRC}, signer.ErrBadSignature, "CRC-32C, 3 times", ""},
		{signature, []gcpkmstest.Fault{gcpkmstest.OtherKey, gcpkmstest.NoSignatureCRC, gcpkmstest.CorruptDigest}, signer.ErrBadSignature, "digest arrived damaged", ""},
		{signature, []gcpkmstest.Fault{gcpkmstest.OtherKey, gcpkmstest.OtherKey, gcpkmstest.CorruptDigestFlag}, signer.ErrBadSignature, "does not confirm", ""},
		{signature, []gcpkmstest.Fault{gcpkmstest.CorruptDigest, gcpkmstest.NoSignatureCRC, gcpkmstest.OtherKey}, signer.ErrBadSignature, "is that of", ""},
		{signature, []gcpkmstest.Fault{gcpkmstest.FlipBit}, signer.ErrBadSignature, "does not verify", ""},
		{signature, []gcpkmstest.Fault{gcpkmstest.Denied}, signer.ErrAuth, "cloudkms.cryptoKeyVersions.useToSign", "roles/cloudkms.signer"},
		{signature, []gcpkmstest.Fault{gcpkmstest.ServiceDisabled}, signer.ErrAuth, "PERMISSION_DENIED", "gcloud services enable"},
		{signature, []gcpkmstest.Fault{gcpkmstest.Expired}, signer.ErrAuth, "UNAUTHENTICATED", "credentials"},
		{signature, []gcpkmstest.Fault{gcpkmstest.Disabled}, signer.ErrBadKey, "DISABLED", "versions enable"},
		{publicKey, []gcpkmstest.Fault{gcpkmstest.CorruptPEMCRC, gcpkmstest.OtherKey}, nil, "", ""},
		{publicKey, []gcpkmstest.Fault{gcpkmstest.OtherKey, gcpkmstest.CorruptPEMCRC, gcpkmstest.NoPEMCRC}, signer.ErrBadKey, "CRC-32C, 3 times", ""},
		{publicKey, []gcpkmstest.Fault{gcpkmstest.NoPEMCRC, gcpkmstest.CorruptPEMCRC, gcpkmstest.OtherKey}, signer.ErrBadKey, "is that of", ""},
		{publicKey, []gcpkmstest.Fault{gcpkmstest.Denied}, signer.ErrAuth, "viewPublicKey", "roles/cloudkms.publicKeyViewer"},
	} {
		t.Run(tt.operation+" "+string(tt.faults[len(tt.faults)-1]), func(t *testing.T) {
			server, reference := start(t, gcpkmstest.Config{})
			testkit.OK(t, server.Script(tt.operation, tt.faults...))
			key, err := signerkit.Open(t, Backend(quick()), reference, nil)
			if err == nil {
				err = signerkit.Sign(t, key)
			}
			want := len(tt.faults)
			switch {
			case tt.family == nil && err != nil:
				t.Error(err)
			case tt.family == nil:
				want++
			case tt.faults[0] == gcpkmstest.FlipBit: // detected by signer.Sign
				if !errors.Is(err, tt.family) || !strings.Contains(err.Error(), tt.text) {
					t.Errorf("got %v", err)
				}
			default:
				signerkit.WantError(t, err, tt.family, tt.text, tt.fix)
			}
			if n := server.Calls(tt.operation); n != want {
				t.Errorf("%d requests, want %d", n, want)
			}
		})
	}
	server, reference := start(t, gcpkmstest.Config{})
	_ = server.Close()
	_, err := signerkit.Open(t, Backend(quick()), reference+"&timeout=100ms", nil)
	signerkit.WantError(t, err, signer.ErrUnavailable, "connection refused", "")
}

// TestUnimplemented: the error says that the endpoint does not speak Cloud KMS only where that is proven.
func TestUnimplemented(t *testing.T) {
	for text, want := range map[string]bool{
		"unknown service google.cloud.kms.v1.KeyManagementService":                true,
		"unexpected HTTP status code received from server: 404 (Not Found)":       true,
		"unknown method AsymmetricSign for service google.cloud.kms.v1.Something": false,
		"unsupported request field: page_size":                                    false,
	} {
		if fix, family := familyOf(status.Error(codes.Unimplemented, text)); !errors.Is(family, signer.ErrUnsupported) || strings.Contains(fix, "does not speak Cloud KMS") != want {
			t.Errorf("%s: %q, %v", text, fix, family)
		}
	}
}

// TestOtherAnswers: whatever answers instead of Cloud KMS, the call ends in time with an error of one line, and it reads
// no more than the limits allow.
func TestOtherAnswers(t *testing.T) {
	message := func(length uint32, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/grpc")
			w.Header().Set("Trailer", "Grpc-Status")
			_, _ = w.Write(append(binary.BigEndian.AppendUint32([]byte{0}, length), body...)) // gRPC over HTTP/2, "Length-Prefixed-Message"
			w.Header().Set("Grpc-Status", "0")
		}
	}
	at := func(s *httptest.Server) string {
		return "gcpkms://" + vendorOne + "?timeout=500ms&endpoint=" + s.Listener.Addr().String()
	}
	signerkit.OtherAnswers(t, Backend(quick()), 16*maxAnswer, at, []signerkit.OtherAnswer{ // the sockets buffer some of it
		{Name: "page", Answer: func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html></html>") }, Family: signer.ErrUnavailable, Text: "content-type"},
		{Name: "not found", Answer: http.NotFound, Family: signer.ErrUnsupported, Text: "404"},
		{Name: "failure of a proxy", Answer: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, Family: signer.ErrUnavailable, Text: "502"},
		{Name: "no protocol buffer", Answer: message(4, "\xff\xff\xff\xff"), Family: signer.ErrUnavailable, Text: "unmarshal"},
		{Name: "empty message", Answer: message(0, ""), Family: signer.ErrBadKey, Text: `that of ""`},
		{Name: "long message", Answer: message(100<<20, strings.Repeat("a", 8<<20)), Family: signer.ErrUnavailable, Text: "larger than max"},
		{Name: "half a message", Answer: message(100, "a"), Family: signer.ErrUnavailable, Text: "unexpected EOF"},
		{Name: "endless", Answer: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/grpc")
			_, _ = w.Write([]byte{0, 0, 0, 0xff, 0xff})
			signerkit.Endless(w, r, "\x00", 20*time.Millisecond)
		}, Family: signer.ErrUnavailable, Text: ""},
		{Name: "long headers", Answer: func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("a", 2*maxHeaders)) }, Family: signer.ErrUnavailable, Text: "UNAVAILABLE"},
	}...)
}
