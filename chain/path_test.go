package chain

import (
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
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

// pathsUnder: graphs of certificates with more than one way up to the root, or none.
func pathsUnder(t *testing.T, w world, root *ca) []pathCase {
	t.Helper()
	lost := newCA(t, "lost root", nil, nil)
	inter := newCA(t, "I", root, nil)
	under := func(top *ca, n int) (chain []*x509.Certificate) { // n authorities, the lowest first
		for i := range n {
			top = newCA(t, fmt.Sprint("level ", i), top, nil)
			chain = append(certs(top.cert), chain...)
		}
		return append(certs(w.leafOf(t, top)), chain...)
	}
	short, long := under(root, MaxPath-2), under(root, MaxPath-1)

	// The intermediate's better certificate leads to a root that nobody has.
	dead := certify(t, "I", inter.key, lost, func(c *x509.Certificate) { c.NotAfter = now.AddDate(9, 0, 0) })
	early := certify(t, "I", inter.key, root, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(time.Hour), now.AddDate(9, 0, 0) })
	otherID := certify(t, "I", inter.key, root, func(c *x509.Certificate) { c.SubjectKeyId = []byte("another") })
	// Two authorities that certified each other, and nobody else them.
	a, b := newCA(t, "A", nil, nil), newCA(t, "B", nil, nil)
	ab, ba := certify(t, "A", a.key, b, nil), certify(t, "B", b.key, a, nil)
	// A root that another root certified, too: the way ends at the trusted one.
	crossed := certify(t, "R", root.key, lost, nil)

	noPath := newCA(t, "no CA below", root, func(c *x509.Certificate) { c.MaxPathLenZero = true })
	below := newCA(t, "below", noPath, nil)
	strange := newCA(t, "strange", root, func(c *x509.Certificate) {
		c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, Critical: true, Value: asn1.NullBytes}}
	})
	notCA := certify(t, "not a CA", inter.key, root, func(c *x509.Certificate) { c.IsCA, c.MaxPathLen = false, -1 })
	expired := newCA(t, "expired", root, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Hour) })

	return []pathCase{
		{"plain", certs(w.leafOf(t, inter), inter.cert, root.cert), []string{"I", "R"}, ""},
		{"dead end beside", certs(w.leafOf(t, inter), dead.cert, inter.cert, root.cert), []string{"I", "R"}, ""},
		{"dead end only", certs(w.leafOf(t, inter), dead.cert, root.cert), nil, "chain.missing-root"},
		{"not yet valid beside", certs(w.leafOf(t, inter), early.cert, inter.cert, root.cert), []string{"I", "R"}, ""},
		{"another key id", certs(w.leafOf(t, inter), otherID.cert, root.cert), nil, "chain.missing-intermediate"},
		{"cross-signed root", certs(w.leafOf(t, inter), inter.cert, crossed.cert, lost.cert, root.cert), []string{"I", "R"}, ""},
		{"circle", certs(w.leafOf(t, a), ab.cert, ba.cert), nil, "chain.untrusted"},
		{"longest", append(short, root.cert), []string{"level 5", "level 4", "level 3", "level 2", "level 1", "level 0", "R"}, ""},
		{"too long", append(long, root.cert), nil, "chain.too-long"},
		{"path length", certs(w.leafOf(t, below), below.cert, noPath.cert, root.cert), nil, "chain.invalid"},
		{"unknown critical extension", certs(w.leafOf(t, strange), strange.cert, root.cert), nil, "chain.invalid"},
		{"issuer is no CA", certs(w.leafOf(t, notCA), notCA.cert, root.cert), nil, "chain.signature"},
		{"expired intermediate", certs(w.leafOf(t, expired), expired.cert, root.cert), nil, "chain.expired"},
	}
}

