package console

import (
	"hsmsign/api"
)

// Start is the view of the start page.
type Start struct {
	Waiting []api.Request // the first that wait for approval
	More    bool          // there are more
	Due     []api.LedgerDue
	Status  *api.ServiceStatus // nil: the role may not read it
	Vendors []api.Vendor
}

// Active returns the identity that signs; nil if the caller may not use it.
func (s Start) Active() *api.Vendor {
	for i := range s.Vendors {
		if s.Vendors[i].Active {
			return &s.Vendors[i]
		}
	}
	return nil
}

// Vendor is a vendor identity.
type Vendor struct{ api.Vendor }

// stores are what key stores are, and how they protect a key.
var stores = map[string][2]string{
	"pkcs11":   {"PKCS#11 token", "the private key is used inside the token. hsmsign key list shows whether it can leave it (CKA_EXTRACTABLE, CKA_SENSITIVE)"},
	"vault":    {"Vault transit engine", "the private key never leaves Vault; its policies decide who signs. hsmsign key list shows whether it can be exported"},
	"awskms":   {"AWS KMS", "the private key never leaves AWS KMS; IAM and the key policy decide who signs"},
	"gcpkms":   {"Google Cloud KMS", "the private key never leaves Cloud KMS; IAM decides who signs"},
	"azurekms": {"Azure Key Vault", "the private key never leaves Key Vault; its roles decide who signs. hsmsign key list shows whether an HSM holds it"},
	"file":     {"file", "the private key is in the memory of this host: whoever is root here can copy it. An HSM or a KMS protects it better"},
}

// KeyStore returns what the key is in.
func (v Vendor) KeyStore() string { return stores[v.Backend][0] }

// Protection returns how the store protects the key.
func (v Vendor) Protection() string { return stores[v.Backend][1] }

// Vendors is the view of the page Vendor.
type Vendors struct {
	Items  []Vendor
	Status *api.ServiceStatus // nil: the role may not read it
}

// Me is the view of the page Me; who is signed in is in the Frame.
type Me struct{ Sessions []Session }

// Request is the view of the page of one request.
type Request struct{ api.Request }

// Sign is the view of the page Sign.
type Sign struct {
	Customer  string
	Customers []string // that the form proposes
	Vendor    string
	Vendors   []api.Vendor
	Pasted    string       // text that was sent with a mistake
	Problem   *api.Problem // the mistake
	Max       int          // CSRs of one form
}

// Item is a CSR that was sent to be checked or signed.
type Item struct {
	Number   int
	Name     string // of the file
	CSR      string // the file, base64
	Customer string
	Ready    string          // the customer for which the checks were passed; "": they were not
	Done     bool            // it was requested, and not refused
	Result   *api.SignResult // nil: refused
	Problem  *api.Problem    // why it was refused
	Alone    bool            // the page shows no other item
}

// Checked returns whether the checks were passed for the customer that is named now.
func (i Item) Checked() bool { return i.Ready != "" && i.Ready == i.Customer }

// Issued returns whether there is a file to download.
func (i Item) Issued() bool {
	return i.Done && i.Result != nil && (i.Result.Status == api.StatusSigned || i.Result.Status == api.StatusStored)
}

// Subject returns the subject of the CSR, if it was read.
func (i Item) Subject() string {
	if i.Result == nil {
		return ""
	}
	return i.Result.Subject
}

// Review is the view of the checks and results of CSRs.
type Review struct {
	Vendor   string
	Vendors  []api.Vendor
	Customer string
	Items    []Item
}

// count returns how many items a function chooses.
func (r Review) count(chosen func(i Item) bool) (n int) {
	for _, i := range r.Items {
		if chosen(i) {
			n++
		}
	}
	return n
}

// Done returns how many were requested.
func (r Review) Done() int { return r.count(func(i Item) bool { return i.Done }) }

// Waits returns how many have passed the checks, and were not requested yet.
func (r Review) Waits() int { return r.count(func(i Item) bool { return !i.Done && i.Checked() }) }

// Refused returns how many were refused.
func (r Review) Refused() int { return r.count(func(i Item) bool { return i.Problem != nil }) }

// Verify is the view of the page Verify.
type Verify struct {
	Name    string // of the file
	Result  *api.VerifyResult
	Problem *api.Problem
}
