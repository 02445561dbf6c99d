package record

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"hsmsign/fault"
)

// ErrEntry means that bytes are not an entry of this version in its one form.
var ErrEntry = fault.Defects.New("not a ledger entry")

// The kinds of entries. A ledger may contain others: they are listed, and are not a defect.
const (
	KindGenesis    = "genesis"    // the first entry
	KindIntent     = "intent"     // a signature was authorized and is about to be made
	KindIssued     = "issued"     // the signature was made; the request may be released
	KindRefused    = "refused"    // a rule refused the request; nothing was signed, unless there was an intent
	KindFailed     = "failed"     // the key did not sign; nothing was released
	KindUnknown    = "unknown"    // an intent was left open: the key may have been used, nothing was released
	KindSuperseded = "superseded" // another request replaces this one
	KindCustomer   = "customer"   // a customer was added or changed
	KindNewKey     = "new-key"    // a known customer uses a key that nobody used before; the intent follows
	KindReassigned = "reassigned" // a key was moved to another customer
	KindErased     = "erased"     // the personal data of a customer was deleted
	KindAttached   = "attached"   // the push certificate of a customer was recorded
	KindWatched    = "watched"    // the certificates of a file or endpoint are reported as what is due
	KindUnwatched  = "unwatched"  // they no longer are
	KindRotated    = "rotated"    // which keys sign checkpoints from now on
	KindProbe      = "probe"      // the vendor's key signed the probe message, which is no request
	KindFrozen     = "frozen"     // nothing is signed or released for a customer, a caller, a vendor identity, or at all
	KindUnfrozen   = "unfrozen"   // it is again
	KindPolicy     = "policy"     // a program started with this policy, or read it again
	KindPending    = "pending"    // other people have to approve what was asked; nothing was signed
	KindApproved   = "approved"   // somebody approved it
	KindRejected   = "rejected"   // somebody rejected it, which ends it
	KindExpired    = "expired"    // it was not approved in time
	KindMoved      = "moved"      // the ledger is in another store from the next entry on

	KindProfile        = "profile"         // the signature of a profile was authorized and is about to be made
	KindProfileSigned  = "profile-signed"  // it was made; the signed profile may be released
	KindProfileFailed  = "profile-failed"  // the key did not sign; nothing was released
	KindProfileRefused = "profile-refused" // a rule refused it; nothing was signed, unless there was an entry of kind profile before
)

// ID identifies a request, a customer, an actor or a credential. It is random, so that it says nothing about a person; that of
// a credential is derived from its name.
// The zero ID means none.
type ID [16]byte

// CredentialID returns the ID of a credential of a name, which is the same for the same name; "" has the zero ID.
func CredentialID(name string) (id ID) {
	if name != "" {
		sum := SHA256([]byte("hsmsign credential\x00" + name))
		copy(id[:], sum[:])
	}
	return id
}

// NewID returns a random ID.
func NewID() ID {
	var id ID
	_, _ = rand.Read(id[:]) // never fails (Go 1.24)
	return id
}

// ParseID reads the 32 hex digits of an ID.
func ParseID(text string) (ID, error) {
	var id ID
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != len(id) {
		return id, fault.Usage.Errorf("%q is not an id", fault.Clip(text, 64)).Fix("an id has 32 hexadecimal digits; hsmsign ledger list shows them")
	}
	copy(id[:], raw)
	return id, nil
}

// String returns 32 hex digits; "" for the zero ID.
func (id ID) String() string {
	if id == (ID{}) {
		return ""
	}
	return hex.EncodeToString(id[:])
}

// Hash is a SHA-256. The zero Hash means none.
type Hash [sha256.Size]byte

// ParseHash reads the 64 hex digits of a SHA-256.
func ParseHash(text string) (Hash, error) {
	var h Hash
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != len(h) {
		return h, fault.Usage.Errorf("%q is not a SHA-256", fault.Clip(text, 80)).Fix("it has 64 hexadecimal digits")
	}
	copy(h[:], raw)
	return h, nil
}

// SHA256 returns the SHA-256 of data.
func SHA256(data []byte) Hash { return sha256.Sum256(data) }

// String returns 64 hex digits; "" for the zero Hash.
func (h Hash) String() string {
	if h == (Hash{}) {
		return ""
	}
	return hex.EncodeToString(h[:])
}

// Entry is one leaf of the ledger. It contains no personal data: who a customer or an actor is, and the CSR, are side
// rows, to which it has a commitment each.
type Entry struct {
	Time        time.Time // UTC, milliseconds
	Kind        string
	Request     ID
	Customer    ID
	Actor       ID
	Credential  ID           // with which the actor identified itself
	From        ID           // the customer that a reassigned key belonged to
	Channel     string       // how the order came: "local"
	Policy      Hash         // of the policy that was in force
	CSR         Hash         // of its DER; of the profile, if the entry is about one
	SPKI        Hash         // of the SubjectPublicKeyInfo of the CSR; of a probe: that of the vendor's key
	Vendor      Hash         // of the vendor certificate's DER; of the profile certificate's
	Chain       Hash         // of the DER certificates of the vendor's chain, concatenated
	Digest      string       // of the signature: "SHA-256"
	File        Hash         // of the request file, or the signed profile
	Operation   string       // the backend's id of the signing operation, if it has one
	Rule        string       // that refused the request
	Commitments []Commitment // sorted by name, each name once
}

// Commitment binds an entry to a side row, which can be erased: HMAC-SHA256, under the row's salt, of the SHA-256 of its data.
type Commitment struct {
	Name string
	MAC  Hash
}

