package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

// target is one build of the program.
type target struct {
	os, arch string
	pkcs11   bool // with PKCS#11, which needs cgo and the system's C library
}

var targets = []target{
	{"linux", "amd64", true}, {"linux", "arm64", true},
	{"linux", "amd64", false}, {"linux", "arm64", false},
	{"darwin", "amd64", false}, {"darwin", "arm64", false}, {"windows", "amd64", false},
}

// compilers are the C compilers of a Debian machine, for each architecture.
var compilers = map[string]string{"amd64": "x86_64-linux-gnu-gcc", "arm64": "aarch64-linux-gnu-gcc"}

// name is the part of a file name that tells the builds apart.
func (t target) name() string {
	if t.os == "linux" && !t.pkcs11 {
		return t.os + "_" + t.arch + "_static"
	}
	return t.os + "_" + t.arch
}

// program is the name of the program's file.
func (t target) program() string {
	if t.os == "windows" {
		return "hsmsign.exe"
	}
	return "hsmsign"
}

// packaged returns whether Debian and RPM packages contain this build.
func (t target) packaged() bool { return t.os == "linux" && t.pkcs11 }

// native returns whether this machine runs the build without any C library.
func (t target) native() bool { return t.os == runtime.GOOS && t.arch == runtime.GOARCH && !t.pkcs11 }

func (t target) env() []string {
	env := []string{"GOOS=" + t.os, "GOARCH=" + t.arch, "GOAMD64=v1", "GOARM64=v8.0", "CGO_ENABLED=0"}
	if t.pkcs11 {
		env = append(env, "CGO_ENABLED=1", "CC="+compilers[t.arch], "CGO_CFLAGS=-O2 -g", "CGO_LDFLAGS=-O2 -g")
	}
	return env
}

// compile builds the program for a target and returns the path of its file.
func (r *release) compile(ctx context.Context, t target) (string, error) {
	program := filepath.Join(r.work, t.name(), t.program())
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	fmt.Fprintln(os.Stderr, "building", t.name())
	_, err := output(ctx, r.root, append(r.env[:len(r.env):len(r.env)], t.env()...), "go", "build", "-trimpath", "-buildvcs=true",
		"-tags", r.tags, "-ldflags", "-X main.releaseVersion=v"+r.version, "-o", program, "./cmd/hsmsign")
	return program, err
}
