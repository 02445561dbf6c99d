package ledger

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// Kinds of messages.
const (
	MessagePending = "pending" // a request waits for approval
	MessageMDMCert = "mdmcert" // the answer to a request in the form of mdmcert.download
)

const (
	maxKind    = 32        // bytes of the kind of a message
	maxPayload = 256 << 10 // bytes
	sentFor    = 48 * time.Hour
	// UnsentFor is how long a message is kept that is due and that no process takes: nobody can send its kind.
	UnsentFor = 7 * 24 * time.Hour
	// longestWait is how long a message is kept that is not sent, whatever the reason.
	longestWait = 90 * 24 * time.Hour
)

// Message is something to tell somebody outside of the ledger. It is delivered at least once.
//
// Messages are in the table outbox. They are no part of the record: no entry proves them, and Verify ignores them. A copy of the
// store contains those that wait: after a restore they are sent again, with the same ID.
type Message struct {
	ID       record.ID // random; what the receiver knows the message by, the same at each try. The zero ID: Post makes one
	Kind     string    // MessagePending, MessageMDMCert
	About    record.ID // the request
	Customer record.ID // zero: none. Erasing the customer deletes the message
	Payload  []byte    // deleted when the message was sent; nil for MessagePending
	Tries    int       // this one included
	Created  time.Time // UTC
	// Failing is how long ago the first of the tries that failed was; 0: none has failed.
	Failing time.Duration
	// Delivered are the receivers that have the message, of several; see Ledger.Delivered.
	Delivered []string
}

// check returns an error of kind usage or too large if a message cannot be stored.
func (m Message) check() error {
	switch {
	case m.Kind == "" || len(m.Kind) > maxKind:
		return fault.Usage.Errorf("a message of kind %q", fault.Clip(m.Kind, maxKind))
	case len(m.Payload) > maxPayload:
		return fault.TooLarge.Errorf("a message of %d bytes; at most %d are allowed", len(m.Payload), maxPayload)
	}
	return nil
}

// Post stores a message, which is due at once. perDay is how many messages of this kind a customer may have on one day (UTC),
// sent or not; 0: any number. More are refused with an error of kind limited. A message whose ID is known is not stored again.
func (l *Ledger) Post(ctx context.Context, m Message, perDay int) error {
	if err := m.check(); err != nil {
		return err
	}
	if m.ID == (record.ID{}) {
		m.ID = record.NewID()
	}
	// Under the lock of the head, so that two processes cannot both be below the limit.
	return l.Append(ctx, func(ctx context.Context, tx *Tx) error {
		if tx.low {
			return fault.Errorf("%w: %s: less than %d MiB are free on its disk", ErrStore, tx.ledger.store.Name, reserve>>20).Fix("free space on the disk and try again")
		}
		if perDay > 0 {
			today := tx.now.Truncate(24 * time.Hour)
			var posted int
			err := tx.row(ctx, "SELECT count(*) FROM outbox WHERE customer = ? AND kind = ? AND created >= ? AND id <> ?", m.Customer[:], m.Kind, today.UnixMilli(), m.ID[:]).Scan(&posted)
			if err != nil {
				return err
			}
			if posted >= perDay {
				return fault.Limited.Errorf("the customer has had %d messages today, as many as it may", posted).Fix("try again tomorrow (UTC)")
			}
		}
		tx.post(m)
		return nil
	})
}

// post stores a message if the change succeeds: what is recorded and the message about it are committed together. An ID of zero
// is replaced.
func (tx *Tx) post(m Message) {
	if m.ID == (record.ID{}) {
		m.ID = record.NewID()
	}
	now := tx.now.UnixMilli()
	tx.exec(`INSERT INTO outbox (id, kind, about, customer, payload, created, due, lease, hastened, tries, failing, delivered, ended)
		VALUES (?, ?, ?, ?, ?, ?, ?, 0, 0, 0, 0, '', 0) ON CONFLICT (id) DO NOTHING`, m.ID[:], m.Kind, m.About[:], m.Customer[:], m.Payload, now, now)
}

