package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func writeFiles(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestSums: sha256sum accepts the checksums, and a changed file is found.
func TestSums(t *testing.T) {
	dir := writeFiles(t, map[string]string{"b.tar.gz": "b", "a.deb": "a", marker: ""})
	if err := writeSums(dir); err != nil {
		t.Fatal(err)
	}
	check := func() (string, error) {
		cmd := exec.Command("sha256sum", "--check", "--strict", marker)
		cmd.Dir = dir
		out, err := cmd.Output()
		return string(out), err
	}
	if out, err := check(); err != nil || out != "a.deb: OK\nb.tar.gz: OK\n" {
		t.Errorf("%v %q", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "a.deb"), []byte("A"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := check(); err == nil || !strings.Contains(out, "a.deb: FAILED") {
		t.Errorf("%v %q", err, out)
	}
}

// TestSign: minisign accepts the signature of a throw-away key, and refuses changed checksums.
func TestSign(t *testing.T) {
	if _, err := exec.LookPath("minisign"); err != nil {
		t.Skip("minisign is not installed; make deps installs it")
	}
	dir, keys := writeFiles(t, map[string]string{marker: "0  a\n"}), t.TempDir()
	secretKey, publicKey := filepath.Join(keys, "key"), filepath.Join(keys, "key.pub")
	if out, err := exec.Command("minisign", "-G", "-W", "-s", secretKey, "-p", publicKey).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	r := &release{version: "0.1.0", time: testTime}
	if err := r.sign(context.Background(), dir, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, marker+".minisig")); err == nil {
		t.Fatal("signed without a key")
	}
	if err := r.sign(context.Background(), dir, secretKey); err != nil {
		t.Fatal(err)
	}
	verify := func() (string, error) {
		cmd := exec.Command("minisign", "-V", "-p", publicKey, "-m", marker)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := verify(); err != nil || !strings.Contains(out, "hsmsign 0.1.0, timestamp ") {
		t.Errorf("%v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, marker), []byte("1  a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := verify(); err == nil {
		t.Errorf("changed checksums are accepted\n%s", out)
	}
	if err := r.sign(context.Background(), dir, filepath.Join(keys, "missing")); err == nil || !strings.Contains(err.Error(), "minisign") {
		t.Errorf("no such key: %v", err)
	}
}

// TestEmptyFolder: the folder of a release is emptied, another is not.
func TestEmptyFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "dist")
	for range 2 {
		if err := emptyFolder(dir); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 1 || entries[0].Name() != marker {
			t.Fatalf("%v %v", entries, err)
		}
		if err := os.WriteFile(filepath.Join(dir, "hsmsign_0.0.9_amd64.deb"), []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	home := writeFiles(t, map[string]string{"thesis.txt": "mine"})
	if err := emptyFolder(home); err == nil || !strings.Contains(err.Error(), "other files than those of a release") {
		t.Errorf("%v", err)
	}
	if data, err := os.ReadFile(filepath.Join(home, "thesis.txt")); err != nil || string(data) != "mine" {
		t.Errorf("%q %v", data, err)
	}
	if err := emptyFolder(filepath.Join(home, "thesis.txt")); err == nil {
		t.Error("a file is accepted as a folder")
	}
}

// TestCompareFolders: one byte, a missing and an additional file are found; signatures are not compared.
func TestCompareFolders(t *testing.T) {
	first := map[string]string{"a.deb": "a", marker: "sums", marker + ".minisig": "one"}
	tests := map[string]struct {
		second map[string]string
		want   string
	}{
		"same":       {map[string]string{"a.deb": "a", marker: "sums", marker + ".minisig": "two"}, ""},
		"unsigned":   {map[string]string{"a.deb": "a", marker: "sums"}, ""},
		"other byte": {map[string]string{"a.deb": "A", marker: "sums"}, "1 of 2 files differ between the builds: a.deb"},
		"missing":    {map[string]string{marker: "sums"}, "a.deb"},
		"additional": {map[string]string{"a.deb": "a", "b.deb": "b", marker: "sums"}, "b.deb"},
		"empty":      {nil, "2 of 2"},
	}
	for name, test := range tests {
		count, err := compareFolders(writeFiles(t, first), writeFiles(t, test.second))
		if test.want == "" && (err != nil || count != 2) {
			t.Errorf("%s: %d %v", name, count, err)
		}
		if test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := compareFolders(t.TempDir(), t.TempDir()); err == nil {
		t.Error("two empty folders are a release")
	}
}

// TestUsage: a mistake is refused before anything is built.
func TestUsage(t *testing.T) {
	dir := repository(t)
	for want, args := range map[string][]string{
		"name one of build, stage, verify":      {"frob"},
		"--out is needed":                       {"build"},
		"at most one ROOT":                      {"build", "--out", t.TempDir(), "a", "b"},
		"is not of the form 0.1.0":              {"build", "--version", "latest", "--out", t.TempDir(), dir},
		"unknown --arch \"mips\"":               {"stage", "--arch", "mips", "--out", t.TempDir(), dir},
		"flag provided but not defined: -frob":  {"build", "--frob"},
		"changes that are not committed, which": {"verify", "--out", t.TempDir(), changedRepository(t)},
	} {
		var err error
		silent(t, func() { err = run(context.Background(), args) })
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func changedRepository(t *testing.T) string {
	dir := repository(t)
	if err := os.WriteFile(filepath.Join(dir, "new"), []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// silent runs f without standard error, where package flag prints the usage.
func silent(t *testing.T, f func()) {
	t.Helper()
	real := os.Stderr
	defer func() { os.Stderr = real }()
	os.Stderr, _ = os.Open(os.DevNull)
	f()
}

func TestOutput(t *testing.T) {
	out, err := output(context.Background(), t.TempDir(), []string{"A=b"}, "sh", "-c", `printf "$A\n\n"`)
	if err != nil || out != "b" {
		t.Errorf("%q %v", out, err)
	}
	if _, err := output(context.Background(), t.TempDir(), nil, "sh", "-c", "echo broken >&2; exit 3"); err == nil || !bytes.Contains([]byte(err.Error()), []byte("broken")) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := output(ctx, t.TempDir(), nil, "sleep", "60"); err == nil {
		t.Error("a canceled program goes on")
	}
}