// Opening is a side row: what a commitment is about.
type Opening struct {
	Name string
	Salt Hash // random
	Data []byte
	Hash Hash // SHA-256 of Data; zero: it is not computed yet
}

// NewOpening returns an opening with a random salt.
func NewOpening(name string, data []byte) Opening {
	o := Opening{Name: name, Data: data, Hash: SHA256(data)}
	_, _ = rand.Read(o.Salt[:]) // never fails (Go 1.24)
	return o
}

// Commitment returns the commitment that o opens. It is made from the hash of the data, so that data whose hash is in the
// entry too is hashed once.
func (o *Opening) Commitment() Commitment {
	if o.Hash == (Hash{}) {
		o.Hash = SHA256(o.Data)
	}
	mac := hmac.New(sha256.New, o.Salt[:])
	mac.Write(o.Hash[:])
	return Commitment{Name: o.Name, MAC: Hash(mac.Sum(nil))}
}

const (
	version   = 1
	maxField  = 1024 // bytes of a text
	maxLeaf   = 64 << 10
	fieldsMax = 64 // commitments of one entry
)

// texts returns the fields of an entry that are UTF-8 texts.
func (e *Entry) texts() []*string {
	return []*string{&e.Kind, &e.Channel, &e.Digest, &e.Operation, &e.Rule}
}

// ids and hashes return the fields of fixed length, which are empty when zero.
func (e *Entry) ids() []*ID {
	return []*ID{&e.Request, &e.Customer, &e.Actor, &e.Credential, &e.From}
}

func (e *Entry) hashes() []*Hash {
	return []*Hash{&e.Policy, &e.CSR, &e.SPKI, &e.Vendor, &e.Chain, &e.File}
}

// Marshal returns the bytes of the leaf. Each field is its length (2 bytes, big-endian) and its value:
//
//	version        1 byte: 1, without a length
//	time           8 bytes: milliseconds since 1970, UTC, big-endian
//	kind, channel, digest, operation, rule
//	               UTF-8
//	request, customer, actor, credential, from
//	               16 bytes, or none
//	policy, csr, spki, vendor, chain, file
//	               32 bytes, or none
//	commitments    for each, sorted by name: the name, and 32 bytes
//
// The error wraps ErrEntry if a field has no such form.
func (e *Entry) Marshal() ([]byte, error) {
	out := []byte{version}
	field := func(value []byte) {
		out = binary.BigEndian.AppendUint16(out, uint16(len(value))) // #nosec G115 -- at most maxField
		out = append(out, value...)
	}
	field(binary.BigEndian.AppendUint64(nil, uint64(e.Time.UnixMilli()))) // #nosec G115 -- after 1970: checked by Parse
	for _, text := range e.texts() {
		if len(*text) > maxField || strings.ToValidUTF8(*text, "") != *text {
			return nil, fmt.Errorf("%w: a text of %d bytes", ErrEntry, len(*text))
		}
		field([]byte(*text))
	}
	for _, id := range e.ids() {
		field(trim(id[:]))
	}
	for _, hash := range e.hashes() {
		field(trim(hash[:]))
	}
	if len(e.Commitments) > fieldsMax || !slices.IsSortedFunc(e.Commitments, func(a, b Commitment) int { return strings.Compare(a.Name, b.Name) }) {
		return nil, fmt.Errorf("%w: its commitments are too many or not sorted", ErrEntry)
	}
	for _, c := range e.Commitments {
		field([]byte(c.Name))
		field(c.MAC[:])
	}
	return out, nil
}

// trim returns nil for a value of zeros.
func trim(value []byte) []byte {
	if len(bytes.Trim(value, "\x00")) == 0 {
		return nil
	}
	return value
}

// ParseEntry reads a leaf. The error wraps ErrEntry unless Marshal would return the same bytes.
func ParseEntry(leaf []byte) (*Entry, error) {
	if len(leaf) == 0 || len(leaf) > maxLeaf {
		return nil, fmt.Errorf("%w: %d bytes", ErrEntry, len(leaf))
	}
	if leaf[0] != version {
		return nil, fmt.Errorf("%w: version %d", ErrEntry, leaf[0])
	}
	rest, failed := leaf[1:], false
	field := func(lengths ...int) []byte {
		n := -1
		if len(rest) >= 2 {
			n = int(binary.BigEndian.Uint16(rest))
		}
		if n < 0 || n > len(rest)-2 || lengths != nil && !slices.Contains(lengths, n) {
			failed, rest = true, nil
			return nil
		}
		value := rest[2 : 2+n]
		rest = rest[2+n:]
		return value
	}
	e := &Entry{}
	if ms := field(8); ms != nil {
		e.Time = time.UnixMilli(int64(binary.BigEndian.Uint64(ms))).UTC() // #nosec G115 -- the bytes are compared below
	}
	for _, text := range e.texts() {
		*text = string(field())
	}
	for _, id := range e.ids() {
		copy(id[:], field(0, len(id)))
	}
	for _, hash := range e.hashes() {
		copy(hash[:], field(0, len(hash)))
	}
	for len(rest) > 0 {
		c := Commitment{Name: string(field())}
		copy(c.MAC[:], field(sha256.Size))
		e.Commitments = append(e.Commitments, c)
	}
	again, err := e.Marshal()
	if err == nil && (failed || !bytes.Equal(again, leaf)) {
		err = fmt.Errorf("%w: it is cut, or not in its one form", ErrEntry)
	}
	if err != nil {
		return nil, err
	}
	return e, nil
}
