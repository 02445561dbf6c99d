package strictder

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	tags "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/google/go-cmp/cmp"

	"hsmsign/internal/testkit"
)

var start = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// parts are the three fields of a certificate or CSR, each with tag and length.
type parts struct{ tbs, algorithm, signature []byte }

func partsOf(der []byte) parts {
	data := cryptobyte.String(der)
	var content cryptobyte.String
	var p [3]cryptobyte.String
	ok := data.ReadASN1(&content, tags.SEQUENCE)
	for i := range p {
		var tag tags.Tag
		ok = ok && content.ReadAnyASN1Element(&p[i], &tag)
	}
	if !ok {
		panic("not a signed object")
	}
	return parts{p[0], p[1], p[2]}
}

// sequence returns a SEQUENCE of DER elements.
func sequence(elements ...[]byte) []byte { return element(tags.SEQUENCE, elements...) }

func element(tag tags.Tag, content ...[]byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes(slices.Concat(content...)) })
	return b.BytesOrPanic()
}

// content returns an element without tag and length.
func content(der []byte) []byte {
	var raw asn1.RawValue
	if _, err := asn1.Unmarshal(der, &raw); err != nil {
		panic(err)
	}
	return raw.Bytes
}

// algorithm returns an AlgorithmIdentifier with more bytes after the object identifier.
func algorithm(oid asn1.ObjectIdentifier, more ...byte) []byte {
	return sequence(testkit.Must(asn1.Marshal(oid)), more)
}

// The extra bytes are those that crypto/x509 ignores.
func TestEveryByteCounts(t *testing.T) {
	csr := testkit.CSR(testkit.Key("strict")).Raw
	cert := testkit.Authority(start).WWDR.Raw
	parseCSR := func(der []byte) error { _, err := ParseCertificateRequest(der); return err }
	parseCert := func(der []byte) error { _, err := ParseCertificate(der); return err }
	oidSHA256RSA := asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}
	for _, object := range []struct {
		name  string
		der   []byte
		parse func([]byte) error
	}{{"CSR", csr, parseCSR}, {"certificate", cert, parseCert}} {
		p := partsOf(object.der)
		for name, extra := range map[string][]byte{"OCTET STRING": {4, 1, 0}, "NULL": {5, 0}, "bytes": {0xff, 0xff, 0xff}} {
			if object.parse(sequence(p.tbs, p.algorithm, p.signature, extra)) == nil {
				t.Errorf("%s with %s after the signature", object.name, name)
			}
			if object.parse(sequence(p.tbs, algorithm(oidSHA256RSA, slices.Concat([]byte{5, 0}, extra)...), p.signature)) == nil {
				t.Errorf("%s with %s in the signature algorithm", object.name, name)
			}
			if object.parse(slices.Concat(object.der, extra)) == nil || Check(slices.Concat(object.der, extra)) == nil {
				t.Errorf("%s with %s after it", object.name, name)
			}
		}
		if err := object.parse(object.der); err != nil {
			t.Errorf("%s: %v", object.name, err)
		}
		bits := bytes.Clone(p.signature)
		bits[len(bits)-len(content(bits))] = 1 // unused bits
		if object.parse(sequence(p.tbs, p.algorithm, bits)) == nil {
			t.Errorf("%s with a signature of broken bytes", object.name)
		}
	}
	p := partsOf(csr)
	if err := parseCSR(sequence(p.tbs, algorithm(oidSHA256RSA), p.signature)); err != nil {
		t.Errorf("without NULL: %v", err)
	}
	info := testkit.Must(readInfo(p.tbs))
	oid, parameters, number := splitKey(info.key)
	longKey := sequence(algorithm(oid, parameters...), element(tags.BIT_STRING, []byte{0}, sequence(content(number), []byte{5, 0})))
	for _, tbs := range [][]byte{
		sequence([]byte{2, 1, 0}, info.subject, longKey, []byte{0xa0, 0}),
		sequence(content(p.tbs), []byte{5, 0}),
		sequence([]byte{2, 1, 1}, content(p.tbs)[3:]),
	} {
		if parseCSR(sequence(tbs, p.algorithm, p.signature)) == nil {
			t.Errorf("accepted: %x", tbs)
		}
	}
}

