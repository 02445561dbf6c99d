package ledger

import (
	"context"
	"database/sql"

	"hsmsign/fault"
)

// rights are what a role needs on each table to record requests. It cannot change or delete an entry, nor erase a customer.
var rights = map[string]string{
	"ledger_schema": "SELECT",
	"head":          "SELECT, UPDATE",
	"entries":       "SELECT, INSERT",
	"hashes":        "SELECT, INSERT",
	"openings":      "SELECT, INSERT",
	"actors":        "SELECT, INSERT",
	"customers":     "SELECT, INSERT, UPDATE",
	"pushes":        "SELECT, INSERT, UPDATE",
	"requests":      "SELECT, INSERT, UPDATE",
	"approvals":     "SELECT, INSERT",
	"refusals":      "SELECT, INSERT, UPDATE",
	"daily":         "SELECT, INSERT, UPDATE",
	"chains":        "SELECT, INSERT",
	"keys":          "SELECT, INSERT, UPDATE",
	"watches":       "SELECT, INSERT, DELETE",
	"cosignatures":  "SELECT, INSERT, UPDATE, DELETE",
	"witnesses":     "SELECT, INSERT, UPDATE",
	"replicas":      "SELECT, INSERT, UPDATE, DELETE",
	"uses":          "SELECT, INSERT, UPDATE",
	"outbox":        "SELECT, INSERT, UPDATE, DELETE",
	"once":          "SELECT, INSERT, DELETE",
	"sessions":      "SELECT, INSERT, UPDATE, DELETE",
	"logins":        "SELECT, INSERT, DELETE",
	"destination":   "SELECT",
}

// Migrate brings the schema of a store that has a ledger to the version of this program, and allows a role of the database
// to record requests; role "": none. It needs the role that owns the tables. The error wraps fault.Usage if the store has
// no roles, and ErrStore if it has no ledger.
func Migrate(ctx context.Context, store *Store, role string) error {
	if role != "" && store.Grant == nil {
		return fault.Usage.Errorf("%s has no roles", store.Name).Fix("the owner and the mode of a SQLite file say who may write it")
	}
	if n, err := store.version(ctx, store.DB); err != nil || n == 0 {
		return store.fail("read the schema", orNotLedger(err))
	}
	err := store.transact(ctx, func(tx *sql.Tx) error {
		if err := store.migrate(ctx, tx); err != nil || role == "" {
			return err
		}
		return store.Grant(ctx, tx, role, rights)
	})
	return store.fail("migrate", err)
}
