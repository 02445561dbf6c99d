package ledger

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"hsmsign/fault"
)

// ErrTampered means that the store is not what its signed checkpoint says: an entry was changed, removed, reordered or
// added, the store is an older copy, or somebody signed a fork.
var ErrTampered = fault.Defects.New("the ledger fails verification")

// maxCheckpoint is the maximum length of a signed checkpoint in bytes.
const maxCheckpoint = 64 << 10

// Checkpoint is the state of a ledger at one size, as C2SP tlog-checkpoint describes it.
type Checkpoint struct {
	Origin string
	Size   int64
	Root   tlog.Hash // RFC 6962 tree hash of the first Size entries
	Signed []byte    // the signed note (C2SP signed-note)

	keys []uint32 // key hashes of the Ed25519 signature lines with the name of the origin: one, or two during a rotation
}

// text returns the text that is signed.
func (c *Checkpoint) text() string {
	return fmt.Sprintf("%s\n%d\n%s\n", c.Origin, c.Size, base64.StdEncoding.EncodeToString(c.Root[:]))
}

// sign returns the checkpoint with its signed note.
func (c Checkpoint) sign(keys ...note.Signer) (*Checkpoint, error) {
	signed, err := note.Sign(&note.Note{Text: c.text()}, keys...)
	c.Signed = signed
	for _, key := range keys {
		c.keys = append(c.keys, key.KeyHash())
	}
	return &c, err
}

// ParseCheckpoint reads a signed checkpoint and checks the signature of the ledger's key, as "hsmsign ledger init" prints
// it, or of one of several keys with the same name. Signature lines of other keys and of other algorithms are ignored. The
// error wraps ErrTampered.
func ParseCheckpoint(signed []byte, verifiers ...note.Verifier) (*Checkpoint, error) {
	refused := func(format string, args ...any) error {
		return fmt.Errorf("%w: checkpoint: %s", ErrTampered, fmt.Sprintf(format, args...))
	}
	if len(signed) > maxCheckpoint {
		return nil, refused("%d bytes", len(signed))
	}
	origin := verifiers[0].Name()
	opened, err := note.Open(signed, note.VerifierList(verifiers...))
	if unverified, ok := errors.AsType[*note.UnverifiedNoteError](err); ok && len(keysOf(unverified.Note, origin)) > 0 {
		return nil, fault.WithHint(refused("it is signed by another key of %s than the pinned one", origin),
			"if the checkpoint key was rotated, pin the new verifier key; if not, somebody else has signed a ledger of this name")
	}
	if err != nil {
		return nil, refused("it is not signed by %s: %v", origin, err)
	}
	for _, signature := range slices.Concat(opened.Sigs, opened.UnverifiedSigs) { // note.Open ignores unused bits
		if _, err := base64.StdEncoding.Strict().DecodeString(signature.Base64); err != nil {
			return nil, refused("a signature: %v", err)
		}
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) < 4 {
		return nil, refused("it has %d lines", len(lines))
	}
	c := &Checkpoint{Origin: lines[0], Signed: signed, keys: keysOf(opened, origin)}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err == nil && len(root) != len(c.Root) {
		err = fmt.Errorf("the root hash has %d bytes", len(root))
	}
	if err == nil {
		c.Size, err = strconv.ParseInt(lines[1], 10, 64)
	}
	if err != nil {
		return nil, refused("%v", err)
	}
	copy(c.Root[:], root)
	switch {
	case c.Origin != origin:
		return nil, refused("its origin is %q, not %q", c.Origin, origin)
	case !strings.HasPrefix(opened.Text, c.text()) || c.Size < 0:
		return nil, refused("it is not in its one form")
	}
	return c, nil
}

// keysOf returns the key hashes of the signature lines with a name that can be Ed25519 signatures: those of other algorithms
// have other lengths.
func keysOf(n *note.Note, name string) (hashes []uint32) {
	for _, signature := range slices.Concat(n.Sigs, n.UnverifiedSigs) {
		raw, err := base64.StdEncoding.DecodeString(signature.Base64)
		if err == nil && signature.Name == name && len(raw) == ed25519Line {
			hashes = append(hashes, signature.Hash)
		}
	}
	return hashes
}
