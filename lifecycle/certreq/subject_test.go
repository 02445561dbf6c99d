package certreq

import (
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
)

func TestSubject(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Subject)
		want   string // in the error; "": accepted
	}{
		{"good", func(*Subject) {}, ""},
		{"longest", func(s *Subject) { s.CommonName, s.Organization = strings.Repeat("ü", 64), strings.Repeat("x", 64) }, ""},
		{"longest email", func(s *Subject) { s.Email = strings.Repeat("a", 251) + "@b.c" }, ""},
		{"shortest", func(s *Subject) { *s = Subject{Email: "a@b", CommonName: "a", Country: "DE"} }, ""},
		{"empty", func(s *Subject) { *s = Subject{} }, "\"\" is not an email address"},
		{"no email", func(s *Subject) { s.Email = "" }, "\"\" is not an email address"},
		{"no at", func(s *Subject) { s.Email = "example.com" }, "is not an email address"},
		{"no domain", func(s *Subject) { s.Email = "mdm@" }, "is not an email address"},
		{"two ats", func(s *Subject) { s.Email = "a@b@c" }, "is not an email address"},
		{"blank in the email", func(s *Subject) { s.Email = "m dm@example.com" }, "is not an email address"},
		{"in brackets", func(s *Subject) { s.Email = "<a@example.com>" }, "is not an email address"},
		{"with a name", func(s *Subject) { s.Email = "A <a@example.com>" }, "is not an email address"},
		{"not ASCII", func(s *Subject) { s.Email = "ä@example.com" }, "is not an email address"},
		{"with a line", func(s *Subject) { s.Email = "a@example.com\n" }, "is not an email address"},
		{"long email", func(s *Subject) { s.Email = strings.Repeat("a", 252) + "@b.c" }, "256 characters"},
		{"no name", func(s *Subject) { s.CommonName = "" }, "the common name is empty"},
		{"long name", func(s *Subject) { s.CommonName = strings.Repeat("ü", 65) }, "the common name has 65 characters"},
		{"blank", func(s *Subject) { s.CommonName = " a" }, "the common name begins or ends with white space"},
		{"control character", func(s *Subject) { s.CommonName = "a\x00b" }, "control character"},
		{"newline", func(s *Subject) { s.CommonName = "a\nb" }, "control character"},
		{"name not UTF-8", func(s *Subject) { s.CommonName = "a\xff" }, "the common name is not UTF-8"},
		{"not UTF-8", func(s *Subject) { s.Organization = "a\xff" }, "the organization is not UTF-8"},
		{"long organization", func(s *Subject) { s.Organization = strings.Repeat("x", 65) }, "the organization has 65"},
		{"no country", func(s *Subject) { s.Country = "" }, "the country \"\""},
		{"small letters", func(s *Subject) { s.Country = "us" }, "the country \"us\""},
		{"not assigned", func(s *Subject) { s.Country = "ZZ" }, "the country \"ZZ\""},
		{"reserved", func(s *Subject) { s.Country = "UK" }, "the country \"UK\""},
		{"three letters", func(s *Subject) { s.Country = "USA" }, "the country \"USA\""},
		{"country's name", func(s *Subject) { s.Country = "Germany" }, "the country \"Germany\""},
		{"digits", func(s *Subject) { s.Country = "U1" }, "the country \"U1\""},
		{"endless", func(s *Subject) { s.Country = strings.Repeat("U", 1e6) }, "\"" + strings.Repeat("U", 64) + "\""},
	} {
		s := subject
		tt.change(&s)
		err := s.Check()
		if tt.want == "" {
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		if !errors.Is(err, ErrSubject) || !strings.Contains(err.Error(), tt.want) || fault.Hint(err) == "" {
			t.Errorf("%s: %v, want %q and a hint", tt.name, err, tt.want)
		}
		// Create checks the subject before it uses the key, here nil.
		if _, err := Create(t.Context(), testkit.NewSigner(nil), s); !errors.Is(err, ErrSubject) {
			t.Errorf("%s: Create: %v", tt.name, err)
		}
	}
}

// The number of codes is that of ISO 3166-1, and they are capital letters in their order.
func TestCountries(t *testing.T) {
	n := 0
	for first := byte('A'); first <= 'Z'; first++ {
		seconds := []byte(countries[first])
		n += len(seconds)
		if !slices.IsSorted(seconds) || len(slices.Compact(seconds)) != len(countries[first]) {
			t.Errorf("%c: %s", first, countries[first])
		}
	}
	for _, code := range []string{"AD", "BQ", "CW", "GB", "SS", "SX", "US", "ZW"} {
		if !isCountry(code) {
			t.Errorf("%s is missing", code)
		}
	}
	if n != 249 {
		t.Errorf("%d codes", n)
	}
}

func TestSeeds(t *testing.T) { testkit.Seeds(t, "FuzzSubject", 2) }

// FuzzSubject checks that the CSR contains every accepted value unchanged.
func FuzzSubject(f *testing.F) {
	f.Add("mdm@example.com", "Example MDM", "Exämple", "US")
	key, _ := newKeys()
	f.Fuzz(func(t *testing.T, email, name, organization, country string) {
		s := Subject{Email: email, CommonName: name, Organization: organization, Country: country}
		der, err := Create(t.Context(), testkit.NewSigner(key), s)
		if err != nil {
			if !errors.Is(err, ErrSubject) {
				t.Fatalf("%+v: %v", s, err)
			}
			return
		}
		csr := testkit.Must(x509.ParseCertificateRequest(der))
		var got []string
		for _, a := range csr.Subject.Names {
			value, _ := a.Value.(string)
			got = append(got, value)
		}
		want := []string{email, name, organization, country}
		if organization == "" {
			want = []string{email, name, country}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})
}