// Take returns the message that is due for longest, of some kinds, or of any if none is named; nil: nothing is due. No process gets it
// again during the lease, which ends with Sent, Retry, Later or Drop. A process that dies leaves it to the end of the lease.
// The error wraps ErrMoved if the ledger was moved: the messages are sent from the other store.
func (l *Ledger) Take(ctx context.Context, lease time.Duration, kinds ...string) (*Message, error) {
	for {
		m, due, now, err := l.nextDue(ctx, kinds)
		if m == nil || err != nil {
			return nil, l.store.fail("read the outbox", err)
		}
		if err := l.Here(ctx); err != nil {
			return nil, err
		}
		// The condition finds another process that has taken it meanwhile.
		n, err := l.changeOutbox(ctx, "UPDATE outbox SET lease = ?, hastened = 0, tries = tries + 1 WHERE id = ? AND due = ? AND lease <= ? AND ended = 0",
			now.Add(lease).UnixMilli(), m.ID[:], due, now.UnixMilli())
		if err != nil {
			return nil, err
		}
		if n == 1 {
			m.Tries++
			return m, nil
		}
	}
}

// nextDue reads the message that is due for longest.
func (l *Ledger) nextDue(ctx context.Context, kinds []string) (m *Message, due int64, now time.Time, err error) {
	q := preparing{l.store}
	if now, err = l.clock(ctx, l.store.DB); err != nil {
		return nil, 0, now, err
	}
	query, args := "SELECT id, kind, about, customer, payload, created, due, tries, failing, delivered FROM outbox WHERE ended = 0 AND due <= ? AND lease <= ?", []any{now.UnixMilli(), now.UnixMilli()}
	if len(kinds) > 0 {
		query += " AND kind IN (?" + strings.Repeat(", ?", len(kinds)-1) + ")"
		for _, kind := range kinds {
			args = append(args, kind)
		}
	}
	m = &Message{}
	var id, about, customer []byte
	var created, failing int64
	var delivered string
	err = q.QueryRowContext(ctx, query+" ORDER BY due LIMIT 1", args...).Scan(&id, &m.Kind, &about, &customer, &m.Payload, &created, &due, &m.Tries, &failing, &delivered)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, 0, now, nil
	}
	m.ID, m.About, m.Customer, m.Created, m.Delivered = idOf(id), idOf(about), idOf(customer), time.UnixMilli(created).UTC(), strings.Fields(delivered)
	if failing > 0 {
		m.Failing = max(now.Sub(time.UnixMilli(failing)), 1)
	}
	return m, due, now, err
}

// Delivered remembers that one of several receivers of a message has it: a word of at most 64 bytes. A later try leaves it out.
func (l *Ledger) Delivered(ctx context.Context, id record.ID, receiver string) error {
	if receiver == "" || len(receiver) > 64 || len(strings.Fields(receiver)) != 1 {
		return fault.Usage.Errorf("%q is not the name of a receiver", fault.Clip(receiver, 64))
	}
	_, err := l.changeOutbox(ctx, "UPDATE outbox SET delivered = delivered || ? WHERE id = ? AND ended = 0", receiver+" ", id[:])
	return err
}

// Sent records that a message was sent. Its payload is deleted. The row remains for two days, for the limit of a day.
func (l *Ledger) Sent(ctx context.Context, id record.ID) error { return l.endMessage(ctx, id) }

// Drop gives a message up, as Sent does. It counts for the limit of the day.
func (l *Ledger) Drop(ctx context.Context, id record.ID) error { return l.endMessage(ctx, id) }

func (l *Ledger) endMessage(ctx context.Context, id record.ID) error {
	now, err := l.clock(ctx, l.store.DB)
	if err != nil {
		return l.store.fail("write the outbox", err)
	}
	_, err = l.changeOutbox(ctx, "UPDATE outbox SET ended = ?, payload = NULL, delivered = '' WHERE id = ? AND ended = 0", now.UnixMilli(), id[:])
	return err
}

// Retry makes a message whose try failed due again after a pause; at once, if Hasten was called since it was taken.
func (l *Ledger) Retry(ctx context.Context, id record.ID, after time.Duration) error {
	return l.release(ctx, id, after, true)
}

// Later is Retry for a message that cannot be sent yet: no try has failed.
func (l *Ledger) Later(ctx context.Context, id record.ID, after time.Duration) error {
	return l.release(ctx, id, after, false)
}

