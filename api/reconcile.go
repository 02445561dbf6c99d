package api

// LedgerReconcile is the result of ledger reconcile.
type LedgerReconcile struct {
	OK          bool             `json:"ok"`
	Key         string           `json:"key"`
	From        string           `json:"from,omitempty"` // of the log, UTC
	To          string           `json:"to,omitempty"`
	Records     int              `json:"records"`    // of the log, of any kind
	Signatures  int              `json:"signatures"` // of the key
	Refused     int              `json:"refused"`    // requests to sign that the cloud refused
	ByID        int              `json:"by_id"`      // signatures that an entry names, or that name a request
	ByTime      []CloudCall      `json:"by_time"`    // signatures whose answer was lost
	Probes      int              `json:"probes"`     // of those by id and by time: probes of the key
	Unexplained []CloudCall      `json:"unexplained"`
	Missing     []MissingRequest `json:"missing"`
}

// CloudCall is a signature in the log of a cloud.
type CloudCall struct {
	Time      string `json:"time"`         // RFC 3339, UTC
	ID        string `json:"id,omitempty"` // AWS: requestID; GCP: insertId
	Key       string `json:"key,omitempty"`
	Reason    string `json:"reason,omitempty"` // GCP: that the client sent
	Principal string `json:"principal,omitempty"`
	UserAgent string `json:"user_agent,omitempty"`
	File      string `json:"file"`
	Request   string `json:"request,omitempty"` // id of the request that it was probably made for
	Entry     int64  `json:"entry,omitempty"`   // that explains it by time
	Why       string `json:"why,omitempty"`     // it is not explained
}

// MissingRequest is an issued request whose signature is not in the log.
type MissingRequest struct {
	Entry     int64  `json:"entry"`
	Time      string `json:"time"` // RFC 3339, UTC
	Request   string `json:"request"`
	Operation string `json:"operation,omitempty"`
}
