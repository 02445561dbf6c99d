package authn

import (
	"bytes"
	"crypto/x509"
	"slices"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
)

func TestAuthorities(t *testing.T) {
	now := time.Now()
	ca, other := testkit.NewCA(t, "callers"), testkit.NewCA(t, "others")
	good, revoked := ca.Issue(t, "good", nil).Leaf, ca.Issue(t, "revoked", nil).Leaf
	foreign := other.Issue(t, "good", nil).Leaf
	server := ca.Issue(t, "server", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }).Leaf
	expired := ca.Issue(t, "expired", func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) }).Leaf
	crl := slices.Concat(ca.CRL(t, now.Add(time.Hour), revoked), other.CRL(t, now.Add(-time.Minute)))
	for _, tt := range []struct {
		name string
		cas  []*x509.Certificate
		crl  []byte
		cert *x509.Certificate
		ok   bool
	}{
		{"good", []*x509.Certificate{ca.Cert}, nil, good, true},
		{"foreign", []*x509.Certificate{ca.Cert}, nil, foreign, false},
		{"a server's", []*x509.Certificate{ca.Cert}, nil, server, false},
		{"expired", []*x509.Certificate{ca.Cert}, nil, expired, false},
		{"not checked", []*x509.Certificate{ca.Cert}, nil, revoked, true},
		{"not revoked", []*x509.Certificate{ca.Cert, other.Cert}, crl, good, true},
		{"revoked", []*x509.Certificate{ca.Cert, other.Cert}, crl, revoked, false},
		{"an expired CRL", []*x509.Certificate{ca.Cert, other.Cert}, crl, foreign, false},
	} {
		a, err := NewAuthorities(tt.cas, tt.crl)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if err := a.Verify([]*x509.Certificate{tt.cert}, now); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	if err := (*Authorities)(nil).Verify([]*x509.Certificate{good}, now); err == nil {
		t.Error("accepted without CAs")
	}
}

func TestAuthoritiesRefuse(t *testing.T) {
	ca, other := testkit.NewCA(t, "callers"), testkit.NewCA(t, "others")
	until := time.Now().Add(time.Hour)
	list := ca.CRL(t, until)
	forged := bytes.Clone(testkit.Value(x509.ParseRevocationList(blocks(list)[0]))(t).Raw)
	forged[len(forged)-1] ^= 1
	for name, tt := range map[string]struct {
		cas []*x509.Certificate
		crl []byte
	}{
		"not a CA":        {[]*x509.Certificate{ca.Issue(t, "leaf", nil).Leaf}, nil},
		"a CA without":    {[]*x509.Certificate{ca.Cert, other.Cert}, list},
		"of another CA":   {[]*x509.Certificate{ca.Cert}, other.CRL(t, until)},
		"twice":           {[]*x509.Certificate{ca.Cert}, slices.Concat(list, list)},
		"empty":           {[]*x509.Certificate{ca.Cert}, []byte{}},
		"not a CRL":       {[]*x509.Certificate{ca.Cert}, []byte("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n")},
		"forged":          {[]*x509.Certificate{ca.Cert}, forged},
		"its certificate": {[]*x509.Certificate{ca.Cert}, ca.Cert.Raw},
	} {
		if _, err := NewAuthorities(tt.cas, tt.crl); fault.KindOf(err) != fault.Usage {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// NextUpdate is that of the first list.
func TestNextUpdate(t *testing.T) {
	ca, other := testkit.NewCA(t, "callers"), testkit.NewCA(t, "others")
	first, last := time.Now().Add(time.Hour).UTC().Truncate(time.Second), time.Now().Add(2*time.Hour)
	for _, crl := range [][]byte{slices.Concat(ca.CRL(t, first), other.CRL(t, last)), slices.Concat(ca.CRL(t, last), other.CRL(t, first))} {
		a := testkit.Value(NewAuthorities([]*x509.Certificate{ca.Cert, other.Cert}, crl))(t)
		if got := a.NextUpdate(); !got.Equal(first) {
			t.Errorf("%v, want %v", got, first)
		}
	}
	var none *Authorities
	if !none.NextUpdate().IsZero() || !testkit.Value(NewAuthorities([]*x509.Certificate{ca.Cert}, nil))(t).NextUpdate().IsZero() {
		t.Error("a date without a list")
	}
}
