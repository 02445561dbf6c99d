//go:build !unix

package hook

import (
	"crypto/sha256"
	"os/exec"

	"hsmsign/fault"
)

// inspect refuses every program: the owner of a file and process groups need Unix.
func inspect(string) (hash [sha256.Size]byte, err error) {
	return hash, fault.Errorf("entitlement programs need Unix").Fix("remove entitlement from the role")
}

func ownGroup(*exec.Cmd) {}

func killGroup(cmd *exec.Cmd) error { return cmd.Process.Kill() }
