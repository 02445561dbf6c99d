package server

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/api/ledgerapi"
	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// listEntries answers GET /v1/entries.
func (c *call) listEntries() error {
	query, err := c.listQuery("customer", "kind", "before", "limit")
	if err != nil {
		return err
	}
	query.Kind = c.r.URL.Query().Get("kind")
	found, err := c.cfg.Ledger.List(c.r.Context(), query)
	if err != nil {
		return err
	}
	list := api.List[api.LedgerEntry]{Items: make([]api.LedgerEntry, 0, len(found))}
	for _, r := range found {
		list.Items = append(list.Items, c.entry(r))
	}
	if len(found) == query.Limit {
		list.Next = pageBefore(c.r.URL, found[len(found)-1].Index)
	}
	return c.json(http.StatusOK, list)
}

// showEntry answers GET /v1/entries/{index}. An entry about no customer, or about one that was erased, is for callers who may
// read about all.
func (c *call) showEntry() error {
	text := c.r.PathValue("index")
	none := fault.NotFound.Errorf("there is no entry %q", fault.Clip(text, 32)).Fix("GET /v1/entries lists them")
	index, err := strconv.ParseInt(text, 10, 64)
	if err != nil || strconv.FormatInt(index, 10) != text {
		return none
	}
	if !c.cred.Caller.Role.Allows(policy.Read) {
		return c.forbidden("read the ledger")
	}
	found, err := c.cfg.Ledger.Record(c.r.Context(), index)
	if fault.KindOf(err) == fault.NotFound || err == nil && !c.cred.Caller.Read(found.Customer) {
		return none
	}
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, c.entry(*found))
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
	_ = http.NewResponseController(c.w).SetWriteDeadline(c.cfg.Now().Add(exportWait)) // without deadlines (tests) there is nothing to set
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
