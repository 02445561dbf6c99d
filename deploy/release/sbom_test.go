package main

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"os"
	"os/exec"
	"regexp"
	"runtime/debug"
	"strings"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

func decodeBOM(t *testing.T, data []byte) *cdx.BOM {
	t.Helper()
	var bom cdx.BOM
	if err := cdx.NewBOMDecoder(bytes.NewReader(data), cdx.BOMFileFormatJSON).Decode(&bom); err != nil {
		t.Fatal(err)
	}
	return &bom
}

// checkBOM compares the components of a program with what go version -m prints about its file.
func checkBOM(t *testing.T, bom *cdx.BOM, name, path string) {
	t.Helper()
	components, refs := map[string]cdx.Component{}, map[string]bool{"hsmsign": true}
	for _, c := range *bom.Components {
		if components[c.Name+"@"+c.Version].Name != "" && !strings.HasPrefix(c.PackageURL, "pkg:deb/") {
			t.Errorf("%s is twice in the SBOM", c.Name)
		}
		components[c.Name+"@"+c.Version], refs[c.BOMRef] = c, true
	}
	uses := map[string]bool{}
	for _, d := range *bom.Dependencies {
		for _, ref := range *d.Dependencies {
			if !refs[ref] || !refs[d.Ref] {
				t.Errorf("%s uses %s, and there is no such component", d.Ref, ref)
			}
			uses[d.Ref+" "+ref] = true
		}
	}
	out, err := exec.Command("go", "version", "-m", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	modules := regexp.MustCompile(`(?m)^\tdep\t(\S+)\t(\S+)\t(h1:\S+)$`).FindAllStringSubmatch(string(out), -1)
	if len(modules) < 3 {
		t.Fatalf("%d modules", len(modules))
	}
	for _, m := range modules {
		sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m[3], "h1:"))
		if err != nil {
			t.Fatal(err)
		}
		c := components[m[1]+"@"+m[2]]
		if !strings.HasPrefix(c.PackageURL, "pkg:golang/"+m[1]+"@") || c.Hashes == nil || (*c.Hashes)[0].Value != hex.EncodeToString(sum) || !uses["hsmsign/"+name+" "+c.BOMRef] {
			t.Errorf("%s: %+v", m[1], c)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	if c := components["hsmsign_"+name+"@"+bom.Metadata.Component.Version]; c.Hashes == nil || (*c.Hashes)[0].Value != hex.EncodeToString(sum[:]) {
		t.Errorf("%s: %+v", name, c)
	}
}

// TestSBOM makes the list of this test's own program.
func TestSBOM(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r := &release{version: "0.1.0", time: testTime}
	make := func(pieces ...piece) []byte {
		t.Helper()
		data, err := r.sbom([]built{{"linux_amd64", self}, {"linux_arm64", self}}, pieces)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	pieces := []piece{{name: "libstdc++6", version: "2:12.2.0-14+deb12u1", arch: "arm64"}, {name: "libc6", version: "2.36-9", arch: "amd64"}}
	first := make(pieces...)
	bom := decodeBOM(t, first)
	checkBOM(t, bom, "linux_amd64", self)
	checkBOM(t, bom, "linux_arm64", self)
	if bom.SpecVersion != cdx.SpecVersion1_6 || !regexp.MustCompile(`^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(bom.SerialNumber) ||
		bom.Metadata.Timestamp != "2023-11-14T22:13:20Z" {
		t.Errorf("%v %v %+v", bom.SpecVersion, bom.SerialNumber, bom.Metadata)
	}
	if !strings.Contains(string(first), `"pkg:deb/debian/libstdc++6@2%3A12.2.0-14%2Bdeb12u1?arch=arm64"`) {
		t.Error("the SBOM does not name libstdc++6")
	}
	if second := make(pieces[1], pieces[0]); !bytes.Equal(first, second) {
		t.Error("the order of the packages changes the bytes")
	}
	if other := decodeBOM(t, make()); other.SerialNumber == bom.SerialNumber {
		t.Error("two lists have one serial number")
	}
	info, err := buildinfo.ReadFile(self)
	if err != nil || len(info.Deps) == 0 {
		t.Fatal(info, err)
	}
	for _, sum := range []string{"", "h1:", "h1:AAAA", "h2:" + strings.TrimPrefix(info.Deps[0].Sum, "h1:")} {
		if _, err := moduleComponent(&debug.Module{Path: "a", Version: "v1.0.0", Sum: sum}); err == nil {
			t.Errorf("a module with the hash %q is accepted", sum)
		}
	}
	if _, err := r.sbom([]built{{"x", "sbom_test.go"}}, nil); err == nil {
		t.Error("a file without build information is accepted")
	}
}
