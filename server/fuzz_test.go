package server

import (
	"encoding/json"
	"strings"
	"testing"

	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/internal/testkit"
)

// What is accepted as an address is printed as it was read.
func FuzzParseAddress(f *testing.F) {
	testkit.Seeds(f, "FuzzParseAddress", 3)
	f.Fuzz(func(t *testing.T, text string) {
		a, err := ParseAddress(text)
		if err != nil {
			if fault.KindOf(err) != fault.Usage || fault.Hint(err) == "" {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		if again, err := ParseAddress(a.String()); err != nil || again != a {
			t.Errorf("%q: %+v, then %+v, %v", text, a, again, err)
		}
	})
}

// A host is its own host, and an allowed one is allowed in any case and with any port.
func FuzzHost(f *testing.F) {
	testkit.Seeds(f, "FuzzHost", 3)
	allowed := allowedHosts(nil, "sign.example.com")
	f.Fuzz(func(t *testing.T, header string) {
		host := hostOf(header)
		if strings.Contains(host, "evil") && allowed[host] {
			t.Errorf("%q is allowed", header)
		}
		if allowed[host] && !strings.Contains(strings.ToLower(header), host) {
			t.Errorf("%q is taken for %q", header, host)
		}
	})
}

// An order is read back as it was written, and nothing but JSON of that form is an order.
func FuzzOrder(f *testing.F) {
	testkit.Seeds(f, "FuzzOrder", 3)
	f.Fuzz(func(t *testing.T, data []byte) {
		var o api.SignOrder
		if err := decodeJSON(data, &o); err != nil {
			if fault.KindOf(err) != fault.Usage {
				t.Errorf("%v", err)
			}
			return
		}
		written, err := json.Marshal(o)
		testkit.OK(t, err)
		var again api.SignOrder
		if err := decodeJSON(written, &again); err != nil || again != o {
			t.Errorf("%+v, then %+v, %v", o, again, err)
		}
		if !json.Valid(data) {
			t.Errorf("%q is not JSON", data)
		}
	})
}
