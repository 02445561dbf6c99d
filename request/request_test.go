package request

import (
	"encoding/base64"
	"encoding/pem"
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
)

func golden(t testing.TB) *Request {
	t.Helper()
	return testkit.Must(Parse(testkit.File(t, "golden/customer.req")))
}

// OpenSSL, xmllint and plistutil accept the golden files (end-to-end tests).
func TestEncodeIsGolden(t *testing.T) {
	r := golden(t)
	for _, c := range []struct {
		format Format
		file   string
	}{{Base64, "customer.req"}, {Plist, "customer.plist"}} {
		got := testkit.Value(r.Encode(c.format))(t)
		if diff := cmp.Diff(string(testkit.File(t, "golden/"+c.file)), string(got)); diff != "" {
			t.Errorf("%s: %s", c.file, diff)
		}
	}
}

// The form of Apple's sample: one line of base64, the order of the keys, literal newlines, and 64 characters in PEM lines.
func TestEncodeForm(t *testing.T) {
	xml, err := base64.StdEncoding.Strict().DecodeString(string(testkit.Must(golden(t).Encode(Base64))))
	form := regexp.MustCompile(`(?s)^<\?xml [^>]*>\n<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">\n` +
		`<plist version="1.0">\n\t<dict>\n\t\t<key>PushCertRequestCSR</key>\n\t\t<string>[A-Za-z0-9+/=]+</string>\n` +
		`\t\t<key>PushCertCertificateChain</key>\n\t\t<string>(-----BEGIN CERTIFICATE-----\n([A-Za-z0-9+/]{64}\n)+[A-Za-z0-9+/=]{1,64}\n-----END CERTIFICATE-----\n){3}</string>\n` +
		`\t\t<key>PushCertSignature</key>\n\t\t<string>[A-Za-z0-9+/=]+</string>\n\t</dict>\n</plist>\n$`)
	if err != nil || !form.Match(xml) {
		t.Errorf("%v\n%s", err, xml)
	}
}

// wrap breaks text into lines.
func wrap(text string, columns int, newline string) string {
	var b strings.Builder
	for len(text) > columns {
		b.WriteString(text[:columns] + newline)
		text = text[columns:]
	}
	return b.String() + text + newline
}

type shape struct {
	data []byte
	ids  []string // of the findings
}

// shapes returns the golden request in every form that tools write.
func shapes(t testing.TB) map[string]shape {
	xml := string(testkit.File(t, "golden/customer.plist"))
	b64 := func(xml string) string { return base64.StdEncoding.EncodeToString([]byte(xml)) }
	r := golden(t)
	var pem128, reversed strings.Builder
	for _, der := range r.Chain {
		pem128.WriteString("-----BEGIN CERTIFICATE-----\n" + wrap(base64.StdEncoding.EncodeToString(der), 128, "\n") + "-----END CERTIFICATE-----\n")
	}
	for i := range r.Chain {
		reversed.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Chain[len(r.Chain)-1-i]}))
	}
	first, last := strings.Index(xml, "-----BEGIN"), strings.LastIndex(xml, "-----END CERTIFICATE-----\n")+len("-----END CERTIFICATE-----\n")
	withChain := func(chain string) string { return xml[:first] + chain + xml[last:] }
	csr, chain := strings.Index(xml, "\t\t<key>"+keyCSR), strings.Index(xml, "\t\t<key>"+keyChain)
	end := strings.Index(xml, "\t\t<key>"+keySignature)
	return map[string]shape{
		"one line":          {[]byte(b64(xml)), nil},
		"newline at end":    {[]byte(b64(xml) + "\n"), nil},
		"60 columns":        {[]byte(wrap(b64(xml), 60, "\n")), []string{"request.wrapped"}},
		"76 columns, CRLF":  {[]byte(wrap(b64(xml), 76, "\r\n")), []string{"request.wrapped"}},
		"leading space":     {[]byte(" " + b64(xml)), nil},
		"byte order mark":   {[]byte("\ufeff" + b64(xml)), nil},
		"bare XML":          {[]byte(xml), []string{"request.not-base64"}},
		"keys sorted":       {[]byte(b64(xml[:csr] + xml[chain:end] + xml[csr:chain] + xml[end:])), nil},
		"space in values":   {[]byte(b64(strings.ReplaceAll(xml, "<string>", "<string> "))), nil},
		"wrapped values":    {[]byte(b64(strings.Replace(xml, string(r.csrText()), wrap(r.csrText(), 64, "\n"), 1))), nil},
		"escaped newlines":  {[]byte(b64(withChain(strings.ReplaceAll(xml[first:last], "\n", "&#xA;")))), nil},
		"older DOCTYPE":     {[]byte(b64(strings.Replace(xml, "-//Apple//DTD", "-//Apple Inc//DTD", 1))), []string{"request.doctype"}},
		"no DOCTYPE":        {[]byte(b64(strings.Replace(xml, xml[strings.Index(xml, "<!DOCTYPE"):strings.Index(xml, "<plist")], "", 1))), nil},
		"run together":      {[]byte(b64(withChain(strings.ReplaceAll(xml[first:last], "-----\n-----", "----------")))), []string{"request.pem-run-together"}},
		"128 columns":       {[]byte(b64(withChain(pem128.String()))), []string{"request.pem-width"}},
		"CRLF in the chain": {[]byte(b64(withChain(strings.ReplaceAll(xml[first:last], "\n", "&#xD;\n")))), nil},
		"extra key":         {[]byte(b64(strings.Replace(xml, "<dict>", "<dict><key>Comment</key><string>x</string>", 1))), []string{"request.extra-key"}},
		"Bag Attributes":    {[]byte(b64(withChain("Bag Attributes\n    friendlyName: x\n" + xml[first:last] + "subject=CN = x\n"))), nil},
		"root first":        {[]byte(b64(withChain(reversed.String()))), nil},
	}
}

