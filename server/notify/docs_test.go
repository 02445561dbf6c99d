package notify

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"hsmsign/ledger"
)

// The limits in docs/service.md are those of the code.
func TestLimitsAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/service.md")
	if err != nil {
		t.Fatal(err)
	}

	for what, value := range map[string]string{
		"pause after the first failure; each further one is twice as long": firstPause.String(), "longest pause": fmt.Sprintf("%.0fm", longestPause.Minutes()),
		"failures, until a message is dropped; the log says `a message was dropped`": fmt.Sprintf("%.0fh", giveUp.Hours()),
		"messages of a kind that has no channel, until they are dropped":             fmt.Sprintf("%.0fh", ledger.UnsentFor.Hours()),
		"one mail": smtpWait.String(), "one call of a webhook": webhookWait.String(), "a failure that takes longer makes the channel rest for a minute": slow.String(),
		"lease of a message: after a kill it is sent again when that is over": fmt.Sprintf("%.0fm", lease.Minutes()), "bytes that are read from a mail server": fmt.Sprintf("%d KiB", maxReplies>>10),
		"files in a spool folder": fmt.Sprint(maxSpoolFiles), "bytes in a spool folder": fmt.Sprintf("%d MiB", maxSpoolBytes>>20),
	} {
		if row := "\n| " + what + " | " + value + " |\n"; !strings.Contains(string(doc), row) {
			t.Errorf("there is no row %q", row)
		}
	}
	if restFor != time.Minute {
		t.Error("the document has other times")
	}
}
