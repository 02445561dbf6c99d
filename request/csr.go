package request

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"math/bits"
	"slices"
	"strings"
	"unicode/utf16"

	"hsmsign/fault"
	"hsmsign/internal/filekind"
	"hsmsign/internal/pemtext"
	"hsmsign/internal/strictder"
)

// MaxCSR is the size limit of a certificate signing request in any encoding, in bytes.
const MaxCSR = 64 << 10

// CSR is a customer's certificate signing request.
type CSR struct {
	DER      []byte                   // exactly the customer's bytes without PEM and base64; the vendor's signature covers them
	File     []byte                   // the input
	Parsed   *x509.CertificateRequest // the content
	Findings []fault.Finding          // of CheckCSR; DecodeCSR returns no errors in it
}

// DecodeCSR is ParseCSR with an error if a finding has severity error. The error is a *fault.Finding whose ID starts with
// "csr.".
func DecodeCSR(data []byte) (*CSR, error) {
	csr, err := ParseCSR(data)
	if err != nil {
		return nil, err
	}
	if err := fault.First(csr.Findings); err != nil {
		return nil, err
	}
	return csr, nil
}

// ParseCSR reads the one CSR in data, in PEM (also with text before and after), DER, or the base64 of either, in UTF-8 or
// UTF-16, and checks it with CheckCSR. The error is a *fault.Finding about a CSR that cannot be read.
func ParseCSR(data []byte) (*CSR, error) {
	der, err := csrDER(data)
	if err != nil {
		return nil, notCSR(data, err)
	}
	parsed, err := parseCSR(der)
	if err != nil {
		return nil, notCSR(data, err)
	}
	return &CSR{DER: der, File: data, Parsed: parsed, Findings: CheckCSR(parsed)}, nil
}

// parseCSR parses DER that contains one CSR and no other byte, neither after it nor inside.
func parseCSR(der []byte) (*x509.CertificateRequest, error) {
	if err := oneDER(der); err != nil {
		return nil, err
	}
	parsed, err := strictder.ParseCertificateRequest(der)
	if err != nil {
		return nil, refuseCSR("csr.malformed", "not a readable certificate signing request: %v", err)
	}
	return parsed, nil
}

const (
	fixAskCSR = "ask the customer for the CSR file that the MDM server made"
	fixNewKey = "ask the customer for a CSR over a new RSA key of 2048 bits or more, signed with SHA-256"
)

// refuseCSR returns a finding of severity error about a CSR that Apple's portal would refuse, with the fix fixAskCSR.
func refuseCSR(id, format string, args ...any) *fault.Finding {
	return fault.Refuse(id, format, args...).WithFix(fixAskCSR).WithPortal(fault.PortalInvalidCSR)
}

// The limits of the customer's key. Apple refuses less than 2048 bits; above 8192 bits the checks take too long.
const (
	minKeyBits  = 2048
	maxKeyBits  = 8192
	minExponent = 65537 // FIPS 186-5 appendix A.1.1
	// fermatRounds finds every pair of primes that differ by less than about 2^(bits/4+8). The printers of
	// CVE-2022-26320 needed one round. CAs use the same number.
	fermatRounds = 110
)

// CheckCSR returns the findings of a parsed CSR: an error if it must not be signed, a warning if it is outdated. The cheap
// checks are first, and each rule may rely on the ones before: nothing is checked after an unacceptable key.
func CheckCSR(csr *x509.CertificateRequest) []fault.Finding {
	pub, ok := csr.PublicKey.(*rsa.PublicKey)
	if !ok {
		return []fault.Finding{*refuseCSR("csr.key-type", "the key is %s; Apple's push certificates require RSA",
			strictder.KeyType(csr.RawSubjectPublicKeyInfo)).WithFix(fixNewKey)}
	}
	if f := checkKey(pub); f != nil {
		return []fault.Finding{*f}
	}
	var findings []fault.Finding
	if names := strictder.MistypedNames(csr.RawSubject); len(names) > 0 {
		findings = append(findings, *fault.Warn("csr.string-type", "the type of a string in the subject does not allow its characters: %s", strings.Join(names, ", ")).
			WithFix("if Apple refuses the request, ask the customer for a CSR with UTF8String in the subject"))
	}
	switch csr.SignatureAlgorithm {
	case x509.MD2WithRSA, x509.MD5WithRSA:
		return []fault.Finding{*refuseCSR("csr.hash", "the CSR is signed with %v, which can be forged", csr.SignatureAlgorithm).WithFix(fixNewKey)}
	case x509.UnknownSignatureAlgorithm:
		oid, pss := strictder.SignatureAlgorithm(csr.Raw)
		message := fmt.Sprintf("unsupported signature algorithm %v", oid)
		if pss {
			message = "unsupported signature parameters: RSASSA-PSS needs SHA-256, SHA-384 or SHA-512, also in its mask, and a salt as long as the hash"
		}
		return append(findings, *refuseCSR("csr.algorithm", "%s", message).WithFix(fixNewKey))
	case x509.SHA1WithRSA:
		findings = append(findings, *fault.Warn("csr.sha1", "the CSR is signed with SHA-1, which Apple may stop accepting").
			WithFix("ask the customer for a CSR signed with SHA-256 at the next renewal"))
	}
	if err := csr.CheckSignature(); err != nil {
		return append(findings, *refuseCSR("csr.signature", "the CSR's own signature does not verify: it was changed or cut, or signed with another key"))
	}
	return findings
}

