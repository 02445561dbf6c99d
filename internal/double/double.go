// Package double is what the programs of the KMS doubles share, so that they are alike for whoever starts them.
package double

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
)

// Parse reads the flags. Help goes to out, and is the error flag.ErrHelp.
func Parse(flags *flag.FlagSet, args []string, out io.Writer) error {
	flags.SetOutput(io.Discard) // an error is told by main, once
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		flags.SetOutput(out)
		flags.Usage()
	case err == nil && flags.NArg() > 0:
		err = fmt.Errorf("%q is no flag", flags.Arg(0))
	}
	return err
}

// ReadKey reads an RSA key from a file of PKCS#8 in PEM.
func ReadKey(path string) (*rsa.PrivateKey, error) {
	text, err := os.ReadFile(path) // #nosec G304 -- the file that the user names
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("%q: no private key in PKCS#8 and PEM", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", path, err)
	}
	private, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%q: a key of type %T, not RSA", path, parsed)
	}
	return private, nil
}
