//go:build !(linux || darwin || freebsd || netbsd || openbsd || dragonfly)

package ceremony

import "os"

// lock: here two runs at once are for their people to avoid.
func lock(*os.File) error { return nil }
