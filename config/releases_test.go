//go:build unix

package config

import (
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"hsmsign/agent/policy"
	"hsmsign/internal/testkit"
)

var updateRelease = flag.String("update-release", "", "write the list of keys of this release, as 0.1.0")

const releases = "../testdata/releases"

// TestReleases: this program accepts the configuration of every release, in which every key of that release is set. A key that was
// removed or renamed since is an error of Parse.
func TestReleases(t *testing.T) {
	if *updateRelease != "" {
		testkit.OK(t, os.WriteFile(filepath.Join(releases, *updateRelease, "keys.txt"), []byte(strings.Join(paths(reflect.TypeFor[Config](), ""), "\n")+"\n"), 0o644))
	}
	dirs := testkit.Value(os.ReadDir(releases))(t)
	if len(dirs) == 0 {
		t.Fatal("there is no release")
	}
	for _, dir := range dirs {
		t.Run(dir.Name(), func(t *testing.T) {
			used := map[string]bool{}
			for _, name := range []string{"vendors.yaml", "identity.yaml"} {
				file := filepath.Join(releases, dir.Name(), name)
				c, err := Parse(file, testkit.Value(os.ReadFile(file))(t))
				if err != nil {
					t.Fatal(err)
				}
				set(reflect.ValueOf(*c), "", used)
				for name, role := range c.Roles {
					role.Entitlement = nil // its program does not exist
					c.Roles[name] = role
				}
				if len(c.Callers) > 0 {
					_, err := policy.New(c.Callers, c.Roles, policy.Environment{Vendors: []string{"acme-2026", "acme-2027"}, Issuers: issuers(c)})
					testkit.OK(t, err)
				}
			}
			keys := strings.Fields(string(testkit.Value(os.ReadFile(filepath.Join(releases, dir.Name(), "keys.txt")))(t)))
			if len(keys) < 80 {
				t.Errorf("keys.txt has %d keys", len(keys))
			}
			for _, key := range keys {
				if !used[key] {
					t.Errorf("the key %s of the release is not set, or does not exist any more", key)
				}
			}
		})
	}
}

// name returns the key of a field, "" if it has none.
func name(f reflect.StructField) string {
	tag, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	if tag == "-" {
		return ""
	}
	return tag
}

// paths returns the keys of a type; * is any key of a map.
func paths(t reflect.Type, prefix string) (all []string) {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice:
		return paths(t.Elem(), prefix)
	case reflect.Map:
		return paths(t.Elem(), prefix+".*")
	case reflect.Struct:
		for _, f := range reflect.VisibleFields(t) {
			if name(f) != "" {
				all = append(all, paths(f.Type, prefix+"."+name(f))...)
			}
		}
		return all
	}
	return []string{strings.TrimPrefix(prefix, ".")}
}

// set notes the keys that are set in a value.
func set(v reflect.Value, prefix string, used map[string]bool) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			set(v.Elem(), prefix, used)
		}
		return
	case reflect.Slice:
		for i := range v.Len() {
			set(v.Index(i), prefix, used)
		}
		return
	case reflect.Map:
		for _, key := range v.MapKeys() {
			set(v.MapIndex(key), prefix+".*", used)
		}
		return
	case reflect.Struct:
		for _, f := range reflect.VisibleFields(v.Type()) {
			if name(f) != "" {
				set(v.FieldByIndex(f.Index), prefix+"."+name(f), used)
			}
		}
		return
	}
	if key := strings.TrimPrefix(prefix, "."); !v.IsZero() || slices.Contains([]string{"roles.*.approvals.same-key"}, key) {
		used[key] = true
	}
}
