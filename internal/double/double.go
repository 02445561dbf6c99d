// Package double is what the doubles of the key management services share: the script of faults, and the flags and the
// life of their programs.
package double

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
	"strings"
	"time"
)

// Options are the flags that all programs have.
type Options struct {
	Listen  string        // --listen
	Delay   time.Duration // --delay
	Scripts []string      // --faults, one element for each use
}

// Flags returns the flag set of a program with the flags of Options. example is a script of faults for the help text.
func Flags(program, listen, example string) (*flag.FlagSet, *Options) {
	o := &Options{}
	flags := flag.NewFlagSet(program, flag.ContinueOnError)
	flags.StringVar(&o.Listen, "listen", listen, "`HOST:PORT` to listen on; port 0 selects a free one")
	flags.DurationVar(&o.Delay, "delay", 0, "`TIME` added to every answer, such as 10ms")
	flags.Func("faults", "`SCRIPT` of faults for the next requests of an operation, in order, such as "+example+"; may be repeated",
		func(text string) error { o.Scripts = append(o.Scripts, text); return nil })
	return flags, o
}

// Parse parses the flags. Help is written to out, and is the error flag.ErrHelp.
func Parse(flags *flag.FlagSet, args []string, out io.Writer) error {
	flags.SetOutput(io.Discard) // main prints an error, once
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		flags.SetOutput(out)
		flags.Usage()
	case err == nil && flags.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	return err
}

// Server is a double. F is its type of faults.
type Server[F ~string] interface {
	// AddKey imports a key under a name and returns its full name.
	AddKey(name string, private *rsa.PrivateKey) (string, error)
	Script(operation string, faults ...F) error
}

// Import adds the RSA key in a file (PKCS#8 in PEM) to a server and returns its full name.
func Import[F ~string](server Server[F], name, path string) (string, error) {
	text, err := os.ReadFile(path) // #nosec G304 -- the file that the user names
	if err != nil {
		return "", err
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" {
		return "", fmt.Errorf("%q contains no private key in PKCS#8 and PEM", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return "", fmt.Errorf("%q: %w", path, err)
	}
	private, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return "", fmt.Errorf("%q contains a key of type %T, not RSA", path, parsed)
	}
	return server.AddKey(name, private)
}

// Serve adds the scripts of the flags to a server, prints the lines, and returns when ctx ends.
func Serve[F ~string](ctx context.Context, server Server[F], o *Options, out io.Writer, lines ...string) error {
	for _, text := range o.Scripts {
		operation, list, ok := strings.Cut(text, "=")
		if !ok {
			return fmt.Errorf("faults %q: write OPERATION=FAULT,FAULT", text)
		}
		var faults []F
		for _, name := range strings.Split(list, ",") {
			faults = append(faults, F(name))
		}
		if err := server.Script(operation, faults...); err != nil {
			return fmt.Errorf("faults %q: %w", text, err)
		}
	}
	if _, err := fmt.Fprintln(out, strings.Join(lines, "\n")); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}
