package file

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"hsmsign/internal/filekind"
	"hsmsign/internal/strictder"
	"hsmsign/secret"
	"hsmsign/signer"
)

// maxEntries limits the entries of a folder.
const maxEntries = 1000

// The forms of a key file, as List shows them.
const (
	formPKCS8     = "PKCS#8"
	formEncrypted = "encrypted PKCS#8"
	formPKCS1     = "PKCS#1"
	formPKCS12    = "PKCS#12"
	formOldPEM    = "encrypted PEM (RFC 1421)"
)

// List describes the key in the file that the reference names, or the keys in the folder; other files there are skipped.
// It asks for no passphrase, so the size and the public key of an encrypted key are unknown.
func (s *session) List(ctx context.Context) ([]signer.KeyInfo, error) {
	stat, err := os.Stat(s.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: %w", signer.ErrKeyNotFound, err)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", signer.ErrUnavailable, err)
	case !stat.IsDir():
		info, err := s.info(ctx, s.path, s.ref.Without("unencrypted").String()) // which is for Generate only
		return []signer.KeyInfo{info}, withHint(err)
	}
	entries, err := os.ReadDir(s.path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", signer.ErrUnavailable, err)
	}
	if len(entries) > maxEntries {
		return nil, fmt.Errorf("%w: the folder %q has %d entries; the limit is %d", signer.ErrUnsupported, s.path, len(entries), maxEntries)
	}
	special := func(c byte) bool { return c <= ' ' || c == 0x7f || c == '%' || c == '?' } // in a reference
	var infos []signer.KeyInfo
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		path := filepath.Join(s.path, e.Name())
		if info, err := s.info(ctx, path, "file:"+signer.Escape(path, special)); err == nil {
			infos = append(infos, info)
		}
	}
	return infos, nil
}

// info describes the key in one file.
func (s *session) info(ctx context.Context, path, ref string) (signer.KeyInfo, error) {
	stat, err := os.Stat(path)
	if err != nil {
		return signer.KeyInfo{}, fmt.Errorf("%w: %w", signer.ErrBadKey, err)
	}
	// The mode is reported; Open checks it.
	data, err := secret.ReadFile(path, maxFile, true)
	if err != nil {
		return signer.KeyInfo{}, fmt.Errorf("%w: %w", signer.ErrBadKey, err)
	}
	defer clear(data)
	block, err := s.keyBlock(data)
	if err != nil {
		return signer.KeyInfo{}, err
	}
	defer clear(block.Bytes)
	form := formOf(block)
	if form == "" {
		return signer.KeyInfo{}, fmt.Errorf("%w: the file contains no private key", signer.ErrBadKey)
	}
	encrypted, yesNo := isEncrypted(form), map[bool]string{true: "yes", false: "no"}
	info := signer.KeyInfo{Ref: ref, Store: path, Label: filepath.Base(path), Properties: []signer.Property{
		{Name: "form", Value: form}, {Name: "encrypted", Value: yesNo[encrypted]}, {Name: "mode", Value: fmt.Sprintf("%04o", stat.Mode().Perm())},
	}}
	if encrypted {
		return info, nil
	}
	private, err := s.parse(ctx, block)
	if err != nil {
		return signer.KeyInfo{}, err
	}
	info.Algorithm, info.Bits, info.Public = "RSA", private.N.BitLen(), &private.PublicKey
	info.Cert = certificateOf(&private.PublicKey, data)
	return info, nil
}

// isEncrypted returns whether a key of this form has a passphrase.
func isEncrypted(form string) bool {
	return form == formEncrypted || form == formPKCS12 || form == formOldPEM
}

// formOf returns the form of a key, or "" for anything else.
func formOf(block *pem.Block) string {
	switch s := filekind.Shape(block.Bytes); {
	case strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED"):
		return formOldPEM
	case strings.HasPrefix(s, "iso"):
		return formPKCS8
	case strings.HasPrefix(s, "iiiiiiiii"):
		return formPKCS1
	case s == "so":
		return formEncrypted
	case s == "is" || s == "iss":
		return formPKCS12
	}
	return ""
}

// certificateOf returns the certificate of the key among the PEM blocks of its file, or nil.
func certificateOf(public *rsa.PublicKey, data []byte) *x509.Certificate {
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		if cert, err := strictder.ParseCertificate(block.Bytes); err == nil && public.Equal(cert.PublicKey) {
			return cert
		}
	}
	return nil
}
