package server

import (
	"slices"
	"testing"

	"hsmsign/fault"
)

func TestParseAddress(t *testing.T) {
	for _, text := range []string{
		"tls://0.0.0.0:8443", "tls://[::]:8443", "tls://sign.example.com:443", "http://127.0.0.1:8080", "http://[::1]:8080", "http://localhost:1", "unix:///run/hsmsign/agent.sock",
	} {
		if a, err := ParseAddress(text); err != nil || a.String() != text {
			t.Errorf("%s: %v, %v", text, a, err)
		}
	}
	for _, text := range []string{
		"", "8443", "tls://:8443", "tls://0.0.0.0", "tls://0.0.0.0:99999", "tls://0.0.0.0:8443/x", "tls://user@0.0.0.0:1", "tls://0.0.0.0:1?x", "https://0.0.0.0:1",
		"http://0.0.0.0:8080", "http://10.0.0.1:8080", "http://example.com:80", "http://127.0.0.1.example.com:80",
		"unix://run/x.sock", "unix:x.sock", "unix:///run/../x.sock", "unix:///" + string(make([]byte, 200)), "unix://host/x", "ftp://127.0.0.1:1",
	} {
		if a, err := ParseAddress(text); fault.KindOf(err) != fault.Usage {
			t.Errorf("%q: %+v, %v", text, a, err)
		}
	}
}

func TestHosts(t *testing.T) {
	a, err := ParseAddress("tls://Sign.example.com:8443")
	if err != nil {
		t.Fatal(err)
	}
	hosts := allowedHosts([]Address{a, {Kind: "unix", Path: "/x"}}, "Other.example")
	for header, want := range map[string]bool{
		"sign.example.com:8443": true, "SIGN.example.com": true, "sign.example.com.:8443": true, "localhost:8443": true, "127.0.0.1": true, "[::1]:8443": true, "other.example": true,
		"": false, "evil.example": false, "sign.example.com.evil.example": false, "127.0.0.2": false, ":8443": false, "[::2]": false,
	} {
		if got := hosts[hostOf(header)]; got != want {
			t.Errorf("%q: %v", header, got)
		}
	}
}

// TestOwnNames: a name that every machine has is not one of this server.
func TestOwnNames(t *testing.T) {
	all := allowedHosts([]Address{{Host: "0.0.0.0"}, {Host: "::"}, {Host: "127.0.0.2"}, {Host: "10.0.0.1"}}, "Sign.example.com", "localhost")
	if got := ownNames(all); !slices.Equal(got, []string{"10.0.0.1", "sign.example.com"}) {
		t.Errorf("%q", got)
	}
}
