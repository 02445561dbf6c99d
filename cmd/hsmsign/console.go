package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/config"
	"hsmsign/fault"
	"hsmsign/internal/suggest"
	"hsmsign/server"
	"hsmsign/server/authn"
	"hsmsign/server/authn/oidc"
)

func (p *program) consoleCommand() *cli.Command {
	return &cli.Command{
		Name: "console", Usage: "sign in to the console of the service",
		Subcommands: []*cli.Command{{
			Name: "login", Usage: "print a link that signs you in to the console of the service on this host",
			Description: "The service, which must have console: true, knows you as a Unix user: it is asked at its Unix socket, the first unix: address\n" +
				"of serve: listen, or that of --agent. The link can be used once, within 2 minutes, by whoever has it. Who signs in with a link\n" +
				"has the role of your caller, but cannot approve or reject.\n\n" +
				"  hsmsign console login\n" +
				"  hsmsign console login --agent unix:///run/hsmsign/agent.sock --json",
			Flags:  []cli.Flag{find(agentFlags(), "agent"), jsonFlag(), configFlag()},
			Action: p.consoleLogin,
		}},
	}
}

// consoleTimeout bounds the request for a link.
const consoleTimeout = 30 * time.Second

func (p *program) consoleLogin(ctx *cli.Context) error {
	s, _, err := p.start(ctx, noFiles)
	if err != nil {
		return err
	}
	service, err := s.consoleSocket()
	if err != nil {
		return err
	}
	c, err := p.agentClient(s, service, consoleTimeout)
	if err != nil {
		return err
	}
	defer c.Close()
	link, err := c.ConsoleLogin(ctx.Context)
	switch {
	case fault.KindOf(err) == fault.NotFound:
		return fault.WithHint(err, "write serve: { console: true } in the configuration of the service")
	case err != nil:
		return err
	case s.json:
		p.con.JSON(link)
		return nil
	}
	p.con.Printf("%s", link.URL)
	p.con.Infof("open the link in a browser before %s; it signs in once, as you", link.Until)
	return nil
}

// consoleSocket returns the URL of the Unix socket of the service.
func (s *settings) consoleSocket() (string, error) {
	const fix = "name the Unix socket of the service: --agent unix:///run/hsmsign/agent.sock"
	url, err := s.agentURL()
	switch {
	case err != nil:
		return "", err
	case strings.HasPrefix(url, "unix:"):
		return url, nil
	case s.given("agent"):
		return "", fault.Usage.Errorf("--agent is not a Unix socket: links are made for Unix users").Fix(fix)
	}
	for _, text := range s.config.Serve.Listen {
		if a, err := server.ParseAddress(text); err == nil && a.Kind == authn.Unix {
			return a.String(), nil
		}
	}
	return "", fault.Usage.Errorf("the Unix socket of the service is not known").Fix(fix)
}

// console returns the console of the configuration; nil: there is none. It connects to nobody.
func (s *settings) console(issuers *oidc.Issuers, addresses []server.Address) (*server.Console, error) {
	if err := s.checkConsole(addresses); err != nil || !s.config.Serve.Console {
		return nil, err
	}
	found := &server.Console{Providers: map[string]*oidc.Client{}}
	var err error
	if found.URL, err = s.noticeLink(); err != nil {
		return nil, fmt.Errorf("%s: notify: %w", s.path, err)
	}
	if strings.HasSuffix(found.URL, ":0") { // the kernel chooses the port
		found.URL = ""
	}
	for name, from := range s.config.Serve.ConsoleOIDC {
		cfg := oidc.ClientConfig{Issuer: name, ClientID: from.ClientID}
		if from.ClientSecretFile != "" {
			cfg.Secret = func() (string, error) { return s.notifySecret("client-secret-file", from.ClientSecretFile) }
		}
		if found.Providers[name], err = issuers.Client(cfg); err != nil {
			return nil, fmt.Errorf("%s: serve: console-oidc: %w", s.path, err)
		}
	}
	return found, nil
}

