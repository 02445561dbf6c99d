package api

// Setup is the result of setup: what it has written, and what to do next.
type Setup struct {
	Config string      `json:"config"` // path of the configuration
	Files  []SetupFile `json:"files"`
	Origin string      `json:"origin,omitempty"` // of the new ledger; absent: the ledger existed

	Backend string   `json:"backend,omitempty"` // caller that has the token
	Token   string   `json:"token,omitempty"`   // a secret; it is stored nowhere
	Next    []string `json:"next"`              // commands that start the service
}

// SetupFile is a file that setup has written.
type SetupFile struct {
	Path  string `json:"path"`
	Mode  string `json:"mode"`  // octal, such as 0600
	Owner string `json:"owner"` // name of the user; "you": who has run setup
	What  string `json:"what"`
}
