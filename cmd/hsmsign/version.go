package main

import (
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/urfave/cli/v2"

	"hsmsign/signer/pkcs11"
)

func (p *program) versionCommand() *cli.Command {
	return &cli.Command{
		Name:   "version",
		Usage:  "print the version, how it was built, and which key stores it knows",
		Flags:  []cli.Flag{jsonFlag()},
		Action: p.version,
	}
}

type versionInfo struct {
	Version  string   `json:"version"`
	Revision string   `json:"revision,omitempty"`
	Go       string   `json:"go"`
	Platform string   `json:"platform"`
	Backends []string `json:"backends"`
}

func (p *program) version(ctx *cli.Context) error {
	asJSON, err := p.bareSettings(ctx).boolean("json")
	if err != nil {
		return err
	}
	info := readVersion()
	if asJSON {
		p.ui.json(info)
		return nil
	}
	revision := ""
	if info.Revision != "" {
		revision = " (" + info.Revision + ")"
	}
	p.ui.print("hsmsign %s%s %s %s; key stores: %s", info.Version, revision, info.Go, info.Platform, strings.Join(info.Backends, ", "))
	return nil
}

func readVersion() versionInfo {
	info := versionInfo{
		Version: "unknown", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
		Backends: []string{"file"},
	}
	if pkcs11.Available {
		info.Backends = append(info.Backends, "pkcs11")
	}
	if withCloud {
		info.Backends = append(info.Backends, cloudSchemes...)
	}
	build, ok := debug.ReadBuildInfo()
	if !ok {
		return info
	}
	info.Version = build.Main.Version
	for _, setting := range build.Settings {
		if setting.Key == "vcs.revision" {
			info.Revision = setting.Value[:min(12, len(setting.Value))]
		}
	}
	return info
}

func versionString() string { return readVersion().Version }