// checkConsole refuses a console that nobody can sign in to, or with a client that another token could be for. The error is of kind usage.
func (s *settings) checkConsole(addresses []server.Address) error {
	refused := func(fix, format string, args ...any) error {
		return fault.Usage.Errorf("%s: serve: "+format, append([]any{s.path}, args...)...).Fix(fix)
	}
	from := s.config.Serve
	browsers := func(a server.Address) bool { return a.Kind == authn.TLS || a.Kind == authn.HTTP }
	switch {
	case !from.Console && len(from.ConsoleOIDC) > 0:
		return refused("write console: true, or remove console-oidc", "console-oidc without console")
	case !from.Console:
		return nil
	case !slices.ContainsFunc(addresses, browsers):
		return refused("add a tls: listener, or an http: listener for this host alone", "console without a listener for browsers")
	}
	for _, name := range slices.Sorted(maps.Keys(from.ConsoleOIDC)) {
		if err := s.checkConsoleOIDC(name, from.ConsoleOIDC[name]); err != nil {
			return refused(fault.Hint(err), "console-oidc: %s: %w", name, err)
		}
	}
	if len(s.signIns(addresses)) == 0 {
		return refused("write console-oidc, or a caller with client-cert and a tls: listener, or one with uid and a unix: listener", "console, and nobody can sign in")
	}
	return nil
}

// checkConsoleOIDC checks the client of one issuer.
func (s *settings) checkConsoleOIDC(name string, client config.ConsoleOIDC) error {
	names := slices.Sorted(maps.Keys(s.config.OIDC))
	id := client.ClientID
	switch _, known := s.config.OIDC[name]; {
	case !known && len(names) == 0:
		return fault.Usage.Errorf("there is no such issuer").Fix("write oidc: { " + name + ": { issuer: URL, audience: TEXT } } at the top of the configuration")
	case !known:
		return fault.Usage.Errorf("there is no such issuer").Fix(suggest.Name(name, names, "the issuers are "+strings.Join(names, ", ")))
	case id == "" || len(id) > 512 || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' }):
		return fault.Usage.Errorf("it has no client-id, or one that is not a line of letters, digits and signs").Fix("write client-id: and the id that the issuer has given to this service")
	}
	for _, other := range names {
		if s.config.OIDC[other].Audience == id {
			return fault.Usage.Errorf("the client-id is the audience of %s, so that tokens of people would be for the API", other).Fix("register another client for the console, or use another audience")
		}
	}
	if !slices.ContainsFunc(slices.Collect(maps.Keys(s.config.Callers)), func(caller string) bool { return s.config.Callers[caller].OIDC.Issuer == name }) {
		return fault.Usage.Errorf("no caller has this issuer").Fix("write callers: { NAME: { oidc: { issuer: " + name + ", claims: { ... } } } }, or remove it from console-oidc")
	}
	_, err := s.notifySecret("client-secret-file", client.ClientSecretFile)
	return err
}

// signIns returns the ways to sign in to the console.
func (s *settings) signIns(addresses []server.Address) (all []string) {
	for _, name := range slices.Sorted(maps.Keys(s.config.Serve.ConsoleOIDC)) {
		all = append(all, "sign-in with "+name)
	}
	listens := func(kind string) bool {
		return slices.ContainsFunc(addresses, func(a server.Address) bool { return a.Kind == kind })
	}
	certificate, uid := false, false
	for _, c := range s.config.Callers {
		certificate = certificate || len(c.ClientCert.SPKI) > 0 || len(c.ClientCert.SAN) > 0 && s.config.Serve.TLS.ClientCA != ""
		uid = uid || len(c.UID) > 0
	}
	if certificate && listens(authn.TLS) {
		all = append(all, "sign-in with a client certificate")
	}
	if uid && listens(authn.Unix) {
		all = append(all, "sign-in with a link of hsmsign console login")
	}
	return all
}
