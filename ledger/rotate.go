package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// openKeys is the name of the opening with the verifier keys of the ledger, one a line, the newest last.
const openKeys = "keys"

// Rotate begins the rotation of the checkpoint key: it appends an entry with the old and the new verifier key, and from then
// on both keys sign each checkpoint, until EndRotation. The new signer key is in the checkpoint key file before, with the old
// one. The error is of kind conflict if a rotation has begun.
func (l *Ledger) Rotate(ctx context.Context, actor, channel, newKey string) error {
	added, err := parseSigners(newKey)
	if err != nil {
		return err
	}
	if len(added) != 1 || added[0].Name() != l.Origin() {
		return fault.Usage.Errorf("the new checkpoint key is not one key of %q", l.Origin())
	}
	newVerifier, err := VerifierKey(newKey)
	if err != nil {
		return fault.Usage.Errorf("the new checkpoint key: %w", err)
	}
	return l.Append(ctx, func(ctx context.Context, tx *Tx) error {
		if len(tx.signers) > 1 {
			return fault.Conflict.Errorf("the checkpoint key is being rotated already").Fix("pin the new verifier key everywhere, then run hsmsign ledger rotate --end")
		}
		if tx.signers[0].KeyHash() == added[0].KeyHash() {
			return fault.Conflict.Errorf("this key signs the checkpoints already").Fix("complete the last rotation with hsmsign ledger rotate --end")
		}
		oldVerifier, err := l.verifierOf(tx.signers[0])
		if err != nil {
			return err
		}
		return tx.setSigners(ctx, actor, channel, []string{oldVerifier, newVerifier}, append(slices.Clone(tx.signers), added[0]))
	})
}

// EndRotation ends the rotation: only the new key signs checkpoints from now on. It returns the new verifier key. Errors: kind
// conflict if no rotation has begun; kind usage if the ledger was not opened with the new verifier key, which shows that
// verifiers would refuse it.
func (l *Ledger) EndRotation(ctx context.Context, actor, channel string) (verifierKey string, err error) {
	var newKey string
	if err := l.Append(ctx, func(ctx context.Context, tx *Tx) error {
		keys, err := tx.rotation(ctx)
		if err != nil {
			return err
		}
		if len(keys) == 1 && len(l.signers) > 1 && l.isLast(keys[0]) { // a run that was killed after the entry
			newKey = keys[0]
			return nil
		}
		if len(keys) < 2 || len(tx.signers) < 2 {
			return fault.Conflict.Errorf("no rotation has begun").Fix("begin it with hsmsign ledger rotate")
		}
		newKey = keys[len(keys)-1]
		verifier, err := note.NewVerifier(newKey)
		if err != nil {
			return fmt.Errorf("%w: the new verifier key: %w", ErrTampered, err)
		}
		if !l.pinned(verifier.KeyHash()) {
			return fault.Usage.Errorf("the pinned verifier key is the old one").Fix("pin the new one first, here and wherever the ledger is verified: " + newKey)
		}
		i := slices.IndexFunc(tx.signers, func(s note.Signer) bool { return s.KeyHash() == verifier.KeyHash() })
		if i < 0 {
			return fmt.Errorf("%w: the checkpoint is not signed by the new key", ErrTampered)
		}
		return tx.setSigners(ctx, actor, channel, []string{newKey}, []note.Signer{tx.signers[i]})
	}); err != nil { // the change may still be running: nothing of it may be read
		return "", err
	}
	return newKey, nil
}

// isLast returns whether a verifier key is that of the last checkpoint key.
func (l *Ledger) isLast(verifierKey string) bool {
	verifier, err := note.NewVerifier(verifierKey)
	return err == nil && l.signers[len(l.signers)-1].KeyHash() == verifier.KeyHash()
}

// verifierOf returns the verifier key of one of the signers of the ledger.
func (l *Ledger) verifierOf(signer note.Signer) (string, error) {
	verifiers, err := VerifierKey(l.cfg.Key)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(verifiers) {
		key, err := note.NewVerifier(strings.TrimSpace(line))
		if err == nil && key.KeyHash() == signer.KeyHash() {
			return strings.TrimSpace(line), nil
		}
	}
	return "", fault.Conflict.Errorf("another process rotated the checkpoint key").Fix("run the command again")
}

// setSigners appends the entry that says which keys sign checkpoints, and has them sign.
func (tx *Tx) setSigners(ctx context.Context, actor, channel string, verifierKeys []string, signers []note.Signer) error {
	actorID, err := tx.actor(ctx, actor)
	if err != nil {
		return err
	}
	_, err = tx.Append(&record.Entry{Kind: record.KindRotated, Actor: actorID, Channel: channel},
		record.NewOpening(openActor, []byte(actor)), record.NewOpening(openKeys, []byte(strings.Join(verifierKeys, "\n")+"\n")))
	if err == nil {
		tx.signers = signers
	}
	return err
}

// rotation returns the verifier keys that the newest entry about them says; nil if there is none.
func (tx *Tx) rotation(ctx context.Context) ([]string, error) {
	var at int64
	err := tx.row(ctx, "SELECT idx FROM entries WHERE kind = ? ORDER BY idx DESC LIMIT 1", record.KindRotated).Scan(&at)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	e, err := tx.entry(ctx, at)
	if err != nil {
		return nil, err
	}
	data, err := tx.ledger.opening(ctx, tx.sql, at, e, openKeys)
	return strings.Fields(string(data)), err
}

// rotation follows an entry about the keys that sign checkpoints. Those of the past verify what was cosigned then.
func (v *verification) rotation(verifierKeys string, index int64) {
	v.signedBy, v.signedAt = verifierKeys, index
	keys, err := parseVerifiers(verifierKeys)
	if err == nil && keys[0].Name() == v.ledger.Origin() { // otherwise see rotated
		v.verifiers = distinct(slices.Concat(v.verifiers, keys))
	}
}

// rotated compares the keys that signed the head with those that the newest entry about them says.
func (v *verification) rotated() {
	signed := slices.Sorted(slices.Values(v.Head.keys))
	if v.signedAt < 0 {
		if len(signed) > 1 {
			v.add(-1, "the checkpoint is signed by more than one key, and no entry says so")
		}
		return
	}
	said, err := parseVerifiers(v.signedBy)
	if err != nil {
		v.add(v.signedAt, "the verifier keys are not readable")
		return
	}
	if !slices.Equal(signed, slices.Sorted(slices.Values(hashesOf(said)))) {
		v.add(v.signedAt, "the checkpoint is not signed by the keys that the entry says, and no others")
	}
}
