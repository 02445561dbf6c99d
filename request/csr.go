package request

import (
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"math/big"
	"math/bits"
	"slices"

	"hsmsign/fault"
)

// MaxCSR is the most that is read of a certificate signing request, in bytes, in whatever encoding it comes.
const MaxCSR = 64 << 10

// CSR is a customer's certificate signing request.
type CSR struct {
	// DER is the request exactly as the customer sent it, PEM and base64 taken off. This is what is signed.
	DER []byte
	// File is the input that it was decoded from.
	File []byte
	// Parsed is the request's content.
	Parsed *x509.CertificateRequest
	// Findings is what CheckCSR says of it: from DecodeCSR warnings at most.
	Findings []fault.Finding
}

// DecodeCSR reads the one CSR in data and refuses it unless it is sound. An error is a *fault.Finding whose ID
// starts with "csr.".
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

// ParseCSR reads the one CSR in data, which is PEM (with or without text around it), DER, or the base64 of either,
// and checks it (CheckCSR), but refuses only what cannot be read: its Findings may hold errors.
func ParseCSR(data []byte) (*CSR, error) {
	der, err := csrDER(data)
	if err != nil {
		return nil, err
	}
	parsed, err := parseCSR(der)
	if err != nil {
		return nil, err
	}
	return &CSR{DER: der, File: data, Parsed: parsed, Findings: CheckCSR(parsed)}, nil
}

// parseCSR parses a DER CSR that nothing follows.
func parseCSR(der []byte) (*x509.CertificateRequest, error) {
	if err := oneDER(der); err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificateRequest(der)
	if err == nil {
		return parsed, nil
	}
	if _, certErr := x509.ParseCertificate(der); certErr == nil {
		return nil, refuse("csr.kind", "this is a certificate, not a certificate signing request", fixAskCSR)
	}
	return nil, refuse("csr.malformed", "not a readable certificate signing request: "+err.Error(), fixAskCSR)
}

const (
	fixAskCSR = "ask the customer for the CSR file that the MDM server made"
	fixNewKey = "ask the customer for a CSR over a new RSA key of 2048 bits or more, signed with SHA-256"
)

func refuse(id, message, fix string) *fault.Finding {
	return &fault.Finding{ID: id, Severity: fault.SeverityError, Message: message, Fix: fix, Portal: fault.PortalInvalidCSR}
}

// The limits of the customer's key. Below 2048 bits Apple refuses; above 8192 a check costs more than the
// signature is worth.
const (
	minKeyBits  = 2048
	maxKeyBits  = 8192
	minExponent = 65537 // FIPS 186-5 appendix A.1.1
	// fermatRounds finds every pair of primes that differ by less than about 2^(bits/4+8); the printers of
	// CVE-2022-26320 needed one round. CAs look as far.
	fermatRounds = 110
)

// CheckCSR checks a parsed CSR and gives what it finds: an Error for what makes it unfit, a Warning for what is
// merely old. The order is that of cost, and nothing after an unfit key is checked: each rule may count on the
// ones before.
func CheckCSR(csr *x509.CertificateRequest) []fault.Finding {
	pub, ok := csr.PublicKey.(*rsa.PublicKey)
	if !ok {
		return []fault.Finding{*refuse("csr.key-type", fmt.Sprintf("the key is %v; Apple's push certificates take RSA only", csr.PublicKeyAlgorithm), fixNewKey)}
	}
	if f := checkKey(pub); f != nil {
		return []fault.Finding{*f}
	}
	var found []fault.Finding
	switch csr.SignatureAlgorithm {
	case x509.MD2WithRSA, x509.MD5WithRSA:
		return append(found, *refuse("csr.hash", fmt.Sprintf("the CSR is signed with %v, which can be forged", csr.SignatureAlgorithm), fixNewKey))
	case x509.SHA1WithRSA:
		found = append(found, fault.Finding{
			ID: "csr.sha1", Severity: fault.SeverityWarning,
			Message: "the CSR is signed with SHA-1, which Apple took from older servers and may stop taking",
			Fix:     "ask the customer for a CSR signed with SHA-256 at the next renewal",
		})
	}
	if err := csr.CheckSignature(); err != nil {
		return append(found, *refuse("csr.signature", "the CSR's own signature does not verify: it was changed or cut, or not signed with its key", fixAskCSR))
	}
	return found
}

