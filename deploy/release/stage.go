package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// file is a file of an archive, a package or an image.
type file struct {
	path string // relative, with slashes
	data []byte
	mode fs.FileMode // permissions; with fs.ModeDir a folder, with fs.ModeSymlink a link to data
	uid  int         // owner and group
}

// sharedFiles returns what every build contains besides the program: manual pages, completions, documents. The build
// without a C library for this machine writes the pages and completions.
func (r *release) sharedFiles(ctx context.Context) ([]file, error) {
	i := slices.IndexFunc(targets, target.native)
	if i < 0 {
		return nil, errors.New("a release is made on linux/amd64 or linux/arm64")
	}
	program, err := r.compile(ctx, targets[i])
	if err != nil {
		return nil, err
	}
	pages := filepath.Join(r.work, "man")
	if _, err := output(ctx, r.work, r.env, program, "man", "--out-dir", pages); err != nil {
		return nil, err
	}
	files, err := manFiles(pages)
	if err != nil {
		return nil, err
	}
	for shell, name := range map[string]string{"bash": "hsmsign", "zsh": "_hsmsign", "fish": "hsmsign.fish"} {
		script, err := output(ctx, r.work, r.env, program, "completion", shell)
		if err != nil {
			return nil, err
		}
		files = append(files, file{path: "completions/" + name, data: []byte(script + "\n"), mode: 0o644})
	}
	documents, err := documentFiles(r.root)
	if err != nil {
		return nil, err
	}
	files = append(files, documents...)
	slices.SortFunc(files, func(a, b file) int { return strings.Compare(a.path, b.path) })
	return files, nil
}

// documentFiles returns the documents of a checkout, without the pictures.
func documentFiles(root string) ([]file, error) {
	names, err := fs.Glob(os.DirFS(root), "docs/*.md")
	if err != nil {
		return nil, err
	}
	var files []file
	for _, name := range append(names, "README.md", "CHANGELOG.md", "hsmsign.example.yaml") {
		data, err := os.ReadFile(filepath.Join(root, name)) // #nosec G304 -- the checkout
		if err != nil {
			return nil, err
		}
		files = append(files, file{path: "doc/" + name, data: data, mode: 0o644})
	}
	return files, nil
}

// manFiles returns the pages of a folder, compressed.
func manFiles(dir string) ([]file, error) {
	pages, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []file
	for _, page := range pages {
		data, err := os.ReadFile(filepath.Join(dir, page.Name())) // #nosec G304 -- written by the program
		if err != nil {
			return nil, err
		}
		if data, err = compress(data); err != nil {
			return nil, err
		}
		files = append(files, file{path: "man/man1/" + page.Name() + ".gz", data: data, mode: 0o644})
	}
	return files, nil
}

// compress returns data compressed by gzip, without a name or a time.
func compress(data []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	_, err = w.Write(data)
	return b.Bytes(), errors.Join(err, w.Close())
}

// writeStage writes a program and the shared files below a folder, which must not exist or be empty.
func writeStage(dir, program string, shared []file) error {
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return fmt.Errorf("%s is not empty: remove it first", dir)
	}
	data, err := os.ReadFile(program) // #nosec G304 -- built above
	if err != nil {
		return err
	}
	for _, f := range append([]file{{path: "bin/hsmsign", data: data, mode: 0o755}}, shared...) {
		path := filepath.Join(dir, filepath.FromSlash(f.path))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { // #nosec G301 -- a package is public
			return err
		}
		if err := os.WriteFile(path, f.data, f.mode); err != nil {
			return err
		}
	}
	return nil
}

// archive writes the archive of a build into dir: one folder with the program, its manual pages, completions and documents.
func (r *release) archive(dir string, t target, program string, shared []file) error {
	data, err := os.ReadFile(program) // #nosec G304 -- built above
	if err != nil {
		return err
	}
	name := "hsmsign_" + r.version + "_" + t.name()
	files := []file{{path: name + "/" + t.program(), data: data, mode: 0o755}}
	for _, f := range shared {
		f.path = name + "/" + strings.TrimPrefix(f.path, "doc/")
		files = append(files, f)
	}
	write, suffix := writeTarGzip, ".tar.gz"
	if t.os == "windows" {
		write, suffix = writeZip, ".zip"
	}
	return create(filepath.Join(dir, name+suffix), func(out *os.File) error { return write(out, files, r.time) })
}

// create writes a file, and closes it whatever happens.
func create(path string, write func(*os.File) error) error {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644) // #nosec G302,G304 -- a release is public
	if err != nil {
		return err
	}
	return errors.Join(write(out), out.Close())
}
