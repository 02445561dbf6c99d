// Command gcpkms-double is the double of Google Cloud KMS (package kmstest) as a process of its own:
//
//	gcpkms-double --key vendor.key &
//	hsmsign key test --key 'gcpkms://projects/test/locations/global/keyRings/mdm/cryptoKeys/vendor/cryptoKeyVersions/1?endpoint=127.0.0.1:9010'
//
// It prints its address and runs until it is interrupted. It is for tests: whoever reaches its port can sign.
package main

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"hsmsign/signer/gcpkms/kmstest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "gcpkms-double:", err)
		stop()
		os.Exit(1)
	}
}

// run serves until ctx ends.
func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("gcpkms-double", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // main tells an error, once
	var config kmstest.Config
	flags.StringVar(&config.Listen, "listen", "127.0.0.1:9010", "`HOST:PORT` of a loopback address; port 0 takes a free one")
	flags.DurationVar(&config.Delay, "delay", 0, "`TIME` added to every answer, such as 10ms")
	flags.DurationVar(&config.Generation, "generation", 0, "`TIME` that a new key is PENDING_GENERATION, such as 5s")
	name := flags.String("name", "projects/test/locations/global/keyRings/mdm/cryptoKeys/vendor/cryptoKeyVersions/1", "resource `NAME` of the key of --key")
	file := flags.String("key", "", "`FILE` with an RSA key (PKCS#8 in PEM) to import")
	scripts := map[kmstest.Operation][]kmstest.Fault{}
	flags.Func("faults", "`SCRIPT` of what the next requests of an operation meet in this order, such as AsymmetricSign=throttle,delay=2s,ok; may be repeated", func(text string) error {
		op, script, err := kmstest.ParseScript(text)
		scripts[op] = append(scripts[op], script...)
		return err
	})
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		flags.SetOutput(out)
		flags.Usage()
		return nil
	} else if err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%q is no flag", flags.Arg(0))
	}
	server, err := kmstest.NewServer(config)
	if err != nil {
		return err
	}
	defer server.Close()
	if *file != "" {
		private, err := readKey(*file)
		if err != nil {
			return err
		}
		if err := server.AddKey(*name, private); err != nil {
			return err
		}
	}
	for op, script := range scripts {
		server.Script(op, script...)
	}
	if _, err := fmt.Fprintln(out, server.Addr()); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func readKey(path string) (*rsa.PrivateKey, error) {
	text, err := os.ReadFile(path) // #nosec G304 -- the user names the file
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("read %q: it is not PEM", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", path, err)
	}
	private, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("read %q: a %T; an RSA key is needed", path, parsed)
	}
	return private, nil
}
