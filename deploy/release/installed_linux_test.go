package main

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// dist is a release that was made before: the folder that HSMSIGN_DIST names.
type dist struct{ dir, version string }

func openDist(t *testing.T) dist {
	t.Helper()
	d := dist{dir: os.Getenv("HSMSIGN_DIST")}
	if d.dir == "" {
		t.Skip("HSMSIGN_DIST names no folder with a release; make release-test does")
	}
	if os.Getuid() != 0 {
		t.Fatal("the programs run in a folder as their root, which needs root")
	}
	boms, err := filepath.Glob(filepath.Join(d.dir, "hsmsign_*.cdx.json"))
	if err != nil || len(boms) != 1 {
		t.Fatalf("%d lists of components in %s", len(boms), d.dir)
	}
	d.version = regexp.MustCompile(`hsmsign_(.*)\.cdx\.json$`).FindStringSubmatch(boms[0])[1]
	return d
}

func (d dist) file(name string) string {
	return filepath.Join(d.dir, strings.ReplaceAll(name, "VERSION", d.version))
}

// execute runs a program of this machine and returns what it prints.
func execute(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// TestDistFiles: the checksums are right, the SBOM has every module of every program, packages contain the programs of the archives,
// and the programs for other systems are in their format.
func TestDistFiles(t *testing.T) {
	d := openDist(t)
	execute(t, d.dir, "sha256sum", "--check", "--strict", "--quiet", marker)
	data, err := os.ReadFile(d.file("hsmsign_VERSION.cdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	bom := decodeBOM(t, data)
	for _, target := range targets {
		root := t.TempDir()
		program := d.unpack(t, target, root)
		checkBOM(t, bom, target.name(), program)
		if out := execute(t, root, "go", "version", "-m", program); !strings.Contains(out, "vcs.modified=false") || !strings.Contains(out, "-trimpath=true") {
			t.Errorf("%s: %s", target.name(), out)
		}
		if !target.packaged() {
			continue
		}
		want, err := os.ReadFile(program)
		if err != nil {
			t.Fatal(err)
		}
		deb, rpm := t.TempDir(), t.TempDir()
		execute(t, deb, "dpkg-deb", "-x", d.file("hsmsign_VERSION_"+target.arch+".deb"), deb)
		// The paths in the package are absolute: without the option, cpio would write over this machine's files.
		execute(t, rpm, "sh", "-c", `rpm2cpio "$0" | cpio -idm --quiet --no-absolute-filenames 2>/dev/null`, d.file("hsmsign-VERSION."+rpmArch[target.arch]+".rpm"))
		for _, unpacked := range []string{deb, rpm} {
			for _, name := range []string{"usr/share/man/man1/hsmsign-sign.1.gz", "usr/share/doc/hsmsign/README.md", "usr/share/bash-completion/completions/hsmsign"} {
				if _, err := os.Stat(filepath.Join(unpacked, name)); err != nil {
					t.Error(err)
				}
			}
			if got, err := os.ReadFile(filepath.Join(unpacked, "usr/bin/hsmsign")); err != nil || !bytes.Equal(got, want) {
				t.Errorf("a package of %s has another program than the archive (%v)", target.arch, err)
			}
		}
	}
}

// unpack unpacks an archive into a folder and returns the path of the program.
func (d dist) unpack(t *testing.T, target target, dir string) string {
	t.Helper()
	name := "hsmsign_" + d.version + "_" + target.name()
	if target.os == "windows" {
		execute(t, dir, "python3", "-m", "zipfile", "-e", filepath.Join(d.dir, name+".zip"), dir)
	} else {
		execute(t, dir, "tar", "-xzf", filepath.Join(d.dir, name+".tar.gz"))
	}
	return filepath.Join(dir, name, target.program())
}

// TestDistImages runs both images, of this machine's architecture and by emulation of the other: as their user, with
// nothing but their files, from making a key to a verified request. The programs of the archives run in the same files.
func TestDistImages(t *testing.T) {
	d := openDist(t)
	for _, target := range targets {
		if target.os != "linux" {
			continue
		}
		t.Run(target.name(), func(t *testing.T) {
			name := d.file("hsmsign_VERSION_oci.tar")
			if target.pkcs11 {
				name = d.file("hsmsign_VERSION_oci_pkcs11.tar")
			}
			root := d.unpackImage(t, name, target.arch)
			j := newJail(t, root, target.arch)
			if got := j.run("/usr/bin/hsmsign", "version"); !strings.HasPrefix(got, "hsmsign v"+d.version+" ") || strings.Contains(got, "pkcs11") != target.pkcs11 {
				t.Errorf("version: %s", got)
			}
			key := "file:vendor.key"
			if target.pkcs11 {
				j.write("pin", "1234\n")
				j.run("/usr/bin/softhsm2-util", "--init-token", "--free", "--label", "mdm", "--so-pin", "12345678", "--pin", "1234")
				key = "pkcs11:token=mdm;object=vendor?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/tmp/pin"
			}
			j.sign(key)
			archive := d.unpack(t, target, t.TempDir())
			fromArchive, err := os.ReadFile(archive)
			if err != nil {
				t.Fatal(err)
			}
			if inImage, err := os.ReadFile(filepath.Join(root, "usr/bin/hsmsign")); err != nil || !bytes.Equal(inImage, fromArchive) {
				t.Errorf("the image has another program than the archive (%v)", err)
			}
		})
	}
}

// unpackImage returns a folder with the files of an image, after checks of its configuration. There is no shell in it.
func (d dist) unpackImage(t *testing.T, archive, arch string) string {
	t.Helper()
	source := "oci-archive:" + archive + ":" + d.version
	var config struct {
		Architecture string
		Config       struct {
			User       string
			Entrypoint []string
			Labels     map[string]string
		}
	}
	inspect := execute(t, "", "skopeo", "inspect", "--override-os", "linux", "--override-arch", arch, "--config", source)
	if err := json.Unmarshal([]byte(inspect), &config); err != nil {
		t.Fatal(err)
	}
	if c := config.Config; config.Architecture != arch || c.User != "65532:65532" || !slices.Equal(c.Entrypoint, []string{"/usr/bin/hsmsign"}) || !strings.Contains(c.Labels["debian.packages"], "ca-certificates=") {
		t.Errorf("%+v", config)
	}
	dir := t.TempDir()
	execute(t, dir, "skopeo", "copy", "--quiet", "--override-os", "linux", "--override-arch", arch, source, "oci:"+dir+"/image:x")
	root := filepath.Join(dir, "root")
	execute(t, dir, "umoci", "raw", "unpack", "--image", dir+"/image:x", root)
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if slices.Contains([]string{"sh", "bash", "dash", "busybox", "apt-get", "perl"}, filepath.Base(path)) {
			t.Errorf("the image contains %s", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "etc/ssl/certs/ca-certificates.crt")); err != nil {
		t.Error(err)
	}
	return root
}

// jail runs programs in a folder as their root, as the user of the images.
type jail struct {
	t        *testing.T
	root     string
	emulator []string
}

func newJail(t *testing.T, root, arch string) jail {
	t.Helper()
	j := jail{t: t, root: root}
	if arch != runtime.GOARCH {
		emulator := map[string]string{"arm64": "qemu-aarch64-static", "amd64": "qemu-x86_64-static"}[arch]
		path, err := exec.LookPath(emulator)
		if err != nil {
			t.Fatalf("%v: make release-test installs it", err)
		}
		execute(t, root, "cp", path, root)
		j.emulator = []string{"/" + emulator}
	}
	return j
}

func (j jail) write(name, content string) {
	j.t.Helper()
	path := filepath.Join(j.root, "tmp", name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		j.t.Fatal(err)
	}
	if err := os.Chown(path, imageUser, imageUser); err != nil {
		j.t.Fatal(err)
	}
}

func (j jail) run(args ...string) string {
	j.t.Helper()
	args = slices.Concat(j.emulator, args)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Env = "/tmp", []string{"PATH=/usr/bin", "HSMSIGN_PASSPHRASE=a passphrase of the test"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: j.root, Credential: &syscall.Credential{Uid: imageUser, Gid: imageUser}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		j.t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return string(out)
}

// sign makes a vendor's key, a test chain and a CSR, checks them with doctor, signs, and verifies the request.
func (j jail) sign(key string) {
	j.t.Helper()
	for _, line := range [][]string{
		{"key", "generate", "--key", key},
		{"vendor", "csr", "--key", key, "--common-name", "Example", "--email", "mdm@example.com", "--country", "US", "-o", "vendor.csr"},
		{"testpki", "--csr", "vendor.csr", "--out-dir", "pki"},
		{"push", "csr", "--key-out", "push.key", "--name", "Acme", "--email", "it@acme.example", "--country", "US", "-o", "acme.csr"},
		{"doctor", "--key", key, "--cert", "pki/vendor.pem", "--trust-root", "pki/root.pem"},
		{"sign", "--key", key, "--cert", "pki/vendor.pem", "--trust-root", "pki/root.pem", "-o", "acme.req", "acme.csr"},
	} {
		j.run(append([]string{"/usr/bin/hsmsign"}, line...)...)
	}
	if out := j.run("/usr/bin/hsmsign", "verify", "--trust-root", "pki/root.pem", "--csr", "acme.csr", "acme.req"); !strings.Contains(out, "acme.req: valid under the given trust root") {
		j.t.Errorf("%s", out)
	}
}
