package chain

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hsmsign/internal/testkit"
)

// TestPins compares the table with Apple's files.
func TestPins(t *testing.T) {
	for _, pin := range Pins() {
		c := testkit.Apple(t, pin.File)
		got, ok := Lookup(c)
		if !ok {
			t.Errorf("%s: SHA-256 of the file is %s, the pin %s", pin.Name, sha256Hex(c.Raw), pin.SHA256)
			continue
		}
		if diff := cmp.Diff(pin, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", pin.Name, diff)
		}
		inFile := pin
		inFile.Subject, inFile.Unit = c.Subject.CommonName, c.Subject.OrganizationalUnit[0]
		inFile.KeyID, inFile.NotAfter, inFile.Root = hex.EncodeToString(c.SubjectKeyId), c.NotAfter, selfIssued(c)
		inFile.Retired = c.NotAfter.Before(now)
		if diff := cmp.Diff(pin, inFile); diff != "" {
			t.Errorf("%s (-table +file):\n%s", pin.Name, diff)
		}
		if !strings.HasPrefix(pin.URL, "https://www.apple.com/") || !strings.HasSuffix(pin.URL, "/"+pin.File) {
			t.Errorf("%s: URL %q, file %q", pin.Name, pin.URL, pin.File)
		}
	}
}

// The table is not shared, and a test certificate is not in it.
func TestLookup(t *testing.T) {
	Pins()[0].SHA256 = ""
	if Pins()[0].SHA256 == "" {
		t.Error("a change to the slice changed the table")
	}
	if pin, ok := Lookup(newWorld().WWDR); ok {
		t.Errorf("a test certificate is taken for %s", pin.Name)
	}
}
