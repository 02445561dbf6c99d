// Command gcpkms-double is the double of Google Cloud KMS (package kmstest) as a process of its own:
//
//	gcpkms-double --key vendor.key &
//	hsmsign key test --key 'gcpkms://projects/test/locations/global/keyRings/mdm/cryptoKeys/vendor/cryptoKeyVersions/1?endpoint=127.0.0.1:9010'
//
// It prints its address and runs until it is interrupted. It is for tests: whoever reaches its port can sign.
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
	flags := flag.NewFlagSet("gcpkms-double", flag.ContinueOnError)
	var config gcpkmstest.Config
	flags.StringVar(&config.Listen, "listen", "127.0.0.1:9010", "`HOST:PORT` of a loopback address; port 0 takes a free one")
	flags.DurationVar(&config.Delay, "delay", 0, "`TIME` added to every answer, such as 10ms")
	flags.DurationVar(&config.Generation, "generation", 0, "`TIME` that a new key is PENDING_GENERATION, such as 5s")
	name := flags.String("name", "projects/test/locations/global/keyRings/mdm/cryptoKeys/vendor/cryptoKeyVersions/1", "resource `NAME` of the key of --key")
	file := flags.String("key", "", "`FILE` with an RSA key (PKCS#8 in PEM) to import")
	scripts := map[gcpkmstest.Operation][]gcpkmstest.Fault{}
	flags.Func("faults", "`SCRIPT` of what the next requests of an operation meet in this order, such as AsymmetricSign=throttle,delay=2s,ok; may be repeated", func(text string) error {
		op, script, err := gcpkmstest.ParseScript(text)
		scripts[op] = append(scripts[op], script...)
		return err
	})
	if err := double.Parse(flags, args, out); err != nil {
		return err
	}
	server, err := gcpkmstest.NewServer(config)
	if err != nil {
		return err
	}
	defer server.Close()
	if *file != "" {
		private, err := double.ReadKey(*file)
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
