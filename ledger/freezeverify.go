package ledger

import (
	"encoding/json"
	"slices"

	"hsmsign/ledger/record"
)

// freeze follows an entry about a freeze: what is frozen after it must follow from what was frozen before.
func (v *verification) freeze(e *record.Entry, index int64, openings []opened) {
	now := freezes{at: index}
	if json.Unmarshal([]byte(data(openings, openFreezes)), &now.list) != nil {
		v.add(index, "what is frozen from the entry on is missing or not readable")
		return
	}
	longer, shorter := now.list, v.frozen.list
	if e.Kind == record.KindUnfrozen {
		longer, shorter = shorter, longer
	}
	at := slices.IndexFunc(longer, func(f inForce) bool { return !slices.Contains(shorter, f) })
	switch {
	case at < 0, !slices.Equal(slices.Delete(slices.Clone(longer), at, at+1), shorter),
		longer[at].Customer != e.Customer.String(), e.Kind == record.KindFrozen && longer[at].Entry != index:
		v.add(index, "what is frozen from the entry on does not follow from what was frozen before it")
	}
	v.frozen = now
}

// whileFrozen reports an entry that a freeze does not allow. The name of the vendor identity is not recorded.
func (v *verification) whileFrozen(e *record.Entry, index int64, openings []opened) {
	if !slices.Contains([]string{record.KindIntent, record.KindIssued, record.KindProfile, record.KindProfileSigned}, e.Kind) {
		return
	}
	if v.frozen.stops(e.Customer, data(openings, openActor), "") != nil {
		v.add(index, "the entry was made while signing was frozen")
	}
}