// The parameters are as RFC 8017, RFC 5758 and RFC 8410 demand.
func TestSignatureParameters(t *testing.T) {
	hash := func(more ...byte) []byte {
		return algorithm(asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}, more...)
	}
	mgf := asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 8}
	pss := func(more ...byte) []byte {
		return algorithm(oidPSS, sequence(element(0xa0, hash(5, 0)), element(0xa1, algorithm(mgf, hash()...)), element(0xa2, []byte{2, 1, 32}), more)...)
	}
	for _, tt := range []struct {
		name string
		der  []byte
		ok   bool
	}{
		{"RSA, OCTET STRING", algorithm(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 5}, 4, 0), false},
		{"RSA, older name, NULL", algorithm(oidRSASHA1, 5, 0), true},
		{"RSA, older name, INTEGER", algorithm(oidRSASHA1, 2, 1, 0), false},
		{"ECDSA", algorithm(asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}), true},
		{"ECDSA, NULL", algorithm(asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}, 5, 0), false},
		{"Ed25519, NULL", algorithm(oidEd25519, 5, 0), false},
		{"Ed448, NULL", algorithm(oidEd448, 5, 0), false},
		{"unknown, anything", algorithm(asn1.ObjectIdentifier{1, 2, 3}, 4, 1, 0), true},
		{"unknown, two things", algorithm(asn1.ObjectIdentifier{1, 2, 3}, 5, 0, 5, 0), false},
		{"unknown, BOOLEAN of two bytes", algorithm(asn1.ObjectIdentifier{1, 2, 3}, 1, 2, 0, 0), false},
		{"unknown, INTEGER with a zero", algorithm(asn1.ObjectIdentifier{1, 2, 3}, 2, 2, 0, 0), false},
		{"unknown, NULL with a byte", algorithm(asn1.ObjectIdentifier{1, 2, 3}, 5, 1, 0), false},
		{"PSS", pss(), true},
		{"PSS, trailer field", pss(0xa3, 3, 2, 1, 1), true},
		{"PSS, twice the salt", pss(0xa2, 3, 2, 1, 32), false},
		{"PSS, more", pss(5, 0), false},
		{"PSS, more in the salt", algorithm(oidPSS, sequence(element(0xa2, []byte{2, 1, 32, 5, 0}))...), false},
		{"PSS, more in the hash", algorithm(oidPSS, sequence(element(0xa0, hash(5, 0, 5, 0)))...), false},
		{"PSS, OCTET STRING in the hash", algorithm(oidPSS, sequence(element(0xa0, hash(4, 0)))...), false},
		{"PSS, more in the mask", algorithm(oidPSS, sequence(element(0xa1, algorithm(mgf, slices.Concat(hash(), []byte{5, 0})...)))...), false},
		{"PSS, OCTET STRING in the hash of the mask", algorithm(oidPSS, sequence(element(0xa1, algorithm(mgf, hash(4, 0)...)))...), false},
		{"PSS, more after them", algorithm(oidPSS, slices.Concat(sequence(), []byte{5, 0})...), false},
	} {
		if _, err := readSignatureAlgorithm(content(tt.der)); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// mutants returns n damaged CSRs. Those of even number are signed again, so that only their structure is wrong, if at all.
func mutants(n int) [][]byte {
	key := testkit.Key("strict")
	template := &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "ümläut", Organization: []string{"x"}, Country: []string{"US"}}, DNSNames: []string{"example.com"},
	}
	p := partsOf(testkit.Must(x509.CreateCertificateRequest(rand.Reader, template, key)))
	random := mathrand.New(mathrand.NewPCG(1, 2))
	extras := [][]byte{{4, 1, 0}, {5, 0}, {0xff, 0xff, 0xff}, {0}, {0x30, 0}}
	// change inserts or removes bytes, or inverts a bit.
	change := func(der []byte) []byte {
		at := random.IntN(len(der))
		switch random.IntN(4) {
		case 0:
			return slices.Insert(bytes.Clone(der), at, extras[random.IntN(len(extras))]...)
		case 1:
			return slices.Delete(bytes.Clone(der), at, min(at+1+random.IntN(3), len(der)))
		}
		changed := bytes.Clone(der)
		changed[at] ^= 1 << random.IntN(8)
		return changed
	}
	sign := func(tbs []byte) []byte {
		hash := sha256.Sum256(tbs)
		return element(tags.BIT_STRING, []byte{0}, testkit.Must(rsa.SignPKCS1v15(nil, key, crypto.SHA256, hash[:])))
	}
	found := make([][]byte, n)
	for i := range found {
		extra := extras[random.IntN(len(extras))]
		m := p
		switch i % 10 {
		case 0, 2, 4: // a correct signature over a wrong structure
			m.tbs = insertDeep(m.tbs, extra, random)
			m.signature = sign(m.tbs)
		case 6, 8:
			m.tbs = sequence(change(content(m.tbs)))
			m.signature = sign(m.tbs)
		case 1:
			found[i] = sequence(p.tbs, p.algorithm, p.signature, extra)
			continue
		case 3:
			m.algorithm = sequence(content(m.algorithm), extra)
		case 5:
			m.algorithm = sequence(change(content(m.algorithm)))
		case 7:
			m.signature = element(tags.BIT_STRING, change(content(m.signature)))
		case 9:
			found[i] = change(sequence(p.tbs, p.algorithm, p.signature))
			continue
		}
		found[i] = sequence(m.tbs, m.algorithm, m.signature)
	}
	return found
}

