//go:build !linux

package sqlite

import "math"

// checkFileSystem accepts any folder: only Linux reports the kind of a file system in one way.
func checkFileSystem(string) error { return nil }

// freeSpace returns the largest number: nothing is kept in reserve.
func freeSpace(string) (uint64, error) { return math.MaxUint64, nil }
