package main

import (
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"strconv"

	"hsmsign/chain"
	"hsmsign/config"
	"hsmsign/fault"
	"hsmsign/internal/input"
	"hsmsign/secret"
	"hsmsign/server"
	"hsmsign/server/authn"
)

// readTLS reads the certificate of the service and the CAs of its callers; nil if there are none. files is the hash of what was
// read.
func readTLS(s *settings) (_ *server.TLS, files [sha256.Size]byte, err error) {
	from := s.config.Serve
	if from.TLS == (config.TLS{}) && from.CRL == "" {
		return nil, files, nil
	}
	refused := func(what string, err error) error {
		return fault.Usage.Errorf("%s: serve: %s: %w", s.path, what, err).Fix("name a readable file; see docs/service.md")
	}
	if from.TLS.Cert == "" || from.TLS.Key == "" {
		return nil, files, fault.Usage.Errorf("%s: serve: tls: without cert or key", s.path).Fix("write tls: { cert: FILE, key: FILE }")
	}
	cert, err := input.File(from.TLS.Cert, chain.MaxFile)
	if err != nil {
		return nil, files, refused("tls: cert "+strconv.Quote(from.TLS.Cert), err)
	}
	key, err := (secret.Reader{Getenv: s.getenv}).ReadFile(from.TLS.Key, maxTLSKey)
	if err != nil {
		return nil, files, refused("tls: key "+strconv.Quote(from.TLS.Key), err)
	}
	defer clear(key)
	t := &server.TLS{}
	if t.Certificate, err = tls.X509KeyPair(cert, key); err != nil {
		return nil, files, fault.Usage.Errorf("%s: serve: %w", s.path, err).Fix("name a certificate in PEM, and its key")
	}
	hash := sha256.New()
	for _, data := range [][]byte{cert, key} {
		hash.Write(data)
	}
	if from.TLS.ClientCA == "" && from.CRL != "" {
		return nil, files, fault.Usage.Errorf("%s: serve: crl without tls: client-ca", s.path).Fix("a CRL is about certificates under a CA; remove it, or name the CA")
	}
	if from.TLS.ClientCA != "" {
		read, err := readClients(t, from)
		if err != nil {
			return nil, files, refused("tls: client-ca "+strconv.Quote(from.TLS.ClientCA), err)
		}
		hash.Write(read)
	}
	return t, [sha256.Size]byte(hash.Sum(nil)), nil
}

// readClients reads the CAs of callers and their CRLs, and returns what it read.
func readClients(t *server.TLS, from config.Serve) ([]byte, error) {
	ca, err := input.File(from.TLS.ClientCA, chain.MaxFile)
	if err != nil {
		return nil, err
	}
	var crl []byte
	if from.CRL != "" {
		if crl, err = input.File(from.CRL, maxCRL); err != nil {
			return nil, fmt.Errorf("crl %q: %w", from.CRL, err)
		}
	}
	certs, err := chain.Parse(ca)
	if err == nil {
		t.Clients, err = authn.NewAuthorities(certs, crl)
	}
	return append(ca, crl...), err
}

const (
	maxTLSKey = 16 << 10 // bytes of the file with the key
	maxCRL    = 16 << 20 // bytes of the file with CRLs
)
