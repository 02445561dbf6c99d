package ledger

import (
	"context"
	"database/sql"
	"maps"
	"slices"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// Reassign moves a customer's key, by the SHA-256 of its SubjectPublicKeyInfo, from one customer to another. Requests that
// were issued remain those of the first. Errors: kind not found if there is no such customer or key, kind conflict if the key
// does not belong to the first one.
func (l *Ledger) Reassign(ctx context.Context, actor, channel string, spki record.Hash, from, to string) error {
	if from == to {
		return fault.Usage.Errorf("the key would be moved from %q to %q", from, to).Fix("name two customers")
	}
	return l.Append(ctx, func(ctx context.Context, tx *Tx) error {
		var ids [2]record.ID
		for i, name := range []string{from, to} {
			known, err := tx.find(ctx, &ids[i], "SELECT id FROM customers WHERE name = ?", name)
			if err != nil {
				return err
			}
			if !known {
				return noCustomer(name)
			}
		}
		var owner record.ID
		used, err := tx.find(ctx, &owner, "SELECT customer FROM keys WHERE spki = ?", spki[:])
		switch {
		case err != nil:
			return err
		case !used:
			return fault.NotFound.Errorf("no customer has used the key %s", spki).Fix("name the SHA-256 of its SubjectPublicKeyInfo: key_sha256 of ledger list --json")
		case owner != ids[0]:
			return fault.Conflict.Errorf("the key %s does not belong to %q", spki, from).Rule(ruleForeignKey).Fix("name the customer that it belongs to with --from")
		}
		actorID, err := tx.actor(ctx, actor)
		if err != nil {
			return err
		}
		index, err := tx.Append(&record.Entry{Kind: record.KindReassigned, Customer: ids[1], From: ids[0], Actor: actorID, Channel: channel, SPKI: spki},
			record.NewOpening(openActor, []byte(actor)))
		tx.exec("UPDATE keys SET customer = ?, entry = ? WHERE spki = ?", ids[1][:], index, spki[:])
		return err
	})
}

// owner is whose key it is, and the entry that says it.
type owner struct {
	customer record.ID
	index    int64
}

// key follows what an entry says about the customer's key, and reports an entry that the rules do not allow.
func (v *verification) key(e *record.Entry, index int64) {
	if e.SPKI == (record.Hash{}) || aboutApproval(e.Kind) { // what waits for approval has no key yet
		return
	}
	before, used := v.keys[e.SPKI]
	used = used && !v.erased[before.customer]
	switch {
	case e.Kind == record.KindNewKey && used:
		v.add(index, "the key of the entry is not new")
	case e.Request != (record.ID{}) && !used:
		v.keys[e.SPKI] = owner{e.Customer, index}
	case e.Kind == record.KindIntent && before.customer != e.Customer:
		v.add(index, "the key of the entry belongs to another customer")
	case e.Kind == record.KindReassigned && !repeats(e) && (!used || before.customer != e.From):
		v.add(index, "the entry moves a key that did not belong to its first customer")
	case e.Kind == record.KindReassigned:
		v.keys[e.SPKI] = owner{e.Customer, index}
	}
}

func (v *verification) cachedKeys(ctx context.Context, tx *sql.Tx) error {
	maps.DeleteFunc(v.keys, func(_ record.Hash, o owner) bool { return v.erased[o.customer] })
	rows, err := tx.QueryContext(ctx, "SELECT spki, customer, entry FROM keys")
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }() // Err has the error
	for rows.Next() {
		var raw, customer []byte
		var index int64
		if err := rows.Scan(&raw, &customer, &index); err != nil {
			return err
		}
		var spki record.Hash
		if len(raw) == len(spki) {
			spki = record.Hash(raw)
		}
		if o, ok := v.keys[spki]; !ok || o.customer != idOf(customer) || o.index != index {
			v.add(index, "the list of keys does not say what the entry says")
		}
		delete(v.keys, spki)
	}
	var missing []int64
	for _, o := range v.keys {
		missing = append(missing, o.index)
	}
	for _, index := range slices.Sorted(slices.Values(missing)) {
		v.add(index, "the key of the entry is missing in the list of keys")
	}
	return rows.Err()
}
