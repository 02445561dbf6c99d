package request

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/testpki"
)

// kit is a test PKI with the golden vendor key, to make right and wrong requests.
type kit struct {
	authority *testpki.Authority
	key       *rsa.PrivateKey
	vendor    *x509.Certificate
	csr       *CSR
	now       time.Time
}

// started is when the certificates of the tests begin.
var started = time.Now()

func newKit(t testing.TB, now time.Time) *kit {
	t.Helper()
	k := &kit{key: testkit.GoldenKey(t), now: now, authority: testkit.Authority(now.Add(-time.Hour))}
	k.vendor = testkit.Must(k.authority.IssueVendor(csrFile(t, "golden/vendor.csr").Parsed, testpki.VendorOptions{NotBefore: now}))
	k.csr = csrFile(t, "golden/customer.csr")
	return k
}

func csrFile(t testing.TB, name string) *CSR {
	t.Helper()
	return testkit.Must(ParseCSR(testkit.File(t, name)))
}

func sign(key *rsa.PrivateKey, message []byte, h crypto.Hash) []byte {
	hash := h.New()
	hash.Write(message)
	return testkit.Must(rsa.SignPKCS1v15(nil, key, h, hash.Sum(nil)))
}

// request returns a right request; each case spoils one thing.
func (k *kit) request() *Request {
	return &Request{
		CSR:       k.csr.DER,
		Chain:     [][]byte{k.vendor.Raw, k.authority.WWDR.Raw, k.authority.Root.Raw},
		Signature: sign(k.key, k.csr.DER, crypto.SHA256),
	}
}

