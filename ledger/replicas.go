package ledger

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// openReplica is the name of the opening with the name of the program that an entry of kind policy is about.
const openReplica = "replica"

// replicaFor is how long a replica is listed after its last sign of life.
const replicaFor = time.Hour

// Replica is a program that appends to the ledger, with the policy that it applies.
type Replica struct {
	Name   string
	Policy record.Hash
	Entry  int64     // that says it
	Seen   time.Time // UTC
}

// replica is what the newest entry about a replica says.
type replica struct {
	policy record.Hash
	entry  int64
}

// StartPolicy records that a replica, which is a program with its configuration, applies a policy from now on.
func (l *Ledger) StartPolicy(ctx context.Context, actor, channel, name string, hash record.Hash) error {
	switch {
	case name == "" || utf8.RuneCountInString(name) > 128 || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }):
		return fault.Usage.Errorf("the replica's name %q", fault.Clip(name, 64)).Fix("write at most 128 printable characters")
	case hash == (record.Hash{}):
		return fault.Usage.Errorf("the policy of the replica %q has no hash", name)
	}
	var started replica
	err := l.Append(ctx, func(ctx context.Context, tx *Tx) error {
		id, err := tx.actor(ctx, actor)
		if err != nil {
			return err
		}
		index, err := tx.Append(&record.Entry{Kind: record.KindPolicy, Actor: id, Channel: channel, Policy: hash},
			record.NewOpening(openActor, []byte(actor)), record.NewOpening(openReplica, []byte(name)))
		if err != nil {
			return err
		}
		started = replica{hash, index}
		tx.exec("DELETE FROM replicas WHERE seen < ?", tx.now.Add(-replicaFor).UnixMilli())
		tx.exec(seenReplica, name, hash[:], index, tx.now.UnixMilli())
		return nil
	})
	if err == nil {
		l.mu.Lock()
		l.started[name] = started
		l.mu.Unlock()
	}
	return err
}

const seenReplica = `INSERT INTO replicas (name, policy, entry, seen) VALUES (?, ?, ?, ?)
	ON CONFLICT (name) DO UPDATE SET policy = excluded.policy, entry = excluded.entry, seen = excluded.seen`

// Seen records a sign of life of a replica that this process started with StartPolicy; otherwise the error is of kind not found.
// It appends no entry.
func (l *Ledger) Seen(ctx context.Context, name string) error {
	l.mu.Lock()
	r, known := l.started[name]
	l.mu.Unlock()
	if !known {
		return fault.NotFound.Errorf("this process has not started the replica %q", fault.Clip(name, 64))
	}
	err := l.store.transact(ctx, func(tx *sql.Tx) error {
		now, err := l.clock(ctx, tx)
		if err == nil {
			_, err = tx.ExecContext(ctx, l.store.bind(seenReplica), name, r.policy[:], r.entry, now.UnixMilli())
		}
		return err
	})
	return l.store.fail("record a sign of life", err)
}

// Leave ends the list's row of a replica that this process started and that ends now: its policy is in force no more. It appends no
// entry.
func (l *Ledger) Leave(ctx context.Context, name string) error {
	l.mu.Lock()
	delete(l.started, name)
	l.mu.Unlock()
	err := l.store.transact(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, l.store.bind("DELETE FROM replicas WHERE name = ?"), name)
		return err
	})
	return l.store.fail("record the end of a replica", err)
}

// Replicas returns the replicas that were seen within an hour, by name. The policy of each is proved by its entry; when it was
// seen is not. Replicas with different policies need attention.
func (l *Ledger) Replicas(ctx context.Context) (all []Replica, err error) {
	err = l.snapshot(ctx, "read the replicas", func(tx *sql.Tx, head *Checkpoint) error {
		now, err := l.clock(ctx, tx)
		if err != nil {
			return err
		}
		err = l.store.each(ctx, tx, "SELECT name, policy, entry, seen FROM replicas WHERE seen >= ?", []any{now.Add(-replicaFor).UnixMilli()}, func(scan func(...any) error) error {
			var r Replica
			var policy []byte
			var seen int64
			err := scan(&r.Name, &policy, &r.Entry, &seen)
			r.Policy, r.Seen = hashOf(policy), time.UnixMilli(seen).UTC()
			all = append(all, r)
			return err
		})
		if err != nil {
			return err
		}
		for _, r := range all {
			if err := l.proveReplica(ctx, tx, head, r); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b Replica) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

// proveReplica compares a row with its entry.
func (l *Ledger) proveReplica(ctx context.Context, q querier, head *Checkpoint, r Replica) error {
	e, err := l.entry(ctx, q, head, r.Entry)
	if err != nil {
		return err
	}
	name, err := l.opening(ctx, q, r.Entry, e, openReplica)
	if err == nil && (e.Kind != record.KindPolicy || e.Policy != r.Policy || string(name) != r.Name) {
		err = fmt.Errorf("%w: entry %d does not say the policy of the replica %q", ErrTampered, r.Entry, r.Name)
	}
	return err
}

// hashOf returns a hash of the database; the zero Hash if it has another length.
func hashOf(raw []byte) record.Hash {
	if len(raw) != len(record.Hash{}) {
		return record.Hash{}
	}
	return record.Hash(raw)
}

// cachedReplicas compares the list of replicas with the newest entry about each. One that was not seen for long is not listed.
func (v *verification) cachedReplicas(ctx context.Context, tx *sql.Tx) error {
	return v.ledger.store.each(ctx, tx, "SELECT name, policy, entry FROM replicas", nil, func(scan func(...any) error) error {
		var name string
		var policy []byte
		var r replica
		if err := scan(&name, &policy, &r.entry); err != nil {
			return err
		}
		if r.policy = hashOf(policy); v.replicas[name] != r {
			v.add(r.entry, fmt.Sprintf("the list of replicas does not say of %q what the entries say", name))
		}
		return nil
	})
}
