package ledger

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"slices"
)

// caches compares the tables of requests and customers with what the entries say.
func (v *verification) caches(ctx context.Context, tx *sql.Tx) error {
	for _, l := range v.lost {
		if !v.erased[l.customer] {
			v.add(l.index, "data of the entry is missing, and no entry says that it was erased")
		}
	}
	if err := v.cachedRequests(ctx, tx); err != nil {
		return err
	}
	if err := v.cachedPushes(ctx, tx); err != nil {
		return err
	}
	if err := v.cachedChains(ctx, tx); err != nil {
		return err
	}
	if err := v.cachedWatches(ctx, tx); err != nil {
		return err
	}
	if err := v.cachedKeys(ctx, tx); err != nil {
		return err
	}
	if err := v.cachedDays(ctx, tx); err != nil {
		return err
	}
	if err := v.cachedReplicas(ctx, tx); err != nil {
		return err
	}
	if err := v.cachedApprovals(ctx, tx); err != nil {
		return err
	}
	rows, err := tx.QueryContext(ctx, "SELECT id, name, entry FROM customers")
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }() // Err has the error
	for rows.Next() {
		var raw []byte
		var name string
		var index int64
		if err := rows.Scan(&raw, &name, &index); err != nil {
			return err
		}
		id := idOf(raw)
		at, ok := v.customers[id]
		switch {
		case !ok:
			v.add(index, fmt.Sprintf("no entry adds the customer %q", name))
		case at != index || name != v.names[id]:
			v.add(at, fmt.Sprintf("the list of customers says %q, and not what the entry says", name))
		}
		delete(v.customers, id)
	}
	for id, index := range v.customers {
		if !v.erased[id] {
			v.add(index, "the customer of the entry is missing in the list of customers")
		}
	}
	return rows.Err()
}

func (v *verification) cachedRequests(ctx context.Context, tx *sql.Tx) error {
	rows, err := tx.QueryContext(ctx, "SELECT id, customer, state, entry, csr, spki, intent, begun, issued, until FROM requests")
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }() // Err has the error
	for rows.Next() {
		var id, customer, csr, spki []byte
		var state string
		var index, until int64
		var first begun
		if err := rows.Scan(&id, &customer, &state, &index, &csr, &spki, &first.index, &first.at, &first.issued, &until); err != nil {
			return err
		}
		e, began := v.requests[idOf(id)], v.begun[idOf(id)]
		switch {
		case e == nil:
			v.add(index, "the list of requests has one that no entry is about")
		case v.at[idOf(id)] != index || e.Kind != state || !bytes.Equal(e.Customer[:], customer) || !bytes.Equal(e.CSR[:], csr) ||
			!bytes.Equal(e.SPKI[:], spki) || began.index != first.index || began.issued != first.issued || began.at != first.at && !began.repeated:
			v.add(v.at[idOf(id)], "the list of requests does not say what the entry says")
		case !v.waitsUntil(idOf(id), e.Kind, until):
			v.add(v.at[idOf(id)], "the list of requests does not say until when the request can be approved")
		}
		delete(v.requests, idOf(id))
	}
	var missing []int64
	for id, e := range v.requests {
		if !v.erased[e.Customer] {
			missing = append(missing, v.at[id])
		}
	}
	for _, index := range slices.Sorted(slices.Values(missing)) {
		v.add(index, "the request of the entry is missing in the list of requests")
	}
	return rows.Err()
}

// push is a push certificate and the entry that says it.
type push struct {
	Push
	index int64
}

func (v *verification) cachedPushes(ctx context.Context, tx *sql.Tx) error {
	rows, err := tx.QueryContext(ctx, "SELECT customer, topic, expires, spki, entry FROM pushes")
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }() // Err has the error
	for rows.Next() {
		var id []byte
		var p Push
		var expires, index int64
		if err := rows.Scan(&id, &p.Topic, &expires, &p.SPKI, &index); err != nil {
			return err
		}
		said := v.pushes[idOf(id)]
		if said.index != index || said.Topic != p.Topic || said.NotAfter.UnixMilli() != expires || said.SPKI != p.SPKI {
			v.add(index, "the list of push certificates does not say what the entry says")
		}
		delete(v.pushes, idOf(id))
	}
	for id, p := range v.pushes {
		if v.erased[id] {
			continue
		}
		v.add(p.index, "the push certificate of the entry is missing in the list of push certificates")
	}
	return rows.Err()
}
