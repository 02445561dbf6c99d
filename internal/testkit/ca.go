package testkit

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// CA issues TLS certificates for tests. Safe for concurrent use.
type CA struct {
	Cert *x509.Certificate
	key  *ecdsa.PrivateKey
	last atomic.Int64 // serial number
}

// NewCA returns a CA of a name, valid for an hour before and 90 days after now.
func NewCA(t testing.TB, name string) *CA {
	t.Helper()
	ca := &CA{key: Value(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(0, 0, 90),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte(name),
	}
	ca.last.Store(1)
	ca.Cert = Value(x509.ParseCertificate(Value(x509.CreateCertificate(rand.Reader, template, template, ca.key.Public(), ca.key))(t)))(t)
	return ca
}

// Issue returns a certificate with a new key, for servers at localhost and for clients, valid as long as the CA. change, if it is
// not nil, changes it before it is signed.
func (ca *CA) Issue(t testing.TB, name string, change func(c *x509.Certificate)) tls.Certificate {
	t.Helper()
	return ca.IssueFor(t, Value(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t), name, change)
}

// IssueFor is Issue for a key.
func (ca *CA) IssueFor(t testing.TB, key crypto.Signer, name string, change func(c *x509.Certificate)) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(ca.last.Add(1)), Subject: pkix.Name{CommonName: name}, NotBefore: ca.Cert.NotBefore, NotAfter: ca.Cert.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	if change != nil {
		change(template)
	}
	der := Value(x509.CreateCertificate(rand.Reader, template, ca.Cert, key.Public(), ca.key))(t)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: Value(x509.ParseCertificate(der))(t)}
}

// CRL returns a list of revoked certificates, PEM, that is valid until a time.
func (ca *CA) CRL(t testing.TB, until time.Time, revoked ...*x509.Certificate) []byte {
	t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(ca.last.Add(1)), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: until}
	for _, c := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now()})
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: Value(x509.CreateRevocationList(rand.Reader, list, ca.Cert, ca.key))(t)})
}

// PEM returns a certificate, and its private key, as PEM.
func PEM(t testing.TB, c tls.Certificate) (cert, key []byte) {
	t.Helper()
	for _, der := range c.Certificate {
		cert = append(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	if c.PrivateKey != nil {
		key = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: Value(x509.MarshalPKCS8PrivateKey(c.PrivateKey))(t)})
	}
	return cert, key
}
