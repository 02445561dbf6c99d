// Package ledger records who was issued what, by whom, and proves that nobody changed the record.
//
// A ledger is a Merkle tree of entries (RFC 6962, as in Certificate Transparency) in a database. Its head is a signed
// checkpoint (C2SP tlog-checkpoint); entries, hashes and checkpoint change in one transaction. Nothing is trusted because
// it is in the database: before each append the stored checkpoint must be signed by the pinned key, the stored hashes must
// have its root, and it must be the checkpoint that this process saw last, or one that has grown from it. Everything else
// in the database is a cache of the entries.
//
// A Ledger is safe for concurrent use, and many processes may append to one store. Its lock is that of the store's head
// row, held from the start of a batch of appends to its commit.
package ledger

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

const (
	maxBatch = 256 // appends in one transaction
	// A batch waits while manyIntents requests are being signed: for a part of the time that signing takes, at most maxLinger.
	manyIntents = 16
	lingerPart  = 4
	maxLinger   = 20 * time.Millisecond
	batchWait   = 30 * time.Second // for the lock and the commit of one batch
	closeWait   = time.Second      // for the batch in progress when the ledger is closed
	// keepEvery is how often the file with the last checkpoint is written.
	keepEvery = time.Second
	// maxClockSkew is by how much the clock may be behind the newest entry, or differ from that of the database.
	maxClockSkew = 2 * time.Minute
)

