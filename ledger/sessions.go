package ledger

import (
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"strconv"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

const (
	sessionsKept = 24 * time.Hour // after which a session is deleted, whatever limits a program has
	maxSessions  = 32             // of one caller: a new one ends the oldest
	seenEvery    = time.Minute    // how often the last use of a session is written
	maxLogins    = 10_000         // that are not redeemed
	maxLogin     = 4096           // bytes of the data of one
	longestLogin = 15 * time.Minute
)

// Session is a browser in which a caller has signed in to the console. It says who it is, and nothing of what the caller may. The times
// are those of the database's clock.
type Session struct {
	ID         record.Hash // SHA-256 of the cookie's value, which nobody but the browser has
	Caller     string
	Credential string    // that the caller identified itself with
	How        string    // SignedInOIDC, SignedInCertificate or SignedInLink
	Created    time.Time // set by StartSession
	SignedIn   time.Time // when the person identified themselves, which can be before Created
	Seen       time.Time // the last use, to the minute
	Read       time.Time // when Session returned it; zero otherwise
}

// The ways to sign in.
const (
	SignedInOIDC        = "oidc"
	SignedInCertificate = "certificate"
	SignedInLink        = "link"
)

// StartSession stores a session that begins now. A SignedIn that is zero or later than now is now. A caller has at most 32
// sessions: the oldest one ends. No entry says it. The error wraps ErrStore.
func (l *Ledger) StartSession(ctx context.Context, s Session) error {
	err := l.store.transact(ctx, func(tx *sql.Tx) error {
		now, err := l.clock(ctx, tx)
		if err != nil {
			return err
		}
		if s.SignedIn.IsZero() || s.SignedIn.After(now) {
			s.SignedIn = now
		}
		s.Created = now
		mac, err := l.sealSession(&s)
		if err != nil {
			return err
		}
		for _, change := range []statement{
			{"DELETE FROM sessions WHERE created <= ?", []any{now.Add(-sessionsKept).UnixMilli()}},
			{"DELETE FROM sessions WHERE caller = ? AND id NOT IN (SELECT id FROM sessions WHERE caller = ? ORDER BY created DESC, id LIMIT ?)", []any{s.Caller, s.Caller, maxSessions - 1}},
			{"INSERT INTO sessions (id, caller, credential, how, created, signed_in, seen, mac) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
				[]any{s.ID[:], s.Caller, s.Credential, s.How, now.UnixMilli(), s.SignedIn.UnixMilli(), now.UnixMilli(), mac}},
		} {
			if _, err := tx.ExecContext(ctx, l.store.bind(change.query), change.args...); err != nil {
				return err
			}
		}
		return nil
	})
	return l.store.fail("start a session", err)
}

// errNoSession is the error for a session that does not exist, or has ended.
func errNoSession() error {
	return fault.Unauthenticated.Errorf("there is no such session, or it has ended").Fix("sign in again")
}

// Session returns the session with an ID, and remembers that it was used. One that was not used for idle, or that began before
// absolute, has ended. The error is of kind unauthenticated if there is none, or wraps ErrStore.
func (l *Ledger) Session(ctx context.Context, id record.Hash, idle, absolute time.Duration) (*Session, error) {
	s, err := l.readSession(ctx, id)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, errNoSession()
	}
	if err != nil {
		return nil, l.store.fail("read a session", err)
	}
	if s.Read.Sub(s.Seen) >= idle || s.Read.Sub(s.Created) >= absolute {
		if err := l.EndSession(ctx, id); err != nil {
			return nil, err
		}
		return nil, errNoSession()
	}
	if s.Read.Sub(s.Seen) >= seenEvery {
		// What a concurrent sign-out has deleted stays deleted.
		if err := l.change(ctx, "UPDATE sessions SET seen = ? WHERE id = ? AND seen < ?", s.Read.UnixMilli(), id[:], s.Read.UnixMilli()); err != nil {
			return nil, l.store.fail("write a session", err)
		}
		s.Seen = s.Read
	}
	return s, nil
}

func (l *Ledger) readSession(ctx context.Context, id record.Hash) (*Session, error) {
	s := Session{ID: id}
	var created, signedIn, seen int64
	var mac []byte
	err := preparing{l.store}.QueryRowContext(ctx, "SELECT caller, credential, how, created, signed_in, seen, mac FROM sessions WHERE id = ?", id[:]).
		Scan(&s.Caller, &s.Credential, &s.How, &created, &signedIn, &seen, &mac)
	if err != nil {
		return nil, err
	}
	s.Created, s.SignedIn, s.Seen = time.UnixMilli(created).UTC(), time.UnixMilli(signedIn).UTC(), time.UnixMilli(seen).UTC()
	want, err := l.sealSession(&s)
	if err != nil {
		return nil, err
	}
	if !hmac.Equal(mac, want) {
		return nil, fault.Unauthenticated.Errorf("the session was not stored by a process with the checkpoint key: the database was changed, or the key was replaced").Fix("sign in again")
	}
	s.Read, err = l.clock(ctx, l.store.DB)
	return &s, err
}

// EndSession ends a session. One that does not exist has ended. The error wraps ErrStore.
func (l *Ledger) EndSession(ctx context.Context, id record.Hash) error {
	err := l.change(ctx, "DELETE FROM sessions WHERE id = ?", id[:])
	return l.store.fail("end a session", err)
}

