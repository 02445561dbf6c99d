// Command release makes the files of a release of hsmsign: archives, Debian and RPM packages, container images, a list of
// the components (SBOM), and their checksums. make release, make release-verify and make stage run it.
//
// The files depend on the commit, the Go toolchain, the C compilers and, for the image with PKCS#11, on Debian's packages
// of the day; not on the folder, the user or the time. It is a module of its own: its libraries are none of hsmsign's.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

const usage = `usage: release build  [--version V] [--tags TAGS] [--key FILE] --out DIR [ROOT]
       release stage  [--version V] [--tags TAGS] --arch ARCH --out DIR [ROOT]
       release verify [--version V] [--tags TAGS] --out DIR [ROOT]

build writes every file of a release into DIR, which it empties first.
stage writes what a package contains into DIR: bin/, man/, completions/, doc/.
verify clones the commit into two folders, builds a release in each (the second with an empty build cache), and compares
every byte. The first build stays in DIR.
ROOT is the checkout (default: the current folder).

`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "release:", err)
		}
		os.Exit(2)
	}
}

// options are those of all commands.
type options struct {
	root, out, version, tags, arch, key string
}

func run(ctx context.Context, args []string) error {
	var o options
	flags := flag.NewFlagSet("release", flag.ContinueOnError)
	flags.Usage = func() { _, _ = fmt.Fprint(flags.Output(), usage); flags.PrintDefaults() }
	flags.StringVar(&o.out, "out", "", "`DIR` to write to")
	flags.StringVar(&o.version, "version", "", "version, such as 0.1.0 (default: that of the tag; without a tag a snapshot's)")
	flags.StringVar(&o.tags, "tags", "", "build `TAGS`, separated by commas")
	flags.StringVar(&o.arch, "arch", "", "`ARCH` of the stage: amd64 or arm64")
	flags.StringVar(&o.key, "key", "", "minisign secret key `FILE`; without it SHA256SUMS is not signed")
	commands := map[string]func(context.Context, options) error{"build": buildRelease, "stage": stageRelease, "verify": verifyRelease}
	if len(args) == 0 || commands[args[0]] == nil {
		flags.Usage()
		return errors.New("name one of build, stage, verify")
	}
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if o.out == "" || flags.NArg() > 1 {
		return errors.New("--out is needed, and at most one ROOT")
	}
	o.root = "."
	if flags.NArg() == 1 {
		o.root = flags.Arg(0)
	}
	for _, path := range []*string{&o.root, &o.out, &o.key} {
		if *path == "" {
			continue
		}
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return err
		}
		*path = absolute
	}
	return commands[args[0]](ctx, o)
}

// buildRelease writes a release into o.out.
func buildRelease(ctx context.Context, o options) error {
	r, err := newRelease(ctx, o)
	if err != nil {
		return err
	}
	defer r.close()
	return r.build(ctx, o.out, o.key)
}

// stageRelease writes the stage of one architecture, with PKCS#11, into o.out.
func stageRelease(ctx context.Context, o options) error {
	r, err := newRelease(ctx, o)
	if err != nil {
		return err
	}
	defer r.close()
	for _, t := range targets {
		if t.packaged() && t.arch == o.arch {
			shared, err := r.sharedFiles(ctx)
			if err != nil {
				return err
			}
			program, err := r.compile(ctx, t)
			if err != nil {
				return err
			}
			return writeStage(o.out, program, shared)
		}
	}
	return fmt.Errorf("unknown --arch %q: it is amd64 or arm64", o.arch)
}
