package ledger

import (
	"context"
	"database/sql"
	_ "embed" // the schema
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"hsmsign/fault"
)

// ErrStore means that the ledger's store cannot be read or written.
var ErrStore = fault.Unavailable.New("the ledger cannot be used")

// schemaVersion is the version of the schema that this program reads and writes.
const schemaVersion = 1

//go:embed schema.sql
var schema string

// Store is an open database. Packages ledger/sqlite and ledger/postgres open one. Safe for concurrent use.
type Store struct {
	// Name is what messages call the store: its reference without secrets.
	Name string
	// DB begins transactions that write with the lock that serializes writers, or takes it with LockHead.
	DB *sql.DB
	// Bytes and Integer are the types of the columns for bytes and 64-bit integers.
	Bytes, Integer string
	// LockHead is added to the query of the head's row by a writer.
	LockHead string
	// LockSchema is a statement that serializes migrations, within their transaction.
	LockSchema string
	// Snapshot is the isolation of a transaction that reads one state.
	Snapshot sql.IsolationLevel
	// Numbered says that parameters are $1, $2, ...; otherwise ?.
	Numbered bool
	// Busy returns whether an error means that another process has the lock, after a wait. Nil: BeginTx waits and ends with
	// its context.
	Busy func(err error) bool
	// Forget is a statement after which the store's files no longer contain deleted rows; empty: there is none.
	Forget string
	// Backup writes a copy of the store, while it is in use, to a new file. Nil: the database has tools for that.
	Backup func(ctx context.Context, path string) error
	// Clock is a query of the time of the database, which all hosts share; empty: the time is that of the host.
	Clock string
	// Free returns how many bytes the disk of the store has free. Nil: it is unknown.
	Free func() (uint64, error)
	// Grant gives a role of the database rights on tables, and the use of their schema. Nil: the store has no roles.
	Grant func(ctx context.Context, tx *sql.Tx, role string, rights map[string]string) error
	// Denied returns whether an error means that the role of the database lacks a right. Nil: the store has no roles.
	Denied func(err error) bool
	// Check returns an error if the store is not the one that was opened, as a file that was deleted since. Nil: no check.
	Check func() error

	chains     sync.Map // hashes of vendor chains that the store has
	statements sync.Map // from a query to its *sql.Stmt: parsing costs as much as running
}

// statements runs the queries of a transaction with prepared statements.
type statements struct {
	store *Store
	tx    *sql.Tx
	// known says to use only statements that are prepared already. To prepare one needs a second connection: many transactions that
	// read could use up all connections and wait for each other. The writer, of which a process has one, prepares.
	known bool
}

// errNotPrepared means that a query has no prepared statement.
var errNotPrepared = errors.New("not prepared")

// prepared returns the prepared statement of a query.
func (s statements) prepared(ctx context.Context, query string) (*sql.Stmt, error) {
	if _, ok := s.store.statements.Load(query); !ok && s.known {
		return nil, errNotPrepared
	}
	found, err := s.store.statement(ctx, query)
	if err != nil {
		return nil, err
	}
	return s.tx.StmtContext(ctx, found), nil
}

func (s statements) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	statement, err := s.prepared(ctx, query)
	if err != nil {
		return nil, err
	}
	return statement.ExecContext(ctx, args...)
}

func (s statements) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	statement, err := s.prepared(ctx, query)
	if errors.Is(err, errNotPrepared) {
		return s.tx.QueryContext(ctx, s.store.bind(query), args...)
	}
	if err != nil {
		return nil, err
	}
	return statement.QueryContext(ctx, args...)
}

func (s statements) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	statement, err := s.prepared(ctx, query)
	if err != nil {
		return s.tx.QueryRowContext(ctx, s.store.bind(query), args...) // its Scan returns the error
	}
	return statement.QueryRowContext(ctx, args...)
}

// statement returns the statement of a query.
func (s *Store) statement(ctx context.Context, query string) (*sql.Stmt, error) {
	found, ok := s.statements.Load(query)
	if !ok {
		made, err := s.DB.PrepareContext(ctx, s.bind(query))
		if err != nil {
			return nil, err
		}
		var raced bool
		if found, raced = s.statements.LoadOrStore(query, made); raced {
			_ = made.Close() // the other one is used
		}
	}
	return found.(*sql.Stmt), nil
}

// preparing is the database outside of a transaction, for queries that every request needs.
type preparing struct{ *Store }

func (p preparing) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	statement, err := p.statement(ctx, query)
	if err != nil {
		return nil, err
	}
	return statement.QueryContext(ctx, args...)
}

func (p preparing) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	statement, err := p.statement(ctx, query)
	if err != nil {
		return p.DB.QueryRowContext(ctx, p.bind(query), args...) // its Scan returns the error
	}
	return statement.QueryRowContext(ctx, args...)
}

// bind returns a query, written with ?, as the store reads it.
func (s *Store) bind(query string) string {
	if !s.Numbered {
		return query
	}
	var b strings.Builder
	n := 0
	for part := range strings.SplitSeq(query, "?") {
		if n > 0 {
			fmt.Fprintf(&b, "$%d", n)
		}
		b.WriteString(part)
		n++
	}
	return b.String()
}

