// Command awskms-double runs the double of AWS KMS (package awskmstest) as a process until it is interrupted.
//
//	awskms-double --key alias/mdm-vendor=vendor.key
//
// It prints its URL, the access key and the secret key that clients sign with, and the ARNs of the keys, each on one
// line. It is for tests: the imported keys are in its memory, and everyone who can reach the address can use them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"hsmsign/internal/double"
	"hsmsign/signer/awskms/awskmstest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "awskms-double:", err)
		stop()
		os.Exit(1)
	}
}

// run serves until ctx ends.
func run(ctx context.Context, args []string, out io.Writer) error {
	flags, options := double.Flags("awskms-double", "127.0.0.1:8080", "Sign=ThrottlingException,delay=2s,ok,reset")
	region := flags.String("region", "eu-west-1", "`REGION` of the keys")
	var keys []string
	flags.Func("key", "`[alias/NAME=]FILE` with an RSA key (PKCS#8 in PEM) to import; may be repeated",
		func(v string) error { keys = append(keys, v); return nil })
	if err := double.Parse(flags, args, out); err != nil {
		return err
	}
	server, err := awskmstest.NewServer(awskmstest.Config{Listen: options.Listen, Delay: options.Delay, Region: *region})
	if err != nil {
		return err
	}
	defer server.Close() //nolint:errcheck // the process ends
	lines := []string{server.Endpoint(), "AWS_ACCESS_KEY_ID=" + awskmstest.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + awskmstest.SecretAccessKey}
	for _, argument := range keys {
		alias, path, named := strings.Cut(argument, "=")
		if !named {
			alias, path = "", argument
		}
		arn, err := double.Import(server, alias, path)
		if err != nil {
			return err
		}
		lines = append(lines, arn)
	}
	return double.Serve(ctx, server, options, out, lines...)
}
