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
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go/logging"

	remote "hsmsign/signer/kms"
)

const (
	program = "hsmsign" // in CloudTrail: the session of an assumed role, and part of the user agent
	// maxAnswer is far more than KMS and STS answer to anything that is asked here.
	maxAnswer  = 1 << 20
	maxHeaders = 64 << 10
	// maxExchange bounds an exchange whose context has no end, such as the refresh of credentials.
	maxExchange = 30 * time.Second
	// maxIdle is how many connections wait for the next batch; the SDK's default of 10 would open the others anew.
	maxIdle = 256
)

// api is all that is used of the SDK's client.
type api interface {
	GetPublicKey(context.Context, *kms.GetPublicKeyInput, ...func(*kms.Options)) (*kms.GetPublicKeyOutput, error)
	Sign(context.Context, *kms.SignInput, ...func(*kms.Options)) (*kms.SignOutput, error)
	DescribeKey(context.Context, *kms.DescribeKeyInput, ...func(*kms.Options)) (*kms.DescribeKeyOutput, error)
	ListKeys(context.Context, *kms.ListKeysInput, ...func(*kms.Options)) (*kms.ListKeysOutput, error)
	ListAliases(context.Context, *kms.ListAliasesInput, ...func(*kms.Options)) (*kms.ListAliasesOutput, error)
	CreateKey(context.Context, *kms.CreateKeyInput, ...func(*kms.Options)) (*kms.CreateKeyOutput, error)
	CreateAlias(context.Context, *kms.CreateAliasInput, ...func(*kms.Options)) (*kms.CreateAliasOutput, error)
}

// connection is what a reference leads to before anything is asked of a key.
type connection struct {
	sites       []*site // one a region, in order of preference; never empty
	credentials aws.CredentialsProvider
	transport   *http.Transport
	closed      atomic.Bool
}

// site is the service in one region.
type site struct {
	region string
	client api
	caller *remote.Caller
	// id is how the key is asked for: as the reference names it, and by its ARN once an answer has told it.
	id atomic.Pointer[string]
	// proven: the key here is the one that the Signer's public key belongs to.
	proven atomic.Bool
	// fresh: the key was made a moment ago, and KMS is eventually consistent ("KMS eventual consistency", KMS
	// developer guide), so that it may not be found yet.
	fresh bool
}

// connect reads the SDK's configuration and makes the clients. Nothing is sent, and the SDK prints nothing.
func connect(ctx context.Context, r reference) (*connection, error) {
	base := awshttp.NewBuildableClient().WithTimeout(maxExchange).WithTransportOptions(func(t *http.Transport) {
		t.MaxIdleConns, t.MaxIdleConnsPerHost = maxIdle, maxIdle
		t.MaxResponseHeaderBytes = maxHeaders
	})
	options := []func(*config.LoadOptions) error{config.WithHTTPClient(base), config.WithAppID(program), config.WithLogger(logging.Nop{})}
	if r.profile != "" {
		options = append(options, config.WithSharedConfigProfile(r.profile))
	}
	if len(r.regions) > 0 {
		options = append(options, config.WithRegion(r.regions[0]))
	}
	cfg, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, badConfiguration(err)
	}
	if len(r.regions) == 0 {
		if !regionForm().MatchString(cfg.Region) {
			return nil, noRegion(cfg.Region)
		}
		r.regions = []string{cfg.Region}
	}
	c := &connection{}
	if configured, ok := cfg.HTTPClient.(*awshttp.BuildableClient); ok { // with AWS_CA_BUNDLE, where that is set
		base = configured
	}
	c.transport = base.GetTransport()
	client := &http.Client{
		Transport: bounded{c.transport}, Timeout: maxExchange,
		// KMS never redirects, and a signed request is for nobody else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	cfg.Credentials = marked{cfg.Credentials}
	c.credentials = cfg.Credentials
	if r.role != "" {
		service := sts.NewFromConfig(cfg, func(o *sts.Options) { o.HTTPClient, o.Retryer = client, aws.NopRetryer{} })
		assume := stscreds.NewAssumeRoleProvider(service, r.role, func(o *stscreds.AssumeRoleOptions) { o.RoleSessionName = program })
		c.credentials = marked{aws.NewCredentialsCache(assume, func(o *aws.CredentialsCacheOptions) { o.ExpiryWindow = time.Minute })}
	}
	for _, region := range r.regions {
		s := &site{region: region, caller: remote.New(r.share())}
		name := r.in(region)
		s.id.Store(&name)
		s.client = kms.NewFromConfig(cfg, func(o *kms.Options) {
			o.Region, o.HTTPClient, o.Credentials = region, client, c.credentials
			o.Retryer = aws.NopRetryer{} // package remote retries
			if r.endpoint != "" {
				o.BaseEndpoint = &r.endpoint
			}
		})
		c.sites = append(c.sites, s)
	}
	return c, nil
}

// Close lets go of the connections. Calls under way end as they would have.
func (c *connection) Close() error {
	c.closed.Store(true)
	c.transport.CloseIdleConnections()
	return nil
}

// bounded sends what nobody on the way can read, and reads no more than maxAnswer of an answer.
type bounded struct{ next http.RoundTripper }

func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	// The reference's endpoint is checked where it is read; AWS_ENDPOINT_URL and the profile can set another.
	if !private(req.URL) {
		return nil, fmt.Errorf("%q: %w", req.URL.Host, errPlain)
	}
	resp, err := b.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(resp.Body, maxAnswer), resp.Body}
	return resp, nil
}

// marked tells the errors of credentials from those of KMS.
type marked struct{ aws.CredentialsProvider }

func (m marked) Retrieve(ctx context.Context) (aws.Credentials, error) {
	c, err := m.CredentialsProvider.Retrieve(ctx)
	if err != nil {
		return c, &credentialsError{err}
	}
	return c, nil
}