// fail returns the error of a store that could not be used; it names the store. Errors of other kinds do not change.
func (s *Store) fail(what string, err error) error {
	if kind := fault.KindOf(err); err == nil || kind != fault.Internal && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	fix := "nothing was released; make the ledger's store available and try again"
	if s.Denied != nil && s.Denied(err) {
		fix = "use the role that owns the ledger, or let it give this role its rights: hsmsign ledger migrate --grant"
	}
	return fault.Errorf("%w: %s: %s: %w", ErrStore, s.Name, what, err).Fix(fix)
}

// reserve is the free space in bytes below which only refusals are recorded.
const reserve = 16 << 20

// low returns whether the disk has only the reserve left.
func (s *Store) low() (bool, error) {
	if s.Free == nil {
		return false, nil
	}
	free, err := s.Free()
	return free < reserve, err
}

// querier is a database or a transaction.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// version returns the version of the schema in the store; 0 if it has none.
func (s *Store) version(ctx context.Context, q querier) (int, error) {
	var n int
	err := q.QueryRowContext(ctx, "SELECT version FROM ledger_schema").Scan(&n)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return n, err
}

// migrate creates the schema if it does not exist, within a transaction. Several processes may do it at once.
func (s *Store) migrate(ctx context.Context, tx *sql.Tx) error {
	statements := []string{s.LockSchema, s.ddl("CREATE TABLE IF NOT EXISTS ledger_schema (version INTEGER NOT NULL)")}
	for _, statement := range statements {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	n, err := s.version(ctx, tx)
	switch {
	case err != nil:
		return err
	case n == schemaVersion:
		return nil
	case n > schemaVersion:
		return newerSchema(n)
	}
	for statement := range strings.SplitSeq(s.ddl(schema), ";\n") {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	_, err = tx.ExecContext(ctx, s.bind("INSERT INTO ledger_schema (version) VALUES (?)"), schemaVersion)
	return err
}

func newerSchema(n int) error {
	return fault.Usage.Errorf("the ledger has schema %d, and this program knows up to %d", n, schemaVersion).Fix("use a newer hsmsign")
}

// ddl returns a statement of the schema with the store's types.
func (s *Store) ddl(text string) string {
	return strings.NewReplacer(" BLOB", " "+s.Bytes, " INTEGER", " "+s.Integer).Replace(text)
}

// transact runs do in a transaction that writes.
func (s *Store) transact(ctx context.Context, do func(tx *sql.Tx) error) error {
	tx, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // after Commit it does nothing
	if err := do(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// lockWait is how long a transaction waits for those of other processes.
const lockWait = 10 * time.Second

// begin begins a transaction. A store that waits for a lock without looking at ctx says Busy after a short time.
func (s *Store) begin(ctx context.Context) (*sql.Tx, error) {
	for end := time.Now().Add(lockWait); ; {
		tx, err := s.DB.BeginTx(ctx, nil)
		if err == nil || ctx.Err() != nil || s.Busy == nil || !s.Busy(err) || time.Now().After(end) {
			return tx, err
		}
	}
}

// hashReader reads stored hashes.
func (s *Store) hashReader(ctx context.Context, q querier) tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		found := make(map[int64]tlog.Hash, len(indexes))
		const chunk = 500
		for start := 0; start < len(indexes); start += chunk {
			part := indexes[start:min(start+chunk, len(indexes))]
			args := make([]any, len(part))
			for i, index := range part {
				args[i] = index
			}
			query := "SELECT idx, hash FROM hashes WHERE idx IN (?" + strings.Repeat(",?", len(part)-1) + ")"
			if err := s.hashes(ctx, q, query, args, found); err != nil {
				return nil, err
			}
		}
		out := make([]tlog.Hash, len(indexes))
		for i, index := range indexes {
			hash, ok := found[index]
			if !ok {
				return nil, fmt.Errorf("%w: stored hash %d is missing", ErrTampered, index)
			}
			out[i] = hash
		}
		return out, nil
	})
}

// each calls do for each row of a query.
func (s *Store) each(ctx context.Context, q querier, query string, args []any, do func(scan func(...any) error) error) error {
	rows, err := q.QueryContext(ctx, s.bind(query), args...)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }() // Err has the error
	for rows.Next() {
		if err := do(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}

// hashes adds the stored hashes that a query returns.
func (s *Store) hashes(ctx context.Context, q querier, query string, args []any, found map[int64]tlog.Hash) error {
	return s.each(ctx, q, query, args, func(scan func(...any) error) error {
		var index int64
		var raw []byte
		if err := scan(&index, &raw); err != nil {
			return err
		}
		if len(raw) != tlog.HashSize {
			return fmt.Errorf("%w: stored hash %d has %d bytes", ErrTampered, index, len(raw))
		}
		found[index] = tlog.Hash(raw)
		return nil
	})
}
