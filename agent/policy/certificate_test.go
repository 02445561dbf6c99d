package policy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"math/big"
	"strings"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
)

// issued is a client certificate with the given SANs (as in a configuration, and not checked) and its key's pin.
type issued struct {
	*x509.Certificate
	pin string
}

func issue(t *testing.T, from time.Time, lifetime time.Duration, sans ...string) issued {
	t.Helper()
	key := testkit.Value(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "client"}, NotBefore: from, NotAfter: from.Add(lifetime)}
	tags := map[string]int{"email": 1, "dns": 2, "uri": 6, "ip": 7}
	var names []asn1.RawValue
	for _, san := range sans {
		kind, value, _ := strings.Cut(san, ":")
		names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tags[kind], Bytes: []byte(value)})
	}
	if len(names) > 0 {
		template.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: testkit.Value(asn1.Marshal(names))(t)}}
	}
	der := testkit.Value(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))(t)
	cert := testkit.Value(x509.ParseCertificate(der))(t)
	pin := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return issued{cert, hex.EncodeToString(pin[:])}
}

const day = 24 * time.Hour

// A pinned certificate is that of its caller while it is valid, if it is not valid for too long.
func TestPinned(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	short, long, other := issue(t, start, 398*day, "dns:ignored.example"), issue(t, start, 398*day+time.Second), issue(t, start, day)
	caller := CallerConfig{Role: "signer", Owners: []string{"bo"}, ClientCert: ClientCertConfig{SPKI: []string{short.pin, long.pin}}}
	p := policyOf(t, caller, signerRole())
	for _, tt := range []struct {
		name string
		cert issued
		at   time.Time
		want string // "": accepted
	}{
		{"first second", short, start, ""},
		{"last second", short, short.NotAfter, ""},
		{"too early", short, start.Add(-time.Second), "of caller ada is not valid before 2026-01-01"},
		{"expired", short, short.NotAfter.Add(time.Second), "of caller ada expired on 2027-02-03"},
		{"valid for too long", long, start, "of caller ada is valid from 2026-01-01 to 2027-02-03, for more than 398 days"},
		{"unknown", other, start, "the client certificate is not that of a caller"},
	} {
		for _, verified := range []bool{false, true} {
			c, err := p.Certificate(tt.cert.Certificate, verified, tt.at)
			if tt.want == "" {
				if err != nil || c.Caller.Name != "ada" || c.Name != "certificate "+tt.cert.pin[:16] {
					t.Errorf("%s: %+v, %v", tt.name, c, err)
				}
				continue
			}
			if c.Caller != nil || fault.KindOf(err) != fault.Unauthenticated || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v", tt.name, err)
			}
		}
	}
}

