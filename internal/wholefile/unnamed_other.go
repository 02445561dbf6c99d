//go:build !linux

package wholefile

import (
	"errors"
	"io"
	"io/fs"
)

func writeUnnamed(string, func(io.Writer) error, fs.FileMode, bool) error {
	return errors.ErrUnsupported
}
