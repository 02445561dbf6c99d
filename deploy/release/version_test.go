package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// repository returns a new repository with one commit.
func repository(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	inRepository(t, dir, "init", "-q")
	if err := os.WriteFile(filepath.Join(dir, "a"), []byte("a"), 0o600); err != nil {
		t.Fatal(err)
	}
	inRepository(t, dir, "add", "a")
	inRepository(t, dir, "commit", "-q", "-m", "a")
	return dir
}

func inRepository(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"}, args...)...)
	cmd.Env = append(os.Environ(), "GIT_COMMITTER_DATE=1700000000 +0000", "GIT_CONFIG_GLOBAL=/dev/null")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestVersion(t *testing.T) {
	dir := repository(t)
	head := inRepository(t, dir, "rev-parse", "HEAD")
	version := func(given string) string {
		t.Helper()
		r, err := newRelease(context.Background(), options{root: dir, version: given})
		if err != nil {
			return err.Error()
		}
		defer r.close()
		if r.revision != head || r.time.Unix() != 1700000000 || r.env[0] != "SOURCE_DATE_EPOCH=1700000000" {
			t.Errorf("%+v", r)
		}
		return r.version + " " + r.packageVersion()
	}
	snapshot := "0.0.0-dev.g" + head[:12]
	check := func(what, given, want string) {
		t.Helper()
		if got := version(given); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	check("no tag", "", snapshot+" 0.0.0~dev.g"+head[:12])
	check("given", "0.2.0-rc.1", "0.2.0-rc.1 0.2.0~rc.1")
	for _, bad := range []string{"v0.1.0", "0.1", "0.1.0+b", "0.1.0 ", "../0.1.0", "01.1.0", "0.1.0-"} {
		check("form", bad, "version \""+bad+"\" is not of the form")
	}
	inRepository(t, dir, "tag", "-a", "-m", "x", "v0.1.0")
	inRepository(t, dir, "tag", "v0.1.0-rc.2")
	inRepository(t, dir, "tag", "vendored")
	inRepository(t, dir, "config", "versionsort.suffix", "-rc")
	check("tag", "", "0.1.0 0.1.0")
	if err := os.WriteFile(filepath.Join(dir, "b"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	check("changed", "", snapshot+".dirty ")
	check("changed and given", "0.1.0", "the checkout has changes that are not committed")
	if err := os.Remove(filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	inRepository(t, dir, "commit", "-q", "--allow-empty", "-m", "b")
	head = inRepository(t, dir, "rev-parse", "HEAD")
	check("after the tag", "", "0.0.0-dev.g"+head[:12]+" ")
	if _, err := newRelease(context.Background(), options{root: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "git log") {
		t.Errorf("no repository: %v", err)
	}
}
