package request

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"strings"
	"testing"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
)

// A CSR of node-forge has PrintableString for every value. Its bytes and its signature are those of the customer, and
// OpenSSL verifies it.
func TestMistypedStrings(t *testing.T) {
	key := testkit.Key("customer")
	for _, tt := range []struct {
		oid   asn1.ObjectIdentifier
		tag   int
		value string
		names string // in the warning; "": none
		shown string // the value
	}{
		{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}, asn1.TagPrintableString, "a@example.com", "emailAddress (PrintableString)", "a@example.com"},
		{asn1.ObjectIdentifier{2, 5, 4, 3}, asn1.TagPrintableString, "mdm_server", "commonName (PrintableString)", "mdm_server"},
		{asn1.ObjectIdentifier{2, 5, 4, 10}, asn1.TagPrintableString, "M\xfcller", "organizationName (PrintableString)", "Müller"},
		{asn1.ObjectIdentifier{2, 5, 4, 11}, asn1.TagPrintableString, "Müller", "organizationalUnitName (PrintableString)", "Müller"},
		{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}, asn1.TagIA5String, "\xfc@example.com", "emailAddress (IA5String)", "ü@example.com"},
		{asn1.ObjectIdentifier{2, 5, 4, 99}, asn1.TagNumericString, "1a", "2.5.4.99 (NumericString)", "1a"},
		{asn1.ObjectIdentifier{2, 5, 4, 3}, asn1.TagPrintableString, "MDM server", "", "MDM server"},
	} {
		subject := testkit.Must(asn1.Marshal(pkix.RDNSequence{{{Type: tt.oid, Value: asn1.RawValue{Tag: tt.tag, Bytes: []byte(tt.value)}}}}))
		der := testkit.Must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{RawSubject: subject}, key))
		csr, err := DecodeCSR(der)
		if err != nil {
			t.Errorf("%q: %v", tt.value, err)
			continue
		}
		if !bytes.Equal(csr.DER, der) || !bytes.Equal(csr.Parsed.Raw, der) || !bytes.Equal(csr.Parsed.RawSubject, subject) || csr.Parsed.CheckSignature() != nil {
			t.Errorf("%q: other bytes than the customer's", tt.value)
		}
		if got := csr.Parsed.Subject.Names[0].Value; got != tt.shown {
			t.Errorf("%q is shown as %q", tt.value, got)
		}
		warned := ""
		for _, f := range csr.Findings {
			if f.ID == "csr.string-type" && f.Severity == fault.SeverityWarning {
				warned += f.Message
			}
		}
		if (warned != "") != (tt.names != "") || !strings.Contains(warned, tt.names) {
			t.Errorf("%q: warning %q, want %q", tt.value, warned, tt.names)
		}
		if out := testkit.OpenSSL(t, "", der, "req", "-inform", "DER", "-verify", "-noout", "-subject"); len(out) == 0 {
			t.Errorf("%q: OpenSSL shows nothing", tt.value)
		}
	}
}

// A refusal names the type of a key, and says that parameters are not supported.
func TestForeignKeys(t *testing.T) {
	curve := func(name string) []string { return []string{"-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:" + name} }
	for _, tt := range []struct {
		args []string
		id   string
		says string
	}{
		{[]string{"-newkey", "ed448"}, "csr.key-type", "the key is Ed448;"},
		{[]string{"-newkey", "ed25519"}, "csr.key-type", "the key is Ed25519;"},
		{[]string{"-newkey", "rsa-pss", "-pkeyopt", "rsa_keygen_bits:2048"}, "csr.key-type", "the key is RSA-PSS;"},
		{curve("secp256k1"), "csr.key-type", "the key is EC on secp256k1;"},
		{curve("brainpoolP256r1"), "csr.key-type", "the key is EC on brainpoolP256r1;"},
		{curve("brainpoolP512t1"), "csr.key-type", "the key is EC on brainpoolP512t1;"},
		{curve("P-384"), "csr.key-type", "the key is EC on P-384;"},
		{append(curve("P-256"), "-pkeyopt", "ec_param_enc:explicit"), "csr.key-type", "the key is EC on a curve with explicit parameters;"},
		{[]string{"-newkey", "rsa:2048", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:20"}, "csr.algorithm", "unsupported signature parameters"},
		{[]string{"-newkey", "rsa:2048", "-sha3-256"}, "csr.algorithm", "unsupported signature algorithm 2.16.840.1.101.3.4.3.14"},
		{[]string{"-newkey", "rsa:2048", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:32"}, "", ""},
	} {
		args := append([]string{"req", "-new", "-nodes", "-subj", "/CN=x", "-keyout", "/dev/null", "-outform", "DER"}, tt.args...)
		csr, err := ParseCSR(testkit.OpenSSL(t, "", nil, args...))
		if err != nil {
			t.Errorf("%v: %v", tt.args, err)
			continue
		}
		if err := fault.First(csr.Findings); testkit.FindingID(err) != tt.id || tt.id != "" && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%v: %v; want %s, %q", tt.args, err, tt.id, tt.says)
		}
	}
}