// release ends the lease of a message. failed says whether a try has failed.
func (l *Ledger) release(ctx context.Context, id record.ID, after time.Duration, failed bool) error {
	now, err := l.clock(ctx, l.store.DB)
	if err != nil {
		return l.store.fail("write the outbox", err)
	}
	since := int64(0)
	if failed {
		since = now.UnixMilli()
	}
	_, err = l.changeOutbox(ctx, `UPDATE outbox SET lease = 0, due = CASE WHEN hastened = 1 THEN due ELSE ? END,
		failing = CASE WHEN failing > 0 AND ? > failing THEN failing ELSE ? END WHERE id = ? AND ended = 0`, now.Add(after).UnixMilli(), since, since, id[:])
	return err
}

// Hasten makes the messages about something due now. One that is being sent is due again when that try has ended without success.
func (l *Ledger) Hasten(ctx context.Context, about record.ID) error {
	now, err := l.clock(ctx, l.store.DB)
	if err != nil {
		return l.store.fail("write the outbox", err)
	}
	_, err = l.changeOutbox(ctx, hasten, now.UnixMilli(), about[:])
	return err
}

const hasten = "UPDATE outbox SET due = ?, hastened = 1 WHERE about = ? AND ended = 0"

// answered ends the notice about a question that was answered, and makes the other messages about it due, if the change succeeds.
func (tx *Tx) answered(about record.ID) {
	now := tx.now.UnixMilli()
	tx.exec("UPDATE outbox SET ended = ?, payload = NULL, delivered = '' WHERE about = ? AND kind = ? AND ended = 0", now, about[:], MessagePending)
	tx.exec(hasten, now, about[:])
}

// Sweep deletes what was sent or dropped more than two days ago, and gives up messages that no process has taken since they were
// due for seven days (UnsentFor), and those older than 90 days. It returns how many it gave up.
func (l *Ledger) Sweep(ctx context.Context) (dropped int64, err error) {
	now, err := l.clock(ctx, l.store.DB)
	if err != nil {
		return 0, l.store.fail("write the outbox", err)
	}
	if _, err := l.changeOutbox(ctx, "DELETE FROM outbox WHERE ended > 0 AND ended < ?", now.Add(-sentFor).UnixMilli()); err != nil {
		return 0, err
	}
	return l.changeOutbox(ctx, "DELETE FROM outbox WHERE ended = 0 AND lease <= ? AND (due < ? OR created < ?)",
		now.UnixMilli(), now.Add(-UnsentFor).UnixMilli(), now.Add(-longestWait).UnixMilli())
}

// changeOutbox runs a statement in a transaction of its own, and returns how many rows it changed.
func (l *Ledger) changeOutbox(ctx context.Context, query string, args ...any) (n int64, err error) {
	err = l.store.transact(ctx, func(tx *sql.Tx) error {
		result, err := tx.ExecContext(ctx, l.store.bind(query), args...)
		if err == nil {
			n, err = result.RowsAffected()
		}
		return err
	})
	return n, l.store.fail("write the outbox", err)
}

// Backlog is what waits of one kind of messages.
type Backlog struct {
	Waiting int64
	// Late is how long the one that is late for longest is late: since its first try failed, or since it was due.
	Late time.Duration
}

// Backlogs returns what waits, by kind. A kind of which nothing waits is missing.
func (l *Ledger) Backlogs(ctx context.Context) (map[string]Backlog, error) {
	now, err := l.clock(ctx, l.store.DB)
	if err != nil {
		return nil, l.store.fail("read the outbox", err)
	}
	all := map[string]Backlog{}
	err = l.store.each(ctx, l.store.DB, "SELECT kind, count(*), min(CASE WHEN failing > 0 THEN failing ELSE due END) FROM outbox WHERE ended = 0 GROUP BY kind", nil, func(scan func(...any) error) error {
		var kind string
		var b Backlog
		var since int64
		err := scan(&kind, &b.Waiting, &since)
		b.Late = max(0, now.Sub(time.UnixMilli(since)))
		all[kind] = b
		return err
	})
	if err != nil {
		return nil, l.store.fail("read the outbox", err)
	}
	return all, nil
}

// HasDelivered returns whether a receiver has the message.
func (m *Message) HasDelivered(receiver string) bool { return slices.Contains(m.Delivered, receiver) }
