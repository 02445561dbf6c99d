package dropin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/mail"
	"strings"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/lifecycle/mdmcert"
	"hsmsign/server/notify"
)

// PerDay is how many mails one customer gets on one day.
const PerDay = 5

// maxWait is how long a mail waits for its request; an approval expires earlier.
const maxWait = 31 * 24 * time.Hour

// Key returns the credential in an order for mdmcert.download, a secret. The rest of the order is not looked at, because its
// sender is not known yet. The error is of kind usage.
func Key(data []byte) (string, error) {
	var o struct {
		Key string `json:"key"`
	}
	if json.Unmarshal(data, &o) != nil {
		return "", fault.Usage.Errorf("the body is not a JSON object with the strings csr, email, key and encrypt").Fix(ask)
	}
	return o.Key, nil
}

// CheckAddress returns the address that is registered for a customer. The error is of kind refused: there is none, or the order names
// another one. It does not repeat the registered one.
func CheckAddress(registered, claimed string) (string, error) {
	to, err := address(registered)
	if err != nil {
		return "", fault.Refused.Errorf("no email address is registered for the customer of this key").Rule("server.mdmcert-address").
			Fix("ask the operators of the server to register one (hsmsign ledger customer edit --contact)")
	}
	if !strings.EqualFold(to, claimed) {
		return "", fault.Refused.Errorf("the email address is not the one that is registered for the customer of this key").Rule("server.mdmcert-address").
			Fix("use the registered address")
	}
	return to, nil
}

// address returns the email address of a contact, which must be one without a name.
func address(contact string) (string, error) {
	parsed, err := mail.ParseAddress(contact)
	if err != nil || parsed.Address != contact || strings.ContainsFunc(contact, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", errors.New("the contact of the customer is not an email address")
	}
	return contact, nil
}

// Requests is what Deliveries reads. A ledger.Ledger implements it: what it returns is proved by entries.
type Requests interface {
	Request(ctx context.Context, id record.ID) (*ledger.RequestRecord, error)
	Customer(ctx context.Context, id record.ID) (*ledger.CustomerRecord, error)
	Release(ctx context.Context, permit record.Permit) error
}

// Deliveries makes the mails of messages.
type Deliveries struct {
	Ledger Requests
	// Identity returns the name of a vendor identity, for freezes of it.
	Identity func(vendor record.Hash) string
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Mail returns the mail of a message of the outbox, whose payload is the certificate of the order (DER): the request, encrypted to
// that certificate, to the address that is registered now. A message is not trusted: what it names is read from the ledger, and the
// request must be that of its customer. The error wraps notify.ErrNotYet or notify.ErrNever, or means that the ledger does not answer.
func (d Deliveries) Mail(ctx context.Context, m ledger.Message) (notify.Mail, error) {
	r, err := d.Ledger.Request(ctx, m.About)
	if fault.KindOf(err) == fault.NotFound {
		return notify.Mail{}, fmt.Errorf("%w: %w", notify.ErrNever, err)
	}
	if err != nil {
		return notify.Mail{}, err
	}
	if err := d.ready(ctx, m, r); err != nil {
		return notify.Mail{}, err
	}
	customer, err := d.Ledger.Customer(ctx, r.CustomerID)
	if fault.KindOf(err) == fault.NotFound { // erased
		return notify.Mail{}, fmt.Errorf("%w: %w", notify.ErrNever, err)
	}
	if err != nil {
		return notify.Mail{}, err
	}
	to, err := address(customer.Contact)
	if err != nil {
		return notify.Mail{}, fmt.Errorf("%w: %w", notify.ErrNever, err)
	}
	attachment, err := mdmcert.Encrypt([]byte(oneLine(r.File)), m.Payload)
	if err != nil {
		return notify.Mail{}, fmt.Errorf("%w: %w", notify.ErrNever, err)
	}
	return notify.Mail{To: to, Subject: "Push Certificate Request", Text: text, Name: "mdm_signed_request." + r.ID.String() + ".plist.b64.p7", Data: attachment}, nil
}

// ready returns nil if the request of a message may be sent.
func (d Deliveries) ready(ctx context.Context, m ledger.Message, r *ledger.RequestRecord) error {
	now := time.Now
	if d.Now != nil {
		now = d.Now
	}
	waiting := notify.ErrNotYet
	if now().Sub(m.Created) > maxWait {
		waiting = notify.ErrNever
	}
	switch {
	case r.CustomerID != m.Customer:
		return fmt.Errorf("%w: the request %s is not that of the customer", notify.ErrNever, r.ID)
	case r.State == record.KindRejected || r.State == record.KindExpired || r.State == record.KindRefused && r.Approval == nil,
		r.File == nil && r.Approval != nil && !r.Approval.Until.After(now()): // it was approved, and could not be issued until now
		return fmt.Errorf("%w: the request %s is %s", notify.ErrNever, r.ID, r.State)
	case r.File == nil:
		return fmt.Errorf("%w: the request %s is %s", waiting, r.ID, r.State)
	}
	err := d.Ledger.Release(ctx, record.Permit{Request: r.ID.String(), Customer: r.CustomerID, Actor: r.Actor, Identity: d.Identity(r.Vendor)})
	if fault.KindOf(err) == fault.Forbidden { // frozen: that can end
		return fmt.Errorf("%w: %w", waiting, err)
	}
	return err
}

// text is that of a mail. It names nobody.
const text = `The Push Certificate Request that you asked for is attached. It is encrypted to the certificate of your order.

Decrypt it with the program that sent the order:

    hsmsign mdmcert decrypt --recipient-key recipient.key -o push.req ATTACHMENT
    mdmctl mdmcert.download -decrypt=ATTACHMENT

Then upload the result at https://identity.apple.com/pushcert. For a renewal, use the Apple Account of the certificate before.
`
