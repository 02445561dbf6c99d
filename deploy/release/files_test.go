package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var testTime = time.Unix(1700000000, 0).UTC()

func testFiles() []file {
	return []file{
		{path: "z/prog", data: []byte("p"), mode: 0o755}, {path: "a", data: []byte("z"), mode: fs.ModeSymlink | 0o777},
		{path: "z/tmp", mode: fs.ModeDir | fs.ModeSticky | 0o777}, {path: "own/ed", data: []byte("o"), mode: 0o600, uid: 7},
	}
}

// TestTar: the same files in any order are the same bytes, with their modes and owners and nothing of this machine.
func TestTar(t *testing.T) {
	var first, second bytes.Buffer
	reversed := testFiles()
	slices.Reverse(reversed)
	if err := writeTarGzip(&first, testFiles(), testTime); err != nil {
		t.Fatal(err)
	}
	if err := writeTarGzip(&second, reversed, testTime); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the order of the files changes the bytes")
	}
	if got := gzipTime(first.Bytes()); got != 0 {
		t.Errorf("gzip has the time %d", got)
	}
	compressed, err := gzip.NewReader(&first)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for reader := tar.NewReader(compressed); ; {
		h, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if !h.ModTime.Equal(testTime) || h.Uname != "" || h.Gname != "" || h.Uid != h.Gid {
			t.Errorf("%+v", h)
		}
		data, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, strings.TrimSpace(strings.Join([]string{h.Name, string(h.Typeflag), fs.FileMode(h.Mode).String(), string(rune('0' + h.Uid)), h.Linkname + string(data)}, " ")))
	}
	want := []string{
		"a 2 -rwxrwxrwx 0 z", "own/ 5 -rwxr-xr-x 0", "own/ed 0 -rw------- 7 o",
		"z/ 5 -rwxr-xr-x 0", "z/prog 0 -rwxr-xr-x 0 p", "z/tmp/ 5 " + fs.FileMode(0o1777).String() + " 0",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q\nwant %q", got, want)
	}
}

func gzipTime(data []byte) int {
	return int(data[4]) | int(data[5])<<8 | int(data[6])<<16 | int(data[7])<<24
}

func TestZip(t *testing.T) {
	files := []file{{path: "h/hsmsign.exe", data: []byte("MZ"), mode: 0o755}, {path: "h/README.md", data: []byte("r"), mode: 0o644}}
	var first, second bytes.Buffer
	for _, b := range []*bytes.Buffer{&first, &second} {
		if err := writeZip(b, files, testTime); err != nil {
			t.Fatal(err)
		}
		slices.Reverse(files)
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the order of the files changes the bytes")
	}
	r, err := zip.NewReader(bytes.NewReader(first.Bytes()), int64(first.Len()))
	if err != nil {
		t.Fatal(err)
	}
	if len(r.File) != 2 || r.File[1].Name != "h/hsmsign.exe" || r.File[1].Mode() != 0o755 || !r.File[1].Modified.Equal(testTime) {
		t.Errorf("%+v", r.File[len(r.File)-1].FileHeader)
	}
}

// TestStage: a stage has what nfpm.yaml reads, and nothing is written into a folder with other files.
func TestStage(t *testing.T) {
	program, pages := filepath.Join(t.TempDir(), "hsmsign"), t.TempDir()
	for name, content := range map[string]string{program: "program", filepath.Join(pages, "hsmsign.1"): ".TH", filepath.Join(pages, "hsmsign-sign.1"): ".TH S"} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	shared, err := manFiles(pages)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "stage")
	if err := writeStage(dir, program, append(shared, file{path: "doc/README.md", data: []byte("r"), mode: 0o644})); err != nil {
		t.Fatal(err)
	}
	files, err := readFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		names = append(names, f.path)
	}
	if want := []string{"bin/hsmsign", "doc/README.md", "man/man1/hsmsign-sign.1.gz", "man/man1/hsmsign.1.gz"}; !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
	if info, err := os.Stat(filepath.Join(dir, "bin", "hsmsign")); err != nil || info.Mode().Perm()&0o111 == 0 {
		t.Errorf("%v, %v", info, err)
	}
	if got := gzipTime(files[3].data); got != 0 {
		t.Errorf("a page has the time %d", got)
	}
	if err := writeStage(dir, program, shared); err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("twice: %v", err)
	}
}

// TestDocuments: a release has the README, what it links to, and an example of the configuration.
func TestDocuments(t *testing.T) {
	files, err := documentFiles("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"doc/README.md", "doc/CHANGELOG.md", "doc/hsmsign.example.yaml", "doc/docs/install.md", "doc/docs/cli.md"} {
		if !slices.ContainsFunc(files, func(f file) bool { return f.path == want && len(f.data) > 0 && f.mode == 0o644 }) {
			t.Errorf("there is no %s", want)
		}
	}
	if _, err := documentFiles(t.TempDir()); err == nil {
		t.Error("a folder without documents is accepted")
	}
}

// TestArchive: an archive is one folder that is named as the archive.
func TestArchive(t *testing.T) {
	program := filepath.Join(t.TempDir(), "hsmsign")
	if err := os.WriteFile(program, []byte("program"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, dir := &release{version: "0.1.0", time: testTime}, t.TempDir()
	shared := []file{{path: "doc/README.md", data: []byte("r"), mode: 0o644}, {path: "man/man1/hsmsign.1.gz", data: []byte("m"), mode: 0o644}}
	for _, target := range targets {
		if err := r.archive(dir, target, program, shared); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	want := []string{
		"hsmsign_0.1.0_darwin_amd64.tar.gz", "hsmsign_0.1.0_darwin_arm64.tar.gz", "hsmsign_0.1.0_linux_amd64.tar.gz", "hsmsign_0.1.0_linux_amd64_static.tar.gz",
		"hsmsign_0.1.0_linux_arm64.tar.gz", "hsmsign_0.1.0_linux_arm64_static.tar.gz", "hsmsign_0.1.0_windows_amd64.zip",
	}
	if !slices.Equal(names, want) {
		t.Errorf("%q", names)
	}
	data, err := os.ReadFile(filepath.Join(dir, names[6]))
	if err != nil {
		t.Fatal(err)
	}
	z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil || len(z.File) != 3 || z.File[0].Name != "hsmsign_0.1.0_windows_amd64/README.md" || z.File[1].Name != "hsmsign_0.1.0_windows_amd64/hsmsign.exe" {
		t.Errorf("%v %+v", err, z)
	}
}

// TestTargets: every build is of the baseline of its architecture, and only those with PKCS#11 use a C compiler.
func TestTargets(t *testing.T) {
	for _, target := range targets {
		env := target.env()
		if cgo := slices.Contains(env, "CGO_ENABLED=1"); cgo != target.pkcs11 || cgo != slices.ContainsFunc(env, func(s string) bool { return strings.HasPrefix(s, "CC=") && len(s) > 3 }) {
			t.Errorf("%s: %q", target.name(), env)
		}
		if !slices.Contains(env, "GOAMD64=v1") || !slices.Contains(env, "GOARM64=v8.0") {
			t.Errorf("%s: %q", target.name(), env)
		}
	}
}