// checkKey returns what is wrong with a key, or nil. See section 6.1.6 of the CA/Browser Forum's baseline requirements, and
// Böck, "Fermat factorization in the wild".
func checkKey(pub *rsa.PublicKey) *fault.Finding {
	var f *fault.Finding
	switch bits := pub.N.BitLen(); {
	case bits < minKeyBits || bits > maxKeyBits:
		f = refuseCSR("csr.key-size", "the RSA key has %d bits; %d to %d are accepted", bits, minKeyBits, maxKeyBits)
	case pub.E < minExponent || pub.E%2 == 0:
		f = refuseCSR("csr.exponent", "the RSA public exponent is %d; it must be odd and at least %d", pub.E, minExponent)
	case pub.N.Bit(0) == 0:
		f = refuseCSR("csr.modulus", "the RSA modulus is even, so it is not the product of two primes")
	case closePrimes(pub.N):
		f = refuseCSR("csr.close-primes", "the RSA modulus is the product of two close primes: anyone can find the private key")
	default:
		return nil
	}
	return f.WithFix(fixNewKey)
}

// closePrimes searches n = a*a - b*b = (a-b)(a+b) with a just above the root of n (Fermat's factorization). n is odd.
func closePrimes(n *big.Int) bool {
	// The root of a Float takes half the time of that of an Int. It is rounded, so a is the root or one of its neighbors.
	precision := uint(n.BitLen())/2 + 64 // #nosec G115 -- at most that of a CSR
	a, _ := new(big.Float).SetPrec(precision).Sqrt(new(big.Float).SetInt(n)).Int(nil)
	b2, root := new(big.Int), new(big.Int)
	rest := func() { b2.Sub(b2.Mul(a, a), n) }
	for rest(); b2.Sign() < 0; rest() {
		a.Add(a, big.NewInt(1))
	}
	// The next a adds 2a+1 to b2. Only residues are added up: they exclude nearly every b2, at a hundredth of the cost.
	square, step := residuesOf(b2), residuesOf(root.Add(root.Lsh(a, 1), big.NewInt(1)))
	for range fermatRounds {
		if square.maybeSquare() {
			if rest(); root.Mul(root.Sqrt(b2), root).Cmp(b2) == 0 {
				return true
			}
		}
		square, step = square.plus(step), step.plus(residues{2, 2})
		a.Add(a, big.NewInt(1))
	}
	return false
}

// squares64 has a bit set for each square modulo 64, and squares for each square modulo further numbers.
const squares64 uint64 = 1<<0 | 1<<1 | 1<<4 | 1<<9 | 1<<16 | 1<<17 | 1<<25 | 1<<33 | 1<<36 | 1<<41 | 1<<49 | 1<<57

var squares = [...]struct {
	modulus uint
	set     uint64
}{
	{63, 1<<0 | 1<<1 | 1<<4 | 1<<7 | 1<<9 | 1<<16 | 1<<18 | 1<<22 | 1<<25 | 1<<28 | 1<<36 | 1<<37 | 1<<43 | 1<<46 | 1<<49 | 1<<58},
	{55, 1<<0 | 1<<1 | 1<<4 | 1<<5 | 1<<9 | 1<<11 | 1<<14 | 1<<15 | 1<<16 | 1<<20 | 1<<25 | 1<<26 | 1<<31 | 1<<34 | 1<<36 | 1<<44 | 1<<45 | 1<<49},
	{13, 1<<0 | 1<<1 | 1<<3 | 1<<4 | 1<<9 | 1<<10 | 1<<12},
	{17, 1<<0 | 1<<1 | 1<<2 | 1<<4 | 1<<8 | 1<<9 | 1<<13 | 1<<15 | 1<<16},
	{19, 1<<0 | 1<<1 | 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<9 | 1<<11 | 1<<16 | 1<<17},
}

// residues are a number modulo the size of a word, and modulo the numbers of squares.
type residues struct{ word, rest uint }

// modulus is the product of the numbers of squares.
const modulus = 63 * 55 * 13 * 17 * 19

func residuesOf(x *big.Int) (r residues) {
	words := x.Bits()
	if len(words) > 0 {
		r.word = uint(words[0])
	}
	for _, w := range slices.Backward(words) {
		r.rest = bits.Rem(r.rest, uint(w), modulus)
	}
	return r
}

func (r residues) plus(s residues) residues {
	return residues{r.word + s.word, (r.rest + s.rest) % modulus}
}