// A name of a certificate is that of a caller only if the chain was verified, byte by byte.
func TestSAN(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	pinned := issue(t, start, day, "dns:b.example")
	p := testkit.Value(New(map[string]CallerConfig{
		"ada": {Role: "signer", Person: "ada", ClientCert: ClientCertConfig{SAN: []string{"dns:a.example", "email:ada@a.example", "uri:spiffe://a.example/sign"}}},
		"bo":  {Role: "signer", Person: "bo", ClientCert: ClientCertConfig{SAN: []string{"dns:b.example"}}},
		"coy": {Role: "signer", Person: "coy", ClientCert: ClientCertConfig{SPKI: []string{pinned.pin}}},
	}, map[string]RoleConfig{"signer": signerRole()}, Environment{}))(t)
	for _, tt := range []struct {
		sans []string
		want string // caller, or error
	}{
		{[]string{"dns:a.example"}, "ada"},
		{[]string{"dns:A.Example", "dns:unknown.example"}, "ada"},
		{[]string{"email:ada@a.example", "dns:a.example"}, "ada"},
		{[]string{"email:Ada@a.example"}, "not that of a caller"},
		{[]string{"uri:spiffe://a.example/sign"}, "ada"},
		{[]string{"uri:SPIFFE://a.example/sign"}, "not that of a caller"},
		{[]string{"uri:spiffe://a.example/sign#"}, "not that of a caller"},
		{[]string{"uri:spiffe://a.example/sign/"}, "not that of a caller"},
		{[]string{"uri:spiffe://a.example/%73ign"}, "not that of a caller"},
		{[]string{"uri:spiffe://a.example/sign", "uri:spiffe://other.example/x"}, "not that of a caller"},
		{[]string{"uri:spiffe://a.example/sign", "uri:https://a.example/"}, "not that of a caller"},
		{[]string{"uri:spiffe://a.example/sign", "uri:https://a.example/", "dns:a.example"}, "ada"},
		{[]string{"dns:*.example"}, "not that of a caller"},
		{[]string{"dns:a.example\x00.evil.example"}, "not that of a caller"},
		{[]string{"email:a.example"}, "not that of a caller"},
		{[]string{"dns:a.example", "dns:b.example"}, "is that of the callers ada and bo"},
		{nil, "not that of a caller"},
	} {
		cert := issue(t, start, day, tt.sans...)
		c, err := p.Certificate(cert.Certificate, true, start)
		if err == nil && (c.Caller.Name != tt.want || c.Name != "certificate "+cert.pin[:16]) || err != nil && (fault.KindOf(err) != fault.Unauthenticated || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%q: %+v, %v", tt.sans, c, err)
		}
		if _, err := p.Certificate(cert.Certificate, false, start); err == nil || !strings.Contains(err.Error(), "not that of a caller") {
			t.Errorf("%q, not verified: %v", tt.sans, err)
		}
	}
	if _, err := p.Certificate(pinned.Certificate, true, start); err == nil || !strings.Contains(err.Error(), "is that of the callers coy and bo") {
		t.Errorf("pinned for one caller, named for another: %v", err)
	}
	if c, err := p.Certificate(pinned.Certificate, false, start); err != nil || c.Caller.Name != "coy" {
		t.Errorf("pinned: %+v, %v", c, err)
	}
	if _, err := p.Certificate(issue(t, start, 399*day, "dns:a.example").Certificate, true, start); err == nil || !strings.Contains(err.Error(), "for more than 398 days") {
		t.Errorf("valid for too long: %v", err)
	}
}

func TestCheckSAN(t *testing.T) {
	for san, want := range map[string]bool{
		"dns:a": true, "dns:a-1.example.com": true, "dns:A.example": false, "dns:*.example": false, "dns:a..b": false, "dns:-a": false, "dns:a.": false, "dns:": false,
		"email:a@b.example": true, "email:a": false, "email:a b@c": false, "email:a@b@c": false,
		"uri:spiffe://a.example/x/y-1._": true, "uri:spiffe://a.example": false, "uri:spiffe://a.example/": false, "uri:spiffe://A/x": false, "uri:https://a/x": false,
		"uri:spiffe://a/x/": false, "uri:spiffe://a/../x": false, "uri:spiffe://a/x/..": false, "uri:spiffe://a/./x": false, "uri:spiffe://a/x?y": false, "uri:spiffe://a/%41": false,
		"uri:spiffe://a/" + strings.Repeat("x", maxSAN): false, "ip:10.0.0.1": false, "a.example": false, "": false, "dns:a\nb": false,
	} {
		if err := checkSAN(san); (err == nil) != want || err != nil && fault.KindOf(err) != fault.Usage {
			t.Errorf("%q: %v", san, err)
		}
	}
}

// FuzzSubjectAltNames: each name that is read is in the extension; and there is at most one URI.
func FuzzSubjectAltNames(f *testing.F) {
	for _, names := range [][]asn1.RawValue{nil, {{Class: 2, Tag: 2, Bytes: []byte("a.example")}}, {{Class: 2, Tag: 6, Bytes: []byte("spiffe://a/b")}, {Class: 2, Tag: 6, Bytes: []byte("spiffe://a/c")}}} {
		f.Add(testkit.Must(asn1.Marshal(names)))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		uris := 0
		for _, name := range subjectAltNames(&x509.Certificate{Extensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: value}}}) {
			kind, text, _ := strings.Cut(name, ":")
			if kind == "uri" {
				uris++
			}
			if kind != "dns" && !strings.Contains(string(value), text) || sanForms()[kind] == nil {
				t.Errorf("%q is not in %x", name, value)
			}
		}
		if uris > 1 {
			t.Errorf("%d URIs in %x", uris, value)
		}
	})
}
