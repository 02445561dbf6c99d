package main

import (
	"cmp"
	"runtime"
	"runtime/debug"
	"strings"

	"hsmsign/api"
	"hsmsign/keystore"

	"github.com/urfave/cli/v2"
)

func (p *program) versionCommand() *cli.Command {
	return &cli.Command{
		Name:        "version",
		Description: "  hsmsign version --json",
		Usage:       "print the version, how it was built, and its key stores",
		Flags:       []cli.Flag{jsonFlag()},
		Action:      p.version,
	}
}

func (p *program) version(ctx *cli.Context) error {
	s, err := p.bareSettings(ctx)
	if err != nil {
		return err
	}
	info := readVersion()
	if s.json {
		p.con.JSON(info)
		return nil
	}
	revision := ""
	if info.Revision != "" {
		revision = " (" + info.Revision + ")"
	}
	p.con.Printf("hsmsign %s%s %s %s; key stores: %s", info.Version, revision, info.Go, info.Platform, strings.Join(info.Backends, ", "))
	return nil
}

// releaseVersion is the version of a release, such as v0.1.0. The linker sets it (-X main.releaseVersion=); otherwise the
// version is the one that the go command finds in the repository.
var releaseVersion string

func readVersion() api.Version {
	info := api.Version{
		Version: "unknown", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
		Backends: keystore.Schemes(),
	}
	build, ok := debug.ReadBuildInfo()
	if !ok {
		return info
	}
	info.Version = cmp.Or(releaseVersion, build.Main.Version)
	for _, setting := range build.Settings {
		if setting.Key == "vcs.revision" {
			info.Revision = setting.Value[:min(12, len(setting.Value))]
		}
	}
	return info
}
