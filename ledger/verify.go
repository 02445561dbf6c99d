package ledger

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"hsmsign/ledger/record"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Report is the result of Verify.
type Report struct {
	Head    *Checkpoint
	Entries int64
	// Defects are what is wrong, in the order of the entries; at most maxDefects. None: the ledger is whole.
	Defects []record.Defect
}

// progressEvery is after how many entries Verify reports progress.
const progressEvery = 4096

// maxDefects is how many defects a report has.
const maxDefects = 100

// verification is one run of Verify.
type verification struct {
	*Report
	ledger *Ledger

	// What the entries say, to compare with the caches.
	requests  map[record.ID]*record.Entry // the newest entry of each
	at        map[record.ID]int64
	begun     map[record.ID]*begun
	customers map[record.ID]int64
	names     map[record.ID]string
	pushes    map[record.ID]push
	erased    map[record.ID]bool
	chains    map[record.Hash]int64 // and the first entry with it
	watches   map[string]int64
	keys      map[record.Hash]owner
	days      map[day]int64 // intents under a policy
	asked     map[record.ID]*question
	frozen    freezes
	replicas  map[string]replica
	movedTo   []record.ID                 // the stores that entries of kind moved name
	movedAt   int64                       // the newest of them
	profiles  map[record.ID]*record.Entry // the intent of each; nil: it has its outcome
	lost      []lost                      // entries whose data is missing
	signedBy  string                      // the verifier keys that the newest entry about them says
	signedAt  int64                       // its index; -1: there is none
	verifiers []note.Verifier             // the pinned ones, and all that entries say

	hashes []tlog.Hash // as stored with the part of the entries that is checked
	first  int64       // index of the first of them
	tree   frontier    // of the entries so far
}

// Verify recomputes everything from the raw entries: their form, the tree under the signed checkpoint, each commitment,
// and the caches. progress, if it is not nil, is called as often as the number that it gets. The error is about reading;
// what is wrong with the ledger is in the report.
func (l *Ledger) Verify(ctx context.Context, progress func(of int)) (*Report, error) {
	v := &verification{
		Report: &Report{}, ledger: l, signedAt: -1, verifiers: l.verifiers, requests: map[record.ID]*record.Entry{}, at: map[record.ID]int64{}, customers: map[record.ID]int64{}, names: map[record.ID]string{}, pushes: map[record.ID]push{}, erased: map[record.ID]bool{},
		chains: map[record.Hash]int64{}, watches: map[string]int64{}, keys: map[record.Hash]owner{}, days: map[day]int64{}, begun: map[record.ID]*begun{}, frozen: freezes{at: -1}, asked: map[record.ID]*question{}, replicas: map[string]replica{}, profiles: map[record.ID]*record.Entry{},
	}
	// One snapshot, so that appends meanwhile are not seen by half.
	tx, err := l.store.DB.BeginTx(ctx, &sql.TxOptions{ReadOnly: true, Isolation: l.store.Snapshot})
	if err != nil {
		return nil, l.store.fail("verify", err)
	}
	defer func() { _ = tx.Rollback() }() // nothing was written
	if v.Head, err = l.check(ctx, tx, l.store.hashReader(ctx, tx), ""); err != nil {
		if v.add(-1, err); v.Head == nil {
			return v.Report, l.store.fail("verify", unlessTampered(err))
		}
	}
	if progress == nil {
		progress = func(int) {}
	}
	if err := v.entries(ctx, tx, progress); err != nil {
		return nil, l.store.fail("verify", err)
	}
	v.rotated()
	if err := v.movedHere(ctx, tx); err != nil {
		return nil, l.store.fail("verify", err)
	}
	if err := v.caches(ctx, tx); err != nil {
		return nil, l.store.fail("verify", err)
	}
	if err := v.cachedCosignatures(ctx, tx); err != nil {
		return nil, l.store.fail("verify", err)
	}
	slices.SortStableFunc(v.Defects, func(a, b record.Defect) int { return cmp.Compare(a.Entry, b.Entry) })
	return v.Report, nil
}

