package main

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"maps"
	"net/url"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// built is a program of the release.
type built struct {
	name, path string // of the artifact: linux_amd64
}

// sbom returns the components of every program, as CycloneDX 1.6 in JSON: each program with its SHA-256 and the modules
// linked into it, as the build information in the program names them, and the Debian packages of the images.
func (r *release) sbom(programs []built, pieces []piece) ([]byte, error) {
	bom := cdx.NewBOM()
	main := cdx.Component{BOMRef: "hsmsign", Type: cdx.ComponentTypeApplication, Name: "hsmsign", Version: r.version}
	bom.Metadata = &cdx.Metadata{Timestamp: r.time.Format(time.RFC3339), Component: &main}
	components, uses := map[string]cdx.Component{}, map[string][]string{}
	for _, p := range programs {
		program, modules, err := programComponents(p, r.version)
		if err != nil {
			return nil, err
		}
		components[program.BOMRef] = program
		uses["hsmsign"] = append(uses["hsmsign"], program.BOMRef)
		for _, m := range modules {
			components[m.BOMRef] = m
			uses[program.BOMRef] = append(uses[program.BOMRef], m.BOMRef)
		}
	}
	for _, p := range pieces {
		ref := "pkg:deb/debian/" + url.PathEscape(p.name) + "@" + url.QueryEscape(p.version) + "?arch=" + p.arch
		components[ref] = cdx.Component{BOMRef: ref, Type: cdx.ComponentTypeLibrary, Name: p.name, Version: p.version, PackageURL: ref}
	}
	sorted := slices.SortedFunc(maps.Values(components), func(a, b cdx.Component) int { return cmp.Compare(a.BOMRef, b.BOMRef) })
	bom.Components = &sorted
	var dependencies []cdx.Dependency
	for _, ref := range slices.Sorted(maps.Keys(uses)) {
		list := slices.Sorted(slices.Values(uses[ref]))
		dependencies = append(dependencies, cdx.Dependency{Ref: ref, Dependencies: &list})
	}
	bom.Dependencies = &dependencies
	content, err := encodeBOM(bom)
	if err != nil {
		return nil, err
	}
	bom.SerialNumber = serialNumber(content)
	return encodeBOM(bom)
}

// programComponents returns the component of a program and those of the modules in it.
func programComponents(p built, version string) (cdx.Component, []cdx.Component, error) {
	info, err := buildinfo.ReadFile(p.path)
	if err != nil {
		return cdx.Component{}, nil, err
	}
	data, err := os.ReadFile(p.path)
	if err != nil {
		return cdx.Component{}, nil, err
	}
	sum := sha256.Sum256(data)
	program := cdx.Component{
		BOMRef: "hsmsign/" + p.name, Type: cdx.ComponentTypeApplication, Name: "hsmsign_" + p.name, Version: version,
		Hashes: &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(sum[:])}},
	}
	standard := "pkg:golang/std@" + strings.TrimPrefix(info.GoVersion, "go")
	modules := []cdx.Component{{BOMRef: standard, Type: cdx.ComponentTypeLibrary, Name: "std", Version: info.GoVersion, PackageURL: standard}}
	for _, dep := range info.Deps {
		m, err := moduleComponent(dep)
		if err != nil {
			return cdx.Component{}, nil, fmt.Errorf("%s: %w", p.name, err)
		}
		modules = append(modules, m)
	}
	return program, modules, nil
}

// moduleComponent returns the component of a module. Its hash is the one of go.sum (h1, a SHA-256 of the module's files) in hex.
func moduleComponent(m *debug.Module) (cdx.Component, error) {
	if m.Replace != nil {
		m = m.Replace
	}
	encoded, ok := strings.CutPrefix(m.Sum, "h1:")
	sum, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil || len(sum) != sha256.Size {
		return cdx.Component{}, fmt.Errorf("module %s: hash %q, want h1:SHA256", m.Path, m.Sum)
	}
	purl := "pkg:golang/" + m.Path + "@" + url.QueryEscape(m.Version)
	return cdx.Component{
		BOMRef: purl, Type: cdx.ComponentTypeLibrary, Name: m.Path, Version: m.Version, PackageURL: purl,
		Hashes: &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(sum)}},
	}, nil
}

// serialNumber returns a UUID of form 8 (RFC 9562) that depends on content alone.
func serialNumber(content []byte) string {
	u := sha256.Sum256(content)
	u[6], u[8] = u[6]&0x0f|0x80, u[8]&0x3f|0x80
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

func encodeBOM(bom *cdx.BOM) ([]byte, error) {
	var b bytes.Buffer
	err := cdx.NewBOMEncoder(&b, cdx.BOMFileFormatJSON).SetPretty(true).EncodeVersion(bom, cdx.SpecVersion1_6)
	return b.Bytes(), err
}
