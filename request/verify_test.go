package request

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/testpki"
)

// kit is a test PKI with a vendor, and what it takes to make right and wrong requests.
type kit struct {
	authority *testpki.Authority
	key       *rsa.PrivateKey
	vendor    *x509.Certificate
	csr       *CSR
	now       time.Time
}

func newKit(t testing.TB, opts testpki.VendorOptions) *kit {
	t.Helper()
	block, _ := pem.Decode(readFile(t, goldenDir+"vendor.key"))
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	k := &kit{key: parsed.(*rsa.PrivateKey), now: time.Now()}
	if !opts.NotBefore.IsZero() {
		k.now = opts.NotBefore
	}
	if k.authority, err = testpki.New(k.now.Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	vendorCSR, err := ParseCSR(readFile(t, goldenDir+"vendor.csr"))
	if err != nil {
		t.Fatal(err)
	}
	if k.vendor, err = k.authority.IssueVendor(vendorCSR.Parsed, opts); err != nil {
		t.Fatal(err)
	}
	if k.csr, err = DecodeCSR(readFile(t, goldenDir+"customer.csr")); err != nil {
		t.Fatal(err)
	}
	return k
}

func sign(t testing.TB, key *rsa.PrivateKey, message []byte, h crypto.Hash) []byte {
	t.Helper()
	hash := h.New()
	hash.Write(message)
	sig, err := rsa.SignPKCS1v15(rand.Reader, key, h, hash.Sum(nil))
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

// request is a right request; each case spoils one thing.
func (k *kit) request(t testing.TB) *Request {
	return &Request{
		CSR:       k.csr.DER,
		Chain:     [][]byte{k.vendor.Raw, k.authority.WWDR.Raw, k.authority.Root.Raw},
		Signature: sign(t, k.key, k.csr.DER, crypto.SHA256),
	}
}

// problems gives the IDs of errors and warnings.
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

func TestVerify(t *testing.T) {
	k := newKit(t, testpki.VendorOptions{})
	otherCSR, err := DecodeCSR(readFile(t, csrDir+"/other.pem"))
	if err != nil {
		t.Fatal(err)
	}
	sha1CSR, err := ParseCSR(readFile(t, csrDir+"/sha1.pem"))
	if err != nil {
		t.Fatal(err)
	}
	vendorCSR, err := ParseCSR(readFile(t, goldenDir+"vendor.csr"))
	if err != nil {
		t.Fatal(err)
	}
	pemText := readFile(t, goldenDir+"customer.csr")
	for _, c := range []struct {
		name  string
		spoil func(*Request)
		opts  VerifyOptions
		want  []string
		says  string // in the message of the first finding that is wanted
	}{
		{name: "right", spoil: func(*Request) {}},
		{name: "right, held to its CSR", spoil: func(*Request) {}, opts: VerifyOptions{CSR: k.csr}},
		{
			name: "another CSR", spoil: func(*Request) {}, opts: VerifyOptions{CSR: otherCSR},
			want: []string{"error request.csr-differs"}, says: "another customer's",
		},
		{
			name: "another CSR of the same key", opts: VerifyOptions{CSR: sha1CSR},
			spoil: func(r *Request) { r.CSR = otherCSR.DER; r.Signature = sign(t, k.key, r.CSR, crypto.SHA256) },
			want:  []string{"error request.csr-differs"}, says: "over the same key",
		},
		{
			name: "SHA-1", spoil: func(r *Request) { r.Signature = sign(t, k.key, r.CSR, crypto.SHA1) },
			want: []string{"error request.signature-sha1"}, says: "made with SHA-1",
		},
		{
			name: "over the PEM text", spoil: func(r *Request) { r.Signature = sign(t, k.key, pemText, crypto.SHA256) },
			want: []string{"error request.signature"}, says: "made over the PEM text",
		},
		{
			name: "over the PEM text with CRLF",
			spoil: func(r *Request) {
				r.Signature = sign(t, k.key, bytes.ReplaceAll(pemText, []byte("\n"), []byte("\r\n")), crypto.SHA1)
			},
			want: []string{"error request.signature"}, says: "made over the PEM text",
		},
		{
			name: "by the intermediate", spoil: func(r *Request) { r.Signature = sign(t, k.authority.WWDRKey, r.CSR, crypto.SHA256) },
			want: []string{"error request.signature"}, says: "made by another key of the chain",
		},
		{
			name: "by a stranger", spoil: func(r *Request) { r.Signature[10] ^= 1 },
			want: []string{"error request.signature"}, says: "does not verify",
		},
		{
			name: "cut signature", spoil: func(r *Request) { r.Signature = r.Signature[:200] },
			want: []string{"error request.signature"}, says: "has 200 bytes where the vendor's key makes 256",
		},
		{
			name:  "the vendor's own CSR",
			spoil: func(r *Request) { r.CSR = vendorCSR.DER; r.Signature = sign(t, k.key, r.CSR, crypto.SHA256) },
			want:  []string{"error csr.vendor-key"}, says: "the vendor's own CSR",
		},
		{
			name: "unsound CSR",
			spoil: func(r *Request) {
				r.CSR = readFile(t, csrDir+"/close-primes.der")
				r.Signature = sign(t, k.key, r.CSR, crypto.SHA256)
			},
			want: []string{"error csr.close-primes"}, says: "close primes",
		},
		{
			name:  "PEM in the CSR's place",
			spoil: func(r *Request) { r.CSR = pemText; r.Signature = sign(t, k.key, r.CSR, crypto.SHA256) },
			want:  []string{"error request.csr-pem"}, says: "base64 of a PEM file",
		},
		{
			name: "no root", spoil: func(r *Request) { r.Chain = r.Chain[:2] },
			want: []string{"error chain.missing-root"},
		},
		{
			name: "no intermediate", spoil: func(r *Request) { r.Chain = slices.Delete(slices.Clone(r.Chain), 1, 2) },
			want: []string{"error chain.missing-intermediate"},
		},
		{
			name: "root first", spoil: func(r *Request) { slices.Reverse(r.Chain) },
			want: []string{"warning chain.order"},
		},
		{
			name: "unreadable certificate", spoil: func(r *Request) { r.Chain[2] = []byte("no certificate") },
			want: []string{"error chain.missing-root", "error request.chain-certificate"},
		},
		{
			name: "soon expired", spoil: func(*Request) {}, opts: VerifyOptions{Now: k.now.AddDate(0, 0, 350)},
			want: []string{"warning chain.expires-soon"},
		},
		{
			name: "expired", spoil: func(*Request) {}, opts: VerifyOptions{Now: k.now.AddDate(0, 0, 400)},
			want: []string{"error chain.expired"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := k.request(t)
			c.spoil(r)
			data, err := r.Encode(Base64)
			if err != nil {
				t.Fatal(err)
			}
			c.opts.TrustRoots = []*x509.Certificate{k.authority.Root}
			report := Verify(data, c.opts)
			if diff := cmp.Diff(c.want, problems(report)); diff != "" {
				t.Errorf("%s\n%+v", diff, report.Findings)
			}
			wantOK := !slices.ContainsFunc(c.want, func(id string) bool { return id[0] == 'e' })
			if report.OK() != wantOK {
				t.Errorf("OK is %v", report.OK())
			}
			said := slices.ContainsFunc(report.Findings, func(f fault.Finding) bool {
				return bytes.Contains([]byte(f.Message), []byte(c.says)) && f.Fix != ""
			})
			if c.says != "" && !said {
				t.Errorf("nothing says %q: %+v", c.says, report.Findings)
			}
		})
	}
}

// The portal's words for each kind of defect.
func TestVerifyNamesThePortalsError(t *testing.T) {
	k := newKit(t, testpki.VendorOptions{})
	r := k.request(t)
	r.Signature[0] ^= 1
	data, err := r.Encode(Base64)
	if err != nil {
		t.Fatal(err)
	}
	report := Verify(data, VerifyOptions{TrustRoots: []*x509.Certificate{k.authority.Root}, Now: k.now.AddDate(2, 0, 0)})
	portal := map[string]string{}
	for _, f := range report.Findings {
		portal[f.ID] = f.Portal
	}
	want := map[string]string{"request.signature": fault.PortalSignature, "chain.expired": fault.PortalExpired}
	for id, words := range want {
		if portal[id] != words {
			t.Errorf("%s: got %q, want %q", id, portal[id], words)
		}
	}
}

// A vendor certificate of before 2021 was signed with SHA-1 by right.
func TestVerifySHA1OfItsTime(t *testing.T) {
	k := newKit(t, testpki.VendorOptions{NotBefore: time.Date(2019, 1, 1, 0, 0, 0, 0, time.UTC)})
	r := k.request(t)
	r.Signature = sign(t, k.key, r.CSR, crypto.SHA1)
	data, err := r.Encode(Base64)
	if err != nil {
		t.Fatal(err)
	}
	report := Verify(data, VerifyOptions{TrustRoots: []*x509.Certificate{k.authority.Root}, Now: k.now.AddDate(0, 1, 0)})
	if diff := cmp.Diff([]string{"warning request.signature-sha1"}, problems(report)); diff != "" {
		t.Error(diff)
	}
	if report.Digest != crypto.SHA1 {
		t.Errorf("digest %v", report.Digest)
	}
}

// One run names every defect.
func TestVerifyGoesOn(t *testing.T) {
	k := newKit(t, testpki.VendorOptions{})
	r := k.request(t)
	r.Signature = sign(t, k.key, r.CSR, crypto.SHA1)
	r.Chain = r.Chain[:2]
	xml, err := r.Encode(Plist)
	if err != nil {
		t.Fatal(err)
	}
	xml = bytes.ReplaceAll(xml, []byte("-----\n-----"), []byte("----------"))
	report := Verify(xml, VerifyOptions{})
	want := []string{
		"error chain.missing-root", "error request.signature-sha1",
		"warning request.not-base64", "warning request.pem-run-together",
	}
	if diff := cmp.Diff(want, problems(report)); diff != "" {
		t.Error(diff)
	}
}

// A chain with Apple's own root is trusted without being told; the golden one, a test root's, is not.
func TestVerifyTrust(t *testing.T) {
	data := readFile(t, goldenDir+"customer.req")
	if diff := cmp.Diff([]string{"error chain.untrusted"}, problems(Verify(data, VerifyOptions{}))); diff != "" {
		t.Error(diff)
	}
	roots, err := chain.Parse(readFile(t, goldenDir+"root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if report := Verify(data, VerifyOptions{TrustRoots: roots}); !report.OK() {
		t.Errorf("%+v", report.Findings)
	}
}
