package main

import (
	"archive/tar"
	"archive/zip"
	"cmp"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"path"
	"slices"
	"time"
)

// writeTarGzip writes files, their folders and nothing of this machine.
func writeTarGzip(out io.Writer, files []file, at time.Time) error {
	compressed, err := gzip.NewWriterLevel(out, gzip.BestCompression)
	if err != nil {
		return err
	}
	return errors.Join(writeTar(compressed, files, at), compressed.Close())
}

// writeTar writes files in the order of their paths, after their folders. The modes of folders that are not in files are 0755.
func writeTar(out io.Writer, files []file, at time.Time) error {
	w := tar.NewWriter(out)
	for _, f := range withFolders(files) {
		header := &tar.Header{
			Name: f.path, Mode: int64(f.mode.Perm()), Uid: f.uid, Gid: f.uid, ModTime: at, Size: int64(len(f.data)),
			Typeflag: tar.TypeReg, Format: tar.FormatPAX,
		}
		if f.mode&fs.ModeSticky != 0 {
			header.Mode |= 0o1000
		}
		switch f.mode.Type() {
		case fs.ModeDir:
			header.Typeflag, header.Name, header.Size = tar.TypeDir, f.path+"/", 0
		case fs.ModeSymlink:
			header.Typeflag, header.Linkname, header.Size, header.Mode = tar.TypeSymlink, string(f.data), 0, 0o777
		}
		if err := w.WriteHeader(header); err != nil {
			return err
		}
		if header.Typeflag == tar.TypeReg {
			if _, err := w.Write(f.data); err != nil {
				return err
			}
		}
	}
	return w.Close()
}

// writeZip writes files in the order of their paths.
func writeZip(out io.Writer, files []file, at time.Time) error {
	w := zip.NewWriter(out)
	for _, f := range withFolders(files) {
		if f.mode.IsDir() {
			continue
		}
		header := &zip.FileHeader{Name: f.path, Method: zip.Deflate, Modified: at}
		header.SetMode(f.mode)
		entry, err := w.CreateHeader(header)
		if err != nil {
			return err
		}
		if _, err := entry.Write(f.data); err != nil {
			return err
		}
	}
	return w.Close()
}

// withFolders returns the files and every folder above them, sorted by path, so that a folder is before what it contains.
func withFolders(files []file) []file {
	all := map[string]file{}
	for _, f := range files {
		for dir := path.Dir(f.path); dir != "."; dir = path.Dir(dir) {
			if _, ok := all[dir]; !ok {
				all[dir] = file{path: dir, mode: fs.ModeDir | 0o755}
			}
		}
		all[f.path] = f
	}
	sorted := make([]file, 0, len(all))
	for _, f := range all {
		sorted = append(sorted, f)
	}
	slices.SortFunc(sorted, func(a, b file) int { return cmp.Compare(a.path, b.path) })
	return sorted
}
