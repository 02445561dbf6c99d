// Command azurekms-double runs the double of Azure Key Vault (package azurekmstest) as a process until it is interrupted.
//
//	azurekms-double --ca ca.pem --key mdm-vendor=vendor.key
//
// It writes the CA certificate of the server to a file, and prints its address, the variables for the Azure SDK, and the
// paths of the keys, each on one line. It is for tests: the imported keys are in its memory, and everyone who can reach the
// address can use them.
package main

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"hsmsign/internal/double"
	"hsmsign/signer/azurekms/azurekmstest"
)

func main() { os.Exit(double.Main("azurekms-double", run, os.Args[1:], os.Stdout, os.Stderr)) }

// target is a server whose imported keys have a version that the command line may name, so that documents can.
type target struct {
	*azurekmstest.Server
	version string
}

// AddKey imports a key.
func (t target) AddKey(name string, private *rsa.PrivateKey) (string, error) {
	return t.Add(azurekmstest.Key{Name: name, Version: t.version, Private: private, HSM: true})
}

// run serves until ctx ends.
func run(ctx context.Context, args []string, out io.Writer) error {
	flags, options := double.Flags("azurekms-double", "127.0.0.1:8443", "Sign=throttle,delay=2s,ok,reset")
	caFile := flags.String("ca", "", "`FILE` to write the CA certificate of the server to; required")
	var keys []string
	flags.Func("key", "`NAME[/VERSION]=FILE` with an RSA key (PKCS#8 in PEM) to import; may be repeated",
		func(v string) error { keys = append(keys, v); return nil })
	if err := double.Parse(flags, args, out); err != nil {
		return err
	}
	if *caFile == "" {
		return errors.New("--ca is required: clients must trust the certificate in this file")
	}
	server, err := azurekmstest.NewServer(azurekmstest.Config{Listen: options.Listen, Delay: options.Delay})
	if err != nil {
		return err
	}
	defer server.Close()                                              //nolint:errcheck // the process ends
	if err := os.WriteFile(*caFile, server.CA(), 0o644); err != nil { // #nosec G306 -- a certificate is public
		return err
	}
	lines := append([]string{server.Address()}, server.Environment()...)
	for _, argument := range keys {
		name, path, named := strings.Cut(argument, "=")
		if !named {
			return fmt.Errorf("--key %q: write NAME=FILE", argument)
		}
		name, version, _ := strings.Cut(name, "/")
		line, err := double.Import(target{server, version}, name, path)
		if err != nil {
			return err
		}
		lines = append(lines, line)
	}
	return double.Serve(ctx, server, options, out, lines...)
}
