package ledger

import (
	"context"
	"database/sql"
	"errors"

	"hsmsign/ledger/record"
)

// maxRefusals is how many refusals of an actor are entries on one day. More are one count for each rule: whoever may only be
// refused must not fill the ledger.
const maxRefusals = 1000

// refuse records a refusal.
func (tx *Tx) refuse(ctx context.Context, u *use, rule string) error {
	return tx.refuseOnce(ctx, u.actor, u.csr, rule, func() error {
		if err := tx.keepChain(ctx, u); err != nil {
			return err
		}
		e := u.entry(record.KindRefused, record.ID{})
		e.Rule = rule
		_, err := tx.Append(e, u.openings...)
		return err
	})
}

// refuseOnce has a refusal appended: once a day for one actor, rule and CSR or profile, and then only as a count.
func (tx *Tx) refuseOnce(ctx context.Context, actor record.ID, about record.Hash, rule string, appendIt func() error) error {
	day := tx.now.Unix() / (24 * 60 * 60)
	var repeated, recorded int64
	err := tx.row(ctx, "SELECT repeated FROM refusals WHERE day = ? AND actor = ? AND rule = ? AND csr = ?", day, actor[:], rule, about[:]).Scan(&repeated)
	if err == nil {
		tx.exec("UPDATE refusals SET repeated = repeated + 1 WHERE day = ? AND actor = ? AND rule = ? AND csr = ?", day, actor[:], rule, about[:])
		return nil
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if err := tx.row(ctx, "SELECT count(*) FROM refusals WHERE day = ? AND actor = ?", day, actor[:]).Scan(&recorded); err != nil {
		return err
	}
	if recorded >= maxRefusals {
		tx.exec("INSERT INTO refusals (day, actor, rule, csr, repeated) VALUES (?, ?, ?, ?, 1) ON CONFLICT (day, actor, rule, csr) DO UPDATE SET repeated = refusals.repeated + 1",
			day, actor[:], rule, []byte{})
		return nil
	}
	if err := appendIt(); err != nil {
		return err
	}
	tx.exec("INSERT INTO refusals (day, actor, rule, csr, repeated) VALUES (?, ?, ?, ?, 0)", day, actor[:], rule, about[:])
	return nil
}