// maybeSquare returns true for squares and false for 426 of 427 other numbers, at a hundredth of the cost of a root, because
// every signature needs it. See Cohen, "A Course in Computational Algebraic Number Theory", 1.7.3.
func (r residues) maybeSquare() bool {
	if squares64>>(r.word&63)&1 == 0 {
		return false
	}
	for _, s := range squares {
		if s.set>>(r.rest%s.modulus)&1 == 0 {
			return false
		}
	}
	return true
}

// csrDER returns the DER inside the encodings of a CSR, unchanged and unparsed.
func csrDER(data []byte) ([]byte, error) {
	if len(data) > MaxCSR {
		return nil, refuseCSR("csr.size", "larger than %d bytes, the limit for a CSR", MaxCSR)
	}
	if filekind.IsDER(data) {
		return data, nil
	}
	text := plainText(data)
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, refuseCSR("csr.empty", "the file is empty")
	}
	if bytes.Contains(text, pemBegin) {
		return csrPEM(text)
	}
	inner, err := decodeBase64(text)
	switch {
	case err == nil && filekind.IsDER(inner):
		return inner, nil
	case err == nil && bytes.Contains(inner, pemBegin):
		return csrPEM(inner)
	}
	return nil, refuseCSR("csr.encoding", "neither PEM nor DER nor base64 of them: this is %s", filekind.Of(text))
}

// notCSR returns the error about a file that cannot be read as a CSR: err, or what the file is instead.
func notCSR(data []byte, err error) error {
	switch kind := filekind.Of(plainText(data)); {
	case kind == filekind.PrivateKey:
		return refuseCSR("csr.private-key", "the file contains a private key, so its owner is not the only one who has it").WithFix(fixExposed)
	case kind == filekind.CSR || kind.Use() == "":
		return err
	default:
		return refuseCSR("csr.kind", "this is %s, not a certificate signing request", kind).WithFix(kind.Use() + "; " + fixAskCSR)
	}
}

var pemBegin = []byte("-----BEGIN ")

const fixExposed = "tell the customer to make a new key and CSR and to send the CSR alone"

// csrPEM returns the content of the only PEM block; text before and after it is allowed, as in the output of openssl req
// -text. It counts BEGIN lines, because pem.Decode does not find blocks without a newline between them, and a second CSR or
// a private key must not be overlooked.
func csrPEM(text []byte) ([]byte, error) {
	if n := bytes.Count(text, pemBegin); n > 1 {
		return nil, refuseCSR("csr.count", "found %d PEM blocks, want one CSR", n).WithFix("split the file: one CSR per file")
	}
	block, _ := pem.Decode(text) // requires that BEGIN and END are on separate lines
	blocks := slices.Collect(pemtext.Scan(string(text)))
	var der []byte
	err := errors.New("no block")
	if block != nil && len(blocks) == 1 {
		der, err = blocks[0].DER()
	}
	if err != nil {
		return nil, refuseCSR("csr.pem", "the PEM block is damaged: its END line or its base64 is missing or broken")
	}
	if block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
		return nil, refuseCSR("csr.kind", "this is %s, not a certificate signing request", filekind.Of(text))
	}
	return der, nil
}

// oneDER checks that data is exactly one DER element.
func oneDER(data []byte) error {
	var element asn1.RawValue
	rest, err := asn1.Unmarshal(data, &element)
	if err != nil {
		return refuseCSR("csr.truncated", "the DER is cut short or damaged: %v", err)
	}
	if len(rest) > 0 {
		return refuseCSR("csr.trailing", "%d bytes follow the CSR", len(rest)).WithFix("remove everything after the CSR")
	}
	return nil
}

// plainText returns a text in UTF-8 without a byte order mark. It converts UTF-16, which PowerShell's ">" writes.
func plainText(data []byte) []byte {
	var order binary.ByteOrder
	switch {
	case bytes.HasPrefix(data, []byte{0xef, 0xbb, 0xbf}):
		return data[3:]
	case bytes.HasPrefix(data, []byte{0xff, 0xfe}):
		order = binary.LittleEndian
	case bytes.HasPrefix(data, []byte{0xfe, 0xff}):
		order = binary.BigEndian
	default:
		return data
	}
	units := make([]uint16, 0, len(data)/2)
	for data = data[2:]; len(data) >= 2; data = data[2:] {
		units = append(units, order.Uint16(data))
	}
	return []byte(string(utf16.Decode(units)))
}

// decodeBase64 decodes padded standard base64 (RFC 4648 section 4) with any white space in it.
func decodeBase64(text []byte) ([]byte, error) {
	compact := make([]byte, 0, len(text))
	for _, c := range text {
		if c != ' ' && c != '\t' && c != '\r' && c != '\n' {
			compact = append(compact, c)
		}
	}
	n, err := base64.StdEncoding.Strict().Decode(compact, compact)
	return compact[:n], err
}
