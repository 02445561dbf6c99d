package ledger

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"hsmsign/fault"
)

// maxKeys is how many keys of one ledger can be given: two during a rotation, and older ones to read old checkpoints.
const maxKeys = 8

// ed25519Line is the length of a signature line's bytes: the key hash and an Ed25519 signature.
const ed25519Line = 4 + ed25519.SignatureSize

// GenerateKey returns a new checkpoint key pair for an origin, an unpadded line of text such as example.com/hsmsign: the
// secret signer key and the public verifier key.
func GenerateKey(origin string) (signerKey, verifierKey string, err error) {
	if signerKey, verifierKey, err = note.GenerateKey(nil, origin); err == nil {
		_, err = note.NewVerifier(verifierKey) // it refuses spaces and plus signs
	}
	return signerKey, verifierKey, err
}

// VerifierKey returns the verifier keys of signer keys, one a line.
func VerifierKey(signerKeys string) (string, error) {
	var keys []string
	for line := range strings.Lines(signerKeys) {
		key, err := verifierKey(strings.TrimSpace(line))
		if err != nil {
			return "", err
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return "", errors.New("it is empty")
	}
	return strings.Join(keys, "\n"), nil
}

func verifierKey(signerKey string) (string, error) {
	if _, err := note.NewSigner(signerKey); err != nil {
		return "", errors.New("it is not a note signer key")
	}
	part := strings.SplitN(signerKey, "+", 5) // PRIVATE+KEY+NAME+HASH+BASE64
	raw, err := base64.StdEncoding.DecodeString(part[4])
	if err != nil || len(raw) != 1+ed25519.SeedSize {
		return "", errors.New("it is not an Ed25519 key")
	}
	return note.NewEd25519VerifierKey(part[2], ed25519.NewKeyFromSeed(raw[1:]).Public().(ed25519.PublicKey))
}

// parseKeys reads keys of one ledger, one a line: all have its origin as their name.
func parseKeys[K interface{ Name() string }](text string, parse func(line string) (K, error)) ([]K, error) {
	var keys []K
	for line := range strings.Lines(strings.TrimSpace(text)) {
		key, err := parse(strings.TrimSpace(line))
		switch {
		case err != nil:
			return nil, err
		case len(keys) > 0 && key.Name() != keys[0].Name():
			return nil, fmt.Errorf("it has keys of %q and %q", keys[0].Name(), key.Name())
		case len(keys) == maxKeys:
			return nil, fmt.Errorf("it has more than %d keys", maxKeys)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, errors.New("it is empty")
	}
	return keys, nil
}

// parseVerifiers reads the pinned verifier keys, one a line. The error is of kind usage.
func parseVerifiers(text string) ([]note.Verifier, error) {
	keys, err := parseKeys(text, note.NewVerifier)
	if err != nil {
		return nil, fault.Usage.Errorf("verifier key of the ledger: %w", err).Fix("it is the line that hsmsign ledger init printed")
	}
	return distinct(keys), nil
}

// distinct returns the keys without repetitions, which note.Open refuses.
func distinct(keys []note.Verifier) (all []note.Verifier) {
	for _, k := range keys {
		if !slices.Contains(hashesOf(all), k.KeyHash()) {
			all = append(all, k)
		}
	}
	return all
}

// parseSigners reads the checkpoint keys, one a line. The error is of kind usage and does not contain a key.
func parseSigners(text string) ([]note.Signer, error) {
	keys, err := parseKeys(text, note.NewSigner)
	if err != nil {
		return nil, fault.Usage.Errorf("checkpoint key of the ledger: %w", err).Fix("it is the file that hsmsign ledger init made")
	}
	return keys, nil
}

// hashesOf returns the key hashes of verifiers.
func hashesOf(keys []note.Verifier) []uint32 {
	var hashes []uint32
	for _, k := range keys {
		hashes = append(hashes, k.KeyHash())
	}
	return hashes
}

// pinned returns whether a verifier key is one of those that the ledger was opened with.
func (l *Ledger) pinned(hash uint32) bool { return slices.Contains(hashesOf(l.verifiers), hash) }

// signersOf returns the keys that must sign the checkpoint after head: those that signed head. So no process writes a
// checkpoint that lacks a key of a rotation that another process began. Only the writer calls it.
func (l *Ledger) signersOf(head *Checkpoint) ([]note.Signer, error) {
	signers := l.find(head.keys)
	if signers == nil && l.cfg.Keys != nil {
		text, err := l.cfg.Keys() // the file may have another key now
		if err != nil {
			return nil, err
		}
		if l.signers, err = parseSigners(text); err != nil {
			return nil, err
		}
		signers = l.find(head.keys)
	}
	if signers == nil {
		return nil, fault.Auth.Errorf("the checkpoint of the ledger is also signed by a key that is not in the checkpoint key file: the key is being rotated").
			Fix("copy the file from the host on which hsmsign ledger rotate ran")
	}
	return signers, nil
}

// find returns the signers with all of the given key hashes; nil if one is missing.
func (l *Ledger) find(hashes []uint32) []note.Signer {
	var found []note.Signer
	for _, hash := range hashes {
		i := slices.IndexFunc(l.signers, func(s note.Signer) bool { return s.KeyHash() == hash })
		if i < 0 {
			return nil
		}
		found = append(found, l.signers[i])
	}
	return found
}
