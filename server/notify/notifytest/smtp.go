// Package notifytest has the doubles of what notices are sent to: a mail server and a webhook, over real connections. It shares no code with
// package notify.
package notifytest

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/mail"
	"strconv"
	"sync"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// Username and Password are what the mail server accepts.
const (
	Username = "hsmsign@example.com"
	Password = "correct horse battery"
)

// Received is a mail that the server confirmed.
type Received struct {
	From, To string
	Login    string // user name of the connection; empty: none
	TLS      bool
	Data     string
}

// Message parses the mail.
func (r Received) Message() (*mail.Message, error) {
	return mail.ReadMessage(bytes.NewReader([]byte(r.Data)))
}

// Fault changes what the mail server does at the next mails. The zero value is no fault.
type Fault struct {
	Recipient string        // answers RCPT for this address with Code; empty: any
	AtRcpt    int           // status for RCPT; 0: 250
	AtData    int           // status after the data; 0: 250
	Text      string        // of the status
	CloseAt   string        // closes the connection: "data" while the data are read, "answer" before the confirmation
	Delay     time.Duration // before each answer to MAIL
	Hold      chan struct{} // the confirmation waits until it is closed
}

// SMTP is a mail server. Safe for concurrent use.
type SMTP struct {
	Host string
	Port int

	server *smtp.Server
	mu     sync.Mutex
	fault  Fault
	all    []Received
	seen   []Received // what came whole, confirmed or not
	conns  int
}

// NewSMTP starts a mail server on a loopback address. With a certificate it has STARTTLS, or with implicit TLS from the start.
func NewSMTP(cert *tls.Certificate, implicit bool) (*SMTP, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &SMTP{Host: "127.0.0.1"}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err == nil {
		s.Port, err = strconv.Atoi(port)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	s.server = smtp.NewServer(smtp.BackendFunc(s.session))
	s.server.Domain, s.server.ReadTimeout, s.server.WriteTimeout, s.server.MaxMessageBytes = "mail.example.com", time.Minute, time.Minute, 4<<20
	s.server.ErrorLog = silent{}
	if cert != nil {
		s.server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{*cert}, MinVersion: tls.VersionTLS12}
	}
	if implicit {
		l = tls.NewListener(l, s.server.TLSConfig)
	}
	go func() { _ = s.server.Serve(l) }() // Stop ends it
	return s, nil
}

// silent is a logger of nothing.
type silent struct{}

func (silent) Printf(string, ...any) {}
func (silent) Println(...any)        {}

// Stop ends the server.
func (s *SMTP) Stop() { _ = s.server.Close() }

// Fail sets the fault of the mails that follow.
func (s *SMTP) Fail(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

func (s *SMTP) now() Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fault
}

// Mails returns the mails that were confirmed.
func (s *SMTP) Mails() []Received {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Received{}, s.all...)
}

// Seen returns the mails whose data came whole, confirmed or not.
func (s *SMTP) Seen() []Received {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Received{}, s.seen...)
}

// Connections returns how many connections there were.
func (s *SMTP) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns
}

func (s *SMTP) session(c *smtp.Conn) (smtp.Session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns++
	return &session{server: s, conn: c}, nil
}

// session is one connection.
type session struct {
	server *SMTP
	conn   *smtp.Conn
	mail   Received
}

func (c *session) AuthMechanisms() []string { return []string{sasl.Plain} }

func (c *session) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, username, password string) error {
		if username != Username || password != Password {
			// Some servers repeat what they got.
			return &smtp.SMTPError{Code: 535, EnhancedCode: smtp.EnhancedCode{5, 7, 8}, Message: "wrong password " + password + " of " + username}
		}
		c.mail.Login = username
		return nil
	}), nil
}

func (c *session) Reset() { c.mail = Received{Login: c.mail.Login} }

func (*session) Logout() error { return nil }

func (c *session) Mail(from string, _ *smtp.MailOptions) error {
	time.Sleep(c.server.now().Delay)
	c.mail.From = from
	return nil
}

func (c *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	f := c.server.now()
	if f.AtRcpt != 0 && (f.Recipient == "" || f.Recipient == to) {
		return failure(f.AtRcpt, f.Text)
	}
	c.mail.To = to
	return nil
}

func (c *session) Data(r io.Reader) error {
	f := c.server.now()
	if f.CloseAt == "data" {
		_, _ = io.ReadFull(r, make([]byte, 20)) // a part of it
		return c.conn.Conn().Close()
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	_, c.mail.TLS = c.conn.TLSConnectionState()
	c.mail.Data = string(data)
	s := c.server
	s.mu.Lock()
	s.seen = append(s.seen, c.mail)
	if f.AtData == 0 && f.CloseAt == "" {
		s.all = append(s.all, c.mail)
	}
	s.mu.Unlock()
	if f.Hold != nil {
		<-f.Hold
	}
	if f.CloseAt == "answer" {
		return c.conn.Conn().Close()
	}
	if f.AtData != 0 {
		return failure(f.AtData, f.Text)
	}
	return nil
}

func failure(code int, text string) error {
	return &smtp.SMTPError{Code: code, EnhancedCode: smtp.EnhancedCode{code / 100, 0, 0}, Message: text}
}
