package ledger

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"hsmsign/ledger/record"
)

// keepChain stores the vendor's chain of a use, of which an entry has only the hash. The caller appends an entry after it.
func (tx *Tx) keepChain(ctx context.Context, u *use) error {
	store := tx.ledger.store
	if _, known := store.chains.Load(u.root); known {
		return nil
	}
	var n int
	if err := tx.row(ctx, "SELECT count(*) FROM chains WHERE hash = ?", u.root[:]).Scan(&n); err != nil {
		return err
	}
	switch {
	case n == 0:
		tx.exec("INSERT INTO chains (hash, data) VALUES (?, ?)", u.root[:], append([]byte{}, u.Chain...))
	case len(tx.added) == 0: // it was committed before this batch, which may fail
		store.chains.Store(u.root, true)
	}
	return nil
}

// chain returns the DER certificates of a vendor's chain. The error wraps ErrTampered if the stored one has not this hash.
func (l *Ledger) chain(ctx context.Context, q querier, hash record.Hash) (data []byte, err error) {
	err = q.QueryRowContext(ctx, l.store.bind("SELECT data FROM chains WHERE hash = ?"), hash[:]).Scan(&data)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, err
	}
	if sha256.Sum256(data) != hash {
		return nil, fmt.Errorf("%w: the stored vendor chain %s is missing or was changed", ErrTampered, hash)
	}
	return data, nil
}

// useBefore returns when the first certificate of a chain expires, UTC: a request under it is useless from then on. It is
// zero if the stored chain has no certificates. The error wraps ErrTampered if it is not the chain with this hash.
func (l *Ledger) useBefore(ctx context.Context, q querier, hash record.Hash) (first time.Time, err error) {
	data, err := l.chain(ctx, q, hash)
	if err != nil {
		return first, err
	}
	certs, _ := x509.ParseCertificates(data) // the hash is right: that is what was recorded
	for _, c := range certs {
		if first.IsZero() || c.NotAfter.Before(first) {
			first = c.NotAfter.UTC()
		}
	}
	return first, nil
}

// dates returns useBefore, and reads each chain once.
type dates struct {
	*Ledger
	known map[record.Hash]time.Time
}

func (d *dates) useBefore(ctx context.Context, q querier, hash record.Hash) (time.Time, error) {
	if at, ok := d.known[hash]; ok {
		return at, nil
	}
	at, err := d.Ledger.useBefore(ctx, q, hash)
	if err == nil {
		d.known[hash] = at
	}
	return at, err
}

// cachedChains checks that the chain of each entry is stored.
func (v *verification) cachedChains(ctx context.Context, tx *sql.Tx) error {
	rows, err := tx.QueryContext(ctx, "SELECT hash, data FROM chains")
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }() // Err has the error
	for rows.Next() {
		var hash, data []byte
		if err := rows.Scan(&hash, &data); err != nil {
			return err
		}
		sum := record.SHA256(data)
		if _, used := v.chains[sum]; !used || !bytes.Equal(sum[:], hash) {
			v.add(-1, fmt.Sprintf("the stored vendor chain with SHA-256 %s is that of no entry", sum))
			continue
		}
		delete(v.chains, sum)
	}
	for _, index := range slices.Sorted(maps.Values(v.chains)) {
		v.add(index, "the vendor chain of the entry is missing")
	}
	return rows.Err()
}