// unlessTampered returns nil for a defect of the ledger, which is in the report.
func unlessTampered(err error) error {
	if errors.Is(err, ErrTampered) {
		return nil
	}
	return err
}

// add adds a defect.
func (v *verification) add(entry int64, what any) {
	if len(v.Defects) < maxDefects {
		v.Defects = append(v.Defects, record.Defect{Entry: entry, Text: strings.TrimPrefix(fmt.Sprint(what), ErrTampered.Error()+": ")})
	}
}

// entries checks every entry with its stored hash and its openings, a part after the other: a ledger may be larger than the
// memory. While one part is checked, the next one is read.
func (v *verification) entries(ctx context.Context, tx *sql.Tx, progress func(of int)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	parts := make(chan *part)
	go func() {
		defer close(parts)
		for start := int64(0); start < v.Head.Size && ctx.Err() == nil; start += progressEvery {
			p := v.ledger.readPart(ctx, tx, start, min(start+progressEvery, v.Head.Size))
			select {
			case parts <- p:
			case <-ctx.Done():
			}
		}
	}()
	defer func() {
		cancel()
		for range parts { // the transaction has one user at a time
		}
	}()
	for p := range parts {
		if p.err != nil {
			return p.err
		}
		v.part(p)
		progress(int(v.Head.Size / progressEvery))
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	for table, what := range map[string]string{"idx FROM entries WHERE idx": "the entry is not under the signed checkpoint", "entry FROM openings WHERE entry": "there is data for an entry that does not exist"} {
		column, _, _ := strings.Cut(table, " ")
		query := fmt.Sprintf("SELECT DISTINCT %s < 0 OR %s >= ? ORDER BY %s LIMIT %d", table, column, column, maxDefects)
		if err := v.ledger.store.each(ctx, tx, query, []any{v.Head.Size}, func(scan func(...any) error) error {
			var index int64
			err := scan(&index)
			v.add(index, what)
			return err
		}); err != nil {
			return err
		}
	}
	if v.tree.root() != v.Head.Root {
		v.add(-1, fmt.Sprintf("the entries do not have the root hash of the signed checkpoint of %d entries", v.Head.Size))
	}
	return nil
}

// part checks the entries of a part.
func (v *verification) part(p *part) {
	v.hashes, v.first = p.hashes, p.first
	openings := map[int64][]opened{}
	for _, o := range p.openings {
		kept := opened{Commitment: o.Commitment(), hash: o.Hash}
		if slices.Contains([]string{openCustomer, openPush, openTarget, openKeys, openActor, openFreezes, openReplica, openOperations, openAsked, openMoved}, o.Name) {
			kept.data = o.Data
		}
		openings[o.entry] = append(openings[o.entry], kept)
	}
	for _, row := range p.rows {
		v.skip(row.index)
		v.push(tlog.RecordHash(row.leaf))
		if e := v.entry(row.index, row.leaf, openings[row.index]); e != nil && (e.Kind != row.kind || e.Customer != idOf(row.customer)) {
			v.add(row.index, "the list of entries does not say what the entry says")
		}
		delete(openings, row.index)
	}
	v.skip(p.end)
	for _, index := range slices.Sorted(maps.Keys(openings)) {
		v.add(index, "there is data for an entry that does not exist")
	}
}

// push adds a leaf to the tree, and compares the stored hashes of the subtrees that it completes.
func (v *verification) push(leaf tlog.Hash) {
	v.tree.add(leaf, func(node subtree, n int64) {
		if v.hashes[tlog.StoredHashIndex(node.level, n)-v.first] != node.hash {
			v.add(v.Entries, map[bool]string{true: "the entry was changed, or its stored hash", false: "a stored hash above the entry was changed"}[node.level == 0])
		}
	})
	v.Entries++
}

// skip reports the entries up to index as missing. Their stored hashes replace them, so that only they are reported.
func (v *verification) skip(index int64) {
	for v.Entries < index {
		v.add(v.Entries, "the entry is missing")
		v.push(v.hashes[tlog.StoredHashIndex(0, v.Entries)-v.first])
	}
}

// opened is an opening without its data.
type opened struct {
	record.Commitment
	hash record.Hash
	data []byte // nil: it is not needed
}

// entry checks one entry, and follows what it says.
func (v *verification) entry(index int64, leaf []byte, openings []opened) *record.Entry {
	e, err := record.ParseEntry(leaf)
	if err != nil {
		v.add(index, err)
		return nil
	}
	for _, o := range openings {
		want := map[string]record.Hash{openCSR: e.CSR, openRequest: e.File}[o.Name]
		switch {
		case !slices.Contains(e.Commitments, o.Commitment):
			v.add(index, fmt.Sprintf("the stored %s is not the one that was recorded", o.Name))
		case (o.Name == openCSR || o.Name == openRequest) && o.hash != want:
			v.add(index, fmt.Sprintf("the stored %s does not have the SHA-256 of the entry", o.Name))
		}
		if o.Name == openCustomer {
			var c Customer
			if json.Unmarshal(o.data, &c) != nil {
				v.add(index, "the customer is not readable")
			}
			v.names[e.Customer] = c.Name
		}
		if o.Name == openOperations {
			if _, err := parseProbed(o.data); err != nil {
				v.add(index, err)
			}
		}
		if o.Name == openTarget {
			v.watch(e.Kind, string(o.data), index)
		}
		if o.Name == openPush {
			var p Push
			if json.Unmarshal(o.data, &p) != nil {
				v.add(index, "the push certificate is not readable")
			}
			v.pushes[e.Customer] = push{p, index}
		}
	}
	if e.Kind == record.KindRotated {
		v.rotation(data(openings, openKeys), index)
	}
	v.whileFrozen(e, index, openings)
	switch e.Kind {
	case record.KindFrozen, record.KindUnfrozen:
		v.freeze(e, index, openings)
	case record.KindMoved:
		v.moved(index, data(openings, openMoved))
	case record.KindPolicy:
		v.replicas[data(openings, openReplica)] = replica{e.Policy, index}
	}
	if len(openings) < len(e.Commitments) { // a later entry may say that it was erased
		v.lost = append(v.lost, lost{index, e.Customer})
	}
	if _, seen := v.chains[e.Chain]; !seen && e.Chain != (record.Hash{}) {
		v.chains[e.Chain] = index
	}
	v.key(e, index)
	v.approval(e, index, openings)
	if first := e.Kind == record.KindPending && e.CSR != (record.Hash{}) || e.Kind == record.KindIntent && v.asked[e.Request] == nil; first && e.Policy != (record.Hash{}) {
		v.days[dayOf(e)]++
	}
	if e.Kind == record.KindErased {
		v.erased[e.Customer] = true
	}
	if e.Kind == record.KindCustomer {
		v.customers[e.Customer] = index
	}
	if aboutProfile(e.Kind) {
		v.profile(e, index)
	} else if e.Request != (record.ID{}) {
		if v.requests[e.Request] == nil {
			v.begun[e.Request] = &begun{issued: -1, repeated: repeats(e)}
		}
		if v.requests[e.Request] == nil || e.Kind == record.KindIntent {
			v.begun[e.Request].index, v.begun[e.Request].at = index, e.Time.UnixMilli()
		}
		if commits(e, openRequest) {
			v.begun[e.Request].issued = index
		}
		v.requests[e.Request], v.at[e.Request] = e, index
	}
	return e
}

// begun is the first entry about a request; of one that was signed, the newest intent.
type begun struct {
	index, at int64 // at is its time, milliseconds since 1970
	issued    int64 // the entry with the request file; -1: there is none
	repeated  bool  // the request began in a previous ledger
}

// data returns the data of an opening; "" if it is missing.
func data(openings []opened, name string) string {
	for _, o := range openings {
		if o.Name == name {
			return string(o.data)
		}
	}
	return ""
}

// lost is an entry whose data is missing.
type lost struct {
	index    int64
	customer record.ID
}

// idOf returns an id of the database; the zero ID if it has another length.
func idOf(raw []byte) record.ID {
	if len(raw) != len(record.ID{}) {
		return record.ID{}
	}
	return record.ID(raw)
}
