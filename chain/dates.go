package chain

import (
	"time"

	"hsmsign/fault"
)

// CheckDates returns an error, a *fault.Finding, if a certificate of the chain is not valid at the given time. Build
// checks the dates once; a process that keeps the chain for days checks them again before each signature.
func (c *Chain) CheckDates(now time.Time) error {
	return fault.First(checkDates(c.Certs, Options{Now: now}))
}
