package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// imageUser is the user and group of the program in an image. Its number is that of other images without a shell.
const imageUser = 65532

// commonFiles are in both images: names for the user, where names of hosts come from, and folders to write to.
func commonFiles() []file {
	return []file{
		{path: "etc/passwd", data: fmt.Appendf(nil, "root:x:0:0:root:/:/nonexistent\nhsmsign:x:%d:%d:hsmsign:/var/lib/hsmsign:/nonexistent\n", imageUser, imageUser), mode: 0o644},
		{path: "etc/group", data: fmt.Appendf(nil, "root:x:0:\nhsmsign:x:%d:\n", imageUser), mode: 0o644},
		{path: "etc/nsswitch.conf", data: []byte("passwd: files\ngroup: files\nhosts: files dns\n"), mode: 0o644},
		{path: "tmp", mode: fs.ModeDir | fs.ModeSticky | 0o777},
		{path: "var/lib/hsmsign", mode: fs.ModeDir | 0o700, uid: imageUser},
	}
}

// tokenFiles are in the image with PKCS#11: the folders of Debian's merged /usr, and where SoftHSM2 keeps tokens.
func tokenFiles() []file {
	return []file{
		{path: "lib", data: []byte("usr/lib"), mode: fs.ModeSymlink | 0o777},
		{path: "lib64", data: []byte("usr/lib64"), mode: fs.ModeSymlink | 0o777},
		{path: "etc/softhsm/softhsm2.conf", data: []byte("directories.tokendir = /var/lib/softhsm/tokens/\nobjectstore.backend = file\nlog.level = ERROR\n"), mode: 0o644},
		{path: "var/lib/softhsm/tokens", mode: fs.ModeDir | 0o700, uid: imageUser},
	}
}

// images writes the archives of both images into dir and returns the Debian packages in them.
func (r *release) images(ctx context.Context, dir string) ([]piece, error) {
	var all []piece
	for _, withToken := range []bool{false, true} {
		var variants []variant
		for _, t := range targets {
			if t.os != "linux" || t.pkcs11 != withToken {
				continue
			}
			fmt.Fprintln(os.Stderr, "making the image of", t.name())
			program, err := r.compile(ctx, t)
			if err != nil {
				return nil, err
			}
			v, err := r.variant(ctx, t, program)
			if err != nil {
				return nil, err
			}
			variants, all = append(variants, v), append(all, v.pieces...)
		}
		name := "hsmsign_" + r.version + "_oci.tar"
		if withToken {
			name = "hsmsign_" + r.version + "_oci_pkcs11.tar"
		}
		if err := r.writeImage(filepath.Join(dir, name), variants); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// variant is an image of one architecture.
type variant struct {
	arch          string
	base, program []file // the two layers
	pieces        []piece
}

func (r *release) variant(ctx context.Context, t target, program string) (variant, error) {
	packages, base := certificatePackages, commonFiles()
	if t.pkcs11 {
		packages, base = slices.Concat(packages, tokenPackages), append(base, tokenFiles()...)
	}
	pieces, err := r.debianPieces(ctx, t.arch, packages)
	if err != nil {
		return variant{}, err
	}
	data, err := os.ReadFile(program) // #nosec G304 -- built above
	if err != nil {
		return variant{}, err
	}
	var parts []file
	for _, p := range pieces {
		parts = append(parts, p.files...)
	}
	if parts, err = certificates(parts); err != nil {
		return variant{}, err
	}
	v := variant{arch: t.arch, base: append(base, parts...), program: []file{{path: "usr/bin/hsmsign", data: data, mode: 0o755}}, pieces: pieces}
	return v, checkLibraries(slices.Concat(v.base, v.program))
}

// writeImage writes an archive of an OCI image layout: an index of one image for each variant, named by the version.
func (r *release) writeImage(path string, variants []variant) error {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, v := range variants {
		image, err := r.image(v)
		if err != nil {
			return err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: v.arch}},
		})
	}
	dir, err := os.MkdirTemp(r.work, "oci-")
	if err != nil {
		return err
	}
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	name := map[string]string{"org.opencontainers.image.ref.name": r.version}
	if err := l.AppendIndex(index, layout.WithAnnotations(name)); err != nil {
		return err
	}
	files, err := readFolder(dir)
	if err != nil {
		return err
	}
	return create(path, func(out *os.File) error { return writeTar(out, files, r.time) })
}

func (r *release) image(v variant) (v1.Image, error) {
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err := mutate.ConfigFile(image, &v1.ConfigFile{
		OS: "linux", Architecture: v.arch, Created: v1.Time{Time: r.time}, RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{
			Entrypoint: []string{"/usr/bin/hsmsign"}, User: fmt.Sprintf("%d:%d", imageUser, imageUser), WorkingDir: "/",
			Env: []string{"PATH=/usr/bin", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"},
			Labels: map[string]string{
				"org.opencontainers.image.title": "hsmsign", "org.opencontainers.image.version": r.version,
				"org.opencontainers.image.revision": r.revision, "debian.packages": packageNames(v.pieces),
			},
		},
	})
	if err != nil {
		return nil, err
	}
	for _, l := range []struct {
		files []file
		what  string
	}{{v.base, "CA certificates and libraries of Debian"}, {v.program, "hsmsign " + r.version}} {
		var content bytes.Buffer
		if err := writeTar(&content, l.files, r.time); err != nil {
			return nil, err
		}
		open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content.Bytes())), nil }
		layer, err := tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(gzip.BestCompression))
		if err != nil {
			return nil, err
		}
		if image, err = mutate.Append(image, mutate.Addendum{Layer: layer, History: v1.History{Created: v1.Time{Time: r.time}, CreatedBy: l.what}}); err != nil {
			return nil, err
		}
	}
	return image, nil
}

func packageNames(pieces []piece) string {
	var names []string
	for _, p := range pieces {
		names = append(names, p.name+"="+p.version)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// readFolder returns the files of a folder and of those below it.
func readFolder(dir string) ([]file, error) {
	var files []file
	err := filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(name) // #nosec G304,G122 -- a folder of ours
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(dir, name)
		files = append(files, file{path: filepath.ToSlash(relative), data: data, mode: 0o644})
		return err
	})
	return files, err
}
