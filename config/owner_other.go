//go:build !unix

package config

import "io/fs"

// owner returns ok false: the system has no numeric owners.
func owner(fs.FileInfo) (uid int, ok bool) { return 0, false }
