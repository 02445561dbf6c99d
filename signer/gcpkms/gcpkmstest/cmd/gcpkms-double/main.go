// Command gcpkms-double runs the double of Google Cloud KMS (package gcpkmstest) as a process until it is interrupted:
//
//	gcpkms-double --key vendor.key &
//	hsmsign key test --key 'gcpkms://projects/test/locations/global/keyRings/mdm/cryptoKeys/vendor/cryptoKeyVersions/1?endpoint=127.0.0.1:9010'
//
// It prints its address on one line. It is for tests: the imported key is in its memory, and everyone who can reach the
// address can use it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"hsmsign/internal/double"
	"hsmsign/signer/gcpkms/gcpkmstest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "gcpkms-double:", err)
		stop()
		os.Exit(1)
	}
}

// run serves until ctx ends.
func run(ctx context.Context, args []string, out io.Writer) error {
	flags, options := double.Flags("gcpkms-double", "127.0.0.1:9010", "AsymmetricSign=throttle,delay=2s,ok")
	generation := flags.Duration("generation", 0, "`TIME` that a new key is PENDING_GENERATION, such as 5s")
	name := flags.String("name", "projects/test/locations/global/keyRings/mdm/cryptoKeys/vendor/cryptoKeyVersions/1", "resource `NAME` of the key of --key")
	file := flags.String("key", "", "`FILE` with an RSA key (PKCS#8 in PEM) to import")
	if err := double.Parse(flags, args, out); err != nil {
		return err
	}
	server, err := gcpkmstest.NewServer(gcpkmstest.Config{Listen: options.Listen, Delay: options.Delay, Generation: *generation})
	if err != nil {
		return err
	}
	defer server.Close() //nolint:errcheck // the process ends
	if *file != "" {
		if _, err := double.Import(server, *name, *file); err != nil {
			return err
		}
	}
	return double.Serve(ctx, server, options, out, server.Addr())
}
