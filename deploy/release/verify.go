package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// verifyRelease builds the commit twice, each time from a new clone in another folder and the second time with an empty
// build cache, and compares all files. The first build stays in o.out.
func verifyRelease(ctx context.Context, o options) error {
	r, err := newRelease(ctx, o)
	if err != nil {
		return err
	}
	defer r.close()
	changes, err := r.git(ctx, "status", "--porcelain")
	if err != nil {
		return err
	}
	if changes != "" {
		return errors.New("the checkout has changes that are not committed, which a clone does not contain: commit them")
	}
	second := filepath.Join(r.work, "second")
	for _, build := range []struct{ clone, out, cache string }{
		{"a", o.out, ""}, {"another-folder/b", second, filepath.Join(r.work, "cache")},
	} {
		clone := filepath.Join(r.work, build.clone)
		if _, err := output(ctx, r.work, nil, "git", "clone", "--quiet", "--no-hardlinks", r.root, clone); err != nil {
			return err
		}
		if _, err := output(ctx, clone, nil, "git", "checkout", "--quiet", "--detach", r.revision); err != nil {
			return err
		}
		copied := *r
		copied.root = clone
		if copied.work = filepath.Join(r.work, filepath.Base(build.clone)+"-work"); build.cache != "" {
			copied.env = append(slices.Clone(r.env), "GOCACHE="+build.cache)
		}
		if err := os.Mkdir(copied.work, 0o755); err != nil { // #nosec G301 -- apt's own user reads it
			return err
		}
		if err := copied.build(ctx, build.out, ""); err != nil {
			return err
		}
	}
	names, err := compareFolders(o.out, second)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "both builds of %s have the same bytes in %d files\n", r.version, names)
	return nil
}

// compareFolders returns how many files two folders have, or an error that names those that differ. Signatures are
// not compared: they contain a time.
func compareFolders(a, b string) (int, error) {
	first, err := readFolder(a)
	if err != nil {
		return 0, err
	}
	second, err := readFolder(b)
	if err != nil {
		return 0, err
	}
	contents, different := map[string][]byte{}, []string{}
	for _, f := range second {
		contents[f.path] = f.data
	}
	count := 0
	for _, f := range first {
		other, ok := contents[f.path]
		delete(contents, f.path)
		if strings.HasSuffix(f.path, ".minisig") {
			continue
		}
		if count++; !ok || !bytes.Equal(other, f.data) {
			different = append(different, f.path)
		}
	}
	for name := range contents {
		if !strings.HasSuffix(name, ".minisig") {
			different = append(different, name)
		}
	}
	slices.Sort(different)
	if len(different) > 0 || count == 0 {
		return 0, fmt.Errorf("%d of %d files differ between the builds: %s", len(different), count, strings.Join(different, ", "))
	}
	return count, nil
}
