package agent

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/request"
	"hsmsign/signer"
)

func read(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func goldenChain(t *testing.T) *chain.Chain {
	t.Helper()
	certs, err := chain.Parse(read(t, "golden/chain.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots, err := chain.Parse(read(t, "golden/root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := chain.Build(certs, nil, chain.Options{TrustRoots: roots})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// memoryKey is a key in memory that counts its signatures, and can make a wrong one.
type memoryKey struct {
	*rsa.PrivateKey
	calls  atomic.Int64
	faulty bool
}

func goldenKey(t *testing.T) *memoryKey {
	t.Helper()
	block, _ := pem.Decode(read(t, "golden/vendor.key"))
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return &memoryKey{PrivateKey: key.(*rsa.PrivateKey)}
}

func (k *memoryKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.SignContext(context.Background(), digest, opts)
}

func (k *memoryKey) SignContext(_ context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	k.calls.Add(1)
	sig, err := rsa.SignPKCS1v15(nil, k.PrivateKey, opts.HashFunc(), digest)
	if k.faulty && err == nil {
		sig[0] ^= 1
	}
	return sig, err
}

func (k *memoryKey) Close() error { return nil }

func TestIssueIsGolden(t *testing.T) {
	c, key := goldenChain(t), goldenKey(t)
	p, err := Prepare(c, read(t, "golden/customer.csr"))
	if err != nil {
		t.Fatal(err)
	}
	a, err := New(c, key, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	req, err := a.Issue(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	got, err := req.Encode(request.Base64)
	if err != nil || string(got) != string(read(t, "golden/customer.req")) {
		t.Errorf("not the golden request: %v", err)
	}
}

// A Prepared is redeemed once, however many try at the same time.
func TestPreparedIsRedeemedOnce(t *testing.T) {
	c, key := goldenChain(t), goldenKey(t)
	a, err := New(c, key, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Prepare(c, read(t, "golden/customer.csr"))
	if err != nil {
		t.Fatal(err)
	}
	var issued atomic.Int64
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			if _, err := a.Issue(t.Context(), p); err == nil {
				issued.Add(1)
			}
		})
	}
	group.Wait()
	if issued.Load() != 1 || key.calls.Load() != 1 {
		t.Errorf("%d requests, %d signatures", issued.Load(), key.calls.Load())
	}
}

func TestPrepareRefuses(t *testing.T) {
	c := goldenChain(t)
	for file, id := range map[string]string{
		"csr/key-1024.pem": "csr.key-size", "csr/bad-signature.der": "csr.signature", "golden/vendor.csr": "csr.vendor-key",
	} {
		p, err := Prepare(c, read(t, file))
		var found *fault.Finding
		if !errors.As(err, &found) || found.ID != id || p != nil {
			t.Errorf("%s: got %v, %v; want %s", file, p, err, id)
		}
	}
}

// What was checked against one chain is not signed under another.
func TestIssueWantsItsOwnChain(t *testing.T) {
	key := goldenKey(t)
	a, err := New(goldenChain(t), key, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Prepare(goldenChain(t), read(t, "golden/customer.csr"))
	if err != nil {
		t.Fatal(err)
	}
	if req, err := a.Issue(t.Context(), p); err == nil || req != nil || key.calls.Load() != 0 {
		t.Errorf("got %v, %v after %d signatures", req, err, key.calls.Load())
	}
}

func TestKeyMustBeTheCertificates(t *testing.T) {
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, err = New(goldenChain(t), &memoryKey{PrivateKey: other}, crypto.SHA256)
	var found *fault.Finding
	if !errors.As(err, &found) || found.ID != "chain.key-mismatch" {
		t.Errorf("got %v", err)
	}
}

// A faulty HSM's signature does not get out.
func TestFaultySignature(t *testing.T) {
	c, key := goldenChain(t), goldenKey(t)
	key.faulty = true
	a, err := New(c, key, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Prepare(c, read(t, "golden/customer.csr"))
	if err != nil {
		t.Fatal(err)
	}
	if req, err := a.Issue(t.Context(), p); !errors.Is(err, signer.ErrBadSignature) || req != nil {
		t.Errorf("got %v, %v", req, err)
	}
}
