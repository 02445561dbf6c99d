package request

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
)

// csrDir contains CSR files in every form: good ones (good*), and one for each rule that refuses.
const csrDir = "../testdata/csr/"

func TestDecodeCSRTakesEveryEncoding(t *testing.T) {
	want := testkit.File(t, "csr/good.der")
	files, err := filepath.Glob(csrDir + "good*")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			csr, err := DecodeCSR(testkit.File(t, "csr/"+filepath.Base(file)))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(csr.DER, want) {
				t.Error("the DER is not what the customer sent")
			}
			if len(csr.Findings) != 0 {
				t.Errorf("findings: %v", csr.Findings)
			}
		})
	}
}

// refusals are the files of csrDir that must not be signed, and the rule that refuses each.
var refusals = map[string]string{
	"bad-signature.der": "csr.signature",
	"certificate.der":   "csr.kind",
	"certificate.pem":   "csr.kind",
	"close-primes.der":  "csr.close-primes",
	"empty.csr":         "csr.empty",
	"even-exponent.der": "csr.exponent",
	"even-modulus.der":  "csr.modulus",
	"exponent-3.pem":    "csr.exponent",
	"garbage.bin":       "csr.encoding",
	"key-1024.pem":      "csr.key-size",
	"key-16384.der":     "csr.key-size",
	"key-ec.pem":        "csr.key-type",
	"key-ed25519.pem":   "csr.key-type",
	"md5.pem":           "csr.hash",
	"page.html":         "csr.encoding",
	"private-key.pem":   "csr.private-key",
	"run-together.pem":  "csr.count",
	"trailing.der":      "csr.trailing",
	"truncated.der":     "csr.truncated",
	"truncated.pem":     "csr.pem",
	"two.pem":           "csr.count",
	"with-key.pem":      "csr.private-key",
}

func TestDecodeCSRRefuses(t *testing.T) {
	type refusal struct {
		id   string
		data []byte
	}
	cases := map[string]refusal{
		"too large": {"csr.size", make([]byte, MaxCSR+1)},
		"request":   {"csr.kind", testkit.File(t, "golden/customer.req")},
		"plist":     {"csr.kind", testkit.File(t, "golden/customer.plist")},
		"blanks":    {"csr.empty", []byte(" \r\n\t")},
	}
	for file, id := range refusals {
		cases[file] = refusal{id, testkit.File(t, "csr/"+file)}
	}
	for name, tt := range cases {
		t.Run(name, func(t *testing.T) {
			csr, err := DecodeCSR(tt.data)
			found, ok := errors.AsType[*fault.Finding](err)
			if !ok || csr != nil {
				t.Fatalf("got %v, %v; want a finding %s", csr, err, tt.id)
			}
			if found.ID != tt.id || found.Message == "" || found.Fix == "" || found.Portal == "" || found.Severity != fault.SeverityError {
				t.Errorf("got %+v, want %s and every field", found, tt.id)
			}
		})
	}
}

// Every file of the folder is in a test.
func TestCSRFilesAreAllUsed(t *testing.T) {
	entries, err := os.ReadDir(csrDir)
	if err != nil {
		t.Fatal(err)
	}
	others := []string{"sha1.pem", "other.pem", "README.md"}
	for _, e := range entries {
		_, refused := refusals[e.Name()]
		good, _ := filepath.Match("good*", e.Name())
		if !refused && !good && !slices.Contains(others, e.Name()) {
			t.Errorf("%s is in no test", e.Name())
		}
	}
}

func TestSHA1IsAWarning(t *testing.T) {
	csr, err := DecodeCSR(testkit.File(t, "csr/sha1.pem"))
	if err != nil || len(csr.Findings) != 1 || csr.Findings[0].ID != "csr.sha1" || csr.Findings[0].Severity != fault.SeverityWarning {
		t.Errorf("got %+v, %v", csr, err)
	}
}

