package main

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// The pieces of Debian that the images are made of. apt takes them, in their newest versions, from the archive of the machine
// that makes the release; the label debian.packages and the SBOM name the versions.
var (
	// certificatePackages have the CAs of AWS, GCP and of customers' webhooks.
	certificatePackages = []string{"ca-certificates"}
	// tokenPackages have the C library, p11-kit's client (the token of another host or container) and SoftHSM2 (for CI).
	tokenPackages = []string{"libc6", "libgcc-s1", "gcc-12-base", "libstdc++6", "libssl3", "libsofthsm2", "softhsm2", "p11-kit-modules", "libp11-kit0", "libffi8"}
)

// piece is a Debian package and those of its files that an image contains.
type piece struct {
	name, version, arch string
	files               []file
}

// debianPieces downloads packages of an architecture, also of another than this machine's. It changes nothing of the
// machine's own apt and needs no root.
func (r *release) debianPieces(ctx context.Context, arch string, packages []string) ([]piece, error) {
	dir, err := os.MkdirTemp(r.work, "apt-")
	if err != nil {
		return nil, err
	}
	for _, sub := range []string{"state/lists/partial", "cache/archives/partial", "debs"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil { // #nosec G301 -- apt's own user reads it
			return nil, err
		}
	}
	status := filepath.Join(dir, "state", "status")
	if err := os.WriteFile(status, nil, 0o600); err != nil {
		return nil, err
	}
	apt := func(args ...string) error {
		_, err := output(ctx, filepath.Join(dir, "debs"), r.env, "apt-get", append([]string{
			"-qq", "-o", "Dir::State=" + filepath.Join(dir, "state"), "-o", "Dir::State::status=" + status, "-o", "Dir::Cache=" + filepath.Join(dir, "cache"),
			"-o", "APT::Architecture=" + arch, "-o", "APT::Architectures=" + arch, "-o", "APT::Sandbox::User=", "-o", "Acquire::Languages=none", "-o", "Acquire::Retries=3",
		}, args...)...)
		return err
	}
	if err := apt("update"); err != nil {
		return nil, err
	}
	if err := apt(append([]string{"download"}, packages...)...); err != nil {
		return nil, err
	}
	debs, err := filepath.Glob(filepath.Join(dir, "debs", "*.deb"))
	if err != nil {
		return nil, err
	}
	if len(debs) != len(packages) {
		return nil, fmt.Errorf("apt-get download: %d files for %d packages", len(debs), len(packages))
	}
	pieces := make([]piece, len(debs))
	for i, deb := range debs {
		if pieces[i], err = r.readDeb(ctx, deb); err != nil {
			return nil, err
		}
	}
	return pieces, nil
}

func (r *release) readDeb(ctx context.Context, deb string) (piece, error) {
	var p piece
	for field, to := range map[string]*string{"Package": &p.name, "Version": &p.version, "Architecture": &p.arch} {
		value, err := output(ctx, r.work, r.env, "dpkg-deb", "--field", deb, field)
		if err != nil {
			return p, err
		}
		*to = value
	}
	unpacked := filepath.Join(r.work, p.name+"_"+p.arch+".tar")
	if _, err := output(ctx, r.work, r.env, "sh", "-c", `dpkg-deb --fsys-tarfile "$0" >"$1"`, deb, unpacked); err != nil {
		return p, err
	}
	data, err := os.ReadFile(unpacked) // #nosec G304 -- written above
	if err != nil {
		return p, err
	}
	p.files, err = debFiles(data)
	return p, err
}

// kept are the files of packages that an image contains: libraries, the tool of SoftHSM2, CAs and copyright notices. No
// shell, no programs, no configuration.
var kept = regexp.MustCompile(`^usr/(lib(64)?/.*\.so(\.[0-9.]+)?|bin/softhsm2-util|share/ca-certificates/mozilla/.*\.crt|share/doc/[^/]*(/copyright)?)$`)

// omitted are libraries that nothing in an image loads: character sets, and p11-kit's trust store, which Go does not read.
var omitted = regexp.MustCompile(`/(gconv/|engines-3/|p11-kit-trust\.so$|libnssckbi\.so$)`)

// debFiles returns the files of a package's tar file that are kept. Their paths are those after Debian's merge of /lib and
// /usr/lib.
func debFiles(data []byte) ([]file, error) {
	var files []file
	for reader := tar.NewReader(bytes.NewReader(data)); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		name := strings.TrimPrefix(path.Clean("/"+header.Name), "/")
		if strings.HasPrefix(name, "lib") {
			name = "usr/" + name
		}
		if !kept.MatchString(name) || omitted.MatchString(name) {
			continue
		}
		f := file{path: name, mode: fs.FileMode(header.Mode).Perm()} // #nosec G115 -- Perm drops the rest
		switch header.Typeflag {
		case tar.TypeReg:
			if f.data, err = io.ReadAll(reader); err != nil {
				return nil, err
			}
		case tar.TypeSymlink:
			f.data, f.mode = []byte(header.Linkname), fs.ModeSymlink|0o777
		default:
			continue // folders are made where they are needed
		}
		files = append(files, f)
	}
}

// certificates replaces the CAs in files by one bundle, where every program looks for it.
func certificates(files []file) ([]file, error) {
	var bundle bytes.Buffer
	var rest []file
	slices.SortFunc(files, func(a, b file) int { return strings.Compare(a.path, b.path) })
	for _, f := range files {
		if !strings.HasSuffix(f.path, ".crt") {
			rest = append(rest, f)
			continue
		}
		bundle.Write(append(bytes.TrimRight(f.data, "\n"), '\n'))
	}
	if n := bytes.Count(bundle.Bytes(), []byte("BEGIN CERTIFICATE")); n < 100 {
		return nil, fmt.Errorf("package ca-certificates: %d certificates, want at least 100", n)
	}
	return append(rest, file{path: "etc/ssl/certs/ca-certificates.crt", data: bundle.Bytes(), mode: 0o644}), nil
}

// checkLibraries returns an error if a program or library among files needs one that is not there: nothing else can be
// loaded in the image.
func checkLibraries(files []file) error {
	there := map[string]bool{}
	for _, f := range files {
		there[path.Base(f.path)] = true
	}
	for _, f := range files {
		if !bytes.HasPrefix(f.data, []byte(elf.ELFMAG)) {
			continue
		}
		image, err := elf.NewFile(bytes.NewReader(f.data))
		if err != nil {
			return fmt.Errorf("%s: %w", f.path, err)
		}
		needed, err := image.ImportedLibraries()
		if err != nil {
			return fmt.Errorf("%s: %w", f.path, err)
		}
		for _, library := range needed {
			if !there[library] {
				return fmt.Errorf("%s needs %s, which is not in the image: add its Debian package", f.path, library)
			}
		}
	}
	return nil
}
