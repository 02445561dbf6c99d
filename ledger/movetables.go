package ledger

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"hsmsign/ledger/record"
)

// movedTables are the tables that Move copies when the source is closed. Entries, hashes and openings were copied before, and the
// head follows. Sessions and logins are not copied: people sign in again.
var movedTables = []string{
	"chains", "actors", "customers", "keys", "pushes", "requests", "approvals", "watches", "cosignatures", "witnesses", "daily", "refusals", "replicas", "uses", "outbox", "once",
}

// moveRows is about how many values are inserted at once.
const moveRows = 64

// table copies a table, row by row.
func (r *moving) table(ctx context.Context, from *sql.Tx, q statements, name string) error {
	rows, err := from.QueryContext(ctx, "SELECT * FROM "+name) // #nosec G202 -- a constant
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }() // Err has the error
	columns, err := rows.Columns()
	if err != nil {
		return err
	}
	insert := "INSERT INTO " + name + " (" + strings.Join(columns, ", ") + ") VALUES "
	var values []any
	for rows.Next() {
		row, into := make([]any, len(columns)), make([]any, len(columns))
		for i := range row {
			into[i] = &row[i]
		}
		if err := rows.Scan(into...); err != nil {
			return err
		}
		for i, value := range row {
			row[i] = portable(value)
		}
		if values = append(values, row...); len(values) < moveRows*len(columns) {
			continue
		}
		if err := q.insert(ctx, insert, len(columns), values); err != nil {
			return err
		}
		values = nil
	}
	if err := rows.Err(); err != nil {
		return err
	}
	return q.insert(ctx, insert, len(columns), values)
}

// portable returns a value as every store accepts it. Text may be of strangers, such as the answer of a witness, and PostgreSQL
// accepts only UTF-8. The driver of SQLite returns a nil slice for no bytes, and would write NULL for it.
func portable(value any) any {
	switch v := value.(type) {
	case string:
		return strings.ToValidUTF8(v, "\uFFFD")
	case []byte:
		return append([]byte{}, v...)
	}
	return value
}

// erase deletes the side rows of customers that were erased after their entries had been copied, and compares how many are left.
func (r *moving) erase(ctx context.Context, from *sql.Tx, q statements) error {
	var erased [][]byte
	err := r.source.store.each(ctx, from, "SELECT DISTINCT customer FROM entries WHERE kind = ?", []any{record.KindErased}, func(scan func(...any) error) error {
		var id []byte
		err := scan(&id)
		erased = append(erased, id)
		return err
	})
	if err != nil {
		return err
	}
	for _, id := range erased {
		if _, err := q.ExecContext(ctx, eraseOpenings, id); err != nil {
			return err
		}
	}
	const count = "SELECT count(*) FROM openings"
	var want, got int64
	if err := from.QueryRowContext(ctx, count).Scan(&want); err != nil {
		return err
	}
	if err := q.QueryRowContext(ctx, count).Scan(&got); err != nil {
		return err
	}
	if want != got {
		return fmt.Errorf("%w: the ledger has %d side rows and the copy %d", ErrTampered, want, got)
	}
	return nil
}
