package ledger

import (
	"context"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// openOperations is the name of the opening with the operations of a probe: JSON of a record.Probed.
const openOperations = "operations"

const (
	maxOperations = 10_000         // of one entry
	maxOperation  = 128            // bytes of the name of one
	maxProbe      = 24 * time.Hour // from the first signature of a probe to its entry
)

var _ record.Prober = (*Ledger)(nil)

// Probe implements record.Prober. It appends one entry of kind probe, and a further one for each further 10,000 operations.
func (l *Ledger) Probe(ctx context.Context, p record.Probe) error {
	for _, operation := range p.Operations {
		if len(operation) > maxOperation {
			return fault.Usage.Errorf("an operation with a name of %d bytes; at most %d are recorded", len(operation), maxOperation)
		}
	}
	e := record.Entry{Kind: record.KindProbe, Channel: p.Channel, Credential: record.CredentialID(p.Credential)}
	if p.Err != nil {
		e.Rule = fault.KindOf(p.Err).String()
	}
	if p.Vendor != nil {
		e.Vendor = record.SHA256(p.Vendor)
	}
	if p.SPKI == nil && p.Vendor != nil {
		cert, err := x509.ParseCertificate(p.Vendor)
		if err != nil {
			return fault.Usage.Errorf("the vendor certificate of a probe: %w", err)
		}
		p.SPKI = cert.RawSubjectPublicKeyInfo
	}
	if p.SPKI != nil {
		e.SPKI = record.SHA256(p.SPKI)
	}
	parts := slices.Collect(slices.Chunk(p.Operations, maxOperations))
	if parts == nil {
		parts = [][]string{nil}
	}
	return l.Append(ctx, func(ctx context.Context, tx *Tx) (err error) {
		if p.Actor != "" {
			if e.Actor, err = tx.actor(ctx, p.Actor); err != nil {
				return err
			}
		}
		for _, operations := range parts {
			if err := tx.probe(p, e, operations); err != nil {
				return err
			}
		}
		return nil
	})
}

// probe appends an entry about some operations of a probe.
func (tx *Tx) probe(p record.Probe, e record.Entry, operations []string) error {
	var openings []record.Opening
	if p.Actor != "" {
		openings = append(openings, record.NewOpening(openActor, []byte(p.Actor)))
	}
	switch {
	case len(operations) == 1 && operations[0] != "":
		e.Operation = operations[0]
	case len(operations) > 0:
		began := p.Began
		if began.IsZero() {
			began = tx.now.Add(-openIntent)
		}
		data, err := json.Marshal(record.Probed{Began: began.UTC(), Operations: operations})
		if err != nil {
			return err
		}
		openings = append(openings, record.NewOpening(openOperations, data))
	}
	_, err := tx.Append(&e, openings...)
	return err
}

// probed reads the opening of a probe; nil if the entry has none.
func (l *Ledger) probed(ctx context.Context, q querier, index int64, e *record.Entry) (*record.Probed, error) {
	if !commits(e, openOperations) {
		return nil, nil
	}
	data, err := l.opening(ctx, q, index, e, openOperations)
	if err != nil {
		return nil, err
	}
	p, err := parseProbed(data)
	if err != nil {
		return nil, fmt.Errorf("%w: entry %d: %w", ErrTampered, index, err)
	}
	return p, nil
}

func parseProbed(data []byte) (*record.Probed, error) {
	var p record.Probed
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, fmt.Errorf("the operations are not readable: %w", err)
	}
	return &p, nil
}

// probeSigning returns what an entry of kind probe says about the key. signingProbes adds its operations.
func probeSigning(e *record.Entry, index int64) Signing {
	return Signing{Vendor: e.Vendor, Index: index, Kind: e.Kind, Intent: e.Time.Add(-openIntent), End: e.Time, Operation: e.Operation, Rule: e.Rule, entry: e}
}

// signingProbes returns the probes that may fall into a time, with their operations. One operation of an opening is one of
// the attempts.
func (l *Ledger) signingProbes(ctx context.Context, tx *sql.Tx, probes []Signing, from, to time.Time) (all []Signing, err error) {
	for _, s := range probes {
		p, err := l.probed(ctx, tx, s.Index, s.entry)
		if err != nil {
			return nil, err
		}
		if p != nil {
			s.Intent = p.Began // the clocks of the program and of the ledger may differ
			if earliest := s.End.Add(-maxProbe); s.Intent.Before(earliest) {
				s.Intent = earliest
			} else if s.Intent.After(s.End) {
				s.Intent = s.End
			}
			for _, operation := range p.Operations {
				s.Attempts = append(s.Attempts, record.Attempt{Time: s.Intent, Operation: operation})
			}
		}
		if s.entry = nil; !s.End.Before(from) && !s.Intent.After(to) {
			all = append(all, s)
		}
	}
	return all, nil
}
