//go:build !linux

package wholefile

import (
	"errors"
	"io/fs"
)

func writeUnnamed(string, []byte, fs.FileMode, bool) error { return errors.ErrUnsupported }
