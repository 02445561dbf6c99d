package console

import (
	"fmt"
	"net/url"
	"strings"

	"hsmsign/api"
)

// LedgerPage is the view of the page Ledger.
type LedgerPage struct {
	Items    []api.LedgerEntry
	Search   map[string]string // what was searched for, by the name of the parameter
	Searched bool              // something was
	Kinds    []string
	Short    bool // the search has not ended, although the page is not full
	Pager    Pager
	Status   *api.LedgerStatus // nil: not on this page
	Problem  *api.Problem      // why it could not be searched
}

// searches are the parameters of the page.
var searches = []string{"customer", "kind", "request", "actor", "sha256", "until"}

// NewLedgerPage returns the view of a page of entries.
func NewLedgerPage(u *url.URL, list api.List[api.LedgerEntry], limit int) LedgerPage {
	v := LedgerPage{Items: list.Items, Search: map[string]string{}, Short: list.Next != "" && len(list.Items) < limit, Pager: NewPager(u, list.Next)}
	for _, name := range searches {
		if value := strings.TrimSpace(u.Query().Get(name)); value != "" {
			v.Search[name], v.Searched = value, true
		}
	}
	return v
}

// Entry is the view of the page of one entry.
type Entry struct {
	api.LedgerEntry
	Proof api.EntryProof
}

// kinds says what an entry of a kind records.
var kinds = map[string]string{
	"genesis": "The ledger begins.", "intent": "A signature was authorized and was about to be made.", "issued": "The signature was made. The request may be released.",
	"refused": "A rule refused the request.", "failed": "The key did not sign. Nothing was released.", "unknown": "It is not known whether the key signed. Nothing was released.",
	"superseded": "Another request replaces this one.", "customer": "A customer was added or changed.", "new-key": "A known customer used a key that nobody used before.",
	"reassigned": "A key was moved to another customer.", "erased": "The personal data of a customer was deleted.", "attached": "The push certificate of a customer was recorded.",
	"watched": "The certificates of a file or endpoint are reported from now on.", "unwatched": "They no longer are.", "rotated": "Which keys sign checkpoints from now on.",
	"probe": "The vendor's key signed a probe message, which is no request.", "frozen": "From now on nothing is signed or released for what is frozen.", "unfrozen": "A freeze ended.",
	"policy": "A program started with this policy, or read it again.", "pending": "Other people have to approve what was asked. Nothing was signed.", "approved": "Somebody approved it.",
	"rejected": "Somebody rejected it, which ends it.", "expired": "It was not approved in time.", "moved": "The ledger was moved to another store.",
	"profile": "The signature of a profile was authorized and was about to be made.", "profile-signed": "The profile was signed. It may be released.",
	"profile-failed": "The key did not sign the profile. Nothing was released.", "profile-refused": "A rule refused to sign the profile.",
}

// Meaning returns in words what the entry records; "" for a kind that this version does not know.
func (e Entry) Meaning() string { return kinds[e.Kind] }

// Hashes returns the hashes of the entry that are there, with their names.
func (e Entry) Hashes() (all []Difference) {
	for _, h := range []Difference{
		{What: "CSR", Now: e.CSRSHA256}, {What: "Key", Now: e.KeySHA256}, {What: "Vendor certificate", Now: e.VendorSHA256}, {What: "Vendor chain", Now: e.ChainSHA256},
		{What: "Request file", Now: e.FileSHA256}, {What: "Policy", Now: e.PolicySHA256},
	} {
		if h.Now != "" {
			all = append(all, h)
		}
	}
	return all
}

// Shows returns in words what the proof of the entry shows.
func (e Entry) Shows() []string {
	p := e.Proof
	shows := []string{
		fmt.Sprintf("Entry %d is in the ledger %s as it is: its hash and %d other hashes lead to the root of a checkpoint with %d entries. A change of one bit would lead to another root.", p.Index, Short(p.Origin), p.Hashes, p.Entries),
		"The checkpoint has a valid signature of the ledger's key.",
	}
	if len(p.Cosignatures) == 0 {
		return append(shows, "No witness has cosigned the checkpoint. So the proof rests on the ledger's key alone: its owner could show another ledger to others.")
	}
	operators := map[string]bool{}
	for _, c := range p.Cosignatures {
		operators[c.Operator] = true
	}
	return append(shows, fmt.Sprintf("Witnesses of %s have cosigned it: each saw that the ledger has only grown since it looked before.", counted(len(operators), "operator", "operators")))
}

// counted returns a number with its noun.
func counted(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
