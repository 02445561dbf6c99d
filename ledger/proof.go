package ledger

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/transparency-dev/formats/proof"
	"golang.org/x/mod/sumdb/tlog"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// maxProof is the maximum length of a proof in bytes.
const maxProof = 256 << 10

// Proven is an entry that is in a ledger, and where.
type Proven struct {
	Index      int64
	Entry      *record.Entry
	Checkpoint *Checkpoint
}

// Prove returns a proof (C2SP tlog-proof) that the entry with which a request was issued is in the ledger. Its extra line
// has the bytes of the leaf. Its checkpoint is the one with the entry that most operators of witnesses have cosigned, the newest
// of those; if none was cosigned, the head. The error is of kind not found if the request was not issued.
func (l *Ledger) Prove(ctx context.Context, request record.ID) ([]byte, error) {
	head, err := l.Head(ctx)
	if err != nil {
		return nil, err
	}
	index, found, err := l.issued(ctx, head, request)
	if err != nil {
		return nil, err
	}
	p, err := l.prove(ctx, head, index, found)
	if err != nil {
		return nil, err
	}
	return p.Data, nil
}

// Proof is a proof of one entry, and what it shows.
type Proof struct {
	Proven
	Data         []byte        // C2SP tlog-proof
	Hashes       int           // of the path from the entry to the root
	Cosignatures []Cosignature // of the checkpoint, by witnesses of the configuration
}

// ProveEntry returns a proof of any entry, as Prove does of an issued request. The error is of kind not found if there is no such
// entry.
func (l *Ledger) ProveEntry(ctx context.Context, index int64) (*Proof, error) {
	head, err := l.Head(ctx)
	if err != nil {
		return nil, err
	}
	if index < 0 || index >= head.Size {
		return nil, fault.NotFound.Errorf("there is no entry %d; the ledger has %d", index, head.Size)
	}
	found, err := l.entry(ctx, l.store.DB, head, index)
	if err != nil {
		return nil, l.store.fail("prove the entry", err)
	}
	return l.prove(ctx, head, index, found)
}

// prove returns the proof of an entry under the checkpoint that most operators of witnesses have cosigned.
func (l *Ledger) prove(ctx context.Context, head *Checkpoint, index int64, found *record.Entry) (*Proof, error) {
	cosigned, err := l.cosignedBy(ctx, head, l.witnesses, index, allOperators(l.witnesses))
	if err != nil {
		return nil, l.store.fail("prove the entry", err)
	}
	if cosigned != nil {
		head = cosigned.Checkpoint
	}
	leaf, err := found.Marshal()
	if err != nil {
		return nil, err
	}
	hashes, err := tlog.ProveRecord(head.Size, index, l.store.hashReader(ctx, l.store.DB))
	if err != nil {
		return nil, l.store.fail("prove the entry", err)
	}
	p := proof.TLogProof{Index: uint64(index), Checkpoint: head.Signed, ExtraData: leaf} // #nosec G115 -- not negative
	for _, h := range hashes {
		p.Hashes = append(p.Hashes, h)
	}
	data := p.Marshal()
	proven, err := CheckProof(data, l.cfg.Verifier)
	if err != nil {
		return nil, l.store.fail("prove the entry", err)
	}
	return &Proof{Proven: *proven, Data: data, Hashes: len(hashes), Cosignatures: cosignaturesOf(head.Signed, l.witnesses)}, nil
}

// issued returns the entry with which a request was issued, and its index, after proving it.
func (l *Ledger) issued(ctx context.Context, head *Checkpoint, request record.ID) (index int64, found *record.Entry, err error) {
	err = l.store.DB.QueryRowContext(ctx, l.store.bind("SELECT issued FROM requests WHERE id = ? AND issued >= 0"), request[:]).Scan(&index)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil, fault.NotFound.Errorf("no request %s was issued", request).Fix("hsmsign ledger list shows the ids")
	}
	if err == nil {
		found, err = l.entry(ctx, l.store.DB, head, index)
	}
	if err == nil && (found.Request != request || found.Kind != record.KindIssued && !repeats(found)) {
		err = fmt.Errorf("%w: entry %d is not the one with which the request %s was issued", ErrTampered, index, request)
	}
	return index, found, l.store.fail("prove the entry", err)
}

// CheckProof checks a proof with the ledger's verifier key, or several, one a line, without the ledger. Nothing in the proof is
// trusted before: the
// leaf's hash must lead to the root of the signed checkpoint. The error wraps ErrTampered.
func CheckProof(data []byte, verifierKeys string) (*Proven, error) {
	verifiers, err := parseVerifiers(verifierKeys)
	if err != nil {
		return nil, err
	}
	refused := func(err error) (*Proven, error) { return nil, fmt.Errorf("%w: the proof: %w", ErrTampered, err) }
	var p proof.TLogProof
	if len(data) > maxProof {
		return refused(fmt.Errorf("larger than %d bytes", maxProof))
	}
	if err := p.Unmarshal(data); err != nil {
		return refused(err)
	}
	head, err := ParseCheckpoint(p.Checkpoint, verifiers...)
	if err != nil {
		return nil, err
	}
	if p.Index >= uint64(head.Size) || !bytes.Equal(p.Marshal(), data) { // #nosec G115 -- a size is not negative
		return refused(errors.New("it is not in its one form"))
	}
	hashes := make(tlog.RecordProof, len(p.Hashes))
	for i, h := range p.Hashes {
		hashes[i] = h
	}
	index := int64(p.Index) // #nosec G115 -- below the size
	if err := tlog.CheckRecord(hashes, head.Size, head.Root, index, tlog.RecordHash(p.ExtraData)); err != nil {
		return refused(errors.New("the entry is not in the ledger of the checkpoint"))
	}
	e, err := record.ParseEntry(p.ExtraData)
	if err != nil {
		return refused(err)
	}
	return &Proven{Index: index, Entry: e, Checkpoint: head}, nil
}
