//go:build unix

package hook

import (
	"crypto/sha256"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"hsmsign/fault"
)

// inspect returns the SHA-256 of a program that only root and the user of this process can have written.
func inspect(path string) (hash [sha256.Size]byte, err error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return hash, fault.Errorf("program %q: not an absolute path", path).Fix("write the absolute path of a program, without arguments")
	}
	for part := path; ; part = filepath.Dir(part) {
		info, err := os.Lstat(part)
		if err != nil {
			return hash, fault.Errorf("program %q: %w", path, cause(err)).Fix("write the absolute path of a program, without arguments")
		}
		if err := trusted(part, info, part == path); err != nil {
			return hash, err
		}
		if part == filepath.Dir(part) {
			return digest(path)
		}
	}
}

// trusted returns nil if only root and the user of this process can replace a file or folder, and, if it is the program, can
// write to it. In a sticky folder, such as /tmp, others can make files, but cannot replace those of its owner.
func trusted(part string, info fs.FileInfo, program bool) error {
	refused := func(fix, format string, args ...any) error {
		return fault.Errorf("program: %q "+format, append([]any{part}, args...)...).Fix(fix)
	}
	mode := info.Mode()
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case mode&fs.ModeSymlink != 0:
		return refused("write the path to which it leads", "is a symbolic link")
	case program && !mode.IsRegular():
		return refused("name a program", "is not a regular file")
	case program && mode&0o111 == 0:
		return refused("chmod +x "+part, "is not executable")
	case !ok || stat.Uid != 0 && int(stat.Uid) != os.Geteuid():
		return refused("chown root "+part, "belongs neither to root nor to the user that runs hsmsign")
	case mode&0o022 != 0 && (program || mode&fs.ModeSticky == 0):
		return refused("chmod go-w "+part, "can be written by group or others (mode %04o)", mode.Perm())
	}
	return nil
}

// ownGroup makes a command start in a new process group.
func ownGroup(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

// killGroup kills the process group of a command that was started.
func killGroup(cmd *exec.Cmd) error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
