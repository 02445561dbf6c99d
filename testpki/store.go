package testpki

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	rootCertFile, rootKeyFile = "root.pem", "root.key"
	wwdrCertFile, wwdrKeyFile = "wwdr.pem", "wwdr.key"

	maxFile = 64 << 10 // bytes of one file that Load reads
)

// Save writes root.pem, wwdr.pem, root.key and wwdr.key (PKCS#8 PEM, mode 0600) to the folder dir, which it
// makes if need be. It never overwrites: where one of the four is there already nothing is written and the
// error wraps fs.ErrExist.
func (a *Authority) Save(dir string) error {
	rootKey, err := x509.MarshalPKCS8PrivateKey(a.RootKey)
	if err != nil {
		return fmt.Errorf("encode the test root's key: %w", err)
	}
	wwdrKey, err := x509.MarshalPKCS8PrivateKey(a.WWDRKey)
	if err != nil {
		return fmt.Errorf("encode the test WWDR's key: %w", err)
	}
	files := []struct {
		name, block string
		der         []byte
		mode        fs.FileMode
	}{
		{rootKeyFile, keyBlock, rootKey, 0o600},
		{wwdrKeyFile, keyBlock, wwdrKey, 0o600},
		{rootCertFile, certBlock, a.Root.Raw, 0o644},
		{wwdrCertFile, certBlock, a.WWDR.Raw, 0o644},
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, f := range files {
		path := filepath.Join(dir, f.name)
		if _, err := os.Lstat(path); err == nil {
			return &fs.PathError{Op: "save the test PKI", Path: path, Err: fs.ErrExist}
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, f := range files {
		if err := writeNew(filepath.Join(dir, f.name), pem.EncodeToMemory(&pem.Block{Type: f.block, Bytes: f.der}), f.mode); err != nil {
			return err
		}
	}
	return nil
}

// writeNew: O_EXCL holds "never overwrites" against another process, too.
func writeNew(path string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode) // #nosec G304 -- the folder is the caller's own
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// Load reads what Save wrote and checks that keys and certificates belong together. The error wraps
// fs.ErrNotExist when a file is missing.
func Load(dir string) (*Authority, error) {
	var a Authority
	var err error
	if a.Root, a.RootKey, err = loadPair(dir, rootCertFile, rootKeyFile); err != nil {
		return nil, err
	}
	if a.WWDR, a.WWDRKey, err = loadPair(dir, wwdrCertFile, wwdrKeyFile); err != nil {
		return nil, err
	}
	if a.Root.Subject.CommonName != rootName {
		return nil, fmt.Errorf("load the test PKI: %q in %s is not the root of a test PKI", a.Root.Subject.CommonName, filepath.Join(dir, rootCertFile))
	}
	if err := a.WWDR.CheckSignatureFrom(a.Root); err != nil {
		return nil, fmt.Errorf("load the test PKI: %s was not issued by %s in %q: %w", wwdrCertFile, rootCertFile, dir, err)
	}
	return &a, nil
}

func loadPair(dir, certFile, keyFile string) (*x509.Certificate, *rsa.PrivateKey, error) {
	der, err := loadBlock(filepath.Join(dir, certFile), certBlock)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("load the test PKI: %q: %w", filepath.Join(dir, certFile), err)
	}
	der, err = loadBlock(filepath.Join(dir, keyFile), keyBlock)
	if err != nil {
		return nil, nil, err
	}
	defer clear(der)
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, nil, fmt.Errorf("load the test PKI: %q is not a PKCS#8 private key", filepath.Join(dir, keyFile))
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, nil, fmt.Errorf("load the test PKI: the key in %s is not that of the certificate in %s (folder %q)", keyFile, certFile, dir)
	}
	return cert, key, nil
}

const (
	certBlock = "CERTIFICATE"
	keyBlock  = "PRIVATE KEY"
)

// loadBlock reads a file of exactly one PEM block of the type given.
func loadBlock(path, block string) ([]byte, error) {
	f, err := os.Open(path) // #nosec G304 -- the folder is the caller's own
	if err != nil {
		return nil, fmt.Errorf("load the test PKI: %w", err)
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, fmt.Errorf("load the test PKI: %w", err)
	}
	b, rest := pem.Decode(data)
	if b == nil || b.Type != block || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("load the test PKI: %q does not hold one %s block", path, block)
	}
	return b.Bytes, nil
}
