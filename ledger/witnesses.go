package ledger

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"
	"unicode"

	"golang.org/x/mod/sumdb/note"

	"hsmsign/fault"
	"hsmsign/ledger/witness"
)

// maxWitnesses is how many witnesses a ledger may have: their cosignatures must fit into one checkpoint.
const maxWitnesses = 16

// Witness is a server that cosigns the ledger's checkpoints (C2SP tlog-witness).
type Witness struct {
	Name     string // what messages call it; unique
	Operator string // who runs it: the witnesses of one operator count once; empty: Name
	URL      string // prefix of its addresses; empty: it is not asked, and its cosignatures are verified
	Verifier string // its public key, a note verifier key
}

// Cosignature is a valid cosignature of a witness.
type Cosignature struct {
	Witness  string // its name in the configuration
	Operator string
	Time     time.Time // UTC
}

// Cosigned is a checkpoint with the valid cosignatures of known witnesses. Its Signed has their lines.
type Cosigned struct {
	*Checkpoint
	Cosignatures []Cosignature
}

// Operators returns how many operators have cosigned.
func (c *Cosigned) Operators() int {
	if c == nil {
		return 0
	}
	return operators(c.Cosignatures)
}

func operators(all []Cosignature) int {
	seen := map[string]bool{}
	for _, c := range all {
		seen[c.Operator] = true
	}
	return len(seen)
}

// cosigner is a witness of the configuration.
type cosigner struct {
	Witness
	id     string // of its key
	key    note.Verifier
	client *witness.Client // nil: it is not asked
}

// CheckWitnesses returns an error of kind usage unless the witnesses can be used: their names and keys are unique and whole, their
// URLs are https, and at least required operators run them.
func CheckWitnesses(list []Witness, required int) error {
	_, err := newCosigners(list, required)
	return err
}

func newCosigners(list []Witness, required int) ([]*cosigner, error) {
	var all []*cosigner
	names, keys, runBy := map[string]bool{}, map[string]string{}, map[string]bool{}
	if len(list) > maxWitnesses {
		return nil, fault.Usage.Errorf("%d witnesses", len(list)).Fix(fmt.Sprintf("configure at most %d", maxWitnesses))
	}
	for _, w := range list {
		if w.Operator == "" {
			w.Operator = w.Name
		}
		for what, text := range map[string]string{"name": w.Name, "operator": w.Operator} {
			if text == "" || len(text) > 128 || bytes.ContainsFunc([]byte(text), func(r rune) bool { return !unicode.IsPrint(r) }) {
				return nil, fault.Usage.Errorf("the %s of a witness is %q", what, fault.Clip(text, 64)).Fix("write 1 to 128 printable characters")
			}
		}
		key, err := witness.NewVerifier(w.Verifier)
		if err != nil {
			return nil, fmt.Errorf("witness %q: %w", w.Name, err)
		}
		c := &cosigner{Witness: w, id: witness.KeyID(key), key: key}
		if w.URL != "" {
			if c.client, err = witness.New(w.URL, key); err != nil {
				return nil, fmt.Errorf("witness %q: %w", w.Name, err)
			}
		}
		switch {
		case names[w.Name]:
			return nil, fault.Usage.Errorf("two witnesses are called %q", w.Name).Fix("give each a name of its own")
		case keys[c.id] != "":
			return nil, fault.Usage.Errorf("the witnesses %q and %q have the same verifier key", keys[c.id], w.Name).Fix("remove one of them")
		}
		names[w.Name], keys[c.id], runBy[w.Operator] = true, w.Name, true
		all = append(all, c)
	}
	if required < 0 || required > len(runBy) {
		return nil, fault.Usage.Errorf("cosignatures of %d operators are required, and the witnesses have %d operators", required, len(runBy)).
			Fix("lower required, or configure witnesses of further operators: those of one operator count once")
	}
	return all, nil
}

// checkAsked returns an error of kind usage if too few witnesses have a URL for what is required.
func (l *Ledger) checkAsked() error {
	asked := slices.DeleteFunc(slices.Clone(l.witnesses), func(c *cosigner) bool { return c.client == nil })
	if n := allOperators(asked); n < l.cfg.Required {
		return fault.Usage.Errorf("cosignatures of %d operators are required, and the witnesses with a URL have %d operators", l.cfg.Required, n).
			Fix("configure the URLs of the witnesses")
	}
	return nil
}

// FindCosignatures returns a checkpoint, such as that of a proof, with the valid cosignatures of witnesses. The error is of kind
// usage and about the witnesses.
func FindCosignatures(cp *Checkpoint, list []Witness) (*Cosigned, error) {
	all, err := newCosigners(list, 0)
	if err != nil {
		return nil, err
	}
	return &Cosigned{Checkpoint: cp, Cosignatures: cosignaturesOf(cp.Signed, all)}, nil
}

func cosignaturesOf(signed []byte, all []*cosigner) (found []Cosignature) {
	for _, c := range all {
		if valid, ok := witness.Find(signed, c.key); ok {
			found = append(found, Cosignature{Witness: c.Name, Operator: c.Operator, Time: valid.Time})
		}
	}
	return found
}

// WitnessStatus is what is known of one witness.
type WitnessStatus struct {
	Witness
	Size    int64     // of the newest checkpoint of the ledger that it has cosigned; 0: none
	Time    time.Time // of that cosignature
	Failure string    // why it did not cosign when it was asked last; empty: it did
	Failed  time.Time // when it was asked
	Alarm   bool      // Failure is an alarm: the witness knows a ledger that the store's has not grown from
}

// WitnessStatuses returns the state of each witness of the configuration. Sizes and times are those of verified cosignatures;
// failures are what some process wrote to the store.
func (l *Ledger) WitnessStatuses(ctx context.Context) ([]WitnessStatus, error) {
	head, err := l.Head(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := l.witnessRows(ctx)
	if err != nil {
		return nil, l.store.fail("read the witnesses", err)
	}
	var all []WitnessStatus
	for _, c := range l.witnesses {
		row := rows[c.id]
		status := WitnessStatus{Witness: c.Witness, Failure: row.failure, Failed: row.failed, Alarm: row.alarm}
		newest, err := l.cosignedBy(ctx, head, []*cosigner{c}, 0, 1)
		if err != nil {
			return nil, l.store.fail("read the cosignatures", err)
		}
		if newest != nil {
			status.Size, status.Time = newest.Size, newest.Cosignatures[0].Time
		}
		all = append(all, status)
	}
	return all, nil
}

// Cosigned returns the newest checkpoint that at least enough operators have cosigned; if there is none, the one that most have
// cosigned; nil if there is none. Its cosignatures are verified, and the ledger has grown from it.
func (l *Ledger) Cosigned(ctx context.Context, enough int) (*Cosigned, error) {
	head, err := l.Head(ctx)
	if err != nil {
		return nil, err
	}
	found, err := l.cosignedBy(ctx, head, l.witnesses, 0, enough)
	if err != nil {
		return nil, l.store.fail("read the cosignatures", err)
	}
	return found, nil
}

// allOperators returns how many operators the witnesses have.
func allOperators(all []*cosigner) int {
	names := make([]string, len(all))
	for i, c := range all {
		names[i] = c.Operator
	}
	slices.Sort(names)
	return len(slices.Compact(names))
}