// The bounds are inclusive: 2048 and 8192 bits, exponent 65537.
func TestKeyBounds(t *testing.T) {
	odd := func(bits int) *big.Int {
		n := new(big.Int).Lsh(big.NewInt(1), uint(bits)-1)
		// Not near a square: 3/4 of the range and an odd number.
		n.Add(n, new(big.Int).Lsh(big.NewInt(1), uint(bits)-2))
		return n.Add(n, big.NewInt(0x1234567))
	}
	for _, c := range []struct {
		name string
		key  rsa.PublicKey
		want string
	}{
		{"2048", rsa.PublicKey{N: odd(2048), E: 65537}, ""},
		{"8192", rsa.PublicKey{N: odd(8192), E: 65537}, ""},
		{"2047", rsa.PublicKey{N: odd(2047), E: 65537}, "csr.key-size"},
		{"8193", rsa.PublicKey{N: odd(8193), E: 65537}, "csr.key-size"},
		{"exponent 65535", rsa.PublicKey{N: odd(2048), E: 65535}, "csr.exponent"},
		{"exponent 65539", rsa.PublicKey{N: odd(2048), E: 65539}, ""},
	} {
		got := ""
		if f := checkKey(&c.key); f != nil {
			got = f.ID
		}
		if got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

// The number of rounds depends on the distance of the primes: about (p-q)^2/8n^0.5.
func TestClosePrimes(t *testing.T) {
	p := testkit.Must(rand.Prime(rand.Reader, 1024))
	other := func(bits uint) *big.Int {
		q := new(big.Int).Add(p, new(big.Int).Lsh(big.NewInt(1), bits))
		for !q.ProbablyPrime(10) {
			q.Add(q, big.NewInt(2))
		}
		return q
	}
	for _, c := range []struct {
		name  string
		q     *big.Int
		close bool
	}{
		{"the same prime", p, true},
		{"next prime", other(1), true},
		{"2^500 apart", other(500), true},
		{"2^514 apart: a few rounds", other(514), true},
		{"2^1000 apart", other(1000), false},
	} {
		if got := closePrimes(new(big.Int).Mul(p, c.q)); got != c.close {
			t.Errorf("%s: got %v", c.name, got)
		}
	}
}

// Every square passes the filter, and few other numbers.
func TestMaybeSquare(t *testing.T) {
	passed := 0
	for i := range int64(64 * 63 * 55) {
		square := new(big.Int).Mul(big.NewInt(i), big.NewInt(i))
		if !maybeSquare(square) || !maybeSquare(square.Mul(square, square)) {
			t.Fatalf("a power of %d is a square", i)
		}
		if maybeSquare(big.NewInt(i)) {
			passed++
		}
	}
	if want := 12 * 16 * 18; passed != want {
		t.Errorf("%d of %d pass, want %d", passed, 64*63*55, want)
	}
}

// addSeeds adds the files of csrDir to the seeds of a fuzz target.
func addSeeds(f *testing.F) {
	f.Helper()
	files, err := os.ReadDir(csrDir)
	if err != nil || len(files) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, file := range files {
		if data := testkit.File(f, "csr/"+file.Name()); len(data) < 8<<10 {
			f.Add(data)
		}
	}
}

// FuzzDecodeCSR checks that an accepted CSR is one DER element, and that the DER is accepted as the same CSR.
func FuzzDecodeCSR(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		csr, err := ParseCSR(data)
		if err != nil {
			if !strings.HasPrefix(testkit.FindingID(err), "csr.") {
				t.Fatalf("not a finding: %v", err)
			}
			return
		}
		if !bytes.Equal(csr.DER, csr.Parsed.Raw) {
			t.Fatal("the DER is not what was parsed")
		}
		again, err := ParseCSR(csr.DER)
		if err != nil || !bytes.Equal(again.DER, csr.DER) {
			t.Fatalf("the DER is not accepted as itself: %v", err)
		}
		if diff := cmp.Diff(csr.Findings, again.Findings); diff != "" {
			t.Fatalf("findings depend on the encoding: %s", diff)
		}
	})
}
