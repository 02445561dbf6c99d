package pkcs11

// Stats are the figures of one key: its sessions now, and what has happened since it was opened. Reinitialized
// counts for the whole module, and Reconnects for the whole token. With isolate=yes the sessions are the worker's, and
// only InUse and Restarts are known.
type Stats struct {
	Open  int // sessions that are open for this key, besides the token's own
	Idle  int // of these, those that wait for work
	InUse int // signatures under way

	Evicted       uint64 // sessions that were given up because a call failed on them
	Reconnects    uint64 // logins after the first, because the token had forgotten it
	Reinitialized uint64 // times that the module went through C_Finalize and C_Initialize
	Restarts      uint64 // worker processes that took the place of one that died or was killed

	ReadWrite  bool // the token takes read-write sessions only
	Serialized bool // the module takes no concurrent calls (CKR_CANT_LOCK), so there is one session at a time
	Messages   bool // the token refuses CKM_RSA_PKCS, and hashes messages itself
}

// Statistics is what a key of this backend has besides signer.Signer. Safe for concurrent use.
type Statistics interface {
	Stats() Stats
}
