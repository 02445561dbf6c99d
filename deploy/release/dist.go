package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// nfpm makes the Debian and RPM packages.
const nfpm = "github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.0"

// build writes every file of the release into a folder, which it replaces. With a key it signs the checksums.
func (r *release) build(ctx context.Context, dir, key string) error {
	if err := emptyFolder(dir); err != nil {
		return err
	}
	shared, err := r.sharedFiles(ctx)
	if err != nil {
		return err
	}
	var programs []built
	for _, t := range targets {
		program, err := r.compile(ctx, t)
		if err != nil {
			return err
		}
		programs = append(programs, built{t.name(), program})
		if err := r.archive(dir, t, program, shared); err != nil {
			return err
		}
		if t.packaged() {
			if err := r.packages(ctx, dir, t, program, shared); err != nil {
				return err
			}
		}
	}
	pieces, err := r.images(ctx, dir)
	if err != nil {
		return err
	}
	bom, err := r.sbom(programs, pieces)
	if err != nil {
		return err
	}
	if err := create(filepath.Join(dir, "hsmsign_"+r.version+".cdx.json"), func(out *os.File) error {
		_, err := out.Write(bom)
		return err
	}); err != nil {
		return err
	}
	if err := writeSums(dir); err != nil {
		return err
	}
	return r.sign(ctx, dir, key)
}

// marker is in every folder that build makes: it empties no other.
const marker = "SHA256SUMS"

// emptyFolder makes a folder, or removes the files of the release in it.
func emptyFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, marker), nil, 0o644)) // #nosec G301,G306 -- a release is public
	}
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, marker)); err != nil {
		return fmt.Errorf("%s contains other files than those of a release: remove it, or name another folder", dir)
	}
	for _, entry := range entries {
		if entry.Name() == marker {
			err = os.Truncate(filepath.Join(dir, marker), 0)
		} else {
			err = os.Remove(filepath.Join(dir, entry.Name()))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// rpmArch are RPM's names of the architectures.
var rpmArch = map[string]string{"amd64": "x86_64", "arm64": "aarch64"}

// packages writes the .deb and the .rpm of one build.
func (r *release) packages(ctx context.Context, dir string, t target, program string, shared []file) error {
	stage := filepath.Join(r.work, "stage_"+t.arch)
	if err := writeStage(stage, program, shared); err != nil {
		return err
	}
	env := append(r.env[:len(r.env):len(r.env)], "VERSION="+r.packageVersion(), "ARCH="+t.arch, "STAGE="+stage)
	for kind, name := range map[string]string{
		"deb": "hsmsign_" + r.version + "_" + t.arch + ".deb",
		"rpm": "hsmsign-" + r.version + "." + rpmArch[t.arch] + ".rpm",
	} {
		fmt.Fprintln(os.Stderr, "making", name)
		if _, err := output(ctx, r.root, env, "go", "run", nfpm, "package", "--config", "deploy/packages/nfpm.yaml",
			"--packager", kind, "--target", filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// writeSums writes the checksums of the files in a folder, as sha256sum does.
func writeSums(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var sums bytes.Buffer
	for _, entry := range entries {
		if entry.Name() == marker {
			continue
		}
		sum, err := fileSum(filepath.Join(dir, entry.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(&sums, "%x  %s\n", sum, entry.Name())
	}
	return os.WriteFile(filepath.Join(dir, marker), sums.Bytes(), 0o644) // #nosec G306 -- a release is public
}

func fileSum(path string) ([]byte, error) {
	f, err := os.Open(path) // #nosec G304 -- a file of the release
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return h.Sum(nil), err
}

// sign signs the checksums with minisign, which asks for the key's password itself.
func (r *release) sign(ctx context.Context, dir, key string) error {
	if key == "" {
		fmt.Fprintln(os.Stderr, "SHA256SUMS is not signed; sign it with make release MINISIGN_KEY=FILE")
		return nil
	}
	cmd := exec.CommandContext(ctx, "minisign", "-S", "-s", key, "-m", marker,
		"-c", "signature of hsmsign "+r.version, "-t", "hsmsign "+r.version+", timestamp "+strconv.FormatInt(time.Now().Unix(), 10)) // #nosec G204 -- no shell
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = dir, os.Stdin, os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("minisign: %w", err)
	}
	return nil
}
