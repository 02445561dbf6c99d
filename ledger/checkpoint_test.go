package ledger_test

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	formats "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/open"
	"hsmsign/ledger/record"
)

// signedBy adds the signature lines of signers to a signed note.
func signedBy(t *testing.T, signed []byte, verifier string, signers ...note.Signer) []byte {
	t.Helper()
	opened, err := note.Open(signed, note.VerifierList(must(note.NewVerifier(verifier))))
	if err != nil {
		t.Fatal(err)
	}
	out, err := note.Sign(opened, signers...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Signature lines of other keys and of other algorithms change nothing for verifiers and writers: a cosignature (0x04), one with
// ML-DSA-44 (0x06), and one that nobody knows, also under the name of the ledger.
func TestOtherSignatures(t *testing.T) {
	const origin = "example.com/mdm"
	key, verifier, err := ledger.GenerateKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	cfg := ledger.Config{Store: must(open.Store(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "ledger.db"), true)), Key: key, Verifier: verifier}
	defer func() { _ = cfg.Store.DB.Close() }()
	head := must(ledger.Init(t.Context(), cfg))
	ownCosigner := must(formats.NewSignerForCosignatureV1(key)) // 0x04, the name and the key of the ledger
	witnessKey, _, err := note.GenerateKey(nil, "witness.example")
	if err != nil {
		t.Fatal(err)
	}
	mldsaKey, _, err := formats.GenerateMLDSAKey(origin) // 0x06
	if err != nil {
		t.Fatal(err)
	}
	otherKey, other, err := ledger.GenerateKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	unknown := func(name string, bytes int) string { // the first four bytes are the key hash
		return "\u2014 " + name + " " + base64.StdEncoding.EncodeToString(make([]byte, bytes)) + "\n"
	}
	witness, mldsa := must(formats.NewSignerForCosignatureV1(witnessKey)), must(formats.NewMLDSASigner(mldsaKey))
	for name, more := range map[string]struct {
		signers []note.Signer
		lines   string
	}{
		"cosignature of a witness":     {[]note.Signer{witness}, ""},
		"cosignature of the ledger":    {[]note.Signer{ownCosigner}, ""},
		"ML-DSA-44":                    {[]note.Signer{mldsa}, ""},
		"an unknown algorithm":         {nil, unknown("future.example", 3000)},
		"an unknown one of the ledger": {nil, unknown(origin, 120)},
		"all":                          {[]note.Signer{ownCosigner, witness, mldsa}, unknown(origin, 5)},
	} {
		signed := append(signedBy(t, head.Signed, verifier, more.signers...), more.lines...)
		if c, err := ledger.Known(signed, verifier); err != nil || c.Root != head.Root {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := cfg.Store.DB.ExecContext(t.Context(), "UPDATE head SET checkpoint = ?", signed); err != nil {
			t.Fatal(err)
		}
		l := must(ledger.Open(t.Context(), cfg))
		if report, err := l.Verify(t.Context(), nil); err != nil || len(report.Defects) > 0 {
			t.Errorf("%s: %+v, %v", name, report, err)
		}
		if _, err := l.Authorize(t.Context(), record.Use{Customer: "acme", Actor: "uid 1000", Channel: "local", CSR: []byte(name), SPKI: []byte("key")}); err != nil {
			t.Errorf("%s: an append: %v", name, err)
		}
		head = must(l.Head(t.Context()))
		if strings.Count(string(head.Signed), "\u2014 ") != 1 {
			t.Errorf("%s: the next checkpoint has other signatures: %s", name, head.Signed)
		}
		must(0, l.Close())
	}
	// Without the signature of the pinned key it is nothing, whatever else signed it.
	for _, key := range []string{other, must(formats.VKeyToCosignatureV1(verifier))} {
		if _, err := ledger.Known(head.Signed, key); err == nil {
			t.Errorf("accepted with %s", key)
		}
	}
	text, _, _ := strings.Cut(string(head.Signed), "\n\n")
	only := must(note.Sign(&note.Note{Text: text + "\n"}, ownCosigner))
	if _, err := ledger.Known(only, verifier); fault.KindOf(err) != fault.Defects {
		t.Errorf("only a cosignature: %v", err)
	}
	// Another Ed25519 key of this name is a rotation that no entry says.
	if _, err := cfg.Store.DB.ExecContext(t.Context(), "UPDATE head SET checkpoint = ?", signedBy(t, head.Signed, verifier, must(note.NewSigner(otherKey)))); err != nil {
		t.Fatal(err)
	}
	l := must(ledger.Open(t.Context(), cfg))
	report := must(l.Verify(t.Context(), nil))
	if len(report.Defects) != 1 || !strings.Contains(report.Defects[0].Text, "signed by more than one key") {
		t.Errorf("%+v", report.Defects)
	}
	must(0, l.Close())
}

// Keys of several lines must be of one ledger, and no error shows a secret key.
func TestKeys(t *testing.T) {
	one, oneVerifier, err := ledger.GenerateKey("example.com/one")
	if err != nil {
		t.Fatal(err)
	}
	two, twoVerifier, err := ledger.GenerateKey("example.com/two")
	if err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]ledger.Config{
		"verifiers of two ledgers": {Verifier: oneVerifier + "\n" + twoVerifier},
		"signers of two ledgers":   {Verifier: oneVerifier, Key: one + "\n" + two},
		"another ledger":           {Verifier: oneVerifier, Key: two},
		"no key":                   {Verifier: oneVerifier, Key: "x"},
		"no verifier":              {Verifier: " "},
		"too many":                 {Verifier: strings.Repeat(oneVerifier+"\n", 9)},
		"two for a new ledger":     {Verifier: oneVerifier, Key: one + "\n" + one},
	} {
		if _, err := ledger.Init(t.Context(), cfg); fault.KindOf(err) != fault.Usage || strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("%s: %v", name, err)
		}
	}
	signed := must(note.Sign(&note.Note{Text: "example.com/one\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"}, must(note.NewSigner(one))))
	if c, err := ledger.Known(signed, oneVerifier+"\n"+oneVerifier); err != nil || c.Size != 0 {
		t.Errorf("a key that is given twice: %v", err)
	}
	if got := must(ledger.VerifierKey(one + "\n" + two + "\n")); got != oneVerifier+"\n"+twoVerifier {
		t.Errorf("got %s", got)
	}
	for _, text := range []string{"", oneVerifier, one + "\nx"} {
		if _, err := ledger.VerifierKey(text); err == nil {
			t.Errorf("%.20q is a signer key", text)
		}
	}
}

// Of two notes of one size in a copy the later one counts: it may have cosignatures.
func TestKeptCheckpoints(t *testing.T) {
	key, verifier, err := ledger.GenerateKey("example.com/mdm")
	if err != nil {
		t.Fatal(err)
	}
	witnessKey, _, err := note.GenerateKey(nil, "witness.example")
	if err != nil {
		t.Fatal(err)
	}
	bare := must(note.Sign(&note.Note{Text: "example.com/mdm\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"}, must(note.NewSigner(key))))
	cosigned := signedBy(t, bare, verifier, must(formats.NewSignerForCosignatureV1(witnessKey)))
	copied := filepath.Join(t.TempDir(), "copy")
	must(0, os.WriteFile(copied, []byte(string(bare)+"\n"+string(cosigned)+"\n"), 0o600))
	kept, err := ledger.KeptCheckpoints(ledger.Config{Verifier: verifier, Copies: []string{copied, copied + ".none"}})
	if err != nil || len(kept) != 1 || string(kept[0].Signed) != string(cosigned) {
		t.Errorf("%+v, %v", kept, err)
	}
}
