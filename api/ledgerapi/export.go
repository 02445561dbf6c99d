package ledgerapi

import (
	"encoding/csv"
	"encoding/json"
	"io"
	"strconv"
	"strings"

	"hsmsign/api"
)

// Export writes entries as lines of JSON or CSV. It is not safe for concurrent use.
type Export struct {
	out   io.Writer
	table *csv.Writer // nil: JSON
	begun bool
}

// NewExport returns an export to a writer.
func NewExport(out io.Writer, asCSV bool) *Export {
	e := &Export{out: out}
	if asCSV {
		e.table = csv.NewWriter(out)
	}
	return e
}

// Add writes one entry. The first line of a CSV has the names of the fields.
func (x *Export) Add(e api.LedgerEntry) error {
	if x.table == nil {
		line, err := json.Marshal(e)
		if err != nil {
			return err
		}
		_, err = x.out.Write(append(line, '\n'))
		return err
	}
	var names, values []string
	for _, f := range Fields(e) {
		names, values = append(names, f[0]), append(values, plainCell(f[1]))
	}
	if !x.begun {
		x.begun = true
		if err := x.table.Write(names); err != nil {
			return err
		}
	}
	return x.table.Write(values)
}

// Close writes what is buffered.
func (x *Export) Close() error {
	if x.table == nil {
		return nil
	}
	x.table.Flush()
	return x.table.Error()
}

// plainCell returns a value that no spreadsheet takes for a formula (OWASP, CSV injection).
func plainCell(value string) string {
	if value != "" && strings.ContainsRune("=+-@\t\r", rune(value[0])) {
		return "'" + value
	}
	return value
}

// Fields returns the names and values of an entry, for people.
func Fields(e api.LedgerEntry) [][2]string {
	return [][2]string{
		{"entry", strconv.FormatInt(e.Index, 10)}, {"time", e.Time}, {"kind", e.Kind}, {"request", e.Request}, {"customer", e.Customer},
		{"customer id", e.CustomerID}, {"from", e.From}, {"from id", e.FromID}, {"actor", e.Actor}, {"actor id", e.ActorID}, {"credential id", e.CredentialID}, {"channel", e.Channel}, {"rule", e.Rule}, {"policy hash", e.PolicySHA256}, {"digest", e.Digest},
		{"operation", e.Operation}, {"csr hash", e.CSRSHA256}, {"key hash", e.KeySHA256}, {"vendor hash", e.VendorSHA256},
		{"chain hash", e.ChainSHA256}, {"file hash", e.FileSHA256}, {"use before", e.UseBefore}, {"commitments", strings.Join(e.Commitments, ", ")},
	}
}
