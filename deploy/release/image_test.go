package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// fakeVariants are images of a few bytes.
func fakeVariants() []variant {
	var variants []variant
	for _, arch := range []string{"amd64", "arm64"} {
		variants = append(variants, variant{
			arch: arch, base: append(commonFiles(), tokenFiles()...), program: []file{{path: "usr/bin/hsmsign", data: []byte(arch), mode: 0o755}},
			pieces: []piece{{name: "libc6", version: "2.36-9", arch: arch}, {name: "ca-certificates", version: "1", arch: "all"}},
		})
	}
	return variants
}

func fakeImage(t *testing.T, variants []variant) string {
	t.Helper()
	r := &release{version: "0.1.0", revision: "abc", time: testTime, work: t.TempDir()}
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := r.writeImage(path, variants); err != nil {
		t.Fatal(err)
	}
	return path
}

// readImage returns the index of an archive, found by the name of the version, as a client does.
func readImage(t *testing.T, path string) v1.ImageIndex {
	t.Helper()
	dir := t.TempDir()
	untar(t, path, dir)
	top, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(top); err != nil {
		t.Fatal(err)
	}
	manifest, err := top.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != 1 || manifest.Manifests[0].Annotations["org.opencontainers.image.ref.name"] == "" {
		t.Fatalf("%+v", manifest.Manifests)
	}
	index, err := top.ImageIndex(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	return index
}

func untar(t *testing.T, path, dir string) {
	t.Helper()
	in, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	for reader := tar.NewReader(in); ; {
		h, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, filepath.FromSlash(h.Name))
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(to, 0o755)
		} else {
			err = create(to, func(out *os.File) error { _, err := io.Copy(out, reader); return err })
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestImage: an archive has an image for each architecture, that runs the program as a number, and contains no shell.
func TestImage(t *testing.T) {
	index := readImage(t, fakeImage(t, fakeVariants()))
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	var platforms []string
	for _, m := range manifest.Manifests {
		platforms = append(platforms, m.Platform.String())
		image, err := index.Image(m.Digest)
		if err != nil {
			t.Fatal(err)
		}
		config, err := image.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		c := config.Config
		if config.Architecture != m.Platform.Architecture || !config.Created.Equal(testTime) || c.User != "65532:65532" || len(c.Cmd) > 0 ||
			!slices.Equal(c.Entrypoint, []string{"/usr/bin/hsmsign"}) || c.Labels["debian.packages"] != "ca-certificates=1 libc6=2.36-9" {
			t.Errorf("%+v", config)
		}
		content := map[string]*tar.Header{}
		reader := tar.NewReader(mutate.Extract(image))
		for h, err := reader.Next(); !errors.Is(err, io.EOF); h, err = reader.Next() {
			if err != nil {
				t.Fatal(err)
			}
			content[strings.TrimSuffix(h.Name, "/")] = h
		}
		if h := content["tmp"]; h == nil || h.Mode != 0o1777 {
			t.Errorf("tmp: %+v", h)
		}
		if h := content["var/lib/hsmsign"]; h == nil || h.Mode != 0o700 || h.Uid != 65532 || h.Gid != 65532 {
			t.Errorf("var/lib/hsmsign: %+v", h)
		}
		if h := content["usr/bin/hsmsign"]; h == nil || h.Mode != 0o755 || h.Uid != 0 || content["usr/bin/sh"] != nil || content["bin"] != nil {
			t.Errorf("usr/bin: %+v", content)
		}
	}
	if !slices.Equal(platforms, []string{"linux/amd64", "linux/arm64"}) {
		t.Errorf("%q", platforms)
	}
}

// TestImageIsReproducible: the same files are the same bytes, another byte of the program is another image.
func TestImageIsReproducible(t *testing.T) {
	read := func(variants []variant) []byte {
		data, err := os.ReadFile(fakeImage(t, variants))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	first, other := read(fakeVariants()), fakeVariants()
	for i := range other {
		slices.Reverse(other[i].base)
	}
	if !bytes.Equal(first, read(other)) {
		t.Error("the order of the files changes the bytes")
	}
	other[1].program[0].data = []byte("other")
	if bytes.Equal(first, read(other)) {
		t.Error("another program is the same image")
	}
}

// TestDebFiles: of a package, libraries and copyright notices are kept, below /usr, and no program but SoftHSM2's.
func TestDebFiles(t *testing.T) {
	var deb bytes.Buffer
	files := []file{
		{path: "lib/x86_64-linux-gnu/libc.so.6", data: []byte("c"), mode: 0o755}, {path: "usr/lib64/ld-linux-x86-64.so.2", data: []byte("../x"), mode: fs.ModeSymlink | 0o777},
		{path: "usr/lib/x86_64-linux-gnu/gconv/IBM.so", data: []byte("g"), mode: 0o644}, {path: "usr/bin/sh", data: []byte("s"), mode: 0o755},
		{path: "usr/bin/softhsm2-util", data: []byte("u"), mode: 0o755}, {path: "etc/ld.so.conf", data: []byte("e"), mode: 0o644},
		{path: "usr/share/doc/libc6/copyright", data: []byte("(c)"), mode: 0o644}, {path: "usr/share/doc/libc6/NEWS", data: []byte("n"), mode: 0o644},
		{path: "usr/lib/systemd/x.service", data: []byte("n"), mode: 0o644},
	}
	if err := writeTar(&deb, files, testTime); err != nil {
		t.Fatal(err)
	}
	got, err := debFiles(deb.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range got {
		names = append(names, f.path+":"+string(f.data))
	}
	want := []string{"usr/lib/x86_64-linux-gnu/libc.so.6:c", "usr/bin/softhsm2-util:u", "usr/lib64/ld-linux-x86-64.so.2:../x", "usr/share/doc/libc6/copyright:(c)"}
	if !slices.Equal(names, want) {
		t.Errorf("%q", names)
	}
	if _, err := debFiles([]byte(strings.Repeat("x", 1024))); err == nil {
		t.Error("what is no tar file is accepted")
	}
}

func TestCertificates(t *testing.T) {
	var files []file
	for i := range 100 {
		files = append(files, file{path: "usr/share/ca-certificates/mozilla/" + string(rune('a'+i)) + ".crt", data: []byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----")})
	}
	files = append(files, file{path: "usr/lib/a.so"})
	got, err := certificates(slices.Clone(files))
	if err != nil || len(got) != 2 || got[0].path != "usr/lib/a.so" || got[1].path != "etc/ssl/certs/ca-certificates.crt" ||
		strings.Count(string(got[1].data), "-----END CERTIFICATE-----\n") != 100 {
		t.Errorf("%v %v", got, err)
	}
	if _, err := certificates(files[1:]); err == nil || !strings.Contains(err.Error(), "99 certificates") {
		t.Errorf("99: %v", err)
	}
}

// TestLibraries: an image without a library that a program in it needs is refused.
func TestLibraries(t *testing.T) {
	program, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Skip("no dynamic program on this machine")
	}
	files := []file{{path: "usr/bin/sh", data: program}, {path: "usr/lib/libc.so.6", data: []byte("not an ELF file")}}
	if err := checkLibraries(files[:1]); err == nil || !strings.Contains(err.Error(), "usr/bin/sh needs libc.so.6") {
		t.Errorf("without: %v", err)
	}
	if err := checkLibraries(files); err != nil {
		t.Errorf("with: %v", err)
	}
	files[0].data = program[:100]
	if err := checkLibraries(files); err == nil {
		t.Error("a damaged program is accepted")
	}
}
