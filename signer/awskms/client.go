package awskms

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	api "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go/logging"

	"hsmsign/signer/kms"
)

const (
	program = "hsmsign" // in CloudTrail: the session of an assumed role, and part of the user agent
	// maxAnswer is far larger than the answers of KMS and STS to the requests of this package.
	maxAnswer  = 1 << 20
	maxHeaders = 64 << 10
	// maxExchange limits an exchange whose context has no deadline, such as the refresh of credentials.
	maxExchange = 30 * time.Second
	// maxIdle is how many connections stay open for the next batch; the SDK's default is 10.
	maxIdle = 256
)

// regionClient is the service in one region.
type regionClient struct {
	region string
	api    *api.Client
	caller *kms.Caller
	// id names the key in requests: as in the reference, and as an ARN once an answer has named it.
	id atomic.Pointer[string]
	// proven: the key in this region has the session's public key.
	proven atomic.Bool
	// created: this session created the key. KMS may not find it yet ("KMS eventual consistency", KMS developer guide).
	created bool
}

// dial reads the SDK's configuration and creates the clients. It sends nothing, and the SDK prints nothing.
func (s *session) dial(ctx context.Context) error {
	base := awshttp.NewBuildableClient().WithTimeout(maxExchange).WithTransportOptions(func(t *http.Transport) {
		t.MaxIdleConns, t.MaxIdleConnsPerHost = maxIdle, maxIdle
		t.MaxResponseHeaderBytes = maxHeaders
	})
	options := []func(*config.LoadOptions) error{config.WithHTTPClient(base), config.WithAppID(program), config.WithLogger(logging.Nop{})}
	if s.profile != "" {
		options = append(options, config.WithSharedConfigProfile(s.profile))
	}
	if len(s.regions) > 0 {
		options = append(options, config.WithRegion(s.regions[0]))
	}
	cfg, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return badConfiguration(err)
	}
	if len(s.regions) == 0 {
		if !regionForm().MatchString(cfg.Region) {
			return noRegion(cfg.Region)
		}
		s.regions = []string{cfg.Region}
	}
	if configured, ok := cfg.HTTPClient.(*awshttp.BuildableClient); ok { // with AWS_CA_BUNDLE, if that is set
		base = configured
	}
	s.transport = base.GetTransport()
	client := &http.Client{
		Transport: limitedTransport{s.transport}, Timeout: maxExchange,
		// KMS never redirects, and a signed request must not be sent to another host.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	cfg.Credentials = taggedCredentials{cfg.Credentials}
	s.credentials = cfg.Credentials
	if s.role != "" {
		service := sts.NewFromConfig(cfg, func(o *sts.Options) { o.HTTPClient, o.Retryer = client, aws.NopRetryer{} })
		assume := stscreds.NewAssumeRoleProvider(service, s.role, func(o *stscreds.AssumeRoleOptions) { o.RoleSessionName = program })
		s.credentials = taggedCredentials{aws.NewCredentialsCache(assume, func(o *aws.CredentialsCacheOptions) { o.ExpiryWindow = time.Minute })}
	}
	for _, region := range s.regions {
		c := &regionClient{region: region}
		c.caller = kms.New(s.regionPolicy(), c.classify)
		name := s.idIn(region)
		c.id.Store(&name)
		c.api = api.NewFromConfig(cfg, func(o *api.Options) {
			o.Region, o.HTTPClient, o.Credentials = region, client, s.credentials
			o.Retryer = aws.NopRetryer{} // package kms retries
			if s.endpoint != "" {
				o.BaseEndpoint = &s.endpoint
			}
		})
		s.clients = append(s.clients, c)
	}
	return nil
}

// request sends one request with retries: request(ctx, c, c.api.DescribeKey, in).
func request[In, Out any](ctx context.Context, c *regionClient, call func(context.Context, *In, ...func(*api.Options)) (*Out, error), in *In) (*Out, error) {
	return kms.Do(ctx, c.caller, func(ctx context.Context) (*Out, error) { return call(ctx, in) })
}

// limitedTransport refuses plain HTTP to other machines and reads at most maxAnswer of an answer.
type limitedTransport struct{ next http.RoundTripper }

func (t limitedTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	// The endpoint of the reference is checked by parseReference; AWS_ENDPOINT_URL and the profile can set another.
	if !private(req.URL) {
		return nil, fmt.Errorf("%q: %w", req.URL.Host, errPlain)
	}
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(resp.Body, maxAnswer), resp.Body}
	return resp, nil
}

// taggedCredentials marks the errors of credentials, so that classify can tell them from those of KMS.
type taggedCredentials struct{ aws.CredentialsProvider }

func (t taggedCredentials) Retrieve(ctx context.Context) (aws.Credentials, error) {
	c, err := t.CredentialsProvider.Retrieve(ctx)
	if err != nil {
		return c, &credentialsError{err}
	}
	return c, nil
}