func TestPaths(t *testing.T) {
	w := newWorld(t)
	root := newCA(t, "R", nil, nil)
	for _, tt := range pathsUnder(t, w, root) {
		t.Run(tt.name, func(t *testing.T) {
			opts := Options{Now: now, TrustRoots: certs(root.cert), Key: w.key.Public()}
			c, err := Build(tt.certs[:1], tt.certs[1:], opts)
			checked := fault.First(Check(tt.certs, opts))
			if len(tt.path) == 0 {
				var f *fault.Finding
				if !errors.As(err, &f) || f.ID != tt.id {
					t.Errorf("Build: %v, want %s", err, tt.id)
				}
				if !errors.As(checked, &f) || f.ID != tt.id {
					t.Errorf("Check: %v, want %s", checked, tt.id)
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

// TestCircle: authorities that certified each other stand once in the path.
func TestCircle(t *testing.T) {
	w := newWorld(t)
	a, b := newCA(t, "A", nil, nil), newCA(t, "B", nil, nil)
	pool := certs(w.leafOf(t, a), certify(t, "A", a.key, b, nil).cert, certify(t, "B", b.key, a, nil).cert)
	path, complete := climb(pool[0], pool, Options{Now: now})
	if diff := cmp.Diff(subjects(pool), subjects(path)); diff != "" || complete {
		t.Errorf("complete %v (-want +got):\n%s", complete, diff)
	}
}

// TestManyPaths: authorities that share a name and a key have as many paths as there are orders. All of them
// verify, none is trusted, and it must end soon nevertheless.
func TestManyPaths(t *testing.T) {
	w := newWorld(t)
	x := newCA(t, "X", nil, nil)
	pool := certs(w.leafOf(t, x))
	for range MaxCerts - 1 {
		pool = append(pool, certify(t, "X", x.key, x, nil).cert)
	}
	start := time.Now()
	findings := Check(pool, Options{Now: now})
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	if got := summary(findings); !slices.Contains(got, "error chain.untrusted") {
		t.Errorf("%q, want error chain.untrusted among them", got)
	}
}

// TestHugeKey: a certificate may claim an RSA key of any size; verifying with it would take minutes.
func TestHugeKey(t *testing.T) {
	w := newWorld(t)
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

// TestApple uses Apple's own certificates, where they are at hand.
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
		// Without the root, the finding says where to get it.
		f := incomplete(path[:1], path[:1])
		pin, _ := Lookup(want)
		if len(f) != 1 || f[0].ID != "chain.missing-root" || !strings.Contains(f[0].Fix, pin.URL) || !strings.Contains(f[0].Fix, pin.SHA256) {
			t.Errorf("%s without its root: %+v", file, f)
		}
	}
}

// claim is a vendor certificate that says it was issued by one of Apple's. Nobody but Apple can sign it so.
func (w world) claim(t testing.TB, pin Pin, withKeyID bool) *x509.Certificate {
	t.Helper()
	subject, err := asn1.Marshal(pkix.Name{CommonName: pin.Subject, OrganizationalUnit: []string{pin.Unit}}.ToRDNSequence())
	if err != nil {
		t.Fatal(err)
	}
	parent := &x509.Certificate{RawSubject: subject}
	if withKeyID {
		if parent.SubjectKeyId, err = hex.DecodeString(pin.KeyID); err != nil {
			t.Fatal(err)
		}
	}
	return w.leafOf(t, &ca{parent, w.WWDRKey})
}

// TestMissingGeneration: what issued the leaf is told by name and key id, and the finding says where to get it.
func TestMissingGeneration(t *testing.T) {
	w := newWorld(t)
	for _, pin := range Pins() {
		if pin.Subject != wwdr {
			continue
		}
		for _, withKeyID := range []bool{true, false} {
			f := Check(certs(w.claim(t, pin, withKeyID)), Options{Now: now})
			i := slices.IndexFunc(f, func(f fault.Finding) bool { return f.ID == "chain.missing-intermediate" })
			if i < 0 {
				t.Errorf("%s: %q", pin.Name, summary(f))
				continue
			}
			want := []string{"(" + pin.Name + ")", pin.URL, pin.SHA256, "hsmsign chain fetch"}
			if pin.Retired {
				want = []string{"(" + pin.Name + ")", "renew the vendor certificate"}
			}
			for _, m := range want {
				if !strings.Contains(f[i].Message+"; "+f[i].Fix, m) {
					t.Errorf("%s (key id %v): %q does not stand in: %s; %s", pin.Name, withKeyID, m, f[i].Message, f[i].Fix)
				}
			}
		}
	}
	// A key id that is none of Apple's: no generation is guessed from the name.
	pin := Pins()[4]
	pin.KeyID = strings.Repeat("00", 20)
	if f := Check(certs(w.claim(t, pin, true)), Options{Now: now}); slices.ContainsFunc(f, func(f fault.Finding) bool { return strings.Contains(f.Fix, "WWDRCAG") }) {
		t.Errorf("unknown key id: %+v", f)
	}
	// What the push CA issued is no vendor's, whatever its subject says.
	if f := Check(certs(w.claim(t, Pins()[8], true)), Options{Now: now}); f[0].ID != "chain.push-certificate" {
		t.Errorf("issued by %q: %q", Pins()[8].Subject, summary(f))
	}
}

// TestWWDRG1: the expired intermediate has a rule of its own, in the chain and beside it.
func TestWWDRG1(t *testing.T) {
	g1, root := testkit.Apple(t, "AppleWWDRCA.cer"), testkit.Apple(t, "AppleIncRootCertificate.cer")
	w := newWorld(t)
	tests := []struct {
		name  string
		certs []*x509.Certificate
		want  []string
	}{
		{"in the chain", certs(g1, root), []string{"error chain.leaf-is-ca", "error chain.wwdr-g1", "note chain.stranger"}},
		{"for G3", certs(w.claim(t, Pins()[4], true), g1, root),
			[]string{"warning chain.vendor-extension", "error chain.missing-intermediate", "warning chain.wwdr-g1", "note chain.stranger"}},
		{"beside", certs(w.vendor, w.WWDR, w.Root, g1), []string{"note chain.trust-root", "warning chain.wwdr-g1"}},
	}
	for _, tt := range tests {
		f := Check(tt.certs, Options{Now: now, TrustRoots: certs(w.Root)})
		if diff := cmp.Diff(tt.want, summary(f)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
		i := slices.IndexFunc(f, func(f fault.Finding) bool { return f.ID == "chain.wwdr-g1" })
		if i < 0 || !strings.Contains(f[i].Message, "expired 2023-02-07") || !strings.Contains(f[i].Fix, "AppleWWDRCAG3.cer") {
			t.Errorf("%s: %+v", tt.name, f)
		}
	}
}
