package witness

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	cosign "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"

	"hsmsign/fault"
)

// maxLines is how many signature lines of a note are examined: a note has at most 100.
const maxLines = 100

// Cosignature is a signature of a witness below a checkpoint (C2SP tlog-cosignature), which was verified.
type Cosignature struct {
	Name string    // of the witness's key
	Line string    // the signature line, with its newline
	Time time.Time // when the witness made it; UTC
}

// NewVerifier returns the verifier of a witness's public key, a note verifier key (vkey) of type 0x04 (Ed25519 cosignature/v1)
// or 0x06 (ML-DSA-44). A key of type 0x01 (Ed25519) is used as one of type 0x04. The error is of kind usage.
func NewVerifier(vkey string) (note.Verifier, error) {
	refused := func(why string) (note.Verifier, error) {
		return nil, fault.Usage.Errorf("the verifier key of a witness %q: %s", fault.Clip(vkey, 64), why).
			Fix("copy the line NAME+HASH+KEY that the operator of the witness publishes; its type is 0x04 or 0x06")
	}
	v, err := cosign.NewVerifierForCosignatureV1(vkey)
	if err != nil {
		return refused(err.Error())
	}
	// The library does not compare the key hash, which is what finds a wrong name.
	part := strings.SplitN(vkey, "+", 3)
	if hash, err := strconv.ParseUint(part[1], 16, 32); err == nil && uint32(hash) == v.KeyHash() {
		return v, nil
	}
	if _, err := note.NewVerifier(vkey); err != nil { // type 0x01 has another hash
		return refused("its hash does not match name and key")
	}
	return v, nil
}

// KeyID returns the name and the key hash of a verifier: what identifies it in a note.
func KeyID(v note.Verifier) string { return fmt.Sprintf("%s+%08x", v.Name(), v.KeyHash()) }

// Find returns the valid cosignature of a witness in a signed checkpoint. Signatures of other keys and of unknown algorithms
// are ignored, and so is one without a time, which does not say that the tree is the largest that the witness saw.
func Find(checkpoint []byte, v note.Verifier) (Cosignature, bool) {
	text, lines, ok := strings.Cut(string(checkpoint), "\n\n")
	if !ok {
		return Cosignature{}, false
	}
	return find(text+"\n", lines, v)
}

// find searches signature lines for the cosignature of a text.
func find(text, lines string, v note.Verifier) (Cosignature, bool) {
	examined := 0
	for line := range strings.Lines(lines) {
		if examined++; examined > maxLines {
			break
		}
		if !strings.HasPrefix(line, "— "+v.Name()+" ") || !strings.HasSuffix(line, "\n") {
			continue
		}
		opened, err := note.Open([]byte(text+"\n"+line), note.VerifierList(v))
		if err != nil || len(opened.Sigs) != 1 {
			continue
		}
		at, err := cosign.CoSigV1Timestamp(opened.Sigs[0])
		if err != nil || at.Unix() <= 0 {
			continue
		}
		return Cosignature{Name: v.Name(), Line: line, Time: at.UTC()}, true
	}
	return Cosignature{}, false
}
