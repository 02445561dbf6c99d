package ledger

import (
	"encoding/base64"
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
}

// text returns the text that is signed.
func (c *Checkpoint) text() string {
	return fmt.Sprintf("%s\n%d\n%s\n", c.Origin, c.Size, base64.StdEncoding.EncodeToString(c.Root[:]))
}

// sign returns the checkpoint with its signed note.
func (c Checkpoint) sign(key note.Signer) (*Checkpoint, error) {
	signed, err := note.Sign(&note.Note{Text: c.text()}, key)
	c.Signed = signed
	return &c, err
}

// ParseCheckpoint reads a signed checkpoint and checks the signature of the ledger's key, as "hsmsign ledger init" prints
// it. Signature lines of other keys are ignored. The error wraps ErrTampered.
func ParseCheckpoint(signed []byte, verifier note.Verifier) (*Checkpoint, error) {
	refused := func(format string, args ...any) error {
		return fmt.Errorf("%w: checkpoint: %s", ErrTampered, fmt.Sprintf(format, args...))
	}
	if len(signed) > maxCheckpoint {
		return nil, refused("%d bytes", len(signed))
	}
	opened, err := note.Open(signed, note.VerifierList(verifier))
	if err != nil {
		return nil, refused("it is not signed by %s: %v", verifier.Name(), err)
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
	c := &Checkpoint{Origin: lines[0], Signed: signed}
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
	case c.Origin != verifier.Name():
		return nil, refused("its origin is %q, not %q", c.Origin, verifier.Name())
	case !strings.HasPrefix(opened.Text, c.text()) || c.Size < 0:
		return nil, refused("it is not in its one form")
	}
	return c, nil
}
