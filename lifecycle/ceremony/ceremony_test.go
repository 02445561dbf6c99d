package ceremony

import (
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hsmsign/chain"
	"hsmsign/internal/testkit"
	"hsmsign/lifecycle/certreq"
	"hsmsign/testpki"
)

func TestCheckWitnesses(t *testing.T) {
	for _, tt := range []struct {
		names []string
		want  string
	}{
		{[]string{"A. Adams", "B. Brown"}, ""},
		{[]string{"Ä", "Ö", "Ü"}, ""},
		{[]string{"A. Adams=operator", "B. Brown"}, ""},
		{[]string{"A. Adams=operator", "A. Adams=auditor"}, "is named twice"},
		{[]string{"A. Adams=", "B. Brown"}, `the witness "A. Adams="`},
		{[]string{"=operator", "B. Brown"}, `the witness "=operator"`},
		{nil, "0 witnesses; a ceremony has 2 or more"},
		{[]string{"A. Adams"}, "1 witnesses"},
		{[]string{"A. Adams", ""}, `the witness ""`},
		{[]string{"A. Adams", "  "}, `the witness ""`},
		{[]string{"A. Adams", "a.  ADAMS"}, "is named twice"},
		{[]string{"A. Adams", "B\nBrown"}, `the witness "B Brown"`},
		{[]string{"A. Adams", strings.Repeat("x", 65)}, "the witness"},
	} {
		err := CheckWitnesses(tt.names)
		if tt.want == "" && err != nil || tt.want != "" && (!errors.Is(err, ErrWitness) || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%q: %v, want %q", tt.names, err, tt.want)
		}
	}
}

func TestGenerating(t *testing.T) {
	for _, tt := range []struct {
		name  string
		steps []string // step, outcome, step, outcome, ...
		want  bool
		done  bool
	}{
		{"nothing", nil, false, false},
		{"begun", []string{StepBegin, OK, StepIntent, OK}, true, false},
		{"begun, and begun again", []string{StepIntent, OK, StepBegin, OK}, true, false},
		{"made", []string{StepIntent, OK, StepGenerate, OK}, false, true},
		{"failed", []string{StepIntent, OK, StepGenerate, "failed: x"}, false, false},
		{"failed, and begun", []string{StepIntent, OK, StepGenerate, "failed: x", StepIntent, OK}, true, false},
		{"made, and failed to open", []string{StepIntent, OK, StepGenerate, OK, StepGenerate, "failed: x"}, false, true},
	} {
		var r Record
		for i := 0; i < len(tt.steps); i += 2 {
			r.Entries = append(r.Entries, Entry{Step: tt.steps[i], Outcome: tt.steps[i+1]})
		}
		_, got := r.Generating()
		if _, done := r.Done(StepGenerate); got != tt.want || done != tt.done {
			t.Errorf("%s: generating %v, done %v", tt.name, got, done)
		}
	}
}

// The files beside the transcript are those that it tells of.
func TestVerify(t *testing.T) {
	authority, err := testpki.New(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	files := func(name string) (csr, bundle []byte) {
		der, err := certreq.Create(t.Context(), testkit.NewSigner(testkit.Key(name)), certreq.Subject{Email: "mdm@example.com", CommonName: "Example", Country: "US"})
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := x509.ParseCertificateRequest(der)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := authority.IssueVendor(parsed, testpki.VendorOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return certreq.EncodePEM(der), []byte(chain.PEM([]*x509.Certificate{cert, authority.WWDR, authority.Root}))
	}
	csr, bundle := files("vendor")
	otherCSR, otherBundle := files("other")
	for _, tt := range []struct {
		name            string
		csr, bundle     []byte // as they are told of
		onDisk, bundled []byte // as they are; nil: the same
		want            string
	}{
		{"good", csr, bundle, nil, nil, ""},
		{"another CSR", csr, bundle, otherCSR, nil, "vendor.csr has SHA-256"},
		{"another bundle", csr, bundle, nil, otherBundle, "vendor.pem has SHA-256"},
		{"a CSR of another key, told of", otherCSR, bundle, nil, nil, "vendor.csr is not of the key"},
		{"a bundle of another key, told of", csr, otherBundle, nil, nil, "vendor.pem is not of the key"},
		{"no CSR, told of", []byte("x"), bundle, nil, nil, "vendor.csr is not of the key"},
		{"no bundle, told of", csr, []byte("x"), nil, nil, "vendor.pem is not of the key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			tr, err := OpenTranscript(dir)
			if err != nil {
				t.Fatal(err)
			}
			err = errors.Join(
				tr.Append(StepGenerate, OK, Fact{FactKeySHA256, chain.SPKISHA256(testkit.Key("vendor").Public())}),
				tr.Append(StepCSR, OK, Fact{FactFileSHA256, sum(tt.csr)}),
				tr.Append(StepImport, OK, Fact{FactFileSHA256, sum(tt.bundle)}), tr.Close())
			if err != nil {
				t.Fatal(err)
			}
			for name, data := range map[string][2][]byte{CSRFile: {tt.csr, tt.onDisk}, BundleFile: {tt.bundle, tt.bundled}} {
				if data[1] == nil {
					data[1] = data[0]
				}
				if err := os.WriteFile(filepath.Join(dir, name), data[1], 0o600); err != nil {
					t.Fatal(err)
				}
			}
			r, err := Verify(dir)
			if tt.want == "" {
				if err != nil || len(r.Entries) != 3 {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, ErrTranscript) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	if _, err := Verify(t.TempDir()); !errors.Is(err, ErrTranscript) {
		t.Errorf("an empty folder: %v", err)
	}
}
