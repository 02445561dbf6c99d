// Package open opens the ledger's store that a reference names: "sqlite:PATH" or "postgres://...". It is the only place that
// knows every kind of store.
package open

import (
	"context"
	"net/url"
	"strings"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/postgres"
	"hsmsign/ledger/sqlite"
)

// Path returns the path of a SQLite reference; "" for another reference.
func Path(reference string) string {
	path, ok := strings.CutPrefix(reference, "sqlite:")
	if !ok {
		return ""
	}
	return path
}

// IsReference returns whether a text names a store, and not a file.
func IsReference(text string) bool {
	scheme, _, ok := strings.Cut(text, ":")
	return ok && (scheme == "sqlite" || scheme == "postgres" || scheme == "postgresql")
}

// HasPassword returns whether a reference contains a password.
func HasPassword(reference string) bool {
	u, err := url.Parse(reference)
	if err != nil {
		return strings.Contains(reference, "@")
	}
	_, set := u.User.Password()
	return set || u.Query().Has("password")
}

// Store opens the store; create makes the file of a SQLite store if it does not exist. The caller closes Store.DB.
func Store(ctx context.Context, reference string, create bool) (*ledger.Store, error) {
	scheme, _, _ := strings.Cut(reference, ":")
	switch {
	case Path(reference) != "":
		return sqlite.Open(ctx, Path(reference), create)
	case scheme == "postgres" || scheme == "postgresql":
		return postgres.Open(ctx, reference)
	}
	return nil, fault.Usage.Errorf("%q does not name a ledger", scheme).Fix("write sqlite:PATH or postgres://USER@HOST/DATABASE")
}
