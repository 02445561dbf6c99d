package record

import (
	"fmt"
	"time"

	"hsmsign/fault"
)

// Waiting is the error, of kind pending, of a use that other people have to approve first. Nothing was signed.
type Waiting struct {
	ID    ID        // of the request, which it keeps when it is signed
	Need  int       // approvals of different people
	Have  int       // of them
	Until time.Time // UTC; it must be approved before
}

func (w *Waiting) Error() string {
	return fmt.Sprintf("waiting for approval %s: %d of %d, until %s", w.ID, w.Have, w.Need, w.Until.UTC().Format(time.RFC3339))
}

// Kind returns fault.Pending.
func (*Waiting) Kind() fault.Kind { return fault.Pending }

// Hint returns what to do.
func (w *Waiting) Hint() string {
	if w.Have >= w.Need { // another process signs it, or only administrators have approved it
		return "look again with hsmsign pending " + w.ID.String() + "; if only administrators have approved it, somebody else must too"
	}
	return "another person approves it with hsmsign approve " + w.ID.String()
}
