package oidc

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"hsmsign/internal/testkit"
)

// TestLimitsAreDocumented compares the limits in docs/service.md with the code.
func TestLimitsAreDocumented(t *testing.T) {
	doc := string(testkit.Must(os.ReadFile("../../../docs/service.md")))
	short := func(d time.Duration) string { return strings.NewReplacer("h0m0s", "h", "m0s", "m").Replace(d.String()) }
	kib := func(n int) string { return fmt.Sprint(n>>10, " KiB") }
	for what, value := range map[string]string{
		"length of an OIDC token": kib(MaxToken), "difference of the clocks of an issuer and the service": short(Skew), "interval of fetching the keys of an issuer, at least": short(fetchEvery),
		"interval of fetching them without a reason": short(keysFresh), "discovery and keys of an issuer": short(fetchWait), "answer of an issuer": kib(maxAnswer), "keys of an issuer": fmt.Sprint(maxKeys),
		"use of the keys of an issuer that does not answer": short(KeysOld), "OIDC tokens that wait for the keys of an issuer at once; others are refused": fmt.Sprint(maxWaiting),
	} {
		if row := fmt.Sprintf("\n| %s | %s |\n", what, value); !strings.Contains(doc, row) {
			t.Errorf("there is no row %q", row)
		}
	}
}
