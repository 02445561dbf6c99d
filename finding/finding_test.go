package finding

import (
	"errors"
	"fmt"
	"testing"
)

func TestFirst(t *testing.T) {
	warning := Finding{ID: "csr.sha1", Severity: Warning, Message: "old"}
	first := Finding{ID: "chain.expired", Severity: Error, Message: "over", Fix: "renew"}
	second := Finding{ID: "csr.pem", Severity: Error, Message: "damaged"}
	if err := First([]Finding{warning, {ID: "x.y", Severity: Note}}); err != nil {
		t.Errorf("warnings and notes refuse nothing: %v", err)
	}
	err := fmt.Errorf("acme.csr: %w", First([]Finding{warning, first, second}))
	var found *Finding
	if !errors.As(err, &found) || found.ID != "chain.expired" || found.Subject() != Chain || found.Hint() != "renew" {
		t.Errorf("got %+v", found)
	}
	if err.Error() != "acme.csr: over" {
		t.Errorf("got %q", err)
	}
}
