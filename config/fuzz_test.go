package config

import (
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
)

// full sets every key.
const full = `# all of it
key: "pkcs11:token=mdm;object=vendor?pin-source=file:/run/pin"
cert: /etc/hsmsign/vendor.pem   # the vendor's
chain: [ wwdr.pem, 'apple root.pem' ]
trust-root:
  - test.pem
format: plist
digest: sha1
out-dir: out
`

// FuzzParse: a text is refused at a place, or it is a Config that holds no PIN and that reads back equal when
// it is written out.
func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte("vendor: a\nvendors:\n  a: {key: \"file:k\", cert: c, chain: [d], trust-root: [e]}\n  b:\n    key: file:l\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("x.yaml", data)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Line < 1 || e.Column < 1 || e.Message == "" {
				t.Fatalf("a refusal without a place: %#v", err)
			}
			return
		}
		for _, v := range append(slices.Collect(maps.Values(c.Vendors)), Vendor{Key: c.Key}) {
			if strings.Contains(strings.ToLower(v.Key), "pin-value") {
				t.Errorf("a PIN got in: %q", v.Key)
			}
		}
		text, err := yaml.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse("again.yaml", text)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if diff := cmp.Diff(c, again); diff != "" {
			t.Errorf("-first +second:\n%s\n%s", diff, text)
		}
	})
}

func TestFuzzCorpus(t *testing.T) {
	if entries, err := os.ReadDir("testdata/fuzz/FuzzParse"); err != nil || len(entries) == 0 {
		t.Errorf("the seed corpus is empty: %v", err)
	}
}
