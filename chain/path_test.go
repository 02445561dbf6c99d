package chain

import (
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
)

type pathCase struct {
	name  string
	certs []*x509.Certificate // leaf first
	path  []string            // common names above the leaf; empty: refused
	id    string
}

// pathsUnder returns graphs of certificates with several paths to the root, or without one.
func pathsUnder(w world, root *ca) []pathCase {
	lost := newCA("lost root", nil, nil)
	inter := newCA("I", root, nil)
	under := func(top *ca, n int) (chain []*x509.Certificate) { // n authorities, the lowest first
		for i := range n {
			top = newCA(fmt.Sprint("level ", i), top, nil)
			chain = append(certs(top.cert), chain...)
		}
		return append(certs(w.leafOf(top)), chain...)
	}
	short, long := under(root, MaxPath-2), under(root, MaxPath-1)

	// The intermediate's better certificate has an issuer that is missing.
	dead := certify("I", inter.key, lost, func(c *x509.Certificate) { c.NotAfter = now.AddDate(9, 0, 0) })
	early := certify("I", inter.key, root, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(time.Hour), now.AddDate(9, 0, 0) })
	otherID := certify("I", inter.key, root, func(c *x509.Certificate) { c.SubjectKeyId = []byte("another") })
	// Two authorities that certified only each other.
	a, b := newCA("A", nil, nil), newCA("B", nil, nil)
	ab, ba := certify("A", a.key, b, nil), certify("B", b.key, a, nil)
	// A root that another root certified, too: the path ends at the trusted one.
	crossed := certify("R", root.key, lost, nil)

	noPath := newCA("no CA below", root, func(c *x509.Certificate) { c.MaxPathLenZero = true })
	below := newCA("below", noPath, nil)
	strange := newCA("strange", root, func(c *x509.Certificate) {
		c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, Critical: true, Value: asn1.NullBytes}}
	})
	notCA := certify("not a CA", inter.key, root, func(c *x509.Certificate) { c.IsCA, c.MaxPathLen = false, -1 })
	expired := newCA("expired", root, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Hour) })

	return []pathCase{
		{"plain", certs(w.leafOf(inter), inter.cert, root.cert), []string{"I", "R"}, ""},
		{"dead end too", certs(w.leafOf(inter), dead.cert, inter.cert, root.cert), []string{"I", "R"}, ""},
		{"dead end only", certs(w.leafOf(inter), dead.cert, root.cert), nil, "chain.missing-root"},
		{"not yet valid too", certs(w.leafOf(inter), early.cert, inter.cert, root.cert), []string{"I", "R"}, ""},
		{"another key id", certs(w.leafOf(inter), otherID.cert, root.cert), nil, "chain.missing-intermediate"},
		{"cross-signed root", certs(w.leafOf(inter), inter.cert, crossed.cert, lost.cert, root.cert), []string{"I", "R"}, ""},
		{"circle", certs(w.leafOf(a), ab.cert, ba.cert), nil, "chain.untrusted"},
		{"longest", append(short, root.cert), []string{"level 5", "level 4", "level 3", "level 2", "level 1", "level 0", "R"}, ""},
		{"too long", append(long, root.cert), nil, "chain.too-long"},
		{"path length", certs(w.leafOf(below), below.cert, noPath.cert, root.cert), nil, "chain.invalid"},
		{"unknown critical extension", certs(w.leafOf(strange), strange.cert, root.cert), nil, "chain.invalid"},
		{"issuer is no CA", certs(w.leafOf(notCA), notCA.cert, root.cert), nil, "chain.signature"},
		{"expired intermediate", certs(w.leafOf(expired), expired.cert, root.cert), nil, "chain.expired"},
	}
}

