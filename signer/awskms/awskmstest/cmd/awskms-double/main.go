// Command awskms-double runs package kmstest's double of AWS KMS as a process of its own, until it is interrupted.
//
//	awskms-double --key alias/mdm-vendor=vendor.key
//
// It prints its URL, the access key and the secret that clients sign with, and the ARNs of the keys, a line each. It is
// for tests: the keys it is given lie in its memory, and anybody who can reach the address may use them.
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
	var config awskmstest.Config
	var keys, faults []string
	flags := flag.NewFlagSet("awskms-double", flag.ContinueOnError)
	flags.StringVar(&config.Listen, "listen", "127.0.0.1:8080", "`HOST:PORT` to listen on; port 0 takes a free one")
	flags.StringVar(&config.Region, "region", "eu-west-1", "`REGION` of the keys")
	flags.DurationVar(&config.Delay, "delay", 0, "`TIME` added to every answer, such as 10ms")
	several := func(to *[]string) func(string) error {
		return func(v string) error { *to = append(*to, v); return nil }
	}
	flags.Func("key", "`[alias/NAME=]FILE` with an RSA key (PKCS#8 in PEM) to import; may be repeated", several(&keys))
	flags.Func("faults", "`SCRIPT` of what the next requests of an operation meet in this order, such as Sign=ThrottlingException,delay=2s,ok,reset; may be repeated", several(&faults))
	if err := double.Parse(flags, args, out); err != nil {
		return err
	}
	server, err := awskmstest.NewServer(config)
	if err != nil {
		return err
	}
	defer server.Close() //nolint:errcheck // the process ends
	lines := []string{server.URL(), "AWS_ACCESS_KEY_ID=" + awskmstest.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + awskmstest.SecretAccessKey}
	for _, k := range keys {
		arn, err := importKey(server, k)
		if err != nil {
			return err
		}
		lines = append(lines, arn)
	}
	for _, script := range faults {
		if err := addScript(server, script); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintln(out, strings.Join(lines, "\n")); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func importKey(server *awskmstest.Server, argument string) (arn string, err error) {
	alias, path, named := strings.Cut(argument, "=")
	if !named {
		alias, path = "", argument
	}
	private, err := double.ReadKey(path)
	if err != nil {
		return "", err
	}
	return server.AddKey(alias, private)
}

func addScript(server *awskmstest.Server, argument string) error {
	operation, list, ok := strings.Cut(argument, "=")
	if !ok {
		return fmt.Errorf("faults %q: not of the form OPERATION=FAULT,FAULT", argument)
	}
	var script []awskmstest.Fault
	for _, name := range strings.Split(list, ",") {
		script = append(script, awskmstest.Fault(name))
	}
	return server.Script(operation, script...)
}
