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
	"testing"

	"github.com/google/go-cmp/cmp"

	"hsmsign/fault"
)

// csrDir holds CSR files in every shape, good ones (good*) and one for each rule that refuses.
const csrDir = "../testdata/csr"

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestDecodeCSRTakesEveryEncoding(t *testing.T) {
	want := readFile(t, filepath.Join(csrDir, "good.der"))
	files, err := filepath.Glob(filepath.Join(csrDir, "good*"))
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			csr, err := DecodeCSR(readFile(t, file))
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

// refusals is every file of csrDir that is no CSR to sign, and the rule that says so.
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
	cases := map[string]string{}
	data := map[string][]byte{}
	for file, id := range refusals {
		cases[file], data[file] = id, readFile(t, filepath.Join(csrDir, file))
	}
	cases["too large"], data["too large"] = "csr.size", make([]byte, MaxCSR+1)
	cases["request"], data["request"] = "csr.kind", readFile(t, "../testdata/golden/customer.req")
	cases["plist"], data["plist"] = "csr.kind", readFile(t, "../testdata/golden/customer.plist")
	cases["blanks"], data["blanks"] = "csr.empty", []byte(" \r\n\t")
	for name, id := range cases {
		t.Run(name, func(t *testing.T) {
			csr, err := DecodeCSR(data[name])
			var found *fault.Finding
			if !errors.As(err, &found) || csr != nil {
				t.Fatalf("got %v, %v; want a finding %s", csr, err, id)
			}
			if found.ID != id {
				t.Errorf("got %s (%s), want %s", found.ID, found.Message, id)
			}
			if found.Message == "" || found.Fix == "" || found.Portal == "" || found.Severity != fault.SeverityError || found.Subject() != fault.CSR {
				t.Errorf("incomplete: %+v", found)
			}
		})
	}
}

// A new file in the folder must have its say in a test.
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
	csr, err := DecodeCSR(readFile(t, filepath.Join(csrDir, "sha1.pem")))
	if err != nil {
		t.Fatal(err)
	}
	if len(csr.Findings) != 1 || csr.Findings[0].ID != "csr.sha1" || csr.Findings[0].Severity != fault.SeverityWarning {
		t.Errorf("got %+v", csr.Findings)
	}
}

// The bounds themselves are good: 2048 and 8192 bits, exponent 65537.
func TestKeyBounds(t *testing.T) {
	odd := func(bits int) *big.Int {
		n := new(big.Int).Lsh(big.NewInt(1), uint(bits)-1)
		// Not near a square: 3/4 of the range, and then some odd.
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

// The primes' distance decides how many rounds it takes: (p-q)^2/8n^0.5 or so.
func TestClosePrimes(t *testing.T) {
	p, err := rand.Prime(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
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

// Every square passes the filter, and little else.
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

// addSeeds gives a fuzz target the files of folders, so that it starts from every shape that is known.
func addSeeds(f *testing.F, folders ...string) {
	f.Helper()
	for _, folder := range folders {
		files, err := filepath.Glob(filepath.Join(folder, "*"))
		if err != nil || len(files) == 0 {
			f.Fatalf("no seeds in %s: %v", folder, err)
		}
		for _, file := range files {
			if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Size() < 8<<10 {
				f.Add(readFile(f, file))
			}
		}
	}
}

// FuzzDecodeCSR: what is accepted is one DER element that parses to itself, and the encodings of that DER are
// accepted as the same CSR.
func FuzzDecodeCSR(f *testing.F) {
	addSeeds(f, csrDir)
	f.Fuzz(func(t *testing.T, data []byte) {
		csr, err := ParseCSR(data)
		if err != nil {
			var found *fault.Finding
			if !errors.As(err, &found) || found.Subject() != fault.CSR {
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