func TestPaths(t *testing.T) {
	w := newWorld()
	root := newCA("R", nil, nil)
	for _, tt := range pathsUnder(w, root) {
		t.Run(tt.name, func(t *testing.T) {
			opts := Options{Now: now, TrustRoots: certs(root.cert), Key: w.key.Public()}
			c, err := Build(tt.certs[:1], tt.certs[1:], opts)
			checked := fault.First(Check(tt.certs, opts))
			if len(tt.path) == 0 {
				if testkit.FindingID(err) != tt.id || testkit.FindingID(checked) != tt.id {
					t.Errorf("Build: %v; Check: %v; want %s", err, checked, tt.id)
				}
				return
			}
			if err != nil || checked != nil {
				t.Fatalf("Build: %v; Check: %v", err, checked)
			}
			var names []string
			for _, x := range c.Certs[1:] {
				names = append(names, x.Subject.CommonName)
			}
			if diff := cmp.Diff(tt.path, names); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// The path contains authorities that certified each other once.
func TestCircle(t *testing.T) {
	w := newWorld()
	a, b := newCA("A", nil, nil), newCA("B", nil, nil)
	pool := certs(w.leafOf(a), certify("A", a.key, b, nil).cert, certify("B", b.key, a, nil).cert)
	path, complete := climb(pool[0], pool, Options{Now: now})
	if diff := cmp.Diff(subjects(pool), subjects(path)); diff != "" || complete {
		t.Errorf("complete %v (-want +got):\n%s", complete, diff)
	}
}

// Authorities that share a name and a key have as many paths as there are orders. All of them verify and none is trusted.
// Without a limit, Check would not end.
func TestManyPaths(t *testing.T) {
	w := newWorld()
	x := newCA("X", nil, nil)
	pool := certs(w.leafOf(x))
	for range MaxCerts - 1 {
		pool = append(pool, certify("X", x.key, x, nil).cert)
	}
	finding(t, Check(pool, Options{Now: now}), "chain.untrusted")
}

// A certificate can contain an RSA key of any size; a verification with it would take minutes.
func TestHugeKey(t *testing.T) {
	w := newWorld()
	huge := *w.WWDR
	huge.PublicKey = &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), maxKeyBits), E: 65537}
	if err := checkSignature(w.vendor, &huge); err == nil || !strings.Contains(err.Error(), "8193 bits") {
		t.Errorf("error %v, want one about 8193 bits", err)
	}
	leaf := *w.vendor
	leaf.PublicKey = huge.PublicKey
	if f := checkLeaf(&leaf); len(f) != 1 || f[0].ID != "chain.leaf-key" {
		t.Errorf("as leaf: %q, want chain.leaf-key", summary(f))
	}
	if err := checkSignature(w.vendor, w.WWDR); err != nil {
		t.Error(err)
	}
}

// Apple's own certificates form chains.
func TestApple(t *testing.T) {
	opts := Options{Now: now}
	root, rootG3 := testkit.Apple(t, "AppleIncRootCertificate.cer"), testkit.Apple(t, "AppleRootCA-G3.cer")
	for file, want := range map[string]*x509.Certificate{
		"AppleWWDRCAG2.cer": rootG3, "AppleWWDRCAG3.cer": root, "AppleWWDRCAG4.cer": root,
		"AppleWWDRCAG5.cer": root, "AppleWWDRCAG6.cer": rootG3, "AppleAAI2CA.cer": root,
	} {
		c := testkit.Apple(t, file)
		path, complete := climb(c, certs(root, rootG3, testkit.Apple(t, "AppleWWDRCA.cer")), opts)
		if !complete || len(path) != 2 || !path[1].Equal(want) {
			t.Errorf("%s: complete %v, %q", file, complete, subjects(path))
			continue
		}
		if f := append(verify(path, opts), checkDates(path, opts)...); len(f) > 0 {
			t.Errorf("%s: %+v", file, f)
		}
		// Without the root, the finding says where to download it.
		f := incomplete(path[:1], path[:1])
		pin, _ := Lookup(want)
		if f.ID != "chain.missing-root" || !strings.Contains(f.Fix, pin.URL) || !strings.Contains(f.Fix, pin.SHA256) {
			t.Errorf("%s without its root: %+v", file, f)
		}
	}
}

// claim returns a vendor certificate that names one of Apple's as its issuer, without its signature.
func (w world) claim(pin Pin, withKeyID bool) *x509.Certificate {
	subject := testkit.Must(asn1.Marshal(pkix.Name{CommonName: pin.Subject, OrganizationalUnit: []string{pin.Unit}}.ToRDNSequence()))
	parent := &x509.Certificate{RawSubject: subject}
	if withKeyID {
		parent.SubjectKeyId = testkit.Must(hex.DecodeString(pin.KeyID))
	}
	return w.leafOf(&ca{parent, w.WWDRKey})
}

// A finding about a missing issuer names Apple's certificate by name and key id, and says where to download it.
func TestMissingGeneration(t *testing.T) {
	w := newWorld()
	for _, pin := range Pins() {
		if pin.Subject != wwdr {
			continue
		}
		for _, withKeyID := range []bool{true, false} {
			f := finding(t, Check(certs(w.claim(pin, withKeyID)), Options{Now: now}), "chain.missing-intermediate")
			want := []string{"(" + pin.Name + ")", pin.URL, pin.SHA256, "hsmsign chain fetch"}
			if pin.Retired {
				want = []string{"(" + pin.Name + ")", "renew the vendor certificate"}
			}
			for _, m := range want {
				if !strings.Contains(f.Message+"; "+f.Fix, m) {
					t.Errorf("%s (key id %v): %q is not in: %s; %s", pin.Name, withKeyID, m, f.Message, f.Fix)
				}
			}
		}
	}
	// Without Apple's key id, no generation is guessed from the name.
	pin := Pins()[4]
	pin.KeyID = strings.Repeat("00", 20)
	if f := Check(certs(w.claim(pin, true)), Options{Now: now}); slices.ContainsFunc(f, func(f fault.Finding) bool { return strings.Contains(f.Fix, "WWDRCAG") }) {
		t.Errorf("unknown key id: %+v", f)
	}
	// A certificate that the push CA issued is not the vendor's, with any subject.
	if f := Check(certs(w.claim(Pins()[8], true)), Options{Now: now}); f[0].ID != "chain.push-certificate" {
		t.Errorf("issued by %q: %q", Pins()[8].Subject, summary(f))
	}
}

// The expired intermediate has a separate rule, in the path and outside it.
func TestWWDRG1(t *testing.T) {
	g1, root := testkit.Apple(t, "AppleWWDRCA.cer"), testkit.Apple(t, "AppleIncRootCertificate.cer")
	w := newWorld()
	tests := []struct {
		name  string
		certs []*x509.Certificate
		want  []string
	}{
		{"in the chain", certs(g1, root), []string{"error chain.leaf-is-ca", "error chain.wwdr-g1", "note chain.stranger"}},
		{"for G3", certs(w.claim(Pins()[4], true), g1, root),
			[]string{"warning chain.vendor-extension", "error chain.missing-intermediate", "warning chain.wwdr-g1", "note chain.stranger"}},
		{"outside the path", certs(w.vendor, w.WWDR, w.Root, g1), []string{"note chain.trust-root", "warning chain.wwdr-g1"}},
	}
	for _, tt := range tests {
		f := Check(tt.certs, Options{Now: now, TrustRoots: certs(w.Root)})
		if diff := cmp.Diff(tt.want, summary(f)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
		if f := finding(t, f, "chain.wwdr-g1"); !strings.Contains(f.Message, "expired 2023-02-07") || !strings.Contains(f.Fix, "AppleWWDRCAG3.cer") {
			t.Errorf("%s: %+v", tt.name, f)
		}
	}
}
