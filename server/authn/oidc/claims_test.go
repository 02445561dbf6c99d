package oidc_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"hsmsign/internal/testkit"
	"hsmsign/server/authn/oidc"
)

// Whatever is accepted has one meaning: it is what encoding/json reads, and survives being written and read again.
func FuzzClaims(f *testing.F) {
	testkit.Seeds(f, "FuzzClaims", 5)
	f.Fuzz(func(t *testing.T, text string) {
		got, err := oidc.Claims([]byte(text))
		if err != nil {
			return
		}
		d := json.NewDecoder(strings.NewReader(text))
		d.UseNumber()
		var want map[string]any
		if err := d.Decode(&want); err != nil || !reflect.DeepEqual(want, got) {
			t.Errorf("%q: %v; encoding/json reads %v, %v", text, got, want, err)
		}
		again, err := json.Marshal(got)
		testkit.OK(t, err)
		if second, err := oidc.Claims(again); err != nil || !reflect.DeepEqual(second, got) {
			t.Errorf("%q: written as %s, and read as %v, %v", text, again, second, err)
		}
	})
}
