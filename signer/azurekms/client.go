package azurekms

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/kms"
)

const (
	program = "hsmsign" // part of the user agent, which is in the vault's log
	// maxAnswer is far larger than the answers to the requests of this package.
	maxAnswer = 1 << 20
	// maxExchange limits an exchange whose context has no deadline, such as the refresh of a token.
	maxExchange = 30 * time.Second
)

// dial creates the client. It reads the environment and sends nothing.
func (s *session) dial() error {
	roots, err := kms.Roots(s.ca)
	if err != nil {
		return err
	}
	s.transport = kms.Transport(roots)
	options := azcore.ClientOptions{
		Cloud: s.site.cloud, Transport: s.httpClient(limitedTransport{next: s.transport}),
		Retry: policy.RetryOptions{MaxRetries: -1}, Telemetry: policy.TelemetryOptions{ApplicationID: program}, // package kms retries
	}
	if s.credential, err = s.findCredential(options); err != nil {
		return err
	}
	s.caller = kms.New(s.policy, s.classify)
	options.Transport = s.httpClient(limitedTransport{next: s.transport, host: s.host})
	s.client, err = azkeys.NewClient(s.url(), taggedCredential{s.credential}, &azkeys.ClientOptions{
		ClientOptions: options, DisableChallengeResourceVerification: s.double,
	})
	if err != nil {
		return fmt.Errorf("%w: %s", signer.ErrReference, fault.Clip(err.Error(), maxText))
	}
	return nil
}

func (s *session) httpClient(transport http.RoundTripper) *http.Client {
	return &http.Client{
		Transport: transport, Timeout: maxExchange,
		// Key Vault never redirects, and a request with a token must not be sent to another host.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// findCredential returns the credential that the reference names, or the first one that is configured. The program az is not run unless the reference says so: a service must not depend on a person's login.
func (s *session) findCredential(options azcore.ClientOptions) (azcore.TokenCredential, error) {
	// Without discovery the SDK does not ask the public cloud about the authority.
	discovery := s.double
	var failed []string
	for _, kind := range []struct {
		name, what string
		create     func() (azcore.TokenCredential, error)
	}{
		{byEnvironment, "the environment (AZURE_CLIENT_ID)", func() (azcore.TokenCredential, error) {
			return azidentity.NewEnvironmentCredential(&azidentity.EnvironmentCredentialOptions{ClientOptions: options, DisableInstanceDiscovery: discovery})
		}},
		{byWorkload, "the workload identity of the pod", func() (azcore.TokenCredential, error) {
			return azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{ClientOptions: options, DisableInstanceDiscovery: discovery})
		}},
		{byManaged, "the managed identity of the machine", func() (azcore.TokenCredential, error) {
			o := &azidentity.ManagedIdentityCredentialOptions{ClientOptions: options}
			if s.clientID != "" {
				o.ID = azidentity.ClientID(s.clientID)
			}
			return azidentity.NewManagedIdentityCredential(o)
		}},
		{byCLI, "the login of az", func() (azcore.TokenCredential, error) { return azidentity.NewAzureCLICredential(nil) }},
	} {
		if s.credentialKind != kind.name && (s.credentialKind != "" || kind.name == byCLI) {
			continue
		}
		credential, err := kind.create()
		if err == nil {
			s.source, s.managed = kind.what, kind.name == byManaged
			return credential, nil
		}
		failed = append(failed, kind.name+": "+fault.Clip(err.Error(), maxText))
		if !notConfigured(err) {
			break
		}
	}
	return nil, fault.Errorf("%w: no Azure credentials: %s", signer.ErrAuth, strings.Join(failed, "; ")).Fix(fixCredentials)
}

// notConfigured reports whether a credential is not there, so that the next one is tried; one that is wrong is an error. The
// SDK has no type for it.
func notConfigured(err error) bool {
	text := err.Error()
	return strings.HasPrefix(text, "missing environment variable") || strings.HasPrefix(text, "incomplete environment variable") ||
		strings.HasPrefix(text, "no client ID specified") || strings.HasPrefix(text, "no token file specified") || strings.HasPrefix(text, "no tenant ID specified")
}

// do makes a call with retries. Until one has been answered they follow each other: the first one gets the challenge and
// the token.
func do[T any](ctx context.Context, s *session, call func(ctx context.Context) (T, error)) (T, error) {
	return kms.Do(ctx, s.caller, func(ctx context.Context) (T, error) { return afterChallenge(ctx, s, call) })
}

func afterChallenge[T any](ctx context.Context, s *session, call func(ctx context.Context) (T, error)) (T, error) {
	if !s.challenged.Load() {
		select {
		case s.turn <- struct{}{}:
		case <-ctx.Done():
			var zero T
			return zero, ctx.Err()
		}
		if s.challenged.Load() {
			<-s.turn
		} else {
			defer func() { <-s.turn }()
		}
	}
	value, err := call(ctx)
	if answered, ok := errors.AsType[*azcore.ResponseError](err); err == nil || ok && answered.StatusCode != http.StatusUnauthorized {
		s.challenged.Store(true)
	}
	return value, err
}

// limitedTransport reads at most maxAnswer of an answer. With a host it refuses requests to any other, such as the next page
// of a list elsewhere, because they have a token.
type limitedTransport struct {
	next http.RoundTripper
	host string
}

func (t limitedTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if t.host != "" && (!strings.EqualFold(req.URL.Host, t.host) || req.URL.Scheme != "https") {
		return nil, fmt.Errorf("%q: %w", req.URL.Host, errOtherHost)
	}
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		if failed, ok := req.Context().Value(failureKey{}).(*atomic.Bool); ok {
			failed.Store(true)
		}
		return nil, err
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(resp.Body, maxAnswer), resp.Body}
	return resp, nil
}

// failureKey is the key of an *atomic.Bool in the context of a request for a token: there was no answer. The SDK makes text
// of the error.
type failureKey struct{}

// taggedCredential marks the errors of credentials, so that classify can tell them from those of Key Vault.
type taggedCredential struct{ azcore.TokenCredential }

func (t taggedCredential) GetToken(ctx context.Context, options policy.TokenRequestOptions) (azcore.AccessToken, error) {
	var unanswered atomic.Bool
	token, err := t.TokenCredential.GetToken(context.WithValue(ctx, failureKey{}, &unanswered), options)
	if err != nil {
		err = &credentialError{err, unanswered.Load()}
	}
	return token, err
}