// Config is what a ledger is opened with.
type Config struct {
	Store *Store
	// Verifier is the ledger's public key as a note verifier key; it is pinned outside the store. Its name is the origin.
	// Several keys, one a line, are accepted alike: a checkpoint must be signed by one of them.
	Verifier string
	// Key is the checkpoint key as a note signer key; during a rotation two, one a line. Empty: the ledger is opened for
	// reading.
	Key string
	// Keys reads Key again after another process has rotated the key; nil: the writer then fails.
	Keys func() (string, error)
	// LastCheckpoint is a file outside the store with the newest checkpoint that this host saw; empty: none.
	LastCheckpoint string
	// Witnesses cosign the checkpoints, and Copies are files outside the store to which they are appended, soon after each commit.
	Witnesses []Witness
	Copies    []string
	// Required is how many operators of witnesses must have cosigned an issued request before Release lets it go.
	Required int
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Ledger is an open ledger.
type Ledger struct {
	cfg       Config
	store     *Store
	verifiers []note.Verifier // at least one; all have the name of the ledger

	witnesses []*cosigner
	publisher *publisher // nil: there is nobody to publish to

	// The checkpoint keys, what the writer wrote; only the writer uses them.
	signers []note.Signer // nil: for reading
	written *Checkpoint
	newest  time.Time
	intents map[record.ID]open // that this process appended, and that have no outcome
	signing time.Duration      // between intent and outcome, a moving average

	ctx     context.Context // of the writer
	cancel  context.CancelFunc
	changes chan *change
	closing chan struct{} // closed by Close
	closed  chan struct{} // closed when the writer has ended

	vendorHash, chainHash hashed        // of uses
	newKeys               atomic.Uint64 // see Figures

	mu   sync.Mutex
	last *Checkpoint // the newest that this process saw
	// frozen is the newest state that this process saw: an entry that is hidden in the store is noticed. nil: not read yet.
	frozen  *freezes
	place   *place             // the newest that this process saw; nil: not read yet
	started map[string]replica // by StartPolicy, by name

	using       uses
	freezeReads freezeReads
	cleaned     atomic.Int64 // when Once deleted hashes, in milliseconds since 1970

	keeping sync.Mutex  // guards kept and the file; before mu
	kept    *Checkpoint // the one in the file outside the store
	once    sync.Once
}

// Init creates the ledger in an empty store: the schema and the first entry. The error wraps fault.Usage if the store has
// a ledger already.
func Init(ctx context.Context, cfg Config) (*Checkpoint, error) {
	l, err := prepare(cfg)
	if err != nil {
		return nil, err
	}
	if len(l.signers) != 1 {
		return nil, fault.Usage.Errorf("%d checkpoint keys given, and a new ledger has one", len(l.signers))
	}
	return l.create(ctx, func(ctx context.Context, tx *Tx) error {
		_, err := tx.Append(&record.Entry{Kind: record.KindGenesis})
		return err
	})
}

// create makes the schema, and the first entries in one transaction.
func (l *Ledger) create(ctx context.Context, do func(ctx context.Context, tx *Tx) error) (*Checkpoint, error) {
	err := l.store.transact(ctx, func(sqlTx *sql.Tx) error { return l.store.migrate(ctx, sqlTx) })
	var head *Checkpoint
	if err == nil {
		err = l.store.transact(ctx, func(sqlTx *sql.Tx) error {
			if _, err := sqlTx.ExecContext(ctx, l.store.LockSchema); err != nil {
				return err
			}
			head, err = l.begin(ctx, sqlTx, do)
			return err
		})
	}
	if err != nil {
		return nil, l.store.fail("create the ledger", err)
	}
	return head, writeLast(l.cfg.LastCheckpoint, head)
}

// begin writes the head and the first entries.
func (l *Ledger) begin(ctx context.Context, sqlTx *sql.Tx, do func(ctx context.Context, tx *Tx) error) (*Checkpoint, error) {
	var n int
	if err := sqlTx.QueryRowContext(ctx, "SELECT count(*) FROM head").Scan(&n); err != nil {
		return nil, err
	}
	if n > 0 {
		return nil, occupied(l.store)
	}
	if d, err := l.store.destination(ctx, sqlTx); err != nil {
		return nil, err
	} else if d != nil { // a copy that is not complete
		return nil, occupied(l.store)
	}
	empty, err := Checkpoint{Origin: l.Origin(), Root: emptyRoot}.sign(l.signers...)
	if err != nil {
		return nil, err
	}
	if _, err := sqlTx.ExecContext(ctx, l.store.bind("INSERT INTO head (id, size, checkpoint) VALUES (1, 0, ?)"), empty.Signed); err != nil {
		return nil, err
	}
	q := statements{l.store, sqlTx, false}
	tx := &Tx{ledger: l, sql: q, hashes: remember(l.store.hashReader(ctx, q)), head: empty, signers: l.signers, now: l.now(), actors: map[string]record.ID{}}
	if err := do(ctx, tx); err != nil {
		return nil, err
	}
	if err := tx.flush(ctx); err != nil {
		return nil, err
	}
	return tx.head, nil
}

// occupied is the error of a store that is to get a ledger and has one.
func occupied(s *Store) error {
	return fault.Usage.Errorf("%s contains a ledger already", s.Name).Fix("name another store; a ledger is never overwritten")
}

// prepare returns a ledger that is not open yet.
func prepare(cfg Config) (*Ledger, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	l := &Ledger{cfg: cfg, store: cfg.Store, changes: make(chan *change), closing: make(chan struct{}), closed: make(chan struct{}), intents: map[record.ID]open{}, started: map[string]replica{}}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	var err error
	if l.verifiers, err = parseVerifiers(cfg.Verifier); err != nil {
		return nil, err
	}
	if l.witnesses, err = newCosigners(cfg.Witnesses, cfg.Required); err != nil || cfg.Key == "" {
		return l, err
	}
	if err = l.checkAsked(); err != nil {
		return nil, err
	}
	if l.signers, err = parseSigners(cfg.Key); err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(l.signers, func(s note.Signer) bool { return s.Name() == l.Origin() && l.pinned(s.KeyHash()) }) {
		return nil, fault.Usage.Errorf("the checkpoint key is not that of the verifier key").
			Fix("use the pair that hsmsign ledger init made; if the key was rotated, pin the new verifier key")
	}
	return l, nil
}

// Open opens a ledger and checks its head. Errors wrap ErrStore or ErrTampered. One that was moved away opens too, for reading.
func Open(ctx context.Context, cfg Config) (*Ledger, error) {
	l, err := prepare(cfg)
	if err != nil {
		return nil, err
	}
	n, err := l.store.version(ctx, l.store.DB)
	switch {
	case err != nil || n == 0:
		return nil, fault.WithHint(l.store.fail("read the schema", orNotLedger(err)), "make it with hsmsign ledger init; a role of PostgreSQL that did not make it needs hsmsign ledger migrate --grant")
	case n > schemaVersion:
		return nil, newerSchema(n)
	}
	if d, err := l.store.destination(ctx, l.store.DB); err != nil {
		return nil, l.store.fail("read the schema", err)
	} else if d != nil && !d.complete {
		return nil, fault.Errorf("%w: %s contains a copy of a ledger that is not complete", ErrStore, l.store.Name).
			Fix("run the same hsmsign ledger copy --to again, or use the store that the ledger is copied from")
	}
	if l.last, err = readLast(cfg.LastCheckpoint, l.verifiers); err != nil {
		return nil, err
	}
	l.kept = l.last
	copies, err := l.readCopies() // before the head, which is newer then
	if err != nil {
		return nil, err
	}
	head, err := l.Head(ctx)
	if err == nil {
		err = l.checkCopies(ctx, copies, head)
	}
	if err != nil {
		return nil, l.orMoved(ctx, err)
	}
	if l.signers == nil {
		close(l.closed)
		return l, nil
	}
	if err := l.startPublisher(ctx, head, copies); err != nil {
		return nil, err
	}
	go l.write()
	return l, nil
}

func orNotLedger(err error) error {
	if err == nil {
		err = errors.New("it contains no ledger")
	}
	return err
}

// Close ends the writer after its batch, records the newest checkpoint and publishes it once more. Appends that wait fail. The
// store stays open.
func (l *Ledger) Close() error {
	l.once.Do(func() { close(l.closing) })
	late := time.AfterFunc(closeWait, l.cancel) // of a batch that waits for a lock
	<-l.closed
	l.using.close()
	late.Stop()
	l.cancel()
	return errors.Join(l.keep(), l.publisher.close())
}

// keep writes the newest checkpoint to the file outside the store.
func (l *Ledger) keep() error {
	l.keeping.Lock()
	defer l.keeping.Unlock()
	l.mu.Lock()
	last := l.last
	l.mu.Unlock()
	if last == l.kept {
		return nil
	}
	err := writeLast(l.cfg.LastCheckpoint, last)
	if err == nil {
		l.kept = last
	}
	return err
}

func (l *Ledger) now() time.Time { return l.cfg.Now().UTC().Truncate(time.Millisecond) }

// Name returns the reference of the store without secrets.
func (l *Ledger) Name() string { return l.store.Name }

// Origin returns the name of the ledger in its checkpoints.
func (l *Ledger) Origin() string { return l.verifiers[0].Name() }

// Required returns how many operators of witnesses must have cosigned a request.
func (l *Ledger) Required() int { return l.cfg.Required }

// Head returns the checkpoint of the store after checking it.
func (l *Ledger) Head(ctx context.Context) (*Checkpoint, error) {
	head, err := l.check(ctx, l.store.DB, l.store.hashReader(ctx, l.store.DB), "")
	if err != nil {
		return nil, l.store.fail("read the head", err)
	}
	l.saw(head)
	return head, nil
}

// check reads the head and checks it: signature, root of the stored hashes, growth from what was seen before.
func (l *Ledger) check(ctx context.Context, q querier, hashes tlog.HashReader, lock string) (*Checkpoint, error) {
	if l.store.Check != nil {
		if err := l.store.Check(); err != nil {
			return nil, err
		}
	}
	l.mu.Lock()
	last := l.last // before the head is read, which is newer then
	l.mu.Unlock()
	var signed []byte
	var size int64
	err := q.QueryRowContext(ctx, "SELECT size, checkpoint FROM head WHERE id = 1"+lock).Scan(&size, &signed)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("%w: the store has no checkpoint", ErrTampered)
	}
	if err != nil {
		return nil, err
	}
	head := last
	if last == nil || !bytes.Equal(signed, last.Signed) { // the signature of the last one was verified
		if head, err = ParseCheckpoint(signed, l.verifiers...); err != nil {
			return nil, err
		}
	}
	root, err := treeHash(head.Size, hashes)
	switch {
	case err != nil:
		return nil, err
	case size != head.Size || root != head.Root:
		return nil, fmt.Errorf("%w: the stored hashes do not have the root of the signed checkpoint of %d entries", ErrTampered, head.Size)
	}
	if last == nil {
		return head, nil
	}
	return head, checkGrowth(last, head, hashes)
}

// saw remembers the newest checkpoint.
func (l *Ledger) saw(head *Checkpoint) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last == nil || head.Size > l.last.Size {
		l.last = head
	}
}
