package record

import "time"

// The events about which a policy says how many people must approve.
const (
	EventNewCustomer = "new-customer" // the ledger has no key of the customer: it would be the customer's first signature
	EventNewKey      = "new-key"      // the ledger has other keys of the customer
	EventSameKey     = "same-key"     // the ledger has this key of the customer
	EventUnfreeze    = "unfreeze"     // a freeze would end
)

// Ask is how many other people must approve, by event, and who asks.
type Ask struct {
	Need      map[string]int // people, by event; an event that is absent needs nobody
	Expiry    time.Duration  // from the question to the last approval
	Requester Requester
	Approvers Approvers
}

// Requester is who asked for something that others approve, as the policy knew it then.
type Requester struct {
	Caller     string   `json:"caller"`               // name
	Credential string   `json:"credential,omitempty"` // name
	Person     string   `json:"person,omitempty"`     // whose credential it is; "": a machine
	Owners     []string `json:"owners,omitempty"`     // of a machine
}

// Asked is what was asked, as the entry of kind pending says it.
type Asked struct {
	Requester
	Event  string    `json:"event"`
	Need   int       `json:"need"`             // people, under the policy of that time
	Until  time.Time `json:"until"`            // UTC
	Vendor string    `json:"vendor,omitempty"` // name of the vendor identity
}

// Approval is one approval, as its entry says it.
type Approval struct {
	Entry      int64
	Time       time.Time // UTC
	Caller     string    // name of the approver
	Credential string    // name
	Person     string
	Reason     string
}

// Approvers is a policy that says whose approvals count.
type Approvers interface {
	// Count returns how many people have approved what was asked about a customer ("" if it is about none), of those approvals
	// that count now, and whether that is enough where need people must.
	Count(asked Asked, customer string, given []Approval, need int) (have int, enough bool)
}

// Shown is what an approver was shown and decides about. It must be what was asked.
type Shown struct {
	Customer string // name
	CSR      Hash   // of its DER; zero: no CSR
	Vendor   string // name of the vendor identity
	// Of a freeze that would end.
	Scope, Name string
}

// Decision is an approval or a rejection.
type Decision struct {
	Request    ID
	Approve    bool
	Shown      Shown
	Reason     string
	Actor      string // name of the approver
	Channel    string
	Credential string // name
	Person     string
	Policy     Hash // in force
	Approvers  Approvers
	// Allowed returns why the approver may not decide what was asked; nil: it may.
	Allowed func(asked Asked, customer string) error
}
