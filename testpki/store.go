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
	"time"

	"hsmsign/internal/wholefile"
)

const (
	rootCertFile, rootKeyFile = "root.pem", "root.key"
	wwdrCertFile, wwdrKeyFile = "wwdr.pem", "wwdr.key"
	pushCertFile, pushKeyFile = "integration.pem", "integration.key"

	maxFile = 64 << 10 // bytes of one file that Load reads
)

// Save writes root, wwdr and integration, each as .pem and .key (PKCS#8 PEM, mode 0600), to the folder dir, and creates the
// folder. It does not overwrite: if one of the files exists, it writes nothing and the error wraps fs.ErrExist.
func (a *Authority) Save(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return savePairs(dir,
		pair{rootCertFile, a.Root, rootKeyFile, a.RootKey},
		pair{wwdrCertFile, a.WWDR, wwdrKeyFile, a.WWDRKey},
		pair{pushCertFile, a.Integration, pushKeyFile, a.IntegrationKey})
}

// pair is a certificate with its key, and their files.
type pair struct {
	certFile string
	cert     *x509.Certificate
	keyFile  string
	key      *rsa.PrivateKey
}

// savePairs writes all files or none.
func savePairs(dir string, pairs ...pair) error {
	type file struct {
		path string
		data []byte
		mode fs.FileMode
	}
	var files []file
	for _, p := range pairs {
		key, err := x509.MarshalPKCS8PrivateKey(p.key)
		if err != nil {
			return fmt.Errorf("encode the key for %s: %w", p.keyFile, err)
		}
		files = append(files,
			file{filepath.Join(dir, p.keyFile), pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: key}), 0o600},
			file{filepath.Join(dir, p.certFile), pem.EncodeToMemory(&pem.Block{Type: certBlock, Bytes: p.cert.Raw}), 0o644})
	}
	for i, f := range files {
		if err := wholefile.Write(f.path, f.data, f.mode, false); err != nil {
			for _, made := range files[:i] {
				err = errors.Join(err, os.Remove(made.path))
			}
			return err
		}
	}
	return nil
}

// Load reads the files of Save and checks that keys and certificates match. The error wraps fs.ErrNotExist if a file is
// missing. Load adds Integration to a folder of an older version, which has none.
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
	a.Integration, a.IntegrationKey, err = loadPair(dir, pushCertFile, pushKeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		if err := a.addIntegration(time.Now().Add(-time.Hour)); err != nil {
			return nil, err
		}
		return &a, savePairs(dir, pair{pushCertFile, a.Integration, pushKeyFile, a.IntegrationKey})
	}
	if err != nil {
		return nil, err
	}
	if err := a.Integration.CheckSignatureFrom(a.Root); err != nil {
		return nil, fmt.Errorf("load the test PKI: %s was not issued by %s in %q: %w", pushCertFile, rootCertFile, dir, err)
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
		return nil, nil, fmt.Errorf("load the test PKI: the key in %s does not match the certificate in %s (folder %q)", keyFile, certFile, dir)
	}
	return cert, key, nil
}

const (
	certBlock = "CERTIFICATE"
	keyBlock  = "PRIVATE KEY"
)

// loadBlock returns the content of a file with exactly one PEM block of this type.
func loadBlock(path, block string) ([]byte, error) {
	f, err := os.Open(path) // #nosec G304 -- the caller chooses the folder
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
		return nil, fmt.Errorf("load the test PKI: %q is not one %s block", path, block)
	}
	return b.Bytes, nil
}
