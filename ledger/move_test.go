package ledger_test

import (
	"regexp"
	"slices"
	"testing"

	"hsmsign/ledger"
)

// A move copies every table of the schema, but for those that it is known to leave out.
func TestMovedTables(t *testing.T) {
	known := slices.Concat(ledger.MovedTables, []string{"head", "entries", "hashes", "openings"}, []string{"sessions", "logins", "destination"})
	var tables []string
	for _, m := range regexp.MustCompile(`CREATE TABLE (\w+)`).FindAllStringSubmatch(ledger.Schema, -1) {
		tables = append(tables, m[1])
	}
	slices.Sort(known)
	slices.Sort(tables)
	if !slices.Equal(known, tables) {
		t.Errorf("the schema has %v\nand a move knows %v", tables, known)
	}
}