// EndSessions ends all sessions of a caller. The error wraps ErrStore.
func (l *Ledger) EndSessions(ctx context.Context, caller string) error {
	err := l.change(ctx, "DELETE FROM sessions WHERE caller = ?", caller)
	return l.store.fail("end sessions", err)
}

// Sessions returns the stored sessions of a caller, the newest first; "" is every caller. Those that have ended by their age may be among
// them: the caller of Sessions knows the limits. Their MACs are not verified: it is for lists. The error wraps ErrStore.
func (l *Ledger) Sessions(ctx context.Context, caller string) ([]Session, error) {
	now, err := l.clock(ctx, l.store.DB)
	if err != nil {
		return nil, l.store.fail("read sessions", err)
	}
	var all []Session
	err = l.store.each(ctx, l.store.DB, "SELECT id, caller, credential, how, created, signed_in, seen FROM sessions WHERE caller = ? OR ? = '' ORDER BY created DESC, id", []any{caller, caller}, func(scan func(...any) error) error {
		s := Session{Read: now}
		var id []byte
		var created, signedIn, seen int64
		if err := scan(&id, &s.Caller, &s.Credential, &s.How, &created, &signedIn, &seen); err != nil {
			return err
		}
		if len(id) != len(s.ID) {
			return errors.New("the id of a session is not a hash")
		}
		s.ID = record.Hash(id)
		s.Created, s.SignedIn, s.Seen = time.UnixMilli(created).UTC(), time.UnixMilli(signedIn).UTC(), time.UnixMilli(seen).UTC()
		all = append(all, s)
		return nil
	})
	if err != nil {
		return nil, l.store.fail("read sessions", err)
	}
	return all, nil
}

// StartLogin stores data for the one who has the secret with this SHA-256, for at most 15 minutes. The error is of kind limited if
// too many are not redeemed, or wraps ErrStore.
func (l *Ledger) StartLogin(ctx context.Context, hash record.Hash, data []byte, until time.Duration) error {
	if len(data) > maxLogin || until > longestLogin {
		return fault.Internal.Errorf("a sign-in with %d bytes and for %v", len(data), until)
	}
	err := l.store.transact(ctx, func(tx *sql.Tx) error {
		now, err := l.clock(ctx, tx)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, l.store.bind("DELETE FROM logins WHERE until <= ?"), now.UnixMilli()); err != nil {
			return err
		}
		var waiting int
		if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM logins").Scan(&waiting); err != nil {
			return err
		}
		if waiting >= maxLogins {
			return fault.Limited.Errorf("%d sign-ins wait already", waiting).Fix("try again in a few minutes")
		}
		end := now.Add(until).UnixMilli()
		mac, err := l.seal("login", hash[:], data, strconv.AppendInt(nil, end, 10))
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, l.store.bind("INSERT INTO logins (hash, data, until, mac) VALUES (?, ?, ?, ?)"), hash[:], data, end, mac)
		return err
	})
	return l.store.fail("start a sign-in", err)
}

// TakeLogin returns the data of StartLogin, once: one of several that ask at the same time gets it, in whatever process. The error is of
// kind unauthenticated if there is none, or its time is over, or wraps ErrStore.
func (l *Ledger) TakeLogin(ctx context.Context, hash record.Hash) (data []byte, err error) {
	err = l.store.transact(ctx, func(tx *sql.Tx) error {
		now, err := l.clock(ctx, tx)
		if err != nil {
			return err
		}
		var until int64
		var mac []byte
		if err := tx.QueryRowContext(ctx, l.store.bind("DELETE FROM logins WHERE hash = ? RETURNING data, until, mac"), hash[:]).Scan(&data, &until, &mac); err != nil {
			return err
		}
		want, err := l.seal("login", hash[:], data, strconv.AppendInt(nil, until, 10))
		if err == nil && (now.UnixMilli() >= until || !hmac.Equal(mac, want)) {
			err = sql.ErrNoRows // it is deleted with the next one
		}
		return err
	})
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fault.Unauthenticated.Errorf("the sign-in is not known: it was used, or its time is over").Fix("begin again")
	}
	if err != nil {
		return nil, l.store.fail("redeem a sign-in", err)
	}
	return data, nil
}

// sealSession returns the MAC of what a session says.
func (l *Ledger) sealSession(s *Session) ([]byte, error) {
	number := func(t time.Time) []byte { return strconv.AppendInt(nil, t.UnixMilli(), 10) }
	return l.seal("session", s.ID[:], []byte(s.Caller), []byte(s.Credential), []byte(s.How), number(s.Created), number(s.SignedIn))
}

// seal returns a MAC with a key that is derived from the checkpoint key, so that whoever can write the database cannot make a session or a
// login. A ledger that is open for reading has no key.
func (l *Ledger) seal(what string, parts ...[]byte) ([]byte, error) {
	if l.cfg.Key == "" {
		return nil, fault.Usage.Errorf("the ledger is open for reading").Fix("open it with the checkpoint key")
	}
	key, err := hkdf.Key(sha256.New, []byte(l.cfg.Key), nil, "hsmsign "+what+" 1", sha256.Size)
	if err != nil {
		return nil, err
	}
	mac := hmac.New(sha256.New, key)
	for _, part := range parts {
		mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		mac.Write(part)
	}
	return mac.Sum(nil), nil
}

// change runs a statement in a transaction of its own.
func (l *Ledger) change(ctx context.Context, query string, args ...any) error {
	return l.store.transact(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, l.store.bind(query), args...)
		return err
	})
}
