package chain

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
)

// bundle returns a PKCS#7 SignedData with certificates and without signatures, as "openssl crl2pkcs7 -nocrl" writes it.
func bundle(certs ...*x509.Certificate) []byte {
	var raw []byte
	for _, c := range certs {
		raw = append(raw, c.Raw...)
	}
	type content struct{ Type asn1.ObjectIdentifier }
	empty := asn1.RawValue{Tag: asn1.TagSet, IsCompound: true}
	inner := testkit.Must(asn1.Marshal(struct {
		Version          int
		DigestAlgorithms asn1.RawValue
		EncapContent     content
		Certificates     asn1.RawValue
		SignerInfos      asn1.RawValue
	}{1, empty, content{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}},
		asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: raw}, empty}))
	return testkit.Must(asn1.Marshal(struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue
	}{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}, asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: inner}}))
}

func block64(label string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der}))
}

// wrap returns a certificate in PEM with lines of n characters and the line end eol.
func wrap(c *x509.Certificate, n int, eol string) string {
	var b strings.Builder
	b.WriteString("-----BEGIN CERTIFICATE-----" + eol)
	for chunk := range slices.Chunk([]byte(base64.StdEncoding.EncodeToString(c.Raw)), n) {
		b.Write(chunk)
		b.WriteString(eol)
	}
	b.WriteString("-----END CERTIFICATE-----" + eol)
	return b.String()
}

