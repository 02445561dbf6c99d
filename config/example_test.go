package config

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestExample: what the annotated example shows, commented out, is what Parse knows: each key once, none more.
func TestExample(t *testing.T) {
	data, err := os.ReadFile("../hsmsign.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c, err := Parse("hsmsign.example.yaml", data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&Config{}, c); diff != "" {
		t.Errorf("as it is delivered it sets something:\n%s", diff)
	}

	// One identity, or several by name: the example shows both.
	unnamed, named := []string{"key", "cert", "chain"}, []string{"vendor", "vendors"}
	var one, several strings.Builder
	var shown []string
	for _, m := range regexp.MustCompile(`(?m)^# ([a-z-]+): .*$`).FindAllStringSubmatch(string(data), -1) {
		if m[1] == "hsmsign.yaml" {
			continue
		}
		shown = append(shown, m[1])
		line := strings.TrimPrefix(m[0], "# ") + "\n"
		if !slices.Contains(named, m[1]) {
			one.WriteString(line)
		}
		if !slices.Contains(unnamed, m[1]) {
			several.WriteString(line)
		}
	}
	for _, text := range []string{one.String(), several.String()} {
		if _, err := Parse("hsmsign.example.yaml", []byte(text)); err != nil {
			t.Errorf("with its keys set: %v\n%s", err, text)
		}
	}

	var fields, known []string
	typ := reflect.TypeFor[Config]()
	for i := range typ.NumField() {
		fields = append(fields, typ.Field(i).Tag.Get("yaml"))
	}
	for _, s := range c.settings() {
		known = append(known, s.name)
	}
	for _, names := range [][]string{shown, fields, known} {
		slices.Sort(names)
	}
	if diff := cmp.Diff(fields, shown); diff != "" {
		t.Errorf("the keys of the example: -Config +shown:\n%s", diff)
	}
	if diff := cmp.Diff(fields, known); diff != "" {
		t.Errorf("the keys that Parse knows: -Config +known:\n%s", diff)
	}
}