// insertDeep appends bytes to the content of a random constructed element, and corrects the lengths around it.
func insertDeep(der, extra []byte, random *mathrand.Rand) []byte {
	data := cryptobyte.String(der)
	var inner cryptobyte.String
	var tag tags.Tag
	if !data.ReadAnyASN1(&inner, &tag) || tag&0x20 == 0 {
		return der
	}
	var children [][]byte
	for !inner.Empty() {
		var child cryptobyte.String
		var childTag tags.Tag
		if !inner.ReadAnyASN1Element(&child, &childTag) {
			return der
		}
		children = append(children, child)
	}
	i := random.IntN(len(children) + 1)
	if i == len(children) || children[i][0]&0x20 == 0 {
		return element(tag, slices.Concat(children...), extra)
	}
	children[i] = insertDeep(children[i], extra, random)
	return element(tag, children...)
}

// No CSR is accepted that OpenSSL refuses. Few of the damaged ones are accepted, so OpenSSL runs for these only.
func TestOpenSSLAgrees(t *testing.T) {
	dir := t.TempDir()
	accepted := 0
	all := append(mutants(1000), testkit.CSR(testkit.Key("strict")).Raw)
	for i, der := range all {
		if csr, err := ParseCertificateRequest(der); err == nil && csr.CheckSignature() == nil {
			accepted++
			testkit.OK(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), der, 0o600))
		}
	}
	script := `for f in *; do openssl req -verify -noout -inform DER -in $f 2>&1 | grep -q "verify OK" || echo $f; done`
	cmd := exec.CommandContext(t.Context(), "sh", "-c", script)
	cmd.Dir = dir
	refused := strings.Fields(string(testkit.Must(cmd.CombinedOutput())))
	for _, name := range refused {
		t.Errorf("accepted, although OpenSSL refuses it: %x", testkit.Must(os.ReadFile(filepath.Join(dir, name))))
	}
	if accepted < 2 || accepted > len(all)/2 {
		t.Errorf("%d of %d are accepted", accepted, len(all))
	}
}

// FuzzParseCertificateRequest checks that the parts of an accepted CSR are the given bytes, and that repairs add nothing:
// what crypto/x509 accepts is parsed as by crypto/x509.
func FuzzParseCertificateRequest(f *testing.F) {
	for _, name := range []string{"good.der", "key-16384.der", "bad-signature.der"} {
		f.Add(testkit.File(f, "csr/"+name))
	}
	for _, name := range []string{"printable.pem", "key-ec.pem", "key-ed25519.pem"} {
		block, _ := pem.Decode(testkit.File(f, "csr/"+name))
		f.Add(block.Bytes)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		csr, err := ParseCertificateRequest(der)
		if err != nil {
			return
		}
		for _, part := range [][]byte{csr.RawTBSCertificateRequest, csr.RawSubject, csr.RawSubjectPublicKeyInfo} {
			if !bytes.Contains(der, part) {
				t.Error("a part is not in the CSR")
			}
		}
		MistypedNames(csr.RawSubject)
		if KeyType(csr.RawSubjectPublicKeyInfo) == "malformed" || !bytes.Equal(csr.Raw, der) {
			t.Error("the key or the bytes are others")
		}
		if plain, err := x509.ParseCertificateRequest(der); err == nil {
			if diff := cmp.Diff(plain.Subject.String(), csr.Subject.String()); diff != "" || plain.PublicKeyAlgorithm != csr.PublicKeyAlgorithm {
				t.Errorf("%v, %v; %s", plain.PublicKeyAlgorithm, csr.PublicKeyAlgorithm, diff)
			}
		}
	})
}
