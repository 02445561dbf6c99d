// Package postgres opens a ledger's store in PostgreSQL, for the processes of many hosts.
//
// The connection goes over a Unix socket, a loopback address, or TLS with sslmode=verify-full. The server must flush what it
// commits: fsync and full_page_writes must be on, and every session sets synchronous_commit.
package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"hsmsign/fault"
	"hsmsign/ledger"
)

// maxConnections is how many connections one process opens: a server accepts 100 by default, which several processes share.
const maxConnections = 32

// schemaLock is the advisory lock under which the schema is made.
const schemaLock = 0x68736d7369676e // "hsmsign"

// Open opens the database that a postgres:// URL names; the password may come from PGPASSWORD or PGPASSFILE. The caller
// closes Store.DB.
func Open(ctx context.Context, dsn string) (*ledger.Store, error) {
	name := redacted(dsn)
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil { // pgx's error may repeat the URL
		return nil, fault.Usage.Errorf("%s: not a postgres:// URL that can be read", name).Fix("write postgres://USER@HOST/DATABASE?sslmode=verify-full")
	}
	if err := checkTransport(&cfg.Config); err != nil {
		return nil, fault.Usage.Errorf("%s: %w", name, err).Fix("use sslmode=verify-full, a Unix socket, or a loopback address")
	}
	cfg.RuntimeParams["synchronous_commit"] = "on"
	cfg.RuntimeParams["application_name"] = "hsmsign"
	db := stdlib.OpenDB(*cfg)
	db.SetMaxOpenConns(maxConnections)
	db.SetMaxIdleConns(maxConnections / 4) // a connection is a process of the server
	if err := checkDurable(ctx, db); err != nil {
		_ = db.Close() // the first error is reported
		return nil, fault.Errorf("%w: %s: %w", ledger.ErrStore, name, err).Fix("check the server, the user and the password")
	}
	return &ledger.Store{
		Name: name, DB: db, Bytes: "BYTEA", Integer: "BIGINT", LockHead: " FOR UPDATE", Numbered: true,
		LockSchema: fmt.Sprintf("SELECT pg_advisory_xact_lock(%d)", int64(schemaLock)), Snapshot: sql.LevelRepeatableRead,
		Clock: "SELECT clock_timestamp()", Grant: grant, Denied: func(err error) bool {
			e, ok := errors.AsType[*pgconn.PgError](err)
			return ok && e.Code == insufficientPrivilege
		},
	}, nil
}

// insufficientPrivilege is an SQLSTATE (PostgreSQL, appendix A).
const insufficientPrivilege = "42501"

// grant gives a role rights on tables of the current schema.
func grant(ctx context.Context, tx *sql.Tx, role string, rights map[string]string) error {
	var schema string
	if err := tx.QueryRowContext(ctx, "SELECT current_schema()").Scan(&schema); err != nil {
		return err
	}
	to := " TO " + pgx.Identifier{role}.Sanitize()
	statements := []string{"GRANT USAGE ON SCHEMA " + pgx.Identifier{schema}.Sanitize() + to}
	for table, list := range rights {
		statements = append(statements, "GRANT "+list+" ON "+pgx.Identifier{schema, table}.Sanitize()+to)
	}
	for _, statement := range statements {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// redacted returns a URL without its password and parameters.
func redacted(dsn string) string {
	u, err := url.Parse(dsn)
	if err != nil {
		return "postgres:"
	}
	u.RawQuery, u.Fragment = "", ""
	if u.User != nil {
		u.User = url.User(u.User.Username())
	}
	return u.String()
}

// checkTransport refuses a connection that others could read or answer. A fallback is one of several ways to connect.
func checkTransport(cfg *pgconn.Config) error {
	check := func(host string, verified bool) error {
		ip := net.ParseIP(host)
		switch {
		case strings.HasPrefix(host, "/") || host == "localhost" || ip != nil && ip.IsLoopback() || verified:
			return nil
		}
		return fmt.Errorf("the connection to %q would not be verified", host)
	}
	err := check(cfg.Host, cfg.TLSConfig != nil && !cfg.TLSConfig.InsecureSkipVerify)
	for _, f := range cfg.Fallbacks {
		err = errors.Join(err, check(f.Host, f.TLSConfig != nil && !f.TLSConfig.InsecureSkipVerify))
	}
	return err
}

// checkDurable refuses a server that may lose what it committed.
func checkDurable(ctx context.Context, db *sql.DB) error {
	for _, setting := range []string{"fsync", "full_page_writes", "synchronous_commit"} {
		var value string
		if err := db.QueryRowContext(ctx, "SHOW "+setting).Scan(&value); err != nil {
			return err
		}
		if value != "on" {
			return fmt.Errorf("the server has %s = %s, so a power cut may lose entries; set it to on", setting, value)
		}
	}
	return nil
}
