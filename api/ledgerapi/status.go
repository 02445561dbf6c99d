package ledgerapi

import (
	"context"
	"encoding/hex"
	"time"

	"hsmsign/api"
	"hsmsign/ledger"
)

// Status describes a ledger, its witnesses and its copies; not what is frozen, nor the services that use it. required is how many
// operators of witnesses must have cosigned a request.
func Status(ctx context.Context, l *ledger.Ledger, required int, now time.Time) (*api.LedgerStatus, error) {
	head, err := l.Head(ctx)
	if err != nil {
		return nil, err
	}
	newest, err := l.Record(ctx, head.Size-1)
	if err != nil {
		return nil, err
	}
	cosigned, err := l.Cosigned(ctx, required)
	if err != nil {
		return nil, err
	}
	witnesses, err := l.WitnessStatuses(ctx)
	if err != nil {
		return nil, err
	}
	status := &api.LedgerStatus{
		Store: l.Name(), Origin: head.Origin, Entries: head.Size, Root: hex.EncodeToString(head.Root[:]), Newest: api.NewLedgerEntry(*newest).Time,
		Required: required, Cosigned: NewCosigned(cosigned, now),
	}
	if status.Moved, _, err = l.MovedTo(ctx); err != nil {
		return nil, err
	}
	for _, w := range witnesses {
		status.Witnesses = append(status.Witnesses, api.LedgerWitness{
			Name: w.Name, Operator: w.Operator, URL: w.URL, Entries: w.Size, Time: api.Time(w.Time), Error: w.Failure, Failed: api.Time(w.Failed), Alarm: w.Alarm,
		})
	}
	for _, c := range l.CopyStatuses() {
		status.Copies = append(status.Copies, api.LedgerCopy{File: c.Path, Entries: c.Size, Error: c.Failure})
	}
	return status, nil
}

// NewCosigned describes a cosigned checkpoint; nil if there is none.
func NewCosigned(c *ledger.Cosigned, now time.Time) *api.LedgerCosigned {
	if c == nil || len(c.Cosignatures) == 0 {
		return nil
	}
	out := &api.LedgerCosigned{Operators: c.Operators(), Entries: c.Size, Cosignatures: cosignatures(c.Cosignatures)}
	var newest time.Time
	for _, one := range c.Cosignatures {
		if one.Time.After(newest) {
			newest = one.Time
		}
	}
	out.AgeSeconds = max(0, int64(now.Sub(newest)/time.Second))
	return out
}

func cosignatures(all []ledger.Cosignature) []api.LedgerCosignature {
	out := make([]api.LedgerCosignature, 0, len(all))
	for _, one := range all {
		out = append(out, api.LedgerCosignature{Witness: one.Witness, Operator: one.Operator, Time: api.Time(one.Time)})
	}
	return out
}

// NewProof describes a proof.
func NewProof(p *ledger.Proof) api.EntryProof {
	return api.EntryProof{
		Index: p.Index, Origin: p.Checkpoint.Origin, Entries: p.Checkpoint.Size, Root: hex.EncodeToString(p.Checkpoint.Root[:]), Hashes: p.Hashes,
		Cosignatures: cosignatures(p.Cosignatures), Proof: string(p.Data),
	}
}
