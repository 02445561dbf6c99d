package record

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"hsmsign/fault"
)

func TestWaiting(t *testing.T) {
	err := fmt.Errorf("sign: %w", &Waiting{ID: ID{1}, Need: 2, Have: 1, Until: time.Unix(0, 0)})
	if kind := fault.KindOf(err); kind != fault.Pending || kind.Exit() != 8 || kind.Status() != 202 {
		t.Errorf("kind %v", kind)
	}
	if !strings.Contains(fault.Hint(err), ID{1}.String()) || !strings.Contains(err.Error(), "1 of 2, until 1970-01-01T00:00:00Z") {
		t.Errorf("%v; %s", err, fault.Hint(err))
	}
}
