package ledger

import (
	"context"
	"database/sql"
	"sync"
	"time"
)

const (
	useEvery = time.Minute // how often the last use of one credential is written
	maxUses  = 10_000      // credentials that are remembered
	maxName  = 256         // bytes of the name of a credential
)

// uses is when credentials were used last.
type uses struct {
	mu      sync.Mutex
	written map[string]time.Time
	pending map[string]time.Time // to be written
	running bool                 // a goroutine writes them
	closed  bool
	all     sync.WaitGroup // that goroutine
}

// Use remembers that a credential was used now. It does not wait: the time is written soon, at most once a minute for each
// credential. A ledger that is open for reading remembers nothing.
func (l *Ledger) Use(credential string) {
	if credential == "" || len(credential) > maxName || l.cfg.Key == "" {
		return
	}
	now, u := l.now(), &l.using
	u.mu.Lock()
	defer u.mu.Unlock()
	if last, ok := u.written[credential]; u.closed || ok && now.Sub(last) < useEvery {
		return
	}
	if u.written == nil || len(u.written) >= maxUses {
		u.written, u.pending = map[string]time.Time{}, map[string]time.Time{}
	}
	u.written[credential], u.pending[credential] = now, now
	if !u.running {
		u.running = true
		u.all.Go(l.writeUses)
	}
}

// writeUses writes what is pending. What cannot be written is lost: the next use after a minute is written again.
func (l *Ledger) writeUses() {
	u := &l.using
	for {
		u.mu.Lock()
		pending := u.pending
		if u.running = len(pending) > 0; !u.running {
			u.mu.Unlock()
			return
		}
		u.pending = map[string]time.Time{}
		u.mu.Unlock()
		ctx, cancel := context.WithTimeout(l.ctx, storeWait)
		_ = l.store.transact(ctx, func(tx *sql.Tx) error {
			for credential, at := range pending {
				if _, err := tx.ExecContext(ctx, l.store.bind("INSERT INTO uses (credential, at) VALUES (?, ?) ON CONFLICT (credential) DO UPDATE SET at = excluded.at WHERE excluded.at > uses.at"),
					credential, at.UnixMilli()); err != nil {
					return err
				}
			}
			return nil
		})
		cancel()
	}
}

// close waits until what is pending is written.
func (u *uses) close() {
	u.mu.Lock()
	u.closed = true
	u.mu.Unlock()
	u.all.Wait()
}

// Uses returns when each credential was used last, by its name, to the minute. No entry says it: it is for people who look for
// credentials that nobody uses.
func (l *Ledger) Uses(ctx context.Context) (map[string]time.Time, error) {
	all := map[string]time.Time{}
	err := l.store.each(ctx, l.store.DB, "SELECT credential, at FROM uses", nil, func(scan func(...any) error) error {
		var credential string
		var at int64
		err := scan(&credential, &at)
		all[credential] = time.UnixMilli(at).UTC()
		return err
	})
	if err != nil {
		return nil, l.store.fail("read the uses of credentials", err)
	}
	return all, nil
}
