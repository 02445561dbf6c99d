package pushcert

import (
	"errors"
	"strings"
	"testing"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
)

func TestSeeds(t *testing.T) { testkit.Seeds(t, "FuzzParseCertificate", 3) }

// Either a refusal of ours, in one bounded line, or a certificate that reads the same when it is alone.
func FuzzParseCertificate(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		cert, err := ParseCertificate(data)
		if err != nil {
			checkRefusal(t, err)
			return
		}
		again, err := ParseCertificate(cert.Raw)
		if err != nil || again.Topic != cert.Topic || !strings.HasPrefix(cert.Topic, topicPrefix) {
			t.Errorf("alone: %v", err)
		}
		for _, f := range cert.Check(now) {
			checkRefusal(t, &f)
		}
		if CheckRenewal(cert, again, now) == nil {
			t.Error("a certificate renews itself")
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
