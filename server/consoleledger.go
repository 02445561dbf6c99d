package server

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/ledger/record"
	"hsmsign/server/console"
)

const ledgerPath = console.Root + "ledger"

// kinds are the kinds of entries, for the search.
var kinds = []string{
	record.KindIssued, record.KindRefused, record.KindFailed, record.KindUnknown, record.KindIntent, record.KindSuperseded, record.KindPending, record.KindApproved,
	record.KindRejected, record.KindExpired, record.KindCustomer, record.KindNewKey, record.KindAttached, record.KindReassigned, record.KindErased, record.KindFrozen,
	record.KindUnfrozen, record.KindPolicy, record.KindProbe, record.KindWatched, record.KindUnwatched, record.KindRotated, record.KindMoved, record.KindGenesis,
	record.KindProfile, record.KindProfileSigned, record.KindProfileFailed, record.KindProfileRefused,
}

// ledgerPage searches entries. The first page also shows the state of the ledger.
func (c *call) ledgerPage() error {
	values := c.r.URL.Query()
	if entry := strings.TrimSpace(values.Get("entry")); entry != "" {
		return c.goTo(ledgerPath + "/" + pathPart(entry))
	}
	limit, err := strconv.Atoi(rowsPage)
	if err != nil {
		return err
	}
	until := strings.TrimSpace(values.Get("until"))
	if day, err := time.Parse(time.DateOnly, until); err == nil {
		until = day.AddDate(0, 0, 1).Add(-time.Millisecond).Format(time.RFC3339Nano)
	}
	trimmed := func(name string) string { return strings.TrimSpace(values.Get(name)) }
	answer, err := get[api.List[api.LedgerEntry]](c, query("/v1/entries", "customer", values.Get("customer"), "kind", trimmed("kind"), "request", strings.ToLower(trimmed("request")),
		"actor", values.Get("actor"), "sha256", strings.ToLower(trimmed("sha256")), "until", until, "before", values.Get("before"), "limit", rowsPage))
	view, status := console.NewLedgerPage(c.r.URL, answer, limit), http.StatusOK
	view.Kinds = kinds
	if kind := fault.KindOf(err); view.Searched && (kind == fault.Usage || kind == fault.NotFound) {
		problem := c.problem(err) // what was typed stays in the form
		c.err, view.Problem, status, err = err, &problem, problem.Status, nil
	}
	if err != nil {
		return err
	}
	if !view.Searched && !values.Has("before") {
		state, err := get[api.LedgerStatus](c, "/v1/ledger")
		if err != nil {
			return err
		}
		view.Status = &state
	}
	frame, err := c.frame("Ledger", ledgerPath)
	if err != nil {
		return err
	}
	return c.show(status, "ledger", frame, view)
}

// entryPage shows one entry with its proof.
func (c *call) entryPage() error {
	path := "/v1/entries/" + pathPart(c.r.PathValue("index"))
	entry, err := get[api.LedgerEntry](c, path)
	if err != nil {
		return err
	}
	proof, err := get[api.EntryProof](c, path+"/proof")
	if err != nil {
		return err
	}
	frame, err := c.frame("Entry "+strconv.FormatInt(entry.Index, 10), ledgerPath, console.Link{Path: ledgerPath, Text: "Ledger"})
	if err != nil {
		return err
	}
	return c.show(http.StatusOK, "entry", frame, console.Entry{LedgerEntry: entry, Proof: proof})
}

// downloadProof answers with the proof of an entry. The name of the file is its number.
func (c *call) downloadProof() error {
	name := c.r.PathValue("file")
	index, ok := strings.CutSuffix(name, ".tlog-proof")
	if !ok {
		return noDownload(name)
	}
	proof, err := get[api.EntryProof](c, "/v1/entries/"+pathPart(index)+"/proof")
	if err != nil {
		return err
	}
	c.file("entry-"+strconv.FormatInt(proof.Index, 10)+".tlog-proof", []byte(proof.Proof))
	return nil
}

// downloadLedger answers with all entries, or with the newest checkpoint.
func (c *call) downloadLedger() error {
	switch name := c.r.PathValue("file"); name {
	case "ledger.csv":
		return c.relay("/v1/export?as=csv")
	case "ledger.jsonl":
		return c.relay("/v1/export?as=json")
	case "checkpoint.txt":
		answer, err := c.api(http.MethodGet, "/v1/checkpoint", "", nil)
		if err == nil {
			err = answer.err
		}
		if err == nil {
			c.attachment(name, answer.Header.Get("Content-Type"), answer.Body)
		}
		return err
	default:
		return noDownload(name)
	}
}

func noDownload(name string) error {
	return fault.NotFound.Errorf("there is no download %q", fault.Clip(name, 64)).Fix("the pages have the links")
}
