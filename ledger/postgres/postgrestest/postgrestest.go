// Package postgrestest starts a private PostgreSQL server for tests. HSMSIGN_TEST_POSTGRES names another one instead: the
// URL of a database in which schemas may be created.
package postgrestest

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver
)

// Server is a PostgreSQL server on a Unix socket in a temporary folder.
type Server struct {
	dir  string
	as   *syscall.Credential // of another user if the test runs as root
	bin  string
	base string // URL of the database
}

// Start starts a server for the process; Stop ends it. Settings are lines of postgresql.conf.
func Start(settings ...string) (*Server, error) {
	if base := os.Getenv("HSMSIGN_TEST_POSTGRES"); base != "" && settings == nil {
		return &Server{base: base}, nil
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if len(found) == 0 {
		return nil, fmt.Errorf("PostgreSQL is not installed; run make deps")
	}
	slices.Sort(found)
	s := &Server{bin: filepath.Dir(found[len(found)-1])}
	var err error
	if s.dir, err = os.MkdirTemp("", "hsmsign-postgres-"); err != nil {
		return nil, err
	}
	if os.Getuid() == 0 { // PostgreSQL refuses to run as root
		u, err := user.Lookup("postgres")
		if err != nil {
			return nil, err
		}
		uid, _ := strconv.ParseUint(u.Uid, 10, 32) // it is a number
		gid, _ := strconv.ParseUint(u.Gid, 10, 32)
		s.as = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(s.dir, int(uid), int(gid)); err != nil { // #nosec G115 -- a user id
			return nil, err
		}
	}
	if err := s.run("initdb", "-D", s.data(), "-U", "hsmsign", "-A", "trust", "--no-sync"); err != nil {
		return nil, err
	}
	conf := strings.Join(append(settings, "listen_addresses = ''", "unix_socket_directories = '"+s.dir+"'", "max_connections = 200"), "\n")
	if err := os.WriteFile(filepath.Join(s.data(), "postgresql.auto.conf"), []byte(conf+"\n"), 0o644); err != nil { // #nosec G306 -- no secret
		return nil, err
	}
	s.base = "postgres://hsmsign@/postgres?host=" + url.QueryEscape(s.dir)
	return s, s.Restart()
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

// Restart starts a server that is down.
func (s *Server) Restart() error {
	return s.run("pg_ctl", "-D", s.data(), "-w", "-t", "60", "-l", filepath.Join(s.dir, "log"), "start")
}

// Kill ends the server at once, as a crash does.
func (s *Server) Kill() error {
	return s.run("pg_ctl", "-D", s.data(), "-w", "-m", "immediate", "stop")
}

// Stop ends the server and removes its folder.
func (s *Server) Stop() {
	if s.dir != "" {
		_ = s.Kill() // it may be down
		_ = os.RemoveAll(s.dir)
	}
}

func (s *Server) run(program string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, program), args...) // #nosec G204 -- a test's own arguments
	cmd.Dir = s.dir
	if s.as != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.as}
	}
	out, err := os.CreateTemp("", "hsmsign-postgres-out-") // not a pipe: the server inherits it
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(out.Name())
		return fmt.Errorf("%s: %w: %s", program, err, bytes.TrimSpace(text))
	}
	return nil
}

// Schema makes an empty schema and returns the URL of the database with it; the end of the test removes it.
func (s *Server) Schema(t testing.TB) string {
	t.Helper()
	db, err := sql.Open("pgx", s.base)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }() // nothing is kept
	name := "t" + strings.ToLower(rand.Text())
	if _, err := db.ExecContext(t.Context(), "CREATE SCHEMA "+name); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(s.base)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("search_path", name)
	u.RawQuery = q.Encode()
	return u.String()
}