// problems returns severity and ID of the errors and warnings.
func problems(r *Report) []string {
	var ids []string
	for _, f := range r.Findings {
		if f.Severity != fault.SeverityNote {
			ids = append(ids, string(f.Severity)+" "+f.ID)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// portals are the portal's errors for some findings.
var portals = map[string]string{
	"request.signature": fault.PortalSignature, "chain.expired": fault.PortalExpired,
	"request.csr-pem": fault.PortalInvalidCSR, "request.chain-certificate": fault.PortalChainMissing,
}

func TestVerify(t *testing.T) {
	k := newKit(t, started)
	otherCSR, sha1CSR, vendorCSR := csrFile(t, "csr/other.pem"), csrFile(t, "csr/sha1.pem"), csrFile(t, "golden/vendor.csr")
	pemText := testkit.File(t, "golden/customer.csr")
	signed := func(key *rsa.PrivateKey, message []byte, h crypto.Hash) func(*Request) {
		return func(r *Request) { r.Signature = sign(key, message, h) }
	}
	resign := func(csr []byte) func(*Request) {
		return func(r *Request) { r.CSR, r.Signature = csr, sign(k.key, csr, crypto.SHA256) }
	}
	for _, c := range []struct {
		name  string
		spoil func(*Request)
		opts  VerifyOptions
		want  []string
		says  string // in the message of one finding
	}{
		{"right", func(*Request) {}, VerifyOptions{}, nil, ""},
		{"right, with its CSR", func(*Request) {}, VerifyOptions{CSR: k.csr}, nil, ""},
		{"another CSR", func(*Request) {}, VerifyOptions{CSR: otherCSR}, []string{"error request.csr-differs"}, "possibly of another customer"},
		{"another CSR of the same key", resign(otherCSR.DER), VerifyOptions{CSR: sha1CSR}, []string{"error request.csr-differs"}, "over the same key"},
		{"SHA-1", signed(k.key, k.csr.DER, crypto.SHA1), VerifyOptions{}, []string{"error request.signature-sha1"}, "made with SHA-1"},
		{"over the PEM text", signed(k.key, pemText, crypto.SHA256), VerifyOptions{}, []string{"error request.signature"}, "made over the PEM text"},
		{"over the PEM text with CRLF", signed(k.key, bytes.ReplaceAll(pemText, []byte("\n"), []byte("\r\n")), crypto.SHA1), VerifyOptions{},
			[]string{"error request.signature"}, "made over the PEM text"},
		{"by the intermediate", signed(k.authority.WWDRKey, k.csr.DER, crypto.SHA256), VerifyOptions{}, []string{"error request.signature"}, "made by another key of the chain"},
		{"by a stranger", func(r *Request) { r.Signature[10] ^= 1 }, VerifyOptions{}, []string{"error request.signature"}, "does not verify"},
		{"cut signature", func(r *Request) { r.Signature = r.Signature[:200] }, VerifyOptions{}, []string{"error request.signature"}, "has 200 bytes, those of the vendor's key have 256"},
		{"the vendor's own CSR", resign(vendorCSR.DER), VerifyOptions{}, []string{"error csr.vendor-key"}, "the vendor's own CSR"},
		{"CSR with trailing bytes inside", resign(longer(k.csr.DER, 0xff, 0xff, 0xff)), VerifyOptions{}, []string{"error csr.malformed"}, "3 bytes follow the signature"},
		{"unreadable certificate, longer inside", func(r *Request) { r.Chain[2] = longer(r.Chain[2], 5, 0) }, VerifyOptions{},
			[]string{"error chain.missing-root", "error request.chain-certificate"}, "2 bytes follow the signature"},
		{"unacceptable CSR", resign(testkit.File(t, "csr/close-primes.der")), VerifyOptions{}, []string{"error csr.close-primes"}, "close primes"},
		{"PEM instead of DER", resign(pemText), VerifyOptions{}, []string{"error request.csr-pem"}, "base64 of a PEM file"},
		{"PEM instead of DER, signed right", func(r *Request) { r.CSR = pemText }, VerifyOptions{CSR: k.csr},
			[]string{"error request.csr-pem", "error request.signature"}, "made over the DER of the CSR"},
		{"a certificate instead of the CSR", func(r *Request) { resign(r.Chain[0])(r) }, VerifyOptions{}, []string{"error csr.kind"}, "this is a certificate, not"},
		{"PEM of its CSR instead of DER", resign(pemText), VerifyOptions{CSR: k.csr}, []string{"error request.csr-pem"}, "base64 of a PEM file"},
		{"PEM of another CSR", resign(testkit.File(t, "csr/other.pem")), VerifyOptions{CSR: k.csr},
			[]string{"error request.csr-differs", "error request.csr-pem"}, "possibly of another customer"},
		{"base64 twice", resign([]byte(k.request().csrText())), VerifyOptions{CSR: k.csr}, []string{"error request.csr-pem"}, "base64 twice"},
		{"no root", func(r *Request) { r.Chain = r.Chain[:2] }, VerifyOptions{}, []string{"error chain.missing-root"}, ""},
		{"no intermediate", func(r *Request) { r.Chain = slices.Delete(r.Chain, 1, 2) }, VerifyOptions{}, []string{"error chain.missing-intermediate"}, ""},
		{"root first", func(r *Request) { slices.Reverse(r.Chain) }, VerifyOptions{}, []string{"warning chain.order"}, ""},
		{"unreadable certificate", func(r *Request) { r.Chain[2] = []byte("no certificate") }, VerifyOptions{},
			[]string{"error chain.missing-root", "error request.chain-certificate"}, ""},
		{"soon expired", func(*Request) {}, VerifyOptions{Now: k.now.AddDate(0, 0, 350)}, []string{"warning chain.expires-soon"}, ""},
		{"expired", func(*Request) {}, VerifyOptions{Now: k.now.AddDate(0, 0, 400)}, []string{"error chain.expired"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := k.request()
			c.spoil(r)
			c.opts.TrustRoots = []*x509.Certificate{k.authority.Root}
			report := Verify(testkit.Must(r.Encode(Base64)), c.opts)
			if diff := cmp.Diff(c.want, problems(report)); diff != "" {
				t.Errorf("%s\n%+v", diff, report.Findings)
			}
			wantOK := !slices.ContainsFunc(c.want, func(id string) bool { return id[0] == 'e' })
			if report.OK() != wantOK {
				t.Errorf("OK is %v", report.OK())
			}
			said := c.says == ""
			for _, f := range report.Findings {
				said = said || strings.Contains(f.Message, c.says) && f.Fix != ""
				if want, ok := portals[f.ID]; ok && f.Portal != want {
					t.Errorf("%s: the portal's error is %q, want %q", f.ID, f.Portal, want)
				}
			}
			if !said {
				t.Errorf("nothing says %q: %+v", c.says, report.Findings)
			}
		})
	}
}

// Requests of vendor certificates from before 2021 may be signed with SHA-1.
func TestVerifySHA1OfItsTime(t *testing.T) {
	k := newKit(t, time.Date(2019, 1, 1, 0, 0, 0, 0, time.UTC))
	r := k.request()
	r.Signature = sign(k.key, r.CSR, crypto.SHA1)
	report := Verify(testkit.Must(r.Encode(Base64)), VerifyOptions{TrustRoots: []*x509.Certificate{k.authority.Root}, Now: k.now.AddDate(0, 1, 0)})
	if diff := cmp.Diff([]string{"warning request.signature-sha1"}, problems(report)); diff != "" {
		t.Error(diff)
	}
	if report.Digest != crypto.SHA1 {
		t.Errorf("digest %v", report.Digest)
	}
}

// One run reports every defect.
func TestVerifyGoesOn(t *testing.T) {
	k := newKit(t, started)
	r := k.request()
	r.Signature = sign(k.key, r.CSR, crypto.SHA1)
	r.Chain = r.Chain[:2]
	xml := bytes.ReplaceAll(testkit.Must(r.Encode(Plist)), []byte("-----\n-----"), []byte("----------"))
	report := Verify(xml, VerifyOptions{})
	want := []string{
		"error chain.missing-root", "error request.signature-sha1",
		"warning request.not-base64", "warning request.pem-run-together",
	}
	if diff := cmp.Diff(want, problems(report)); diff != "" {
		t.Error(diff)
	}
}

// Only Apple's roots are trusted by default; the golden chain ends at a test root.
func TestVerifyTrust(t *testing.T) {
	data := testkit.File(t, "golden/customer.req")
	if diff := cmp.Diff([]string{"error chain.untrusted"}, problems(Verify(data, VerifyOptions{}))); diff != "" {
		t.Error(diff)
	}
	roots := testkit.Must(chain.Parse(testkit.File(t, "golden/root.pem")))
	if report := Verify(data, VerifyOptions{TrustRoots: roots}); !report.OK() {
		t.Errorf("%+v", report.Findings)
	}
}
