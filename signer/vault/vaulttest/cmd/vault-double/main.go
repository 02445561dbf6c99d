// Command vault-double runs the double of Vault's transit engine (package vaulttest) as a process until it is interrupted.
//
//	vault-double --key vendor=vendor.key
//
// It prints its address, the token that it accepts, and the references of the keys without their scheme and host, each on
// one line. It is for tests: the imported keys are in its memory, and everyone who can reach the address can use them.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"hsmsign/internal/double"
	"hsmsign/signer/vault/vaulttest"
)

func main() { os.Exit(double.Main("vault-double", run, os.Args[1:], os.Stdout, os.Stderr)) }

// run serves until ctx ends.
func run(ctx context.Context, args []string, out io.Writer) error {
	flags, options := double.Flags("vault-double", "127.0.0.1:8200", "Sign=throttle,delay=2s,ok,reset")
	caFile := flags.String("ca", "", "speak TLS, and write the CA certificate of the server to `FILE`")
	var keys []string
	flags.Func("key", "`NAME=FILE` with an RSA key (PKCS#8 in PEM) to import into the mount \"transit\"; may be repeated",
		func(v string) error { keys = append(keys, v); return nil })
	if err := double.Parse(flags, args, out); err != nil {
		return err
	}
	server, err := vaulttest.NewServer(vaulttest.Config{Listen: options.Listen, Delay: options.Delay, TLS: *caFile != ""})
	if err != nil {
		return err
	}
	defer server.Close() //nolint:errcheck // the process ends
	if *caFile != "" {
		if err := os.WriteFile(*caFile, server.CA(), 0o644); err != nil { // #nosec G306 -- a certificate is public
			return err
		}
	}
	lines := []string{server.Address(), "VAULT_TOKEN=" + vaulttest.Token}
	for _, argument := range keys {
		name, path, named := strings.Cut(argument, "=")
		if !named {
			return fmt.Errorf("--key %q: write NAME=FILE", argument)
		}
		line, err := double.Import(server, name, path)
		if err != nil {
			return err
		}
		lines = append(lines, line)
	}
	return double.Serve(ctx, server, options, out, lines...)
}
