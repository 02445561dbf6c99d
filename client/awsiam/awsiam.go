// Package awsiam makes the credential of a caller that has an AWS IAM identity: a signed GetCallerIdentity request of AWS STS, which
// the service sends to STS.
//
//	credentials, err := awsiam.New(ctx, awsiam.Config{Server: "sign.example.com"})
//	c, err := client.New(client.Config{URL: "https://sign.example.com:8443", Bearer: credentials.Bearer})
//
// AWS credentials come from the default chain of the SDK: environment, configuration files, SSO, web identity (EKS), container and
// instance roles. They stay on this machine; only a signature is sent, which is for one request to one server.
//
// The errors are of kind usage, of kind auth if there are no AWS credentials, or those of the context. Everything here is safe for
// concurrent use.
package awsiam

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go/logging"

	"hsmsign/fault"
)

const (
	prefix = "hsmsign-aws_"
	body   = "Action=GetCallerIdentity&Version=2011-06-15"
	// fallbackRegion is that of the global endpoint, for configurations without a region.
	fallbackRegion = "us-east-1"
	// maxExchange limits an exchange with a service that issues credentials.
	maxExchange = 10 * time.Second
)

// Config says for whom to sign. The other settings are those of the AWS SDK.
type Config struct {
	// Server is the host name in the URL of the service. The service must have this name.
	Server string
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Credentials sign requests for one server.
type Credentials struct {
	server, address, region string
	provider                aws.CredentialsProvider
	signer                  *v4.Signer
	now                     func() time.Time
}

// New reads the SDK's configuration. It asks nobody for credentials.
func New(ctx context.Context, cfg Config) (*Credentials, error) {
	if cfg.Server == "" || strings.ContainsFunc(cfg.Server, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, fault.Usage.Errorf("no name of a server to sign for").Fix("name the host of the service's URL")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	from, err := config.LoadDefaultConfig(ctx, config.WithHTTPClient(awshttp.NewBuildableClient().WithTimeout(maxExchange)), config.WithLogger(logging.Nop{}))
	if err != nil {
		return nil, fault.Usage.Errorf("the AWS configuration cannot be read: %s", fault.Clip(err.Error(), 256)).Fix("check AWS_PROFILE and the files in ~/.aws")
	}
	region, global := from.Region, false
	if region == "" {
		region, global = fallbackRegion, true
	}
	options := sts.NewFromConfig(from).Options().EndpointOptions
	to, err := sts.NewDefaultEndpointResolverV2().ResolveEndpoint(ctx, sts.EndpointParameters{
		Region: &region, UseGlobalEndpoint: &global, UseFIPS: aws.Bool(options.UseFIPSEndpoint == aws.FIPSEndpointStateEnabled),
	})
	if err != nil || strings.Trim(region, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return nil, fault.Usage.Errorf("the AWS region %q has no endpoint of STS", fault.Clip(region, 64)).Fix("set AWS_REGION to a region of AWS")
	}
	return &Credentials{
		server: strings.ToLower(cfg.Server), address: to.URI.Scheme + "://" + to.URI.Host + "/", region: region, provider: from.Credentials, signer: v4.NewSigner(), now: cfg.Now,
	}, nil
}

// Bearer returns a bearer value for one request: a second request needs another one. It asks for AWS credentials if there are none
// yet or if they have expired.
func (c *Credentials) Bearer(ctx context.Context) (string, error) {
	found, err := c.provider.Retrieve(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return "", fault.Errorf("asking for AWS credentials: %w", ctx.Err())
		}
		return "", fault.Auth.Errorf("there are no AWS credentials: %s", fault.Clip(err.Error(), 256)).
			Fix("give this machine a role, or set AWS_PROFILE or AWS_ACCESS_KEY_ID; aws sts get-caller-identity shows who you are")
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.address, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	r.Header.Set("X-Hsmsign-Server", c.server)
	sum := sha256.Sum256([]byte(body))
	// A signature is accepted once, and its time has seconds: without this two requests of one second would have the same.
	r.Header.Set("Amz-Sdk-Invocation-Id", newID())
	if err := c.signer.SignHTTP(ctx, found, r, hex.EncodeToString(sum[:]), "sts", c.region, c.now()); err != nil {
		return "", fault.Auth.Errorf("the AWS credentials cannot sign: %s", fault.Clip(err.Error(), 128)).Fix("check them: aws sts get-caller-identity")
	}
	headers := map[string]string{}
	for name := range r.Header {
		headers[name] = r.Header.Get(name)
	}
	data, err := json.Marshal(struct {
		URL     string            `json:"url"`
		Headers map[string]string `json:"headers"`
	}{c.address, headers})
	return prefix + base64.RawURLEncoding.EncodeToString(data), err
}

// newID returns a random id.
func newID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails (Go 1.24)
	return hex.EncodeToString(id[:])
}