func TestParse(t *testing.T) {
	w := newWorld()
	one, two := certs(w.vendor), certs(w.vendor, w.WWDR)
	key := testkit.Must(x509.MarshalPKCS8PrivateKey(w.key))
	text := PEM(two)
	tests := []struct {
		name string
		data string
		want []*x509.Certificate
	}{
		{"PEM", PEM(one), one},
		{"two in PEM", text, two},
		{"text around", "subject=CN = x\n" + text + "\nBag Attributes\n  friendlyName: -----\n", two},
		{"s_client", " 0 s:CN = x\n" + text, two},
		{"begins with the byte of a SEQUENCE", "0 s:CN = x\n" + text, two},
		{"CRLF", wrap(w.vendor, 64, "\r\n") + wrap(w.WWDR, 64, "\r\n"), two},
		{"CR only", wrap(w.vendor, 64, "\r"), one},
		{"byte order mark", "\ufeff" + text, two},
		{"128 columns", wrap(w.vendor, 128, "\n") + wrap(w.WWDR, 128, "\n"), two},
		{"one line", wrap(w.vendor, 1<<20, "\n"), one},
		{"run together", strings.ReplaceAll(text, "-----\n-----BEGIN", "----------BEGIN"), two},
		{"indented", strings.ReplaceAll(text, "\n", "\n\t"), two},
		{"no last newline", strings.TrimSpace(text), two},
		{"old label", block64("X509 CERTIFICATE", w.vendor.Raw), one},
		{"private key too", block64("PRIVATE KEY", key) + text, two},
		{"DER", string(w.vendor.Raw), one},
		{"two in DER", string(w.vendor.Raw) + string(w.WWDR.Raw), two},
		{"DER with a newline", string(w.vendor.Raw) + "\r\n", one},
		{"PKCS#7", string(bundle(two...)), two},
		{"PKCS#7 in PEM", block64("PKCS7", bundle(two...)), two},
		{"CMS in PEM", "x\n" + block64("CMS", bundle(one...)) + PEM(two[1:]), two},
		{"twice", PEM(one) + PEM(one), append(one, one...)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := testkit.Value(Parse([]byte(tt.data)))(t)
			if diff := cmp.Diff(subjects(tt.want), subjects(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

type refusal struct{ name, data, id, want string }

// refusals returns files without certificates, or with damaged ones.
func refusals(w world) []refusal {
	key := testkit.Must(x509.MarshalPKCS8PrivateKey(w.key))
	pub, csr := testkit.Must(x509.MarshalPKIXPublicKey(w.key.Public())), testkit.CSR(w.key)
	pfx := testkit.Must(asn1.Marshal(struct {
		Version  int
		AuthSafe struct{ Data []byte }
	}{3, struct{ Data []byte }{make([]byte, 200)}}))
	return append(damages(w, csr), []refusal{
		{"empty", "", "chain.empty", "the file is empty"},
		{"blank", "\ufeff \r\n", "chain.empty", "the file is empty"},
		{"key", block64("RSA PRIVATE KEY", key), "chain.unreadable", "it is a private key, not"},
		{"encrypted key", block64("ENCRYPTED PRIVATE KEY", key), "chain.unreadable", "it is a private key, not"},
		{"key in DER", string(key), "chain.unreadable", "it is a private key, not"},
		{"old key in DER", string(x509.MarshalPKCS1PrivateKey(w.key)), "chain.unreadable", "it is a private key, not"},
		{"CSR", block64("CERTIFICATE REQUEST", csr.Raw), "chain.unreadable", "it is a certificate signing request, not"},
		{"Microsoft's CSR", block64("NEW CERTIFICATE REQUEST", csr.Raw), "chain.unreadable", "it is a certificate signing request, not"},
		{"CSR in DER", string(csr.Raw), "chain.unreadable", "it is a certificate signing request, not"},
		{"public key", block64("PUBLIC KEY", pub), "chain.unreadable", "it is a public key, not"},
		{"public key in DER", string(pub), "chain.unreadable", "it is a public key, not"},
		{"CRL", block64("X509 CRL", pub), "chain.unreadable", `it is PEM of type "X509 CRL", not`},
		{"PKCS#12", string(pfx), "chain.unreadable", "it is a PKCS#12 file, not"},
		{"HTML", "\n<!DOCTYPE HTML>\n<p>", "chain.unreadable", "it is an HTML page, not"},
		{"XML", "<?xml version='1.0'?>", "chain.unreadable", "it is an XML file, not"},
		{"request", base64.StdEncoding.EncodeToString([]byte("<?xml version='1.0'?><key>PushCertRequestCSR</key>")), "chain.unreadable", "it is a Push Certificate Request, not"},
		{"JKS", "\xfe\xed\xfe\xed\x00\x00\x00\x02", "chain.unreadable", "it is a Java keystore (JKS or JCEKS), not"},
		{"JCEKS", "\xce\xce\xce\xce\x00\x00\x00\x02", "chain.unreadable", "it is a Java keystore (JKS or JCEKS), not"},
		{"JSON", `{"error":"x"}`, "chain.unreadable", "it is JSON, not"},
		{"UTF-16", "\xff\xfe-\x00-\x00", "chain.unreadable", "it is text in UTF-16"},
		{"SSH", "ssh-rsa AAAA", "chain.unreadable", "it is an SSH public key, not"},
		{"text", "hello", "chain.unreadable", "it is text without a PEM block, not"},
		{"binary", "\x01\x02", "chain.unreadable", "it is binary data of an unknown kind, not"},
	}...)
}

// damages returns files with unreadable certificates, or too many.
func damages(w world, csr *x509.CertificateRequest) []refusal {
	vendor := PEM(certs(w.vendor))
	cut := len(vendor) / 2
	return []refusal{
		{"cut PEM", PEM(certs(w.WWDR)) + vendor[:cut], "chain.unreadable", "certificate block 2, at line " + lineOf(PEM(certs(w.WWDR))) + ", has no END line"},
		{"cut in the middle", vendor[:cut] + PEM(certs(w.WWDR)), "chain.unreadable", "certificate block 1, at line 1, has no END line"},
		{"not base64", "\n" + strings.Replace(vendor, "\nMII", "\n*II", 1), "chain.unreadable", "certificate block 1, at line 2, is not base64"},
		{"damaged PEM", block64("CERTIFICATE", w.vendor.Raw[:400]), "chain.unreadable", "certificate block 1, at line 1, is damaged"},
		{"damaged bundle", block64("PKCS7", bundle(w.vendor)[:400]), "chain.unreadable", "certificate block 1, at line 1, is damaged"},
		{"empty bundle", string(bundle()) + strings.Repeat(" ", 200), "chain.unreadable", "binary data"},
		{"bytes inside DER", string(longer(w.vendor.Raw)), "chain.unreadable", "DER certificate 1 is damaged: 2 bytes follow the signature"},
		{"bytes inside PEM", block64("CERTIFICATE", longer(w.vendor.Raw)), "chain.unreadable", "at line 1, is damaged: 2 bytes follow the signature"},
		{"bytes inside a bundle", block64("PKCS7", bundle(&x509.Certificate{Raw: longer(w.vendor.Raw)})), "chain.unreadable", "2 bytes follow the signature"},
		{"cut DER", string(w.vendor.Raw) + string(w.WWDR.Raw[:400]), "chain.unreadable", "DER element 2 is damaged or cut off"},
		{"damaged DER", string(damaged(w.vendor.Raw)), "chain.unreadable", "DER certificate 1 is damaged"},
		{"something after DER", string(w.vendor.Raw) + string(csr.Raw), "chain.unreadable", "DER certificate 2 is damaged"},
		{"too large", strings.Repeat("\n", MaxFile+1), "chain.unreadable", "larger than 1048576 bytes"},
		{"too many", strings.Repeat(vendor, MaxCerts+1), "chain.too-many", "65 certificates"},
		{"too many in DER", strings.Repeat(string(w.vendor.Raw), MaxCerts+9), "chain.too-many", "73 certificates"},
	}
}

func TestParseRefuses(t *testing.T) {
	for _, tt := range refusals(newWorld()) {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse([]byte(tt.data))
			if testkit.FindingID(err) != tt.id || !strings.Contains(err.Error(), tt.want) || got != nil {
				t.Errorf("%d certificates, %v; want %s: ...%s", len(got), err, tt.id, tt.want)
			}
		})
	}
}

func lineOf(before string) string {
	return strconv.Itoa(strings.Count(before, "\n") + 1)
}

// longer returns a certificate with a NULL after the signature, inside its SEQUENCE.
func longer(der []byte) []byte {
	d := append(bytes.Clone(der), 5, 0)
	binary.BigEndian.PutUint16(d[2:], uint16(len(d)-4))
	return d
}

// damaged returns a certificate with an invalid time.
func damaged(der []byte) []byte {
	i := bytes.Index(der, []byte{0x17, 0x0d}) // the first UTCTime
	d := bytes.Clone(der)
	d[i+2] = 'x'
	return d
}

func TestSeeds(t *testing.T) { testkit.Seeds(t, "FuzzParse", 5) }

// FuzzParse checks that certificates are equal after PEM and Parse.
func FuzzParse(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		first, err := Parse(data)
		if err != nil {
			if !strings.HasPrefix(testkit.FindingID(err), "chain.") || err.Error() == "" {
				t.Fatalf("error %#v is not a finding about a chain", err)
			}
			return
		}
		if len(first) == 0 {
			t.Fatal("neither certificates nor an error")
		}
		text := PEM(first)
		if len(text) > MaxFile {
			return // base64 is longer than the DER that just fitted
		}
		again, err := Parse([]byte(text))
		if err != nil {
			t.Fatalf("written again: %v", err)
		}
		if !slices.EqualFunc(first, again, (*x509.Certificate).Equal) {
			t.Fatal("written again, other certificates")
		}
		if findings := Check(first, Options{Now: now}); fault.First(findings) == nil {
			t.Fatalf("good without a trusted root: %v", findings)
		}
	})
}
