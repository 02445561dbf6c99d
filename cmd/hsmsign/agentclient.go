package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	neturl "net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/api"
	"hsmsign/chain"
	"hsmsign/client"
	"hsmsign/fault"
	"hsmsign/internal/input"
	"hsmsign/secret"
	"hsmsign/server/authn/oidc"
)

// agentFlags name a service and how this program identifies itself there.
func agentFlags() []cli.Flag {
	return []cli.Flag{
		stringFlag("agent", "`URL` of the service that signs instead of a local key: https://HOST:PORT, unix:///PATH or http://LOOPBACK:PORT"),
		stringFlag("client-cert", "`FILE` with the client certificate for the service, PEM"),
		stringFlag("client-key", "`FILE` with the key of the client certificate, PEM, mode 0600"),
		stringFlag("agent-ca", "`FILE` with the CAs of the service's certificate, PEM (default: those of the system)"),
		stringFlag("agent-token-from", "`SOURCE` of the token for the service: file:PATH, env:NAME, credential:NAME, exec:/PROGRAM or prompt; see hsmsign help secrets"),
		boolFlag("agent-aws", "identify with the AWS credentials of this machine (environment, profile, or its role), instead of a token"),
	}
}

// tokenVariable is the environment variable with the token itself.
const tokenVariable = "HSMSIGN_AGENT_TOKEN" // #nosec G101 -- the name of a variable

// localFlags are the flags about the key and the ledger of this machine.
func localFlags() []string {
	return []string{"key", "cert", "chain", "trust-root", "ledger", "checkpoint-key", "last-checkpoint", "profile-key", "profile-cert", "profile-chain"}
}

// agentURL returns the URL of the service that the command uses; "": it uses the key and the ledger of this machine. A local flag
// on the command line counts more than a service of the environment or the configuration, and contradicts --agent.
func (s *settings) agentURL() (string, error) {
	if find(s.ctx.Command.Flags, "agent") == nil {
		return "", nil
	}
	url, from := s.str("agent")
	if url == "" {
		return "", nil
	}
	if i := slices.IndexFunc(localFlags(), s.given); i >= 0 {
		if s.given("agent") {
			return "", fault.Usage.Errorf("--agent and --%s together: the service has its own key, certificates and ledger", localFlags()[i]).Fix("leave one out")
		}
		return "", nil
	}
	if err := client.CheckURL(url); err != nil {
		return "", fault.Errorf("%s: %w", from, err)
	}
	return url, nil
}

// agentVendor returns the name of the service's vendor identity; "": its active one. That of the configuration is local.
func (s *settings) agentVendor() string {
	if s.given("vendor") {
		return s.ctx.String("vendor")
	}
	return s.getenv(envName("vendor"))
}

// agentSetting returns a setting about the service. What the configuration says of its own service is not for another one. A
// credential on the command line replaces one of the other kind, which may be that of another caller; one that is not on the
// command line is left out where its kind cannot be used.
func (s *settings) agentSetting(url, name string) string {
	value, _ := s.str(name)
	secure, socket := strings.HasPrefix(url, "https:"), strings.HasPrefix(url, "unix:")
	certificate, token, aws := s.given("client-cert") || s.given("client-key"), s.given("agent-token-from"), s.given("agent-aws")
	switch {
	case s.given(name):
		return value
	case name == "agent-token-from" && (certificate || socket || aws), name == "agent-aws" && (certificate || socket || token),
		strings.HasPrefix(name, "client-") && ((token || aws) && !certificate || !secure):
		return ""
	case s.getenv(envName(name)) == "" && url != s.config.Agent.URL:
		return ""
	}
	return value
}

// agentSettings returns the settings about the service; the error is that of one that cannot be used.
func (s *settings) agentSettings() (infos []api.Setting, err error) {
	url, from := s.str("agent")
	if url != "" {
		if err = client.CheckURL(url); err != nil {
			url, err = "(unreadable)", fault.Errorf("%s: %w", from, err)
		}
	}
	infos = append(infos, setting("agent", from, "", url))
	for _, flag := range agentFlags()[1:] {
		name := flag.Names()[0]
		value, from := s.str(name)
		if isToken(value) {
			value = "(a token)"
		}
		infos = append(infos, setting(name, from, "", value))
	}
	return infos, err
}

// isToken returns whether a setting is a token, and not a source of one.
func isToken(text string) bool {
	return strings.HasPrefix(text, "hsmsign_") || strings.HasPrefix(text, "eyJ") && strings.Count(text, ".") == 2 // an OIDC token
}

