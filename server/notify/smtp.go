package notify

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	gomail "github.com/wneessen/go-mail"

	"hsmsign/fault"
	"hsmsign/ledger"
)

const (
	smtpWait   = 20 * time.Second // for one mail
	maxReplies = 256 << 10        // bytes that are read from a mail server, the handshake included
	maxTo      = 20               // addresses of notices

	submission  = 587 // RFC 6409
	submissions = 465 // RFC 8314: TLS from the start
)

// SMTP is a mail server. The connection is encrypted: with TLS from the start on port 465, and with STARTTLS on others. Only a
// server on a loopback address is used without TLS, and only without a user name and a CA.
type SMTP struct {
	Host     string
	Port     int    // 0: 587
	From     string // address of the sender
	To       []string
	Username string // empty: no authentication
	Password string
	CA       *x509.CertPool // nil: the CAs of the system
}

// Check returns an error of kind usage if the settings cannot work.
func (s *SMTP) Check() error {
	if s.Host == "" || len(s.Host) > 253 || strings.ContainsAny(s.Host, " /@[]") || strings.Contains(s.Host, ":") && net.ParseIP(s.Host) == nil || fault.Clip(s.Host, 253) != s.Host {
		return fault.Usage.Errorf("smtp: host is not the name of a server").Fix("write host: mail.example.com; the port is a key of its own")
	}
	if s.Port < 0 || s.Port > 65535 {
		return fault.Usage.Errorf("smtp: port %d", s.Port).Fix("write port: 587, or 465 for TLS from the start")
	}
	if _, err := parseAddress(s.From); err != nil {
		return fault.Usage.Errorf("smtp: from is not a mail address").Fix("write from: hsmsign@example.com")
	}
	if len(s.To) > maxTo {
		return fault.Usage.Errorf("smtp: %d addresses in to; at most %d are allowed", len(s.To), maxTo).Fix("write the address of a list")
	}
	seen := map[string]bool{}
	for i, address := range s.To {
		if _, err := parseAddress(address); err != nil {
			return fault.Usage.Errorf("smtp: number %d in to is not a mail address", i+1).Fix("write to: [ security@example.com ]")
		}
		if seen[address] {
			return fault.Usage.Errorf("smtp: number %d in to is there twice", i+1).Fix("remove one")
		}
		seen[address] = true
	}
	if (s.Username == "") != (s.Password == "") {
		return fault.Usage.Errorf("smtp: username and password-file belong together").Fix("write both, or neither")
	}
	if fault.Clip(s.Username+s.Password, 4096) != s.Username+s.Password {
		return fault.Usage.Errorf("smtp: the user name or the password contains a control character or two spaces")
	}
	return nil
}

// port returns the port of the server.
func (s *SMTP) port() int { return cmp.Or(s.Port, submission) }

// Describe returns the settings in words, without secrets.
func (s *SMTP) Describe() string {
	how := "STARTTLS"
	switch {
	case s.port() == submissions:
		how = "TLS"
	case s.plain():
		how = "without TLS, on this host"
	}
	text := fmt.Sprintf("%s, %s, from %s", net.JoinHostPort(s.Host, fmt.Sprint(s.port())), how, s.From)
	if s.Username != "" {
		text += ", with a password"
	}
	return text
}

// plain returns whether the connection needs no TLS.
func (s *SMTP) plain() bool {
	return s.port() != submissions && s.Username == "" && s.CA == nil && isLoopback(s.Host)
}

// isLoopback returns whether a host is this one.
func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// send sends a mail. When the server has confirmed it, what follows on the connection does not matter.
func (s *SMTP) send(ctx context.Context, m ledger.Message, content Mail) error {
	message, err := compose(m, s.From, content)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, smtpWait)
	defer cancel()
	client, err := gomail.NewClient(s.Host, s.options(ctx)...)
	if err != nil {
		return s.clean(err, content.To)
	}
	if err = client.DialWithContext(ctx); err == nil {
		err = client.Send(message)
		if message.IsDelivered() {
			err = nil
		}
		_ = client.Close() // the mail was confirmed, or the first error is reported
	}
	if err != nil && ctx.Err() != nil {
		return fault.Unavailable.Errorf("the mail server did not answer in %v", smtpWait)
	}
	return s.clean(err, content.To)
}

// options are those of one connection, which ends with ctx.
func (s *SMTP) options(ctx context.Context) []gomail.Option {
	config := &tls.Config{ServerName: s.Host, RootCAs: s.CA, MinVersion: tls.VersionTLS12}
	policy := gomail.TLSMandatory
	switch {
	case s.port() == submissions:
		policy = gomail.TLSOpportunistic // dial has encrypted it
	case s.plain():
		policy = gomail.NoTLS
	}
	options := []gomail.Option{
		gomail.WithPort(s.port()), gomail.WithTimeout(smtpWait), gomail.WithTLSPolicy(policy), gomail.WithTLSConfig(config), gomail.WithoutNoop(),
		// go-mail's context is that of dialing only.
		gomail.WithDialContextFunc(func(dialing context.Context, network, address string) (net.Conn, error) {
			return s.dial(ctx, dialing, config, network, address)
		}),
	}
	if s.Username != "" {
		options = append(options, gomail.WithSMTPAuth(gomail.SMTPAuthAutoDiscover), gomail.WithUsername(s.Username), gomail.WithPassword(s.Password))
	}
	return options
}

// dial connects. The connection is closed when ctx ends.
func (s *SMTP) dial(ctx, dialing context.Context, config *tls.Config, network, address string) (net.Conn, error) {
	raw, err := (&net.Dialer{}).DialContext(dialing, network, address)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { _ = raw.Close() }) // whoever uses it gets the error
	bounded := &boundedConn{Conn: raw, left: maxReplies}
	if s.port() != submissions {
		return bounded, nil
	}
	encrypted := tls.Client(bounded, config)
	if err := encrypted.HandshakeContext(dialing); err != nil {
		_ = raw.Close() // the first error is reported
		return nil, err
	}
	return encrypted, nil
}

// boundedConn is a connection of which a number of bytes is read.
type boundedConn struct {
	net.Conn
	left int64
}

func (c *boundedConn) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, errors.New("the mail server sends too much")
	}
	n, err := io.LimitReader(c.Conn, c.left).Read(p)
	c.left -= int64(n)
	return n, err
}

// clean returns an error whose text does not contain the credentials or the recipient, which a server may repeat.
func (s *SMTP) clean(err error, to string) error {
	if err == nil {
		return nil
	}
	text, _, _ := strings.Cut(err.Error(), ", affected ")
	forms := []string{s.Password, base64.StdEncoding.EncodeToString([]byte(s.Password)), base64.StdEncoding.EncodeToString([]byte("\x00" + s.Username + "\x00" + s.Password))}
	for _, form := range forms {
		if s.Password != "" && strings.Contains(strings.ToLower(text), strings.ToLower(form)) {
			text = "the mail server refused the credentials and repeats them in its answer, which is not shown"
		}
	}
	if a, parseErr := parseAddress(to); parseErr == nil {
		text = strings.ReplaceAll(text, a.Address, "(the recipient)")
	}
	failure := fault.Unavailable.Errorf("%s", fault.Clip(text, 256))
	if certificate := (*tls.CertificateVerificationError)(nil); errors.As(err, &certificate) {
		return failure.Fix("name the CA of the mail server with notify: { smtp: { ca: FILE } }")
	}
	return failure
}
