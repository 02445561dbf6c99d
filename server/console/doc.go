// Package console is what a browser is shown: templates and view models. It decides nothing, and reads no ledger: package server asks
// the API, and hands the answers over.
package console
