package request

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"errors"
	"math/big"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
)

// csrDir contains CSR files in every form: good ones (good*), and one for each rule that refuses.
const csrDir = "../testdata/csr/"

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
	"inside.der":        "csr.malformed", // bytes after the signature, inside the SEQUENCE
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

// Every file of the folder is refused by its rule, or is another encoding of good.der.
func TestCSRFiles(t *testing.T) {
	want := testkit.File(t, "csr/good.der")
	for _, file := range testkit.Must(os.ReadDir(csrDir)) {
		name := file.Name()
		data := testkit.File(t, "csr/"+name)
		switch {
		case refusals[name] != "":
			checkRefused(t, name, data, refusals[name])
		case strings.HasPrefix(name, "good"):
			if csr, err := DecodeCSR(data); err != nil || !bytes.Equal(csr.DER, want) || len(csr.Findings) != 0 {
				t.Errorf("%s: %+v, %v; want the DER of good.der", name, csr, err)
			}
		case !slices.Contains([]string{"sha1.pem", "other.pem", "printable.pem"}, name):
			t.Errorf("%s is in no test", name)
		}
	}
}

func TestDecodeCSRRefuses(t *testing.T) {
	checkRefused(t, "too large", make([]byte, MaxCSR+1), "csr.size")
	checkRefused(t, "request", testkit.File(t, "golden/customer.req"), "csr.kind")
	checkRefused(t, "plist", testkit.File(t, "golden/customer.plist"), "csr.kind")
	checkRefused(t, "blanks", []byte(" \r\n\t"), "csr.empty")
}

// longer appends bytes to the content of a SEQUENCE of 256 to 65535 bytes.
func longer(der []byte, more ...byte) []byte {
	der = append(bytes.Clone(der), more...)
	binary.BigEndian.PutUint16(der[2:], uint16(len(der)-4))
	return der
}

func checkRefused(t *testing.T, name string, data []byte, id string) {
	t.Helper()
	csr, err := DecodeCSR(data)
	found, ok := errors.AsType[*fault.Finding](err)
	if !ok || csr != nil || found.ID != id || found.Message == "" || found.Fix == "" || found.Portal == "" || found.Severity != fault.SeverityError {
		t.Errorf("%s: %v, %+v; want %s and every field", name, csr, err, id)
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
		bits, exponent int
		want           string
	}{
		{2048, 65537, ""}, {8192, 65537, ""}, {2047, 65537, "csr.key-size"}, {8193, 65537, "csr.key-size"},
		{2048, 65535, "csr.exponent"}, {2048, 65539, ""},
	} {
		got := ""
		if f := checkKey(&rsa.PublicKey{N: odd(c.bits), E: c.exponent}); f != nil {
			got = f.ID
		}
		if got != c.want {
			t.Errorf("%+v: got %q", c, got)
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
	for bits, want := range map[uint]bool{1: true, 500: true, 514: true, 1000: false} { // 514 needs a few rounds
		if got := closePrimes(new(big.Int).Mul(p, other(bits))); got != want {
			t.Errorf("2^%d apart: got %v", bits, got)
		}
	}
	// d*d/8p rounds find primes with the distance d.
	for rounds, want := range map[int64]bool{90: true, 100: true, 130: false} {
		d := new(big.Int).Mul(p, big.NewInt(8*rounds))
		q := new(big.Int).Add(p, d.Sqrt(d))
		for !q.ProbablyPrime(10) {
			q.Add(q, big.NewInt(1))
		}
		if got := closePrimes(new(big.Int).Mul(p, q)); got != want {
			t.Errorf("primes for %d rounds: got %v", rounds, got)
		}
	}
	if !closePrimes(new(big.Int).Mul(p, p)) {
		t.Error("a square is accepted")
	}
}

// Every square passes the filter, and few other numbers.
func TestMaybeSquare(t *testing.T) {
	passed := 0
	for i := range int64(64 * 63 * 55) {
		square := new(big.Int).Mul(big.NewInt(i), big.NewInt(i))
		if !residuesOf(square).maybeSquare() || !residuesOf(square.Mul(square, square)).maybeSquare() {
			t.Fatalf("a power of %d is a square", i)
		}
		if residuesOf(big.NewInt(i)).maybeSquare() {
			passed++
		}
	}
	if want := 719; passed != want { // 471 are squares
		t.Errorf("%d of %d pass, want %d", passed, 64*63*55, want)
	}
}

// addSeeds adds the files of csrDir to the seeds of a fuzz target.
func addSeeds(f *testing.F) {
	f.Helper()
	for _, file := range testkit.Must(os.ReadDir(csrDir)) {
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