func (r *Request) csrText() string { return base64.StdEncoding.EncodeToString(r.CSR) }

func TestParseTakesEveryShape(t *testing.T) {
	want := golden(t)
	for name, shape := range shapes(t) {
		t.Run(name, func(t *testing.T) {
			got, found, err := parse(shape.data)
			if err != nil {
				t.Fatal(err)
			}
			if name == "root first" {
				got.Chain[0], got.Chain[2] = got.Chain[2], got.Chain[0]
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			var ids []string
			for _, f := range found {
				ids = append(ids, f.ID)
			}
			if diff := cmp.Diff(shape.ids, ids); diff != "" {
				t.Errorf("findings: %s", diff)
			}
		})
	}
}

// looser returns the request with another base64 of the same bytes before end: the last character has bits of no byte.
func looser(xml, end string) []byte {
	i := strings.Index(xml, end) - 1
	for xml[i] == '=' {
		i--
	}
	return []byte(xml[:i] + string(xml[i]+1) + xml[i+1:])
}

func TestParseRefuses(t *testing.T) {
	xml := string(testkit.File(t, "golden/customer.plist"))
	first, last := strings.Index(xml, "-----BEGIN"), strings.LastIndex(xml, "-----END")
	replace := func(old, replacement string) []byte {
		if !strings.Contains(xml, old) {
			t.Fatalf("%q is not in the golden request", old)
		}
		return []byte(strings.Replace(xml, old, replacement, 1))
	}
	csr := golden(t).csrText()
	doctype, start := strings.Index(xml, "<!DOCTYPE"), strings.Index(xml, "<plist")
	for _, c := range []struct {
		name   string
		data   []byte
		id     string
		portal string
	}{
		{"empty", nil, "request.encoding", fault.PortalInvalidCSR},
		{"too large", make([]byte, MaxRequest+1), "request.size", fault.PortalInvalidCSR},
		{"a CSR", testkit.File(t, "csr/good.pem"), "request.encoding", fault.PortalInvalidCSR},
		{"base64 of DER", testkit.File(t, "csr/good.b64"), "request.encoding", fault.PortalInvalidCSR},
		{"cut XML", []byte(xml[:len(xml)/2]), "request.plist", fault.PortalInvalidCSR},
		{"GNUStep", []byte(`<48656c6c6f>`), "request.encoding", fault.PortalInvalidCSR},
		{"key missing", replace(keyCSR, "SomethingElse"), "request.plist", fault.PortalInvalidCSR},
		{"key twice", replace("<dict>", "<dict><key>"+keyCSR+"</key><string>AAAA</string>"), "request.plist", fault.PortalInvalidCSR},
		{"key twice, blank in the tag", replace("<dict>", "<dict><key >"+keyCSR+"</key><string>AAAA</string>"), "request.plist", fault.PortalInvalidCSR},
		{"key twice, CDATA", replace("<dict>", "<dict><key><![CDATA["+keyCSR+"]]></key><string>AAAA</string>"), "request.plist", fault.PortalInvalidCSR},
		{"key twice, character reference", replace("<dict>", "<dict><key>&#80;"+keyCSR[1:]+"</key><string>AAAA</string>"), "request.plist", fault.PortalInvalidCSR},
		{"key twice, comment", replace("<dict>", "<dict><key>Push<!-- x -->"+keyCSR[4:]+"</key><string>AAAA</string>"), "request.plist", fault.PortalInvalidCSR},
		{"key twice, attribute", replace("<dict>", "<dict><key a='b'>"+keySignature+"</key><string>AAAA</string>"), "request.plist", fault.PortalInvalidCSR},
		{"two values", replace("</plist>", "<dict><key>x</key><string>AAAA</string></dict></plist>"), "request.plist", fault.PortalInvalidCSR},
		{"two documents", replace("</plist>", "</plist><plist><dict/></plist>"), "request.plist", fault.PortalInvalidCSR},
		{"an empty document after it", replace("</plist>", "</plist><plist/>"), "request.plist", fault.PortalInvalidCSR},
		{"text after it", replace("</plist>", "</plist>x"), "request.plist", fault.PortalInvalidCSR},
		{"element in a key", replace("<dict>", "<dict><key>x<b/></key><string>AAAA</string>"), "request.plist", fault.PortalInvalidCSR},
		{"element in a string", replace("<string>", "<string><b>AAAA</b>"), "request.plist", fault.PortalInvalidCSR},
		{"deep", replace("<dict>", "<dict><key>x</key>"+strings.Repeat("<array>", 20)+strings.Repeat("</array>", 20)), "request.plist", fault.PortalInvalidCSR},
		{"second DOCTYPE", replace("<plist", "<!DOCTYPE plist>\n<plist"), "request.plist", fault.PortalInvalidCSR},
		{"the same DOCTYPE twice", replace("<plist", xml[strings.Index(xml, "<!DOCTYPE"):strings.Index(xml, "<plist")]+"<plist"), "request.plist", fault.PortalInvalidCSR},
		{"Apple's DOCTYPE inside", []byte(strings.Replace(xml[:doctype]+xml[start:], "<dict>", xml[doctype:start]+"<dict>", 1)), "request.plist", fault.PortalInvalidCSR},
		{"DOCTYPE inside", replace("<dict>", "<!DOCTYPE plist><dict>"), "request.plist", fault.PortalInvalidCSR},
		{"internal subset", replace(`1.0.dtd">`, `1.0.dtd" [<!ENTITY x "y">]>`), "request.plist", fault.PortalInvalidCSR},
		{"another DTD", replace("www.apple.com", "www.example.com"), "request.plist", fault.PortalInvalidCSR},
		{"not a string", replace("<string>"+csr+"</string>", "<integer>1</integer>"), "request.plist", fault.PortalInvalidCSR},
		{"CSR is PEM", replace(csr, "-----BEGIN CERTIFICATE REQUEST-----"), "request.value", fault.PortalInvalidCSR},
		{"CSR empty", replace(csr, ""), "request.value", fault.PortalInvalidCSR},
		{"chain empty", []byte(xml[:first] + xml[last+len("-----END CERTIFICATE-----"):]), "request.chain-empty", fault.PortalChainMissing},
		{"chain damaged", replace("-----END CERTIFICATE-----", "-----END CERTIFICATE"), "request.chain-pem", fault.PortalChainMissing},
		{"bits after the last byte of the chain", looser(xml, "=\n-----END"), "request.chain-pem", fault.PortalChainMissing},
		{"bits after the last byte of the signature", looser(xml, "==</string>\n\t</dict>"), "request.value", fault.PortalSignature},
		{"chain of keys", []byte(strings.NewReplacer("BEGIN CERTIFICATE", "BEGIN PUBLIC KEY", "END CERTIFICATE", "END PUBLIC KEY").Replace(xml)), "request.chain-pem", fault.PortalChainMissing},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := Parse(c.data)
			found, ok := errors.AsType[*fault.Finding](err)
			if !ok || r != nil {
				t.Fatalf("got %v, %v", r, err)
			}
			if found.ID != c.id || found.Portal != c.portal || found.Fix == "" {
				t.Errorf("got %+v, want %s, %s", found, c.id, c.portal)
			}
		})
	}
}

// FuzzParse checks that an accepted request is equal after Encode and Parse, and that Verify does not panic.
func FuzzParse(f *testing.F) {
	for _, shape := range shapes(f) {
		f.Add(shape.data)
	}
	addSeeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Parse(data)
		if err != nil {
			if !strings.HasPrefix(testkit.FindingID(err), "request.") {
				t.Fatalf("not a finding: %v", err)
			}
			return
		}
		for _, format := range []Format{Base64, Plist} {
			out := testkit.Value(r.Encode(format))(t)
			again, err := Parse(out)
			if err != nil {
				t.Fatalf("our form is refused: %v", err)
			}
			if diff := cmp.Diff(r, again); diff != "" {
				t.Fatal(diff)
			}
		}
		Verify(data, VerifyOptions{})
	})
}
