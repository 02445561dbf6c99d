package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// release is what is released: a commit with a version.
type release struct {
	root     string    // checkout
	version  string    // 0.1.0, or 0.0.0-dev.gCOMMIT for a commit without a tag
	revision string    // the commit's name
	time     time.Time // of the commit; SOURCE_DATE_EPOCH
	tags     string    // build tags
	env      []string  // of programs that are run, besides this one's
	work     string    // folder for what is not released; close removes it
}

// versionForm is a semantic version without build metadata, which neither Debian nor an image's tag can have.
var versionForm = regexp.MustCompile(`^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)(-[0-9A-Za-z]+(\.[0-9A-Za-z]+)*)?$`)

// newRelease reads commit, time and version of the checkout. A version is given, or is that of the commit's tag vVERSION;
// without either it is a snapshot's, which sorts before every release. A version is refused for a checkout with changes.
// The caller closes the release.
func newRelease(ctx context.Context, o options) (*release, error) {
	r := &release{root: o.root, version: o.version, tags: o.tags}
	head, err := r.git(ctx, "log", "-1", "--format=%H %ct")
	if err != nil {
		return nil, err
	}
	revision, seconds, _ := strings.Cut(head, " ")
	epoch, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("git log: time %q", seconds)
	}
	changes, err := r.git(ctx, "status", "--porcelain")
	if err != nil {
		return nil, err
	}
	r.revision, r.time = revision, time.Unix(epoch, 0).UTC()
	r.env = []string{"SOURCE_DATE_EPOCH=" + seconds, "TZ=UTC", "LC_ALL=C.UTF-8", "GOFLAGS="}
	if r.version == "" {
		if r.version, err = r.taggedVersion(ctx, changes != ""); err != nil {
			return nil, err
		}
	} else if changes != "" {
		return nil, errors.New("the checkout has changes that are not committed: commit them, or leave out the version for a snapshot")
	}
	if !versionForm.MatchString(r.version) {
		return nil, fmt.Errorf("version %q is not of the form 0.1.0 or 0.1.0-rc.1", r.version)
	}
	r.work, err = os.MkdirTemp("", "hsmsign-release-")
	return r, err
}

func (r *release) close() { _ = os.RemoveAll(r.work) }

// taggedVersion returns the version of the tag of a clean checkout, or a snapshot's.
func (r *release) taggedVersion(ctx context.Context, changed bool) (string, error) {
	tags, err := r.git(ctx, "tag", "--points-at", "HEAD", "--list", "v[0-9]*", "--sort=-version:refname")
	if err != nil {
		return "", err
	}
	if tag, _, _ := strings.Cut(tags, "\n"); tag != "" && !changed {
		return strings.TrimPrefix(tag, "v"), nil
	}
	snapshot := "0.0.0-dev.g" + r.revision[:12]
	if changed {
		snapshot += ".dirty"
	}
	return snapshot, nil
}

// packageVersion is the version as Debian and RPM compare it: before the release that follows.
func (r *release) packageVersion() string { return strings.Replace(r.version, "-", "~", 1) }

func (r *release) git(ctx context.Context, args ...string) (string, error) {
	return output(ctx, r.root, nil, "git", args...)
}

// output runs a program in a folder and returns what it prints, without the last newline. The error contains its messages.
func output(ctx context.Context, dir string, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...) // #nosec G204 -- the release's own programs
	var stdout, stderr bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &stdout, &stderr
	cmd.Env, cmd.WaitDelay = append(os.Environ(), env...), 10*time.Second
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimRight(stdout.String(), "\n"), nil
}
