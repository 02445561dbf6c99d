package server

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/api/ledgerapi"
	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

// listEntries answers GET /v1/entries.
func (c *call) listEntries() error {
	query, err := c.listQuery("customer", "kind", "request", "actor", "sha256", "until", "before", "limit")
	if err == nil {
		err = readSearch(c.r.URL.Query(), &query)
	}
	if err != nil {
		return err
	}
	found, next, err := c.cfg.Ledger.Search(c.r.Context(), query)
	if err != nil {
		return err
	}
	list := api.List[api.LedgerEntry]{Items: make([]api.LedgerEntry, 0, len(found))}
	for _, r := range found {
		list.Items = append(list.Items, c.entry(r))
	}
	list.Next = pageBefore(c.r.URL, next)
	return c.json(http.StatusOK, list)
}

// readSearch reads what is searched for.
func readSearch(values url.Values, q *ledger.Query) (err error) {
	q.Kind, q.Actor = values.Get("kind"), values.Get("actor")
	if text := values.Get("request"); text != "" {
		if q.Request, err = record.ParseID(text); err != nil || q.Request == (record.ID{}) {
			return fault.Usage.Errorf("request is %q", fault.Clip(text, 64)).Fix("it is the id of a request: 32 hex digits")
		}
	}
	if text := values.Get("sha256"); text != "" {
		if q.SHA256, err = record.ParseHash(text); err != nil || q.SHA256 == (record.Hash{}) {
			return fault.Usage.Errorf("sha256 is %q", fault.Clip(text, 96)).Fix("it is a hash: 64 hex digits")
		}
	}
	if text := values.Get("until"); text != "" {
		if q.Until, err = time.Parse(time.RFC3339, text); err != nil {
			return fault.Usage.Errorf("until is %q", fault.Clip(text, 32)).Fix("it is a time as RFC 3339 has it: 2027-03-01T00:00:00Z")
		}
	}
	return nil
}

// showEntry answers GET /v1/entries/{index}. An entry about no customer, or about one that was erased, is for callers who may
// read about all.
func (c *call) showEntry() error {
	found, err := c.entryOf()
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, c.entry(*found))
}

// entryOf returns the entry of the path; one that the caller may not read does not exist for it.
func (c *call) entryOf() (*record.Record, error) {
	text := c.r.PathValue("index")
	none := fault.NotFound.Errorf("there is no entry %q", fault.Clip(text, 32)).Fix("GET /v1/entries lists them")
	index, err := strconv.ParseInt(text, 10, 64)
	if err != nil || strconv.FormatInt(index, 10) != text {
		return nil, none
	}
	if !c.cred.Caller.Role.Allows(policy.Read) {
		return nil, c.forbidden("read the ledger")
	}
	found, err := c.cfg.Ledger.Record(c.r.Context(), index)
	if fault.KindOf(err) == fault.NotFound || err == nil && !c.cred.Caller.Read(found.Customer) {
		return nil, none
	}
	return found, err
}

// entryProof answers GET /v1/entries/{index}/proof: a file, or JSON that says what it shows.
func (c *call) entryProof() error {
	found, err := c.entryOf()
	if err != nil {
		return err
	}
	proof, err := c.cfg.Ledger.ProveEntry(c.r.Context(), found.Index)
	if err != nil {
		return err
	}
	if c.wantsJSON() {
		return c.json(http.StatusOK, ledgerapi.NewProof(proof))
	}
	c.file("entry-"+strconv.FormatInt(found.Index, 10)+".tlog-proof", proof.Data)
	return nil
}

// ledgerStatus answers GET /v1/ledger: checkpoint, witnesses and copies.
func (c *call) ledgerStatus() error {
	if !c.cred.Caller.Role.Allows(policy.Read) {
		return c.forbidden("read the ledger")
	}
	status, err := ledgerapi.Status(c.r.Context(), c.cfg.Ledger, c.cfg.Ledger.Required(), c.cfg.Now())
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, status)
}

// entry describes an entry. It names no customer that the caller may not read about.
func (c *call) entry(r record.Record) api.LedgerEntry {
	e := api.NewLedgerEntry(r)
	if !c.cred.Caller.Read(r.From) {
		e.From, e.FromID = "", ""
	}
	return e
}

const (
	exportWait = 10 * time.Minute // for an export
	maxExports = 2                // at once: each reads the whole ledger
)

// export answers GET /v1/export: one JSON object a line, or CSV, the oldest entry first.
func (c *call) export() error {
	values := c.r.URL.Query()
	if err := onlyQuery(values, "as"); err != nil {
		return err
	}
	if !c.cred.Caller.Role.Allows(policy.Read) {
		return c.forbidden("read the ledger")
	}
	as := values.Get("as")
	if as != "" && as != "json" && as != "csv" {
		return fault.Usage.Errorf("as is %q", fault.Clip(as, 32)).Fix("it is json or csv")
	}
	if !c.exporting.TryAcquire(1) {
		return &Retry{30 * time.Second, fault.Unavailable.Errorf("%d exports are running", maxExports).Fix("try again later")}
	}
	defer c.exporting.Release(1)
	_ = http.NewResponseController(c.w).SetWriteDeadline(time.Now().Add(exportWait)) // without deadlines (tests) there is nothing to set
	contentType := "application/x-ndjson"
	if as == "csv" {
		contentType = "text/csv; charset=utf-8"
	}
	c.w.Header().Set("Content-Type", contentType)
	c.w.Header().Set("Content-Disposition", `attachment; filename="ledger.`+map[bool]string{true: "csv", false: "jsonl"}[as == "csv"]+`"`)
	ctx, cancel := context.WithTimeout(c.connected, exportWait)
	defer cancel()
	out := &counted{c: c}
	export := ledgerapi.NewExport(out, as == "csv")
	err := c.cfg.Ledger.Records(ctx, func(r record.Record) error {
		if !c.cred.Caller.Read(r.Customer) {
			return nil
		}
		return export.Add(c.entry(r))
	})
	if err == nil {
		err = export.Close()
	}
	if err == nil && c.written.status == 0 {
		c.send(http.StatusOK, nil)
	}
	return err
}

// counted writes an answer of any length.
type counted struct{ c *call }

func (o *counted) Write(data []byte) (int, error) {
	if o.c.written.status == 0 {
		o.c.w.WriteHeader(http.StatusOK)
		o.c.written.status = http.StatusOK
	}
	n, err := o.c.w.Write(data)
	o.c.written.bytes += int64(n)
	return n, err
}

// checkpoint answers GET /v1/checkpoint: the newest one, a signed note.
func (c *call) checkpoint() error {
	if !c.cred.Caller.Role.Allows(policy.Read) {
		return c.forbidden("read the ledger")
	}
	head, err := c.cfg.Ledger.Head(c.r.Context())
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	c.send(http.StatusOK, head.Signed)
	return nil
}

// proof answers GET /v1/proof/{id}: the receipt of a request.
func (c *call) proof() error {
	found, err := c.requestOf(c.r.PathValue("id"))
	if err != nil {
		return err
	}
	proof, err := c.cfg.Ledger.Prove(c.r.Context(), found.ID)
	if err != nil {
		return err
	}
	c.file(found.ID.String()+".tlog-proof", proof)
	return nil
}
