package main

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"net"
	"net/url"
	"strings"

	"hsmsign/api"
	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/internal/input"
	"hsmsign/secret"
	"hsmsign/server"
	"hsmsign/server/authn"
	"hsmsign/server/notify"
)

// channels reads notify:, with the secrets and the CAs, and the spool folder of drop-in: mdmcert:. The error is of kind usage, and contains no
// secret.
func (s *settings) channels() (notify.Channels, error) {
	c, err := s.noticeChannels()
	if err != nil {
		return c, err
	}
	return c, s.mailed(&c)
}

// noticeChannels reads notify:, with the secrets and the CAs.
func (s *settings) noticeChannels() (c notify.Channels, err error) {
	from := s.config.Notify
	if c.Link, err = s.noticeLink(); err == nil && from.SMTP.Set() {
		c.SMTP, err = s.smtp()
	}
	if err == nil && (from.Webhook.URL != "" || from.Webhook.SecretFile != "" || from.Webhook.CA != "") {
		c.Webhook, err = s.webhook()
	}
	if err != nil {
		return c, fault.Errorf("%s: notify: %w", s.path, err)
	}
	return c, nil
}

// mailed sets the spool folder of serve: drop-in: mdmcert:, which must exist, or checks that there is an SMTP server for it.
func (s *settings) mailed(c *notify.Channels) error {
	from := s.config.Serve.DropIn.MDMCert
	switch {
	case from.Spool != "" && from.SMTP:
		return fault.Usage.Errorf("%s: serve: drop-in: mdmcert: spool and smtp together", s.path).Fix("write one of them: a mail is sent once")
	case from.SMTP && c.SMTP == nil:
		return fault.Usage.Errorf("%s: serve: drop-in: mdmcert: smtp without a mail server", s.path).Fix("write notify: { smtp: { host: HOST, from: ADDRESS } }, or spool: FOLDER instead of smtp: true")
	case from.Spool != "":
		if err := notify.CheckSpool(from.Spool); err != nil {
			return fault.Errorf("%s: serve: drop-in: mdmcert: %w", s.path, err)
		}
		c.Spool = from.Spool
	}
	return nil
}

// smtp reads notify: smtp.
func (s *settings) smtp() (*notify.SMTP, error) {
	from := s.config.Notify.SMTP
	password, err := s.notifySecret("smtp: password-file", from.PasswordFile)
	if err != nil {
		return nil, err
	}
	found := &notify.SMTP{Host: from.Host, Port: from.Port, From: from.From, To: from.To, Username: from.Username, Password: password}
	if found.CA, err = notifyCA("smtp: ca", from.CA); err == nil {
		err = found.Check()
	}
	return found, err
}

// webhook reads notify: webhook.
func (s *settings) webhook() (*notify.Webhook, error) {
	from := s.config.Notify.Webhook
	if from.URL == "" || from.SecretFile == "" {
		return nil, fault.Usage.Errorf("webhook: url and secret-file belong together").Fix("write webhook: { url: URL, secret-file: FILE }")
	}
	key, err := s.notifySecret("webhook: secret-file", from.SecretFile)
	if err != nil {
		return nil, err
	}
	ca, err := notifyCA("webhook: ca", from.CA)
	if err != nil {
		return nil, err
	}
	return notify.NewWebhook(from.URL, key, ca)
}

// notifySecret reads a file with a secret; "" without a file.
func (s *settings) notifySecret(what, path string) (string, error) {
	if path == "" {
		return "", nil
	}
	data, err := (secret.Reader{Getenv: s.getenv}).ReadFile(path, secret.Max)
	if err != nil {
		return "", fault.Usage.Errorf("%s: %w", what, err).Fix("name a file of mode 0600 with one line")
	}
	defer clear(data)
	line := bytes.TrimSuffix(bytes.TrimSuffix(data, []byte("\n")), []byte("\r"))
	if len(line) == 0 {
		return "", fault.Usage.Errorf("%s: %q is empty", what, path).Fix("name a file of mode 0600 with one line")
	}
	return string(line), nil
}

// notifyCA reads a file with CAs; nil without a file.
func notifyCA(what, path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	data, err := input.File(path, chain.MaxFile)
	if err != nil {
		return nil, fault.Usage.Errorf("%s: %q: %w", what, path, err).Fix("name a file with certificates")
	}
	certs, err := chain.Parse(data)
	if err != nil {
		return nil, fault.Usage.Errorf("%s: %q: %w", what, path, err).Fix("name a file with certificates")
	}
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool, nil
}

// noticeLink returns the address of the service for links: link, or the first name of hosts, or the address of the TLS listener; "" if
// none of them is known.
func (s *settings) noticeLink() (string, error) {
	if link := s.config.Notify.Link; link != "" {
		u, err := url.Parse(link)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || fault.Clip(link, 512) != link {
			return "", fault.Usage.Errorf("link is not the address of the service").Fix("write link: https://sign.example.com:8443, without user, query or fragment")
		}
		return strings.TrimSuffix(link, "/"), nil
	}
	for _, text := range s.config.Serve.Listen {
		a, err := server.ParseAddress(text)
		if err != nil || a.Kind != authn.TLS {
			continue // serve reports the error
		}
		host := a.Host
		if len(s.config.Serve.Hosts) > 0 {
			host = s.config.Serve.Hosts[0]
		}
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			continue
		}
		return "https://" + net.JoinHostPort(host, fmt.Sprint(a.Port)), nil
	}
	return "", nil
}

// notifySettings returns the settings of notices in words, without secrets; nil if there are none.
func (s *settings) notifySettings() (infos []api.Setting, err error) {
	c, err := s.channels()
	if err != nil || c.SMTP == nil && c.Webhook == nil {
		return nil, err
	}
	link := c.Link
	if link == "" {
		link = "(none: write notify: { link: URL } if people reach the service by a URL)"
	}
	infos = append(infos, setting("link", s.path, "", link))
	if c.SMTP != nil {
		infos = append(infos, setting("smtp", s.path, "", c.SMTP.Describe()), inFile("notices to", s.path, len(c.SMTP.To) > 0, c.SMTP.To))
	}
	if c.Webhook != nil {
		infos = append(infos, setting("webhook", s.path, "", c.Webhook.Describe()))
	}
	return infos, nil
}
