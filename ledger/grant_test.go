package ledger

import (
	"regexp"
	"testing"
)

// Each table has rights.
func TestRights(t *testing.T) {
	tables := regexp.MustCompile(`(?m)^CREATE TABLE (\w+)`).FindAllStringSubmatch(schema, -1)
	if len(tables) < 9 {
		t.Fatalf("tables %v", tables)
	}
	for _, table := range tables {
		if rights[table[1]] == "" {
			t.Errorf("a role has no rights on %s", table[1])
		}
	}
}
