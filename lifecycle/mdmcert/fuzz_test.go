package mdmcert

import (
	"bytes"
	"errors"
	"testing"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
)

func TestSeeds(t *testing.T) { testkit.Seeds(t, "FuzzDecrypt", 3) }

// Whatever is in an attachment, its form does not matter; and nothing longer comes out than went in.
func FuzzDecrypt(f *testing.F) {
	private := testkit.GoldenKey(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := Decrypt(data, private)
		if err != nil {
			checkRefusal(t, err)
		}
		if len(got) > len(data) {
			t.Errorf("%d bytes out of %d", len(got), len(data))
		}
		if len(data) < 2 || data[0] != 0x30 || data[1] < 0x80 || len(data) > MaxAttachment/3 {
			return
		}
		inHex, hexErr := Decrypt(inLines(data, "\n"), private)
		if !bytes.Equal(got, inHex) || testkit.FindingID(err) != testkit.FindingID(hexErr) {
			t.Errorf("DER: %v, hex: %v", err, hexErr)
		}
	})
}

func checkRefusal(t *testing.T, err error) {
	t.Helper()
	var f *fault.Finding
	if !errors.As(err, &f) || f.Subject() != fault.Push || f.Fix == "" || len(f.Message) > 1000 {
		t.Errorf("%T %q", err, err)
	}
}
