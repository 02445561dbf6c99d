package notify

import (
	"bytes"
	"net/mail"
	"strings"

	gomail "github.com/wneessen/go-mail"

	"hsmsign/fault"
	"hsmsign/ledger"
)

// Mail is a mail to one person.
type Mail struct {
	To      string // address
	Subject string
	Text    string
	Name    string // of the attached file
	Data    []byte // the attached file, byte for byte; nil: none
}

const (
	maxSubject  = 200     // bytes
	maxMailData = 1 << 20 // bytes of the attached file, and of the text
)

// notice returns the mail about a request that waits for approval. It contains the link and no personal data.
func (c *Channels) notice(m ledger.Message, to string) Mail {
	id := m.About.String()
	text := "A request for a signature waits for your approval.\n\n"
	if link := c.requestLink(m.About); link != "" {
		text += link + "\n\n"
	}
	text += "Look at it, and then approve or reject it:\n\n" +
		"hsmsign approve " + id + "\n" +
		"hsmsign reject " + id + "\n"
	return Mail{To: to, Subject: "hsmsign: a request waits for approval", Text: text}
}

// compose makes the message. It is the same, byte for byte, at each try.
func compose(m ledger.Message, from string, content Mail) (*gomail.Msg, error) {
	if len(content.Data) > maxMailData || len(content.Text) > maxMailData {
		return nil, fault.TooLarge.Errorf("a mail of more than %d bytes", maxMailData)
	}
	message := gomail.NewMsg(gomail.WithNoDefaultUserAgent(), gomail.WithBoundary("hsmsign-"+m.ID.String()))
	if from != "" {
		if err := message.From(from); err != nil {
			return nil, fault.Usage.Errorf("the sender is not an address")
		}
	}
	to, err := parseAddress(content.To)
	if err != nil {
		return nil, fault.Refused.Errorf("the recipient is not an address").Fix("correct the address of the customer")
	}
	message.ToMailAddress(to)
	message.Subject(fault.Clip(content.Subject, maxSubject))
	message.SetMessageIDWithValue(m.ID.String() + "@" + domain(from))
	message.SetDateWithValue(m.Created.UTC())
	message.SetGenHeader("Auto-Submitted", "auto-generated") // RFC 3834: nobody answers it automatically
	message.SetBodyString(gomail.TypeTextPlain, content.Text)
	if content.Data != nil {
		// No error: a bytes.Reader does not fail.
		_ = message.AttachReader(fileName(content.Name), bytes.NewReader(content.Data), gomail.WithFileEncoding(gomail.EncodingB64), gomail.WithFileContentType(gomail.TypeAppOctetStream))
	}
	return message, nil
}

// parseAddress returns an address without a control character.
func parseAddress(text string) (*mail.Address, error) {
	a, err := mail.ParseAddress(text)
	if err == nil && (len(text) > 320 || fault.Clip(text, 320) != text) {
		err = fault.Usage.Errorf("not an address")
	}
	return a, err
}

// domain returns the domain of the sender, for Message-ID.
func domain(from string) string {
	const unknown = "hsmsign.invalid" // RFC 2606
	a, err := mail.ParseAddress(from)
	if err != nil {
		return unknown
	}
	_, found, _ := strings.Cut(a.Address, "@")
	if found == "" || strings.ContainsFunc(found, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("<>@,;:\\\"()[]", r) }) {
		return unknown
	}
	return found
}

// fileName returns the name of an attached file: letters, digits, '.', '_' and '-'.
func fileName(name string) string {
	name = strings.Map(func(r rune) rune {
		if r < 0x80 && (r == '.' || r == '_' || r == '-' || r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z') {
			return r
		}
		return '_'
	}, name)
	if name = strings.TrimLeft(name, "."); name == "" {
		name = "attachment"
	}
	return name[:min(len(name), 100)]
}
