package gcpkms

import (
	"context"
	"fmt"
	"log/slog"

	api "cloud.google.com/go/kms/apiv1"
	"github.com/googleapis/gax-go/v2"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/kms"
)

// The limits of one answer. A page of 500 key versions without attestations is smaller than 1 MiB.
const (
	maxAnswer  = 4 << 20
	maxHeaders = 64 << 10
)

// dial creates the client. It sends nothing.
func (s *session) dial(ctx context.Context) error {
	opts := []option.ClientOption{
		option.WithUserAgent("hsmsign"),
		option.WithTelemetryDisabled(),
		// GOOGLE_SDK_GO_LOGGING_LEVEL=debug would print every answer, including the token of the metadata server.
		option.WithLogger(slog.New(slog.DiscardHandler)),
		option.WithGRPCDialOption(grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer))),
		option.WithGRPCDialOption(grpc.WithMaxHeaderListSize(maxHeaders)),
	}
	if s.endpoint != "" {
		opts = append(opts, option.WithEndpoint(s.endpoint))
	}
	if s.loopback {
		opts = append(opts, option.WithoutAuthentication(), option.WithGRPCDialOption(grpc.WithNoProxy()),
			option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())))
	} else if s.endpoint != "" && !s.google && s.Warn != nil {
		s.Warn(fmt.Sprintf("endpoint %q is not a Google host name; it receives the access token", s.endpoint))
	}
	// The client outlives this call, so it must not end with its context.
	c, err := api.NewKeyManagementClient(context.WithoutCancel(ctx), opts...)
	if err != nil {
		return fault.Errorf("%w: %s", signer.ErrAuth, fault.Clip(err.Error(), maxText)).Fix(fixCredentials)
	}
	c.CallOptions = &api.KeyManagementCallOptions{} // package kms retries
	s.client, s.caller = c, kms.New(s.policy, classify)
	return nil
}

// request sends one request with retries: request(ctx, s, s.client.GetPublicKey, in).
func request[In, Out any](ctx context.Context, s *session, call func(context.Context, *In, ...gax.CallOption) (*Out, error), in *In) (*Out, error) {
	return kms.Do(ctx, s.caller, func(ctx context.Context) (*Out, error) { return call(ctx, in) })
}

// maxDamaged is how often a damaged answer is requested again. Google asks for "a limited number of retries"
// (AsymmetricSignResponse).
const maxDamaged = 2

// damage counts the damaged answers to one call: those with a wrong checksum or name.
type damage int

// err returns an error that is retried, or one of the family if there were too many damaged answers.
func (d *damage) err(family error, text string) error {
	if *d++; *d > maxDamaged {
		return fmt.Errorf("%w: %s, %d times in a row", family, text, *d)
	}
	return fmt.Errorf("%w: %s", signer.ErrUnavailable, text)
}