// checkKey: see the CA/Browser Forum's baseline requirements 6.1.6, and Böck, "Fermat factorization in the wild".
func checkKey(pub *rsa.PublicKey) *fault.Finding {
	bits := pub.N.BitLen()
	switch {
	case bits < minKeyBits || bits > maxKeyBits:
		return refuse("csr.key-size", fmt.Sprintf("the RSA key has %d bits; %d to %d are taken", bits, minKeyBits, maxKeyBits), fixNewKey)
	case pub.E < minExponent || pub.E%2 == 0:
		return refuse("csr.exponent", fmt.Sprintf("the RSA public exponent is %d; it must be odd and at least %d", pub.E, minExponent), fixNewKey)
	case pub.N.Bit(0) == 0:
		return refuse("csr.modulus", "the RSA modulus is even, so it is no product of two primes", fixNewKey)
	case closePrimes(pub.N):
		return refuse("csr.close-primes", "the RSA modulus is the product of two close primes: anyone can find the private key", fixNewKey)
	}
	return nil
}

// closePrimes looks for n = a*a - b*b = (a-b)(a+b) with a just above the root of n: Fermat's factorisation. n is odd.
func closePrimes(n *big.Int) bool {
	a := new(big.Int).Sqrt(n)
	if new(big.Int).Mul(a, a).Cmp(n) == 0 {
		return true
	}
	// b2 = a*a - n for the first a above the root; the next a adds 2a+1.
	a.Add(a, big.NewInt(1))
	b2 := new(big.Int).Mul(a, a)
	b2.Sub(b2, n)
	step := new(big.Int).Lsh(a, 1)
	step.Add(step, big.NewInt(1))
	two, root := big.NewInt(2), new(big.Int)
	for range fermatRounds {
		if maybeSquare(b2) {
			root.Sqrt(b2)
			if root.Mul(root, root).Cmp(b2) == 0 {
				return true
			}
		}
		b2.Add(b2, step)
		step.Add(step, two)
	}
	return false
}

// The residues of squares: bit i is set where i is a square modulo the name's number.
const (
	squares64 uint64 = 1<<0 | 1<<1 | 1<<4 | 1<<9 | 1<<16 | 1<<17 | 1<<25 | 1<<33 | 1<<36 | 1<<41 | 1<<49 | 1<<57
	squares63 uint64 = 1<<0 | 1<<1 | 1<<4 | 1<<7 | 1<<9 | 1<<16 | 1<<18 | 1<<22 | 1<<25 | 1<<28 | 1<<36 | 1<<37 | 1<<43 | 1<<46 | 1<<49 | 1<<58
	squares55 uint64 = 1<<0 | 1<<1 | 1<<4 | 1<<5 | 1<<9 | 1<<11 | 1<<14 | 1<<15 | 1<<16 | 1<<20 | 1<<25 | 1<<26 | 1<<31 | 1<<34 | 1<<36 | 1<<44 | 1<<45 | 1<<49
)

// maybeSquare is false for 49 of 50 numbers that are no square, at a hundredth of the cost of a root: this stands
// on the path of every signature. See Cohen, "A Course in Computational Algebraic Number Theory", 1.7.3.
func maybeSquare(x *big.Int) bool {
	words := x.Bits()
	if len(words) == 0 {
		return true
	}
	if squares64>>(words[0]&63)&1 == 0 {
		return false
	}
	var r uint
	for _, w := range slices.Backward(words) {
		r = bits.Rem(r, uint(w), 63*55)
	}
	return squares63>>(r%63)&1 == 1 && squares55>>(r%55)&1 == 1
}
