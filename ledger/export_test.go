package ledger

// OpenIntents returns how many intents of this process have no outcome. The ledger must be closed.
func (l *Ledger) OpenIntents() int { return len(l.intents) }

// Schema and MovedTables are what Move copies from.
var (
	Schema      = schema
	MovedTables = movedTables
)