// agentClient returns a client of the service.
func (p *program) agentClient(s *settings, url string, timeout time.Duration) (*client.Client, error) {
	cfg := client.Config{URL: url, Timeout: timeout, MaxWait: timeout}
	var err error
	if cfg.Certificate, err = readClientCert(s.agentSetting(url, "client-cert"), s.agentSetting(url, "client-key")); err != nil {
		return nil, err
	}
	if file := s.agentSetting(url, "agent-ca"); file != "" {
		if cfg.Roots, err = readRoots(file); err != nil {
			return nil, err
		}
	}
	if aws, _ := strconv.ParseBool(s.agentSetting(url, "agent-aws")); aws { // bareSettings and config have checked it
		cfg.Bearer, err = s.agentAWS(url)
	} else {
		cfg.Token, err = p.agentToken(s, url, cfg.Certificate != nil)
	}
	if err != nil {
		return nil, err
	}
	return client.New(cfg)
}

// agentAWS returns what signs each request with the AWS credentials of this machine.
func (s *settings) agentAWS(url string) (func(ctx context.Context) (string, error), error) {
	if s.agentSetting(url, "agent-token-from") != "" {
		return nil, fault.Usage.Errorf("AWS credentials and a token for the service %s", url).Fix("leave out --agent-aws (agent: aws:) or --agent-token-from (agent: token-from:)")
	}
	if strings.HasPrefix(url, "unix:") {
		return nil, fault.Usage.Errorf("AWS credentials for a Unix socket, whose callers are Unix users").Fix("leave out --agent-aws")
	}
	to, err := neturl.Parse(url)
	if err != nil { // agentURL has checked it
		return nil, err
	}
	return awsBearer(s.ctx.Context, to.Hostname())
}

// readClientCert reads a client certificate and its key; nil if neither is named.
func readClientCert(certFile, keyFile string) (*tls.Certificate, error) {
	if certFile == "" && keyFile == "" {
		return nil, nil
	}
	if certFile == "" || keyFile == "" {
		return nil, fault.Usage.Errorf("client certificate or its key missing").Fix("name both: --client-cert FILE --client-key FILE")
	}
	refused := func(what string, err error) error {
		return fault.Usage.Errorf("%s: %w", what, err).Fix("name readable files with a client certificate and its unencrypted key, as PEM; that of the key has mode 0600")
	}
	cert, err := input.File(certFile, chain.MaxFile)
	if err != nil {
		return nil, refused("--client-cert", err)
	}
	key, err := secret.ReadFile(keyFile, maxKeyFile*4, false)
	if err != nil {
		return nil, refused("--client-key", err)
	}
	defer clear(key)
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, refused("client certificate", err)
	}
	return &pair, nil
}

// readRoots reads the CAs of the service's certificate.
func readRoots(file string) (*x509.CertPool, error) {
	data, err := input.File(file, chain.MaxFile)
	roots := x509.NewCertPool()
	if err == nil && !roots.AppendCertsFromPEM(data) {
		err = errors.New("it has no certificate in PEM")
	}
	if err != nil {
		return nil, fault.Usage.Errorf("--agent-ca: %w", err).Fix("name a file with the certificate of the CA, as PEM")
	}
	return roots, nil
}

// agentToken returns what reads the token; nil: there is none. A person is asked only without a client certificate, and once.
func (p *program) agentToken(s *settings, url string, certified bool) (func(ctx context.Context) ([]byte, error), error) {
	from := s.agentSetting(url, "agent-token-from")
	switch given := s.getenv(tokenVariable) != "" && !s.given("client-cert"); {
	case isToken(from):
		return nil, fault.Usage.Errorf("--agent-token-from is a token itself").Fix("write the token to a file of mode 0600, and name it: file:PATH; revoke the token if others can see your command lines")
	case from != "":
	case strings.HasPrefix(url, "unix:"), certified && !given:
		return nil, nil
	case !given && p.prompt == nil:
		return nil, fault.Usage.Errorf("no client certificate and no token for the service %s", url).
			Fix("name them with --client-cert and --client-key, or the token with --agent-token-from or $" + tokenVariable + ", or use AWS credentials with --agent-aws")
	}
	source := secret.Source{Label: "token of the service", From: from, Env: tokenVariable, Max: oidc.MaxToken}
	asks := from == "prompt" || from == "" && s.getenv(tokenVariable) == ""
	var typed []byte
	return func(ctx context.Context) ([]byte, error) {
		if typed != nil {
			return slices.Clone(typed), nil // what was typed does not change
		}
		token, err := p.secrets().Read(ctx, source)
		if asks && err == nil {
			typed = slices.Clone(token)
		}
		return token, err
	}, nil
}
